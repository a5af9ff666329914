"""Reports an error to its first order."""

from __future__ import annotations

from optland.log.child import Post


def main() -> None:
    post = Post(lambda: None)
    next(post.orders())
    post.report("failed", "PermissionError", "not yours")
