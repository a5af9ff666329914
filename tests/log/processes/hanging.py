"""Begins a run and hangs in its first row."""

from __future__ import annotations

from threading import Event

from optland.log.child import Post


def main() -> None:
    post = Post(lambda: None)
    post.report("ready")
    post.report("begun", "offline-run-x", "id")
    for name, *_ in post.orders():
        if name == "log":
            Event().wait()
