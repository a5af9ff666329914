r"""``keep_old``: fine-tune within a budget for the loss of the old task, read from two forwards along each update.

.. math:: L_{old}(w + t u) - L_{old}(w) \approx a t + \tfrac12 c t^2, \qquad
          t_{max} = \frac{-a + \sqrt{a^2 + 2 c b}}{c}

u is the realised update, whatever the optimizer made of it; slope a and curvature c come from the old loss at w, w + u
and w + 2 u on kept data. b is the share of what is left of the budget that falls to one update: what is left over the
updates that are left. Until the next look updates are shortened to t_max, and go on as they are where t_max is above 1.

**Cost.** Three forwards over the kept data at each look: with 128 kept samples, every 10 updates of 64 samples, a fifth
of the training.

**Caveats.** A trial, not a policy of the pilot: ``benchmarks/finetune.py`` says what it does beside replay of the same
data and interpolation, which need no such rule. Between looks the old loss is not watched.

Reference: Kalra et al. 2026, arXiv:2601.16979 (curvature of one loss along the update of another).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from optland import vectors
from optland.objective import Objective

__all__ = ["KeepOld", "longest"]

LEAST = 0.01
"""Shortest updates, relative to full ones: without any there would be nothing to look along."""


def longest(a: float, c: float, b: float) -> float:
    """The largest t with a t + c t^2 / 2 <= b on all of (0, t]; infinity where there is no limit.

    Args:
        a: Slope of the old loss along the update, in loss per update.
        c: Curvature along it, in loss per update squared.
        b: What the update may cost, in loss.

    Returns:
        t in units of the full update. 0 where nothing may be spent and the loss rises; infinity where the parabola
        never reaches b.

    Example:
        >>> longest(1.0, 2.0, 2.0), longest(2.0, 0.0, 1.0), longest(-1.0, 0.0, 0.0)
        (1.0, 0.5, inf)
    """
    if b <= 0 and (a > 0 or (a == 0 and c > 0)):
        return 0.0
    root = a * a + 2 * c * b
    if root < 0:  # a slope that bends down before it has cost b
        return math.inf
    # The form without cancellation: for a >= 0 the numerator of the other would be a small difference.
    divisor = a + math.sqrt(root)
    if divisor > 0:
        return 2 * b / divisor
    return -2 * a / c if c > 0 and a < 0 else math.inf


class KeepOld:
    """Shortens updates so that the loss on kept data of the old task rises by a stated share at most.

    Args:
        objective: The old loss, on kept data.
        total_steps: Updates of the whole fine-tuning.
        budget: Rise of the old loss that is allowed in all, as a share of it.
        every: Updates from one look to the next.

    Raises:
        ValueError: A budget that is negative, or fewer than one update.

    Attributes:
        factor: What the learning rate is multiplied with now.
    """

    def __init__(
        self, objective: Objective, total_steps: int, *, budget: float = 0.5, every: int = 10
    ) -> None:
        if not budget >= 0:
            raise ValueError(f"budget {budget}: use a share from 0, such as 0.5")
        if total_steps < 1 or every < 1:
            raise ValueError(f"total_steps {total_steps} and every {every} must be at least 1")
        self.objective, self.total, self.every = objective, total_steps, every
        self.factor, self.done = 1.0, 0
        self._start = objective.value()
        self._allowed = budget * self._start
        self._before: list[Tensor] | None = None

    def step(self, optimizer: Any, closure: Callable[[], Tensor]) -> Tensor:
        """``optimizer.step(closure)`` with a look along it where one is due; returns the loss.

        Args:
            optimizer: Steps the parameters of ``objective``; its learning rate is the caller's to multiply by
                :attr:`factor`.
            closure: Zeroes the gradients, goes backward and returns the loss.
        """
        self.before_step()
        loss: Tensor = optimizer.step(closure)
        self.after_step()
        return loss

    def before_step(self) -> None:
        """Keep the weights, where the update that follows is looked at."""
        if self.done % self.every == 0:
            self._before = vectors.clone(self.objective.params)

    def after_step(self) -> None:
        """Look along the update that was made, and set :attr:`factor` for the next ones.

        Where the old loss is not finite on the way the factor is halved, and not left below :data:`LEAST`.
        """
        self.done += 1
        if self._before is None:
            return
        L, before, self._before = self.objective, self._before, None
        u = vectors.subtract([p.detach() for p in L.params], before)
        u = vectors.scaled(1.0 / self.factor, u)  # at full length
        here = L.value()
        one, two = (L.value(L.displaced(u, t)) for t in (1.0, 2.0))
        if not all(map(math.isfinite, (here, one, two))):
            self.factor = max(LEAST, 0.5 * self.factor)
            return
        a, c = (-3 * here + 4 * one - two) / 2, here - 2 * one + two
        left = max(0.0, self._start + self._allowed - here) / max(1, self.total - self.done)
        self.factor = min(1.0, max(longest(a, c, left), LEAST))
