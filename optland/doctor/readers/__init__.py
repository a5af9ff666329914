"""Logs as histories: run folders of optland, and what transformers, Lightning, TensorBoard and W&B leave behind."""

from __future__ import annotations

from optland.doctor.readers.read import Log, read_log

__all__ = ["Log", "read_log"]
