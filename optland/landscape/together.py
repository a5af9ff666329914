r"""Evaluate several points of a sweep in one call: a stack of weights under ``torch.func.vmap``.

A small net spends most of a forward on starting operations, not on computing. With a stack of weights each operation
starts once for all points, which makes a sweep of a small ResNet four times as fast and of an MLP twice; a net whose
forward takes more than a few milliseconds gains nothing, and slows down where its stack leaves the cache. Values agree
with those of single points up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from optland.objective import Objective
from optland.vectors import Vector

__all__ = ["stacked"]


class _Loss(nn.Module):
    """The loss sum of a batch as a module, so that its weights can be replaced by name."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.model = objective.model
        self.objective = [objective]  # in a list, so that no module looks into it

    def forward(self, batch: Any) -> Tensor:
        total, count = self.objective[0].loss(batch)
        return torch.stack([total.double(), torch.as_tensor(count, dtype=torch.float64, device=total.device)])


def stacked(
    objective: Objective, base: Vector, directions: Sequence[Vector]
) -> Callable[[Sequence[Sequence[float]]], Tensor]:
    """A function that gives the losses at several places, in one call for each batch.

    Args:
        objective: The loss, in eval mode.
        base: w.
        directions: d_i.

    Returns:
        (n, k) multiples of the k directions to n losses, in float64 on the CPU; a ValueError of it names a model that
        cannot be run with a stack of weights.

    Raises:
        ValueError: The objective is in train mode, whose masks and statistics would have to be those of each point.
    """
    if objective.mode != "eval":
        raise ValueError(
            "num_together above 1 needs an objective in eval mode; use num_together=1 in train mode"
        )
    module = _Loss(objective)
    names = [f"model.{name}" for name in objective.names]

    def at(place: Tensor, batch: Any) -> Tensor:
        weights = {
            name: w + sum(t * d for t, d in zip(place, ds, strict=True))
            for name, w, *ds in zip(names, base, *directions, strict=True)
        }
        found: Tensor = functional_call(module, weights, (batch,))
        return found

    def values(places: Sequence[Sequence[float]]) -> Tensor:
        points = torch.tensor(places, dtype=base[0].dtype, device=base[0].device)
        sums = torch.zeros(len(points), 2, dtype=torch.float64, device=points.device)
        for batch in objective.batches:
            try:
                sums += vmap(at, in_dims=(0, None), randomness="error")(points, batch)
            except RuntimeError as error:
                why = str(error).splitlines()[0]
                raise ValueError(
                    f"this model cannot be run with a stack of weights ({why}); use num_together=1"
                ) from error
        losses: Tensor = sums[:, 0] / sums[:, 1]
        return losses.cpu()

    return values
