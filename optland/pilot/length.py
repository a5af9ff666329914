r"""Measure the length of the update just made relative to the weights, and rescale it.

.. math:: d = w_\text{after} - w_\text{before}, \qquad
          R = \sqrt{\sum_l \bigl(\|d_l\| / \max(\|w_l\|, \phi_l)\bigr)^2}, \qquad
          w \leftarrow w_\text{before} + c \, d, \quad c = \min(r / R, \; \eta_\text{max} / \eta)

with r the length that was asked for, eta the rate that the step was made at and eta_max the cap in force. A step whose
move is linear in the rate then is the one that the rate c eta would have made.

**Cost.** No gradient and no wait. Over the weights: one copy before the step, one difference with two norms, one
product and sum. On the CPU the small tensors lie together (:mod:`optland.pilot.rows`), so that a model of many layers
pays for its numbers and not for their number of tensors; on other devices there is one kernel for all of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optland import vectors
from optland.pilot.measure import Layout, Number, WeightsBefore, norms, relative_speed, relative_speed_here
from optland.pilot.rows import Moves

__all__ = ["Lengths"]


class Lengths:
    """Measures and rescales updates on the device, where the weights before them were copied.

    What is known of the parameters (sizes, which of them are matrices) is worked out once for as long as they are the
    same ones.
    """

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
        """Relative speed R and |d| / |w| of the update, with the weights left alone.

        Args:
            before: The weights before the update, which has been made.

        Returns:
            Numbers where the weights live on the CPU, else tensors beside them; R counts weight matrices only.
        """
        if (here := self._here(before.moves)) is not None:
            for moves in before.moves:
                moves.forget()
            return here
        moved = torch._foreach_sub(before.params, before.copies)
        return self._relative(before, list(moved))

    def _here(self, moves: list[Moves]) -> tuple[float, float] | None:
        """The same as numbers, where the weights lie so that no tensor need be made for them; else None."""
        if not moves:
            return None
        order = moves[0].order if len(moves) == 1 else [p for block in moves for p in block.order]
        if not self._layout.fits(order):
            self._layout = Layout(order)
        if not self._layout.on_host:
            return None
        update, weights = moves[0].measure()
        for block in moves[1:]:
            more, heavier = block.measure()
            update, weights = update + more, weights + heavier
        return relative_speed_here(update, weights, self._layout)

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
        if (here := self._here(before.moves)) is not None:
            return self._rescale_here(before.moves, here, target, trial, most)
        params, copies = before.params, before.copies
        torch._foreach_sub_(params, copies)  # in place: no memory for the move beside the copy
        speed, relative = self._relative(before, params)
        if isinstance(speed, Tensor):
            factor: Number = torch.where((speed > 0) & speed.isfinite(), target / speed, 0.0).clamp(
                max=most / trial
            )
        else:
            factor = _factor(speed, target, trial, most)
        self._scale(params, factor)
        torch._foreach_add_(params, copies)
        return speed / trial, relative * factor, factor * trial

    def _rescale_here(
        self, moves: list[Moves], here: tuple[float, float], target: float, trial: float, most: float
    ) -> tuple[Number, Number, Number]:
        speed, relative = here
        factor = _factor(speed, target, trial, most)
        for block in moves:
            block.rescale(factor)
            block.forget()
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


def _factor(speed: float, target: float, trial: float, most: float) -> float:
    """The factor c of :meth:`Lengths.rescale`; 0 where the update has no length."""
    return min(target / speed, most / trial) if 0 < speed < math.inf else 0.0
