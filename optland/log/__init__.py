"""Logging: one vocabulary, and loggers for the console, a JSON-lines record and wandb."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optland.log.jsonl import JsonlLogger, read_jsonl
from optland.log.logger import Logger, NullLogger
from optland.log.targets import into
from optland.log.wandb_logger import WandbLogger

if TYPE_CHECKING:
    from optland.log.console import ConsoleLogger

__all__ = [
    "ConsoleLogger",
    "JsonlLogger",
    "Logger",
    "NullLogger",
    "WandbLogger",
    "into",
    "read_jsonl",
]


def __getattr__(name: str) -> Any:
    """Import the console logger, and rich with it, only for those who use it."""
    if name == "ConsoleLogger":
        from optland.log.console import ConsoleLogger

        return ConsoleLogger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
