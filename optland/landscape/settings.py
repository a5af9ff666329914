"""Settings of landscape probes for configurations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CurveConfig"]


@dataclass(frozen=True)
class CurveConfig:
    """The curve between the two nets.

    Attributes:
        kind: ``bezier`` or ``chain``.
        bends: Control points between the ends.
        minimise: ``mean``, ``arc`` or ``max``.
        steps: Training steps of the curve.
        lr: Its learning rate.
        threshold: Connected: the loss stays below this multiple of the worse end's.
    """

    kind: Literal["bezier", "chain"] = "bezier"
    bends: int = 1
    minimise: Literal["mean", "arc", "max"] = "mean"
    steps: int = 300
    lr: float = 0.005
    threshold: float = 1.1

    def __post_init__(self) -> None:
        if self.bends < 1 or self.steps < 1 or not self.lr > 0 or not self.threshold > 1:
            raise ValueError(
                f"curve: bends {self.bends} and steps {self.steps} must be at least 1, lr {self.lr} above 0 and "
                f"threshold {self.threshold} above 1"
            )
