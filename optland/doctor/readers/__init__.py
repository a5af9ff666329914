"""Logs as histories: run folders of optland, and what transformers, Lightning, TensorBoard and W&B leave behind."""

from __future__ import annotations
