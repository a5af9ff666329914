r"""The largest step along a direction that does not raise the loss, from a handful of forward passes.

.. math:: t_c = \max \{ t > 0 : L(\theta + t\,d) \le L(\theta) \}, \qquad
          t_c = \frac{-2\, g^\top d}{d^\top H d} \quad \text{on a quadratic.}

With d the update that an optimizer just made, t_c is the learning rate at which this update would stop
helping, as a multiple of the present one; 2 / (lr t_c) is the critical sharpness.

**How.** The mean slope s(t) = (L(t) - L(0)) / t is, on a quadratic, a straight line whose root is t_c. The
search doubles or halves until s changes sign, then tries the secant root of s, nudged by half the tolerance
to the side that closes the bracket. Three forwards locate a quadratic's root, five enclose it to ``rtol``.

**Cost.** At most ``max_forwards`` forwards (a third of a gradient evaluation per sample each) and two copies of
the weights. No backward pass, so it works with every attention kernel, sharding and precision.

**When.** As a ceiling for the learning rate of any optimizer. It sees the curvature of one direction only:
for d = -g on a quadratic 2/t_c is the gradient's Rayleigh quotient, never above the largest eigenvalue.

**Defaults.** ``rtol`` 0.1, since t_c moves by more than that between batches; ``max_forwards`` 6, one more
than a quadratic needs from a start within a factor of two.

**Caveats.** The batch that made the update overstates t_c; ``objective.data`` should say which batch was
used. Where the loss crosses its first value several times, one crossing is enclosed, not surely the last.
Differences below a few units of rounding of L count as level.

**References.** Kalra et al. 2026, arXiv:2601.16979 (critical sharpness); Roulet et al. 2024,
arXiv:2407.06183.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from optland import vectors
from optland.archive import Archived
from optland.curvature.cost import costs
from optland.estimate import Estimate
from optland.objective import FORWARD_GE, Objective
from optland.vectors import Vector
from optland.words import Words

__all__ = [
    "CriticalStep",
    "Status",
    "critical_step",
]


class Status(Words):
    """How the search ended."""

    RESOLVED = "resolved"
    NOT_DESCENT = "not_descent"
    UNBOUNDED = "unbounded"
    NONFINITE = "nonfinite"
    FLAT = "flat"


GROWTH = 8.0
"""Largest factor between consecutive trials outside a bracket; the secant is no guide further away."""

ROUNDING = 4.0
"""Differences of the loss up to this many units of rounding of L are level, neither a rise nor a fall."""

COARSE = 1e-3
"""Rounding of the loss, relative to it, from which on a level trial is no sign of the root."""

NOTES: dict[Status, str] = {
    Status.RESOLVED: "",
    Status.NOT_DESCENT: "No trial lowered the loss: the crossing, if any, lies below the smallest trial.",
    Status.UNBOUNDED: "The loss rose at no trial: the value is a lower bound.",
    Status.NONFINITE: "The direction, or the loss at the origin or at every trial, is not finite.",
    Status.FLAT: "No trial differs from the first loss by more than rounding.",
}


@dataclass(frozen=True, slots=True)
class CriticalStep(Archived):
    """The result of the search along one direction.

    Attributes:
        step: t_c in multiples of the direction; its error is the distance to the farther end of the bracket.
            When no trial lowered the loss it is the middle of the bracket; when none raised it, the largest
            trial, a lower bound of unknown error; NaN when flat or not finite.
        status: ``resolved`` (a fall and a rise enclose t_c), ``not_descent`` (some trial rose, none fell),
            ``unbounded`` (some fell, none rose), ``flat`` (none differs from L by more than rounding), or
            ``nonfinite`` (the direction, or the loss at the origin or at every trial, is not finite).
        bracket: (largest t that did not raise the loss, smallest t that did); (0, inf) where none was found.
        losses: (t, L(t)) in the order of evaluation, t = 0 first (also when it was given).
        cost_ge: Gradient evaluations spent.
        num_forwards: Passes over the objective's data.
    """

    step: Estimate
    status: Status
    bracket: tuple[float, float]
    losses: tuple[tuple[float, float], ...]
    cost_ge: float
    num_forwards: int

    def __str__(self) -> str:
        return f"critical step {self.step} [{self.status}, {self.num_forwards} forwards]"


def _cost(objective: Objective, max_forwards: int = 6) -> float:
    """The most that :func:`critical_step` can cost, in gradient evaluations, known before it runs."""
    return FORWARD_GE * max_forwards * objective.num_samples


@costs(_cost)
def critical_step(
    objective: Objective,
    direction: Vector,
    *,
    origin: Vector | None = None,
    initial_step: float = 1.0,
    rtol: float = 0.1,
    max_forwards: int = 6,
    base_loss: float | None = None,
) -> CriticalStep:
    """Find the largest multiple of ``direction`` that does not raise the loss.

    Args:
        objective: The loss to look at.
        direction: d, in the shapes of the parameters: an update, so -lr * gradient and not the gradient.
        origin: Where the line starts (default: the current weights), for example the weights before the step.
        initial_step: First trial, in multiples of d; the previous t_c makes the search warm.
        rtol: Wanted distance from t_c to either end of the bracket, relative to t_c.
        max_forwards: Most forward passes over the data, the one at the origin included.
        base_loss: L at the origin if known (same data, mode and precision): saves one forward.

    Returns:
        A :class:`CriticalStep`. The weights are bit-identical to before the call.

    Raises:
        ValueError: ``initial_step`` or ``rtol`` is not positive, ``max_forwards`` leaves no trial, or the shapes of
            ``direction`` or ``origin`` are not those of the parameters.

    Example:
        >>> from optland.problems import quadratic
        >>> L = quadratic(torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64)))
        >>> g = L.gradient()[0]                        # (1, 4), so t_c = 2 g'g / g'Hg = 34/65
        >>> print(critical_step(L, [-g]))
        critical step 0.5231 ± 0.0262 (bracket) [resolved, 4 forwards]
    """
    _check(initial_step, rtol, max_forwards - (base_loss is None))
    direction = vectors.require_shapes(direction, objective.params, "direction")
    start_at = objective.params if origin is None else origin
    line = _Line(objective, direction, vectors.require_shapes(start_at, objective.params, "origin"))
    length = float(vectors.norm(direction))
    base = base_loss if base_loss is not None else line(0.0) if math.isfinite(length) else math.nan
    search = _Search(
        base, initial_step, rtol, ROUNDING * torch.finfo(objective.params[0].dtype).eps * abs(base)
    )
    # A zero update (a warm-up that starts at lr 0) has no trial worth a forward; nor has one that overflowed.
    if 0.0 < length < math.inf and math.isfinite(base):
        while line.num_forwards < max_forwards and not search.done:
            t = search.next_trial()
            search.record(t, line(t))
    return _result(search, line)


class _Line:
    """The loss along theta + t d, and the number of forwards it took."""

    def __init__(self, objective: Objective, direction: Vector, origin: Vector) -> None:
        self.objective, self.direction, self.origin = objective, direction, origin
        self.cost_before, self.num_forwards = objective.cost_ge, 0

    def __call__(self, t: float) -> float:
        self.num_forwards += 1
        return self.objective.value(vectors.combine([1.0, t], [self.origin, self.direction]))


@dataclass
class _Search:
    """Bracketing root search on the mean slope s(t) = (L(t) - L(0)) / t."""

    base: float  # L(0)
    start: float
    rtol: float
    floor: float  # differences of the loss up to this size are rounding
    trials: list[tuple[float, float]] = field(default_factory=list)
    lo: float = 0.0  # largest t that did not raise the loss
    hi: float = math.inf  # smallest t that did
    fell: bool = False  # whether some trial lowered it
    stalled: bool = False  # whether the last trial left more than half of the bracket

    def record(self, t: float, loss: float) -> None:
        """Take in a trial. A loss that is NaN counts as a rise: such a step does not keep the loss low."""
        cuts = self.enclosed and self.lo < t
        before = math.log(self.hi / self.lo) if cuts else math.inf
        self.trials.append((t, loss))
        if loss - self.base <= self.floor:
            self.lo = max(self.lo, t)
        else:
            self.hi = min(self.hi, t)
        self.fell = self.fell or loss - self.base < -self.floor
        self.stalled = cuts and math.log(self.hi / self.lo) > before / 2

    @property
    def enclosed(self) -> bool:
        return self.lo > 0.0 and self.hi < math.inf

    @property
    def done(self) -> bool:
        if self.enclosed and not self.fell:
            # Level, then a rise: a second level trial below shows that the first was not just the crossing.
            return sum(t <= self.lo for t, _ in self.trials) > 1
        return self.enclosed and self.error <= self.rtol * self.value

    def slope(self, t: float) -> float:
        return (dict(self.trials)[t] - self.base) / t

    def root(self, a: float, b: float) -> float:
        """Root of the line through (a, s(a)) and (b, s(b)), t_c itself on a quadratic; NaN if not rising."""
        sa, sb = self.slope(a), self.slope(b)
        return (a * sb - b * sa) / (sb - sa) if sb > sa and math.isfinite(sb - sa) else math.nan

    def next_trial(self) -> float:
        if not self.trials:
            return self.start
        if self.enclosed:
            return self._inside() if self.fell else min(t for t, _ in self.trials) / 2
        return self._above() if self.hi == math.inf else self._below()

    def _above(self) -> float:
        """Nothing rose yet: double, then follow the secant to just beyond its root."""
        if len(self.trials) == 1:
            return 2 * self.lo
        a, b = sorted(t for t, _ in self.trials)[-2:]
        beyond = self.root(a, b) * (1 + self.rtol / 2)
        return min(max(beyond, b * (1 + self.rtol)), GROWTH * b) if beyond > b else GROWTH * b

    def _below(self) -> float:
        """Everything rose: halve, then follow the secant to just short of its root."""
        if len(self.trials) == 1:
            return self.hi / 2
        a, b = sorted(t for t, _ in self.trials)[:2]
        short = self.root(a, b) * (1 - self.rtol / 2)
        return min(max(short, a / GROWTH), a / (1 + self.rtol)) if short > 0 else a / GROWTH

    def _inside(self) -> float:
        """Enclosed: cut the farther side close to the secant root, or bisect when that stalls."""
        middle = math.sqrt(self.lo * self.hi)
        if self.stalled or not math.isfinite(self.slope(self.hi)):
            return middle
        r = self.root(self.lo, self.hi)
        far_above = self.hi / r > r / self.lo
        trial = r * (1 + self.rtol / 2) if far_above else r * (1 - self.rtol / 2)
        return trial if self.lo < trial < self.hi else middle

    @property
    def status(self) -> Status:
        if not math.isfinite(self.base) or (
            self.trials and not any(math.isfinite(v) for _, v in self.trials)
        ):
            return Status.NONFINITE
        if self.hi == math.inf:
            return Status.UNBOUNDED if self.fell else Status.FLAT
        return Status.RESOLVED if self.fell else Status.NOT_DESCENT

    @property
    def value(self) -> float:
        match self.status:
            case Status.RESOLVED:
                r = self.root(self.lo, self.hi)
                return r if math.isfinite(r) else math.sqrt(self.lo * self.hi)
            case Status.NOT_DESCENT:
                return (self.lo + self.hi) / 2
            case Status.UNBOUNDED:
                return self.lo
        return math.nan

    @property
    def error(self) -> float:
        if self.hi == math.inf:
            return math.nan
        # In half precision many trials are level within rounding, and may lie on either side.
        coarse = self.status is Status.RESOLVED and self.floor > COARSE * abs(self.base)
        fallen = [t for t, loss in self.trials if t <= self.lo and loss - self.base < -self.floor]
        sure = max(fallen) if coarse and fallen else self.lo
        return max(self.value - sure, self.hi - self.value)


def _result(search: _Search, line: _Line) -> CriticalStep:
    objective, status = line.objective, search.status
    cost = objective.cost_ge - line.cost_before
    step = Estimate(
        value=search.value,
        error=search.error,
        error_kind="bracket" if status in (Status.RESOLVED, Status.NOT_DESCENT) else "none",
        converged=status is Status.RESOLVED and search.error <= search.rtol * search.value,
        cost_ge=cost,
        provenance=objective.provenance("bracketed secant on the loss, forward only", objective.seed),
        note=NOTES[status],
    )
    losses = ((0.0, search.base), *search.trials)
    return CriticalStep(step, status, (search.lo, search.hi), losses, cost, line.num_forwards)


def _check(start: float, rtol: float, num_trials: int) -> None:
    if not (start > 0 and math.isfinite(start)):
        raise ValueError(
            f"initial_step={start} must be positive: it is the first trial in multiples of the direction"
        )
    if not rtol > 0:
        raise ValueError(f"rtol={rtol} must be positive")
    if num_trials < 1:
        raise ValueError(
            "max_forwards leaves no trial beside the loss at the origin; use at least 2, or give base_loss"
        )
