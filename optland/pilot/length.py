"""Measure the length of the update just made relative to the weights, and rescale it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optland import vectors
from optland.pilot.measure import Layout, WeightsBefore, norms, relative_speed

__all__ = ["Lengths"]

Number = Tensor | float


class Lengths:
    """Measures and rescales updates on the device, where the weights before them were copied."""

    def __init__(self) -> None:
        self._layout = Layout([])
        self._factor = torch.zeros(
            ()
        )  # kept from one update to the next: making one costs as much as a small product

    def _relative(self, before: WeightsBefore, moved: list[Tensor]) -> tuple[Number, Number]:
        if not self._layout.fits(before.params):
            self._layout = Layout(before.params)
        return relative_speed(norms([*moved, *before.copies], simple=self._layout.simple), self._layout)

    @vectors.no_graph
    def measure(self, before: WeightsBefore) -> tuple[Number, Number]:
        """Relative speed R and |d| / |w| of the update, with the weights left alone."""
        moved = torch._foreach_sub(before.params, before.copies)
        return self._relative(before, list(moved))

    @vectors.no_graph
    def rescale(
        self, before: WeightsBefore, target: float, trial: float, most: float
    ) -> tuple[Number, Number, Number]:
        """Give the update the relative length ``target``: w <- w_before + c (w_after - w_before), c = target / R.

        Exact for every optimizer whose move is linear in the learning rate (SGD, Adam, AdamW, SAM on them). Nothing
        waits for the device.

        Args:
            before: The weights before the update.
            target: Wanted root-sum-square over tensors of the relative moves.
            trial: Learning rate that it was made at.
            most: Largest learning rate that it may have been made at.

        Returns:
            R per unit of learning rate, |d| / |w| and the learning rate that the update now has.
        """
        params, copies = before.params, before.copies
        torch._foreach_sub_(params, copies)  # in place: no memory for the move beside the copy
        speed, relative = self._relative(before, params)
        if isinstance(speed, Tensor):
            factor: Number = torch.where((speed > 0) & speed.isfinite(), target / speed, 0.0).clamp(
                max=most / trial
            )
        else:
            factor = min(target / speed, most / trial) if 0 < speed < math.inf else 0.0
        self._scale(params, factor)
        torch._foreach_add_(params, copies)
        return speed / trial, relative * factor, factor * trial

    def _scale(self, moves: list[Tensor], factor: Number) -> None:
        if not isinstance(factor, Tensor) and factor == 0.0:
            torch._foreach_zero_(moves)  # also where the move holds NaN: the update is taken back bit for bit
        elif not isinstance(factor, Tensor) or self._layout.simple:
            torch._foreach_mul_(moves, factor if isinstance(factor, Tensor) else self._kept(factor, moves[0]))
        else:
            for move in moves:
                move.mul_(factor.to(device=move.device, dtype=move.dtype))

    def _kept(self, factor: float, move: Tensor) -> Tensor:
        """The factor as a tensor of their type, which is faster than a number and has all the digits that they have."""
        kind = move.dtype if self._layout.simple else torch.float64
        if self._factor.dtype != kind:
            self._factor = torch.zeros((), dtype=kind)
        return self._factor.fill_(factor)
