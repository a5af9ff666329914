"""A data set as its reader gives it: images and labels, before splits and standardisation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["RawImages"]


@dataclass(frozen=True)
class RawImages:
    """A data set as it comes, before splits and standardisation.

    Attributes:
        x: Images ``(n, c, h, w)``, uint8 or float32.
        y: Labels ``(n,)``, int64.
        num_classes: Number of classes C; labels are 0 to C - 1.
        test: The official test split; None where the data set has none.
        num_val: Samples carved from ``x`` for validation; None takes a tenth.
        num_test: Samples carved from ``x`` for the test where there is no official split.
        table: Whether the pixels are the columns of a table, each with a unit of its own.
    """

    x: Tensor
    y: Tensor
    num_classes: int
    test: tuple[Tensor, Tensor] | None = None
    num_val: int | None = None
    num_test: int = 0
    table: bool = False
