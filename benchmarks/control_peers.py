"""Two more peer methods for benchmarks/control.py, as their packages ship them.

==========  ==========================================================================================================
method      what it is
==========  ==========================================================================================================
greedy_lr   GreedyLR of transformers: up while the loss gets better, down while it does not (2512.14527). It is given
            the smoothed training loss of every step, from the default rate of the framework, 1e-3
dog         DoG, distance over gradients, with the average of its weights that its authors ask for (2302.12022);
            one run serves both optimizers of a task
==========  ==========================================================================================================
"""

from __future__ import annotations

from typing import Any

import torch
from control_runs import OPTIMIZERS, Cell, Method, Setup
from control_tasks import Problem

__all__ = ["PEERS"]


class _Greedy:
    """Takes the place of ReduceLROnPlateau in the loop, at every step."""

    every_step = True

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        from transformers.optimization import GreedyLR

        self.scheduler = GreedyLR(optimizer, smooth=True)

    def step(self, loss: float) -> None:
        self.scheduler.step(loss)


def _greedy(cell: Cell, problem: Problem) -> Setup:
    optimizer = OPTIMIZERS[cell.optimizer](cell, problem.model, 1e-3)
    return Setup(optimizer, plateau=_Greedy(optimizer), samples=cell.samples)


def _dog(cell: Cell, problem: Problem) -> Setup:
    from dog import DoG, PolynomialDecayAverager

    class Averaged(DoG):
        """The average of the weights comes with each step, and takes their place for scoring."""

        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__(model.parameters())
            self._averager = PolynomialDecayAverager(model)

        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            self._averager.step()
            return loss

        @torch.no_grad()
        def eval(self) -> None:
            for p, mean in zip(
                problem.model.parameters(), self._averager.averaged_model.parameters(), strict=True
            ):
                p.copy_(mean)

    return Setup(Averaged(problem.model), samples=cell.samples)


PEERS: dict[str, Method] = {"greedy_lr": _greedy, "dog": _dog}
"""Methods by name."""
