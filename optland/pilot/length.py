"""The update just made: how long it is relative to the weights, and another length for it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optland import vectors
from optland.pilot.measure import WeightsBefore, norms, relative_speed

__all__ = ["Lengths"]


class Lengths:
    """Measures and rescales updates on the device, where the weights before them were copied."""

    def __init__(self) -> None:
        self._of: list[Tensor] = []
        self._sizes = self._matrices = torch.zeros(0)

    def _layout(self, params: list[Tensor], device: torch.device) -> None:
        if len(params) == len(self._of) and all(p is q for p, q in zip(params, self._of, strict=True)):
            return
        matrices = [i for i, p in enumerate(params) if p.ndim >= 2] or list(range(len(params)))
        self._of = list(params)
        self._sizes = torch.tensor([math.sqrt(p.numel()) for p in params], device=device)
        self._matrices = torch.tensor(matrices, device=device)

    @vectors.no_graph
    def measure(self, before: WeightsBefore) -> tuple[Tensor, Tensor]:
        """Relative speed R and |d| / |w| of the update, with the weights left alone."""
        moved = torch._foreach_sub([p.detach() for p in before.params], before.copies)
        return self._relative(before, moved)

    def _relative(
        self, before: WeightsBefore, moved: list[Tensor] | tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        weights = norms(before.copies)
        self._layout(before.params, weights.device)
        return relative_speed(
            norms(list(moved)).to(weights.dtype), weights, self._sizes.to(weights.dtype), self._matrices
        )

    @vectors.no_graph
    def rescale(
        self, before: WeightsBefore, target: float, trial: float, most: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Give the update the relative length ``target``: w <- w_before + c (w_after - w_before), c = target / R.

        Exact for every optimizer whose move is linear in the learning rate (SGD, Adam, AdamW, SAM on them). Nothing
        waits for the device.

        Args:
            before: The weights before the update.
            target: Root-sum-square over tensors of relative moves that it shall have.
            trial: Learning rate that it was made at.
            most: Largest learning rate that it may have been made at.

        Returns:
            R per unit of learning rate, |d| / |w| and the learning rate that the update now has.
        """
        params, copies = [p.detach() for p in before.params], before.copies
        torch._foreach_sub_(params, copies)  # in place: no memory for the move beside the copy
        speed, relative = self._relative(before, params)
        factor = torch.where((speed > 0) & speed.isfinite(), target / speed, 0.0)
        if most < math.inf:
            factor = factor.clamp(max=most / trial)
        if all(p.device == factor.device and p.dtype == factor.dtype and type(p) is Tensor for p in params):
            torch._foreach_mul_(params, factor)
        else:
            for p in params:
                p.mul_(factor.to(device=p.device, dtype=p.dtype))
        torch._foreach_add_(params, copies)
        return speed / trial, relative * factor, factor * trial
