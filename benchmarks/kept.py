"""Where benchmarks keep the results of their finished runs, one per line."""

from __future__ import annotations

from pathlib import Path

from optland.train.experiments.kept import Kept

__all__ = ["SCRATCH", "Kept"]

SCRATCH = Path("runs/benchmarks")
