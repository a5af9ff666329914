r"""Find critical points of any index by driving the norm of the gradient down, and judge every point that is found.

.. math:: w \leftarrow w - (H^2 + \mu^2)^{-1} H g, \qquad \min_w \tfrac12 |\nabla L(w)|^2

**How.** Damped Newton (Levenberg-Marquardt) on |g|^2, which is drawn to saddles as much as to minima. mu falls by ten
after a step that lowers |g| at once and rises by three otherwise; a change of mu costs one gradient and no product, as
all steps come from one decomposition (all eigenvectors for d up to ``DENSE_DIM``, else the Krylov space of g).

**Cost.** Per iteration one gradient and d or ``max_matvecs`` products, and one gradient for every other mu tried; then
one :func:`~optland.curvature.points.classify.classify` a start. ``find_critical_points.cost`` says the most it can be.

**When.** To see index against loss (Dauphin et al. 2014; Pennington & Bahri 2017), or which saddles a run passed: start
from points along its trajectory. In float64: in float32 the gradient of a network seldom gets small enough.

**Caveats.** |g|^2 has local minima that are no critical points of L, where g lies in the kernel of H. Most reported
critical points of networks were of this kind (Frye et al. 2021). They come back as ``gradient-flat``, marked as not
converged, and are left out of :func:`index_against_loss`. Which points are found depends on the starts.

**References.** Dauphin et al. 2014, arXiv:1406.2572; Pennington & Bahri 2017 (ICML); Frye et al. 2021,
arXiv:2003.10397.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from optland import vectors
from optland.archive import Archived
from optland.curvature.cost import costs
from optland.curvature.eigen.eigenvalues import eigenvalues
from optland.curvature.operators.hessian import Method, declared_product_cost, hessian
from optland.curvature.points.classify import classify
from optland.curvature.points.newton_step import NewtonModel, from_eigenvalues, from_gradient
from optland.curvature.points.verdict import CriticalPoint
from optland.objective import Objective
from optland.vectors import Vector

__all__ = [
    "FoundPoint",
    "find_critical_points",
    "starts_around",
]

DENSE_DIM = 200
"""Largest d whose matrix is formed in every iteration."""

TOLERANCE = 1e4
"""Units of rounding of 1 + |g| at the start below which |g| has converged."""

TRIES = 25
"""Most dampings tried in one iteration, the last 10^11 times the first."""

RAISE = 3.0
"""Factor between tries: mu enters squared, and a coarser grid would crawl where |g| has a minimum above 0."""

FIRST_DAMPING = 1e-3
"""mu at the start, relative to the largest curvature."""

LEAST_DAMPING = 1e-10
"""mu, relative to the largest curvature, below which it is 0."""

DECREASE = 1e-9
"""Relative decrease of |g| that makes a step worth taking; steps below it for every mu end the search."""


@dataclass(frozen=True, slots=True)
class FoundPoint(Archived):
    """The end point of one search.

    Attributes:
        critical_point: The verdict on the point, with loss, |g|, index and tau.
        point: The weights there, a list of tensors.
        start: Number of the start in the order given.
        converged: Whether |g| fell below the tolerance.
        reason: Why the search ended, in words.
        grad_norms: |g| at the start and after every step.
        cost_ge: Gradient evaluations spent, the verdict included.
    """

    critical_point: CriticalPoint
    point: list[Tensor] = field(repr=False)
    start: int
    converged: bool
    reason: str
    grad_norms: tuple[float, ...]
    cost_ge: float

    @property
    def loss(self) -> float:
        """L at the point."""
        return self.critical_point.loss

    def __str__(self) -> str:
        found = self.critical_point
        index = f", index {found.negative.value:g}" if found.critical else ""
        state = "" if self.converged else " NOT CONVERGED"
        return (
            f"start {self.start}: {found.verdict}{index}, loss {found.loss:.6g}, |g| {found.grad_norm.value:.3g} after "
            f"{len(self.grad_norms) - 1} steps ({self.reason}){state}"
        )


def _cost(
    objective: Objective,
    num_starts: int = 1,
    *,
    max_steps: int = 50,
    max_matvecs: int = 30,
    method: Method = "auto",
) -> float:
    """The most that :func:`find_critical_points` can cost in gradient evaluations, known before it runs."""
    dim = vectors.numel(objective.params)
    products = dim if dim <= DENSE_DIM else max_matvecs
    step = TRIES * objective.num_samples + declared_product_cost(objective, products, method=method)
    verdict = classify.cost(objective, method=method)
    return num_starts * (objective.num_samples + max_steps * step + verdict)


@costs(_cost)
def find_critical_points(
    objective: Objective,
    starts: Iterable[Vector],
    *,
    atol: float | None = None,
    max_steps: int = 50,
    max_matvecs: int = 30,
    method: Method = "auto",
    seed: int = 0,
) -> list[FoundPoint]:
    """Search from every start, and classify where it ends.

    Args:
        objective: The loss; its model is left as it is.
        starts: Points to start from: checkpoints of a run, or :func:`starts_around` one of them.
        atol: |g| to reach; by default 10^4 units of rounding of 1 + |g| at the start.
        max_steps: Most steps per start.
        max_matvecs: Most products per step where the matrix is not formed (d above 200).
        method: How products are computed.
        seed: Seed of the random start of the classification.

    Returns:
        One :class:`FoundPoint` a start, converged or not.

    Raises:
        ValueError: ``atol`` is not positive, ``max_steps`` or ``max_matvecs`` is below 1, or a start has other shapes
            than the trainable parameters.

    Example:
        >>> from optland.problems import saddle
        >>> (found,) = find_critical_points(saddle(), [[torch.tensor([1.0, 0.5], dtype=torch.float64)]])
        >>> found.critical_point.verdict, found.converged, [round(x, 9) for x in found.point[0].abs().tolist()]
        ('strict saddle', True, [0.0, 0.0])
    """
    if atol is not None and not atol > 0:
        raise ValueError(f"atol={atol} must be positive: it is the norm of the gradient to reach")
    if max_steps < 1 or max_matvecs < 1:
        raise ValueError(f"max_steps={max_steps} and max_matvecs={max_matvecs} must be at least 1")
    found = []
    for i, start in enumerate(starts):
        start = vectors.require_shapes(start, objective.params, f"start {i}")
        spent = objective.cost_ge
        search = _Search(objective, start, atol, method)
        search.run(max_steps, max_matvecs)
        verdict = classify(objective, point=search.w, atol=search.atol, method=method, seed=seed)
        found.append(
            FoundPoint(
                critical_point=verdict,
                point=search.w,
                start=i,
                converged=search.converged,
                reason=search.reason,
                grad_norms=tuple(search.norms),
                cost_ge=objective.cost_ge - spent,
            )
        )
    return found


class _Search:
    """One descent of |g|."""

    def __init__(self, L: Objective, start: Vector, atol: float | None, method: Method) -> None:
        self.L, self.method = L, method
        self.w = vectors.clone(start)
        self.g = L.gradient(self.w)
        self.norms = [float(vectors.norm(self.g))]
        eps = float(torch.finfo(L.params[0].dtype).eps)
        self.atol = TOLERANCE * eps * (1 + self.norms[0]) if atol is None else atol
        self.damping = FIRST_DAMPING
        self.reason = "most steps taken"

    @property
    def converged(self) -> bool:
        return math.isfinite(self.norms[-1]) and self.norms[-1] <= self.atol

    def run(self, max_steps: int, max_matvecs: int) -> None:
        for _ in range(max_steps):
            if self.converged or not math.isfinite(self.norms[-1]):
                break
            model = self._model(max_matvecs)
            if model is None:
                self.reason = "the Hessian is not finite"
                return
            if not self._step(model):
                self.reason = "no damping lowers |g|"
                return
        if self.converged:
            self.reason = "|g| below atol"
        elif not math.isfinite(self.norms[-1]):
            self.reason = "the gradient is not finite"

    def _model(self, max_matvecs: int) -> NewtonModel | None:
        with self.L.at(self.w), hessian(self.L, method=self.method) as H:
            if H.dim <= DENSE_DIM:
                seen = eigenvalues(H)
                return None if seen.failed else from_eigenvalues(seen, self.g)
            return from_gradient(H, self.g, max_matvecs=max_matvecs)

    def _step(self, model: NewtonModel) -> bool:
        """Take the first step that lowers |g|, with more and more damping; False when none does."""
        for tries in range(TRIES):
            mu = self.damping * model.scale if self.damping > LEAST_DAMPING else 0.0
            w = [a + b for a, b in zip(self.w, model.step(mu), strict=True)]
            g = self.L.gradient(w)
            norm = float(vectors.norm(g))
            if norm < (1 - DECREASE) * self.norms[-1]:
                self.w, self.g = w, g
                self.norms.append(norm)
                if tries == 0:  # what needed more damping now will need it again
                    self.damping = max(self.damping / 10, LEAST_DAMPING)
                return True
            self.damping = RAISE * max(self.damping, LEAST_DAMPING)
        return False


def starts_around(
    points: Iterable[Vector], *, radii: Sequence[float] = (0.0, 0.1, 0.3), num_starts: int = 1, seed: int = 0
) -> list[list[Tensor]]:
    """Starts at and around given points, such as the checkpoints of a training run.

    Args:
        points: The centres.
        radii: Distances from each centre, relative to its norm (absolute at a centre of norm 0); 0 is the centre.
        num_starts: Random directions at every radius above 0.
        seed: Seed of the directions.

    Returns:
        For each centre in turn and each radius in turn; copies, in the shapes of the centre.

    Raises:
        ValueError: A radius is negative, or ``num_starts`` is below 1.

    Example:
        >>> around = starts_around([[torch.tensor([3.0, 4.0])]], radii=(0.0, 0.1), num_starts=2)
        >>> [round(float(vectors.norm(vectors.subtract(w, [torch.tensor([3.0, 4.0])]))), 4) for w in around]
        [0.0, 0.5, 0.5]
    """
    if num_starts < 1 or any(radius < 0 for radius in radii):
        raise ValueError(
            f"num_starts={num_starts} must be at least 1, and no radius of {tuple(radii)} negative"
        )
    starts: list[list[Tensor]] = []
    for centre in points:
        scale = float(vectors.norm(centre)) or 1.0
        for radius in radii:
            for _ in range(num_starts if radius > 0 else 1):
                w = vectors.clone(centre)
                if radius > 0:
                    vectors.axpy_(radius * scale, vectors.random_unit(centre, seed + len(starts)), w)
                starts.append(w)
    return starts
