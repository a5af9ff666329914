r"""How much the loss after one step depends on the learning rate.

.. math:: f(\eta) = L(w + \eta d), \qquad d = -\nabla L(w) \text{ or a given direction}

On a quadratic f is a parabola: lowest at eta* = g'g / g'Hg, and back at L(w) at the critical rate 2 eta*. Rates run
over three powers of ten around it, so that the picture says how far off a rate may be.

**Cost.** A gradient where no direction is given, up to twelve forwards for the critical rate, and one per rate.

**Caveats.** One step, on these data: a rate that is best for one step is far above the one that trains best, and Adam's
step is another direction. A minimum has no such rate: its gradient is noise, and the curve says so by being flat.

References: Cauchy 1847 (the step that lowers most); Roulet et al. 2023, arXiv:2312.00209.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from optland import vectors
from optland.archive import Archived
from optland.curvature import critical_step
from optland.estimate import Estimate, Provenance
from optland.objective import Objective
from optland.vectors import Vector

__all__ = ["RateSensitivity", "rate_sensitivity"]

BELOW, ABOVE = 100.0, 10.0


@dataclass(frozen=True, slots=True)
class RateSensitivity(Archived):
    """Losses after one step, by learning rate.

    Attributes:
        rates: Learning rates, ascending by equal factors.
        losses: f at each of them, float64.
        centre: L at the weights themselves.
        critical: The rate at which a step no longer lowers the loss.
        status: Of the search for it, as in :class:`~optland.curvature.CriticalStep`.
        provenance: Data, mode, how.
        cost_ge: Gradient evaluations.
    """

    rates: Tensor
    losses: Tensor
    centre: float
    critical: Estimate
    status: str
    provenance: Provenance
    cost_ge: float

    @property
    def best(self) -> float:
        """The rate after whose step the loss is lowest; NaN where no step lowers it."""
        finite = torch.where(torch.isfinite(self.losses), self.losses, torch.full_like(self.losses, math.inf))
        place = int(finite.argmin())
        return float(self.rates[place]) if float(finite[place]) < self.centre else math.nan

    @property
    def width(self) -> float:
        """Factor between the largest and the smallest rate whose step gains at least half of the best one's gain."""
        gains = self.centre - self.losses
        gains = torch.where(torch.isfinite(gains), gains, torch.full_like(gains, -math.inf))
        most = float(gains.max())
        if most <= 0:
            return math.nan
        good = self.rates[gains >= 0.5 * most]
        return float(good[-1] / good[0])

    @property
    def shown(self) -> tuple[float, float]:
        """The losses that are worth a picture: from a little below the lowest to a little above the centre."""
        gain = self.centre - min([*filter(math.isfinite, self.losses.tolist()), self.centre])
        room = 0.01 * abs(self.centre)
        return self.centre - 1.2 * gain - room, self.centre + max(2 * gain, 5 * room, 1e-12)

    def __str__(self) -> str:
        return f"best rate {self.best:.3g}, critical {self.critical.value:.3g}, loss {self.centre:.4g}"


def rate_sensitivity(
    objective: Objective, direction: Vector | None = None, *, num_points: int = 25
) -> RateSensitivity:
    """The loss after one step, over learning rates.

    Args:
        objective: The loss, at the present weights.
        direction: What a rate of 1 would add to the weights; by default the negative gradient.
        num_points: Rates; 25, eight to a power of ten.

    Raises:
        ValueError: Fewer than 3 rates, or a direction of other shapes, that is not finite, or zero.

    Example:
        >>> from optland.problems import quadratic
        >>> L = quadratic(2.0 * torch.eye(3, dtype=torch.float64))
        >>> found = rate_sensitivity(L, num_points=301)
        >>> round(found.best, 2), round(found.critical.value, 1)    # 1 / lambda and 2 / lambda
        (0.5, 1.0)
    """
    if num_points < 3:
        raise ValueError(f"num_points {num_points} draws no curve; use at least 3, for example 25")
    spent = objective.cost_ge
    given = [-g for g in objective.gradient()] if direction is None else list(direction)
    length = float(vectors.norm(vectors.require_shapes(given, objective.params, "direction")))
    if not math.isfinite(length) or length == 0.0:
        raise ValueError(
            f"direction has the norm {length}; a rate means something only along one that is finite and not 0"
        )
    found = critical_step(
        objective, given, initial_step=_first_trial(objective, length), rtol=0.05, max_forwards=12
    )
    middle = found.step.value if math.isfinite(found.step.value) and found.step.value > 0 else 1.0
    rates = torch.logspace(
        math.log10(middle / BELOW), math.log10(middle * ABOVE), num_points, dtype=torch.float64
    )
    losses = [objective.value(objective.displaced(given, float(rate))) for rate in rates]
    what = "negative gradient" if direction is None else "given direction"
    return RateSensitivity(
        rates, torch.tensor(losses, dtype=torch.float64), found.losses[0][1], found.step, str(found.status),
        objective.provenance(f"losses along the {what}"), objective.cost_ge - spent,
    )  # fmt: skip


def _first_trial(objective: Objective, length: float) -> float:
    """A rate that moves the weights by a hundredth of their norm."""
    size = float(vectors.norm([p.detach() for p in objective.params]))
    return 0.01 * size / length if size > 0 else 1.0 / length
