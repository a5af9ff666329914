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
        num_bends: Control points between the ends.
        minimise: ``mean``, ``arc`` or ``max``.
        num_steps: Training steps of the curve.
        lr: Its learning rate.
        threshold: Connected: the loss stays below this multiple of the worse end's.
    """

    kind: Literal["bezier", "chain"] = "bezier"
    num_bends: int = 1
    minimise: Literal["mean", "arc", "max"] = "mean"
    num_steps: int = 300
    lr: float = 0.005
    threshold: float = 1.1

    def __post_init__(self) -> None:
        if self.num_bends < 1 or self.num_steps < 1 or not self.lr > 0 or not self.threshold > 1:
            raise ValueError(
                f"curve: num_bends {self.num_bends} and num_steps {self.num_steps} must be at least 1, "
                f"lr {self.lr} above 0 and threshold {self.threshold} above 1"
            )
