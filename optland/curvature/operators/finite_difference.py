r"""Hessian products by differences of two gradients, for anything that has a gradient.

.. math:: H u \approx \frac{g(\theta + h u) - g(\theta - h u)}{2h}, \qquad
          \text{error} \approx \frac{\epsilon_g}{\sqrt 2\, h} + \frac{\kappa^2}{6} \|H u\|, \quad
          \kappa = \frac{\|g(\theta + h u) + g(\theta - h u) - 2 g(\theta)\|}{h\, \|H u\|}

**How.** The rounding of one gradient, :math:`\epsilon_g`, is measured once: how far the gradient moves when
every weight moves by one unit in the last place. The asymmetry of the two sides, :math:`\kappa`, shows by how
much the curvature changes over a step, through its slope or through kinks. The step that balances both is
taken to the next product; where it would make the error of this one three times smaller, this one is computed
again, at most ``MAX_RETRIES`` times in all the products of an operator, which the set-up pays for.

**Kinks.** Where the gradient jumps (ReLU, max pooling, named by the graph of the loss), a jump j inside the step is an
error of :math:`|j| / 2h`, which grows as the step shrinks until no jump is left inside. On ReLU nets of 64 to 512
samples the products with the step above were wrong by 1 to 100 times their size. So there the step is as short as
rounding allows, at about ``KINK_ROUNDING`` of the product, which leaves hardly a kink inside (median error 2 to 6 %);
a product that met one is tried again with a quarter of the step. The error is then linear in the asymmetry,

.. math:: \text{error} \approx 1.5 \left( \frac{\epsilon_g}{\sqrt 2\, h} + \frac{\kappa}{2} \|H u\| \right)

as a jump on one side is as long in the difference as in the asymmetry. ``note`` says that there are kinks.

**Error.** ``error`` is the largest so far, for a unit vector: the formulas above, and at the first product of a smooth
loss also a third of the distance from the difference with 2h. The smooth formula tends to exaggerate; at nearly flat
points, where all is rounding, it was seen to be too small by factors of a few.

**Caveats.** At a nearly flat point the gradient's rounding does not shrink with the curvature: compute in
float64 (``objective.double()``). Weights in half precision are displaced in a float32 copy of the model, as a
step would drown in their rounding; the copy costs the memory of the model. On nets of kinks
do the same, ``objective.double()``: the step is then so short that products are right to six digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from optland import vectors
from optland.curvature.operators.products import Product, kinks, poisoned, refuse_writes
from optland.objective import Objective
from optland.vectors import Vector

__all__ = ["FiniteDifference"]

STEP_SCALE = 0.1
"""c in the first step c (1 + |theta|) eps^(1/3): small against the weights, large against rounding."""

STEP_RANGE = (1e-4, 20.0)
"""Smallest and largest step, in units of the first."""

STEP_CHANGE = 30.0
"""Largest factor between one step and the next."""

WORTHWHILE = 3.0
"""Factor by which another step has to lower the error before two gradients are spent on it."""

MAX_RETRIES = 2
"""Products of a smooth loss computed again with a better step, of all the products of one operator."""

KINKED = 0.5
"""Relative change of the curvature over a step beyond which it is a jump and no slope."""

KINK_ROUNDING = 0.03
"""Rounding aimed at on nets of kinks, relative to the product: more would drown it, less would take in kinks."""

KINK_MARGIN = 1.5
"""Of the error on nets of kinks, where several jumps in one step may add up; with it 98 % and more are covered."""

DODGE = 4.0
"""Factor by which the step shrinks when a kink lay inside one that is short already."""

VERIFIED = 1
"""The product that is computed with twice the step as well."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """A central difference and a model of its error: rounding / h + bending h^2, or rounding / h and the jumps."""

    product: list[Tensor]
    h: float
    rounding: float
    bending: float
    kinked: bool
    jumps: float | None  # error by kinks inside the step; None where the loss is smooth

    def error_at(self, h: float) -> float:
        """The error that another step would have, without a kink inside."""
        if self.jumps is not None:
            return KINK_MARGIN * self.rounding / h
        return self.rounding / h + self.bending * h * h

    @property
    def error(self) -> float:
        return self.error_at(self.h) + KINK_MARGIN * (self.jumps or 0.0)

    @property
    def best_step(self) -> float:
        """Where the derivative of the error by h is zero."""
        if not (math.isfinite(self.bending) and math.isfinite(self.rounding)):
            return self.h
        if self.kinked:
            return self.h / STEP_CHANGE
        return math.pow(self.rounding / (2 * self.bending), 1 / 3) if self.bending > 0 else math.inf


class FiniteDifference(Product):
    """Central differences of gradients with a step that follows the curvature; see the module docstring."""

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective)
        half = torch.finfo(objective.params[0].dtype).bits < 32
        self._at = objective.cast(torch.float32) if half else objective
        self._eps = float(torch.finfo(self._at.params[0].dtype).eps)
        self._count = 0
        self._retries = 0
        self._step = math.nan  # for the next product
        self._first_step: float = math.nan
        self._noise = math.nan  # rounding of one gradient; not measured yet
        self._here: list[Tensor] = []
        self._weights: list[tuple[int, int]] = []
        self._kinks: set[str] | None = None  # not looked for yet
        self._size = math.nan  # of a product, on nets of kinks

    def __call__(self, v: Vector) -> list[Tensor]:
        """H v at the present weights."""
        if self._at is not self.objective:
            self._at.refresh(self.objective)
        length = float(vectors.norm(v))
        if length == 0.0:
            return [torch.zeros_like(p) for p in self.objective.params]
        u = [t.to(p.dtype) / length for t, p in zip(v, self._at.params, strict=True)]
        self._count += 1
        if [(p.data_ptr(), p._version) for p in self.objective.params] != self._weights:
            self._measure_noise()
        product, h = self._difference(u)
        if self._count == VERIFIED and not self._kinks:
            wider = self._pair(u, 2 * h).product
            self.error = max(self.error, float(vectors.norm(vectors.subtract(product, wider))) / 3)
        return [(length * t).to(p.dtype) for t, p in zip(product, self.objective.params, strict=True)]

    def _measure_noise(self) -> None:
        L = self._at
        self._weights = [(p.data_ptr(), p._version) for p in self.objective.params]
        self._here = L.gradient()
        signs = [torch.sign(t) for t in vectors.random_unit(L.params, 0)]
        nudged = [p.detach() * (1.0 + self._eps * s) for p, s in zip(L.params, signs, strict=True)]
        moved = float(vectors.norm(vectors.subtract(L.gradient(nudged), self._here)))
        # Never less than what storing the gradient itself rounds away.
        self._noise = max(moved, 0.3 * self._eps * float(vectors.norm(self._here)))
        size = float(vectors.norm([p.detach() for p in L.params]))
        self._first_step = STEP_SCALE * (1.0 + size) * self._eps ** (1 / 3)
        self._step = self._first_step
        if self._kinks is None:
            self._kinks = self._look_for_kinks()
        if self._kinks:
            self._size = float(vectors.norm(self._here))  # a guess, within a factor of about four
            self._step = self._between_kinks(self._noise)

    def _look_for_kinks(self) -> set[str]:
        with self._at.context(), torch.enable_grad():
            loss, _ = next(self._at.losses())
            found = kinks(loss)
        if self._at.ranks is not None:  # all of them take the same steps
            found = self._at.ranks.union(found)
        if found:
            self.note = (
                f"the gradient jumps ({', '.join(sorted(found))}), steps are short and errors large; "
                "objective.double() makes them small"
            )
        return found

    def _between_kinks(self, noise: float) -> float:
        """The step at which rounding is the share of a product that is aimed at."""
        low, high = STEP_RANGE[0] * self._first_step, self._first_step
        return min(max(noise / (KINK_ROUNDING * self._size), low), high) if self._size > 0 else high

    def _difference(self, u: Vector) -> tuple[list[Tensor], float]:
        """The product with a unit vector, and the step it was taken with."""
        pair = last = self._pair(u, self._step)
        while self._retries < self._most_retries and last.error > WORTHWHILE * last.error_at(
            self._better(last)
        ):
            self._retries += 1
            last = self._pair(u, self._better(last))
            if last.error < pair.error:
                pair = last
            elif (
                not last.kinked
            ):  # a kink still inside a shorter step looks worse until the step is short enough
                break
        if self._kinks and not pair.kinked:
            self._size = float(vectors.norm(pair.product))
        self._step = self._between_kinks(pair.rounding) if self._kinks else self._better(pair)
        self.error = max(self.error, pair.error)
        return pair.product, pair.h

    @property
    def _most_retries(self) -> int:
        """On nets of kinks also what is saved: the look with 2h, and half a gradient of every product's 2.5."""
        return MAX_RETRIES + (1 + self._count // 4 if self._kinks else 0)

    def _better(self, pair: _Pair) -> float:
        """The step for this direction again."""
        if self._kinks:
            size = self._size if pair.kinked else float(vectors.norm(pair.product))
            self._size, aim = size, self._between_kinks(pair.rounding)
            return pair.h / DODGE if pair.kinked and pair.h <= DODGE * aim else aim
        low, high = (factor * self._first_step for factor in STEP_RANGE)
        low, high = max(low, pair.h / STEP_CHANGE), min(high, pair.h * STEP_CHANGE)
        return min(max(pair.best_step, low), high)

    def _pair(self, u: Vector, h: float) -> _Pair:
        ahead, behind = self._gradient_at(u, h), self._gradient_at(u, -h)
        product = vectors.scaled(1.0 / (2 * h), vectors.subtract(ahead, behind))
        middle = vectors.scaled(2.0, self._here)
        bend = float(vectors.norm(vectors.subtract(vectors.combine([1.0, 1.0], [ahead, behind]), middle)))
        size = float(vectors.norm(product))
        # Two roundings of the middle gradient and one of each side are no bend.
        change = max(bend - 2.5 * self._noise, 0.0) / (h * size) if size > 0 else 0.0
        bending, jumps = size * (change / h) ** 2 / 6, change * size / 2 if self._kinks else None
        return _Pair(product, h, self._noise / math.sqrt(2.0), bending, change > KINKED, jumps)

    def _gradient_at(self, u: Vector, h: float) -> list[Tensor]:
        loss, gradient = self._at.value_and_gradient(self._at.displaced(u, h))
        refuse_writes(self._at)
        return poisoned(gradient, torch.tensor(loss, device=gradient[0].device))
