r"""The rewind guard: a quarter of all progress lost means the step was too long; go back and halve the pace.

With L_ref the loss of the first step, m the bias-corrected moving average of the batch loss and b its running
minimum, there is trouble when the loss is not finite, or

.. math::
    L > 3\,L_\mathrm{ref} \quad\text{or}\quad
    m > b + \max\bigl(\tfrac14 (L_\mathrm{ref} - b),\ 0.05\,L_\mathrm{ref}\bigr).

The test is relative to the progress made so far, so it sees a collapse to the trivial predictor (loss back at ln C),
which "loss above its own average by half" misses. Halving without rewinding is not enough: dead units and a huge
momentum stay. Cost: none, the losses are those of the training steps.

Source: development runs on small image and text models; the constants are kept at the values fixed there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

__all__ = ["RewindGuard"]


@dataclass
class RewindGuard:
    """Watches the training loss and says when to rewind.

    Attributes:
        beta: Weight of the past in the loss average; 0.9.
        lost: Share of the progress whose loss is trouble; 0.25.
        slack: Share of the first loss that noise may take; 0.05.
        ceiling: Multiple of the first loss that is trouble at once; 3.
    """

    beta: float = 0.9
    lost: float = 0.25
    slack: float = 0.05
    ceiling: float = 3.0
    first: float = field(default=math.nan, init=False)
    best: float = field(default=math.inf, init=False)
    _sum: float = field(default=0.0, init=False)
    _weight: float = field(default=0.0, init=False)
    _count: int = field(default=0, init=False)

    @property
    def average(self) -> float:
        """The bias-corrected moving average m of the loss; NaN before the first."""
        return self._sum / self._weight if self._weight else math.nan

    def observe(self, loss: float) -> str | None:
        """Take in the loss of a step; returns None, or the trouble in words."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if math.isnan(self.first):
            self.first = loss
        if loss > self.ceiling * abs(self.first):
            return f"the loss {loss:.3g} is above {self.ceiling:g} times the first loss {self.first:.3g}"
        self._sum = self.beta * self._sum + (1 - self.beta) * loss
        self._weight = self.beta * self._weight + (1 - self.beta)
        self._count += 1
        self.best = min(self.best, self.average)
        if self._count < 3:
            return None
        limit = self.best + max(self.lost * (self.first - self.best), self.slack * abs(self.first))
        if self.average > limit:
            return (
                f"the average loss rose from {self.best:.3g} to {self.average:.3g}, "
                f"more than {self.lost:.0%} of all progress since {self.first:.3g}"
            )
        return None

    def mark(self) -> dict[str, float]:
        """The loss record that belongs to a snapshot of the weights."""
        return {"best": self.best, "sum": self._sum, "weight": self._weight, "count": self._count}

    def rewind(self, mark: dict[str, float]) -> None:
        """Go back to the loss record of a snapshot; the first loss stays."""
        self.best, self._sum = mark["best"], mark["sum"]
        self._weight, self._count = mark["weight"], int(mark["count"])

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for the checkpoint."""
        return {"first": self.first, **self.mark()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.first = state["first"]
        self.rewind(state)
