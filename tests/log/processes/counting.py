"""Reports every order, and its own view of the world, and writes down how it ended.

Orders: ``["note", file]`` names the file that says "ended" once the orders are over, ``["sleep", seconds]`` is slow.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from optland.log.child import Post


def main() -> None:
    post = Post(lambda: None, patience=0.5)
    note = None
    for name, *arguments in post.orders():
        sys.stdout.write("a stray print\n")
        if name == "note":
            note = Path(arguments[0])
        if name == "sleep":
            time.sleep(arguments[0])
        post.report(name, *arguments)
        if name == "world":
            post.report("modules", sorted(sys.modules), os.getppid() == post.parent)
    if note is not None:
        note.write_text("ended")
