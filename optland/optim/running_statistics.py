"""Detect running statistics that the second pass updates again because no ``model=`` was given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optland.context.modules import BATCH_NORMS
from optland.optim.alive import instances

__all__ = ["StatisticsWatch"]

_LAYERS = (*BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


class StatisticsWatch:
    """Looks at the first second pass of an optimizer without ``model=``, and at no other.

    It finds the batch and instance normalisation layers whose scale or shift is among the optimizer's parameters.
    Values are compared, as batch norm's kernel does not advance a version counter, and as the usual remedy (momentum 0
    in the second pass) writes what was there before.
    """

    def __init__(self) -> None:
        self._looked = False
        self._kept: list[tuple[nn.Module, Tensor]] = []

    def begin(self, params: Sequence[Tensor]) -> None:
        """The second pass begins."""
        if self._looked:
            return
        self._looked = True
        if _may_be_normalised(params):
            ours = {id(p) for p in params}
            self._kept = [
                (module, mean.clone())
                for module in instances(*_LAYERS)
                if module.training
                and (mean := _running_mean(module)) is not None
                and any(id(p) in ours for p in module.parameters(recurse=False))
            ]

    def end(self) -> str | None:
        """It is over; in words the layers that it has updated, None where there are none."""
        if not self._kept:
            return None
        kept, self._kept = self._kept, []
        written = Counter(
            type(module).__name__ for module, mean in kept if not torch.equal(_running_mean(module), mean)
        )
        return " and ".join(f"{number} {name}" for name, number in written.items()) or None


def _running_mean(module: nn.Module) -> Any:
    return module._buffers.get("running_mean")


def _may_be_normalised(params: Sequence[Tensor]) -> bool:
    """Whether there may be a scale and a shift of a layer: two vectors of one length."""
    lengths = [p.numel() for p in params if p.ndim == 1]
    return len(set(lengths)) < len(lengths)
