"""Ends without a word."""

from __future__ import annotations

import os

from optland.log.child import Post


def main() -> None:
    next(Post(lambda: None).orders())
    os._exit(7)
