r"""Extreme eigenvalues of a curvature operator from both ends, by the Lanczos method.

.. math:: \beta_{j+1} v_{j+1} = H v_j - \alpha_j v_j - \beta_j v_{j-1}, \qquad
          T s = \theta s, \quad y = V s, \quad \|H y - \theta y\| = \beta_{m+1} |s_m|

**How.** Both ends come out of one Krylov space. It stops when the residual of every wanted pair is below
``rtol``, never because a value has stopped changing: on clustered spectra a value rests long before it is
right.

**Cost.** One product and one read from the device per iteration, at most ``max_matvecs``. The basis
takes m vectors of memory, at most ``max_basis`` of them: when it is full the wanted Ritz vectors stay and the
others go (a thick restart), which costs products and leaves every residual right. ``lanczos.cost`` says the
most it can cost before it runs.

**When.** The top is known after 5 to 20 products; the bottom of a network's spectrum, whose negative part is
small, takes several times that, and the top then comes with it: over 976 snapshots of digits nets in training, both
ends took 0.1 % more products than the bottom alone, and about 25 where the top took 7. In a training loop use
:class:`~optland.curvature.eigen.tracker.SpectrumTracker`.

**Stops.** ``stop="residual"`` holds the residual to ``rtol``: some eigenvalue lies that near. ``"value"`` takes
the error of a value for min(r, r^2 / gap), with the gap to the nearest interval of another Ritz value, once r is
within three times ``rtol``; it saves one to three products. The gap is an estimate, since an eigenvalue may be
unseen: on {10, 9.9, 9.8, 1, ...} such a stop can take 9.8 for the top. ``"sign"`` ends as soon as negative
curvature is certified, or nothing below -rtol ||H|| is left with probability 99 %.

**Defaults.** ``rtol`` 1e-2: the residual relative to the eigenvalue, good for logs (0.05 for a schedule, 1e-3
for plotting along eigenvectors). Eigenvalues below a tenth of ||H|| are held to that tenth, as zero has no
relative error. ``max_matvecs`` 40: in d = 10^7 a random start then is within 3 % of the width at both ends.
``max_basis``: what fits into 4 GiB, and at least 12.

**Memory.** ``basis_dtype=torch.bfloat16`` halves the basis of a float32 model. Each stored vector then is off by
about 1e-3 of its length; what that does to a pair is bounded and counted in its residual, which therefore ends
near 1e-3 ||H||, and higher after restarts.

**Caveats.** A residual shows that *some* eigenvalue is near. That it is the extreme one is only certified,
with probability, by a random start: repeat a cold start now and then, and compare. On a minibatch the top is
biased upwards and the bottom downwards. Copies of a multiple eigenvalue are found only after the space breaks
down.

**References.** Lanczos 1950; Paige 1980 (loss of orthogonality); Parlett 1998, The Symmetric Eigenvalue
Problem; Wu & Simon 2000 (thick restart).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optland import vectors
from optland.curvature.cost import costs
from optland.curvature.eigen import coarse
from optland.curvature.eigen.krylov import Krylov, RitzPairs
from optland.curvature.eigen.spectrum import Spectrum, certified_tau, random_start_certificate
from optland.curvature.operators.hessian import Method, declared_product_cost
from optland.curvature.operators.linear_operator import SymmetricOperator
from optland.estimate import Estimate
from optland.objective import Objective
from optland.vectors import Vector

__all__ = ["Ends", "Stop", "lanczos"]

Ends = Literal["both", "top", "bottom"]
Stop = Literal["residual", "value", "sign"]

ADMIXTURE = 0.1
"""Length of the random part of a warm start: lets directions in that the last spectrum did not contain."""

FLOOR = 0.1
"""Residuals are relative to the eigenvalue, but never to less than this part of ||T||."""

BASIS_BYTES = 4 * 2**30
"""Memory that the basis takes at most where ``max_basis`` is not given, unless that is less than MIN_BASIS rows."""

MIN_BASIS = 12
"""Rows below which a restarted space makes little headway."""

SPARE = 4
"""Rows that a basis needs beside the wanted pairs."""

VALUE_MARGIN = 3.0
"""``stop="value"`` believes r^2 / gap only of residuals up to this many times the tolerance."""

COARSE_SEED = 2**32
"""Keeps the random start on a part of the data independent of the random part beside it."""

EVERY_STEP = 24
"""Up to this size T is solved after every product; beyond, after every (size / 24)-th, as it grows cubically."""


def _cost(
    objective: Objective, max_matvecs: int = 40, *, method: Method = "auto", ends: Ends = "both"
) -> float:
    """The most that :func:`lanczos` on a fresh Hessian of ``objective`` can cost, in gradient evaluations."""
    cost = declared_product_cost(objective, max_matvecs, method=method)
    if ends == "top":
        part = coarse.thinned_samples(objective) / objective.num_samples
        cost += part * declared_product_cost(objective, coarse.PRODUCTS, method=method)
    return cost


@costs(_cost)
def lanczos(
    H: SymmetricOperator,
    k: int = 1,
    *,
    ends: Ends = "both",
    rtol: float = 1e-2,
    stop: Stop = "residual",
    start: Spectrum | Sequence[Vector] | Literal["random"] | None = None,
    random_share: float = ADMIXTURE,
    max_matvecs: int = 40,
    max_basis: int | None = None,
    basis_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Spectrum:
    """Compute the k largest and/or k smallest eigenvalues of ``H``.

    Args:
        H: The operator.
        k: Number of pairs at each end.
        ends: Which ends have to converge; the other one is reported as it came.
        rtol: Wanted residual relative to the eigenvalue (``stop="value"``: error); of ``stop="sign"``, the tau that is
            small enough.
        stop: What ends the run, ``"residual"``, ``"value"`` or ``"sign"`` (see the module's first lines).
        start: The last spectrum of the same parameters, or its vectors alone, for a warm start. By default a random
            vector, which for ``ends="top"`` on enough data is first turned toward the top on a part of them
            (:mod:`~optland.curvature.eigen.coarse`); ``"random"`` leaves that out.
        random_share: Length of the random vector that is added to a warm start of length 1; 0 keeps it as it is.
        max_matvecs: Most products with ``H``, never exceeded.
        max_basis: Most vectors of the basis (and one more in line); by default what fits into 4 GiB.
        basis_dtype: Type that the basis is stored in; by default that of the arithmetic.
        seed: Seed of the random start, or of the random part of a warm one.

    Returns:
        A :class:`~optland.curvature.eigen.spectrum.Spectrum`; pairs that missed ``rtol`` are marked as not
        converged.

    Raises:
        ValueError: An argument out of range, or ``start`` has other shapes.

    Example:
        >>> from optland.curvature import hessian
        >>> from optland.problems import saddle
        >>> found = lanczos(hessian(saddle(), method="double_backward"))
        >>> round(found.top.value, 9), round(found.bottom.value, 9), found.negative_curvature, found.num_matvecs
        (2.0, -2.0, 'certified', 2)
    """
    warm = [] if start == "random" else list(start.vectors if isinstance(start, Spectrum) else start or [])
    _check(H, k, ends, rtol, stop, random_share, warm, max_matvecs)
    spent, already = H.cost_ge, H.num_matvecs
    turned = coarse.coarse_start(H, k, seed + COARSE_SEED) if start is None and ends == "top" else None
    if turned is not None:
        warm, random_share = [turned], coarse.ADMIXTURE
    num_pairs = min(H.dim, 2 * k if ends == "both" else k)
    rows = _rows(H, num_pairs, max_matvecs, max_basis, basis_dtype)
    space = Krylov(H, rows, dtype=basis_dtype)
    cold = not warm or turned is not None
    run = _Run(space, k, ends, rtol, stop, num_pairs, cold=cold, max_matvecs=max_matvecs)
    run.random_share = 1.0 if turned is None else random_share / (1.0 + random_share)
    run.space.start(_starting_vector(H, warm, random_share, seed))
    while not run.over:
        run.space.extend()
        run.look()
        if not run.over:
            run.make_room()
            if run.space.broke_down:
                run.space.start(vectors.random_unit(H.like, seed + run.breakdowns))
    return _spectrum(run, H.num_matvecs - already, H.cost_ge - spent, seed)


class _Run:
    """One Lanczos run: a Krylov space that grows until the wanted pairs are found."""

    def __init__(
        self,
        space: Krylov,
        k: int,
        ends: Ends,
        rtol: float,
        stop: Stop,
        num_pairs: int,
        *,
        cold: bool,
        max_matvecs: int,
    ) -> None:
        self.space, self.H = space, space.H
        self.k, self.ends, self.rtol, self.stop, self.num_pairs = k, ends, rtol, stop, num_pairs
        self.cold, self.max_matvecs = cold, max_matvecs
        self.num_matvecs = 0
        self.breakdowns = 0
        self.restarts = 0
        self.random_share = 1.0  # length of the random part of a cold start of length 1
        self.pure = 0  # products from the first start alone, before any restart: what the certificate counts
        self.over = False

    def look(self) -> None:
        """Record the last product, and decide whether to go on."""
        space = self.space
        self.num_matvecs += 1
        self.pure += self.restarts == 0 and self.breakdowns == 0 and not space.failed
        self.breakdowns += space.broke_down
        self.over = space.failed or self.num_matvecs == self.max_matvecs or space.size == self.H.dim
        # Each start finds one copy of a multiple eigenvalue, so after a breakdown k pairs take k starts.
        if not self.over and self.told_apart and (self.breakdowns == 0 or self.breakdowns >= self.k):
            self.over = space.broke_down or (self.due and self.settled(space.ritz()))

    @property
    def due(self) -> bool:
        """Whether T is solved now: it costs more the larger it is."""
        return self.space.size % max(1, self.space.size // EVERY_STEP) == 0

    def make_room(self) -> None:
        """Restart when the basis is full: half of its rows go to the Ritz vectors at the wanted ends."""
        space = self.space
        if space.size < space.capacity:
            return
        m = space.size
        kept = max(self.num_pairs + 1, m // 2)
        below = {"both": kept // 2, "top": 1, "bottom": kept - 1}[self.ends]
        space.restart([*range(below), *range(m - (kept - below), m)])
        self.restarts += 1

    @property
    def told_apart(self) -> bool:
        """Whether the space can distinguish the wanted pairs: it has as many, or there are no more to see."""
        seen_all = self.cold and self.k == 1 and self.breakdowns > 0
        return seen_all or self.space.size >= self.num_pairs

    def settled(self, ritz: RitzPairs) -> bool:
        """Whether more products would not help: the stop is reached, or errors are down to the products' own."""
        if self.stop == "sign":
            return self.sign_is_known(ritz)
        wanted = [*self.upper(ritz), *self.lower(ritz)]
        met = self.met(ritz) | (ritz.residual <= 2 * ritz.floor)
        return bool(met[wanted].all())

    def sign_is_known(self, ritz: RitzPairs) -> bool:
        if ritz.theta[0] + ritz.residual[0] < 0:
            return True
        tau = certified_tau(float(ritz.theta[0]), float(ritz.theta[-1]), self.certificate)
        return tau is not None and tau <= self.rtol * ritz.scale

    def met(self, ritz: RitzPairs) -> NDArray[np.bool_]:
        """Which Ritz pairs are within tolerance, (m,)."""
        allowed = self.rtol * np.maximum(np.abs(ritz.theta), FLOOR * ritz.scale)
        if self.stop == "value":
            return (ritz.value_error <= allowed) & (ritz.residual <= VALUE_MARGIN * allowed)
        return np.asarray(ritz.residual <= allowed)

    def upper(self, ritz: RitzPairs) -> list[int]:
        """Indices of the wanted largest Ritz values, descending."""
        m = len(ritz.theta)
        return list(range(m - 1, m - 1 - min(self.k, m), -1)) if self.ends != "bottom" else []

    def lower(self, ritz: RitzPairs) -> list[int]:
        """Indices of the wanted smallest Ritz values, descending."""
        m = len(ritz.theta)
        return list(range(min(self.k, m) - 1, -1, -1)) if self.ends != "top" else []

    @property
    def certificate(self) -> float | None:
        """Bound of a random start; 0 when its Krylov space is invariant, as it then holds every eigenvalue."""
        if not self.cold:
            return None
        whole = self.restarts == 0 and self.space.size == self.H.dim
        # A rest that was only below the products' own error shows no invariant space.
        invariant = self.breakdowns > 0 and self.restarts == 0 and self.H.product_error == 0
        return (
            0.0 if whole or invariant else random_start_certificate(self.H.dim, self.pure, self.random_share)
        )


def _spectrum(run: _Run, num_matvecs: int, cost: float, seed: int) -> Spectrum:
    space, H = run.space, run.H
    provenance = H.provenance("lanczos", seed)
    note = "A product with H was not finite." if space.failed else ""
    if space.size == 0:
        nothing = Estimate(math.nan, math.nan, "residual", False, cost, provenance, note)
        return Spectrum(
            values=(nothing,),
            top=nothing,
            bottom=nothing,
            vectors=(),
            num_top=1,
            ritz_values=(),
            num_matvecs=num_matvecs,
            cost_ge=cost,
            cold=run.cold,
            certificate=run.certificate,
            provenance=provenance,
            note=note,
        )
    ritz = space.ritz()
    met = run.told_apart & run.met(ritz)

    def estimate(i: int) -> Estimate:
        theta, residual = float(ritz.theta[i]), float(ritz.residual[i])
        return Estimate(theta, residual, "residual", bool(met[i]), cost, provenance, note)

    upper, lower = run.upper(ritz), run.lower(ritz)
    if space.size == H.dim:  # all eigenvalues are here; where they are fewer than 2 k, none is told twice
        lower = [i for i in lower if i not in upper]
    return Spectrum(
        values=tuple(estimate(i) for i in upper + lower),
        top=estimate(-1),
        bottom=estimate(0),
        vectors=tuple(space.vector(ritz.s[:, i]) for i in upper + lower),
        num_top=len(upper),
        ritz_values=tuple(ritz.theta.tolist()),
        num_matvecs=num_matvecs,
        cost_ge=cost,
        cold=run.cold,
        certificate=run.certificate,
        provenance=provenance,
        note=note,
        value_errors=tuple(ritz.value_error[upper + lower].tolist()),
        num_restarts=run.restarts,
    )


def _starting_vector(
    H: SymmetricOperator, warm: Sequence[Vector], random_share: float, seed: int
) -> list[Tensor]:
    """Random, or the normed sum of the given vectors with a small random part."""
    if not warm:
        return vectors.random_unit(H.like, seed)
    last = vectors.combine([1.0 / math.sqrt(len(warm))] * len(warm), warm)
    if random_share > 0:
        vectors.axpy_(random_share, vectors.random_unit(H.like, seed), last)
    return last


def _rows(
    H: SymmetricOperator, num_pairs: int, max_matvecs: int, max_basis: int | None, dtype: torch.dtype | None
) -> int:
    """Rows of the basis: as many as products, or what the memory allows."""
    most, least = min(max_matvecs, H.dim), num_pairs + SPARE
    if max_basis is not None and max_basis < min(most, least):
        raise ValueError(f"max_basis={max_basis} is too small for {num_pairs} pairs: allow at least {least}")
    if max_basis is None:
        stored = dtype or (torch.float64 if H.like[0].dtype == torch.float64 else torch.float32)
        max_basis = max(MIN_BASIS, least, BASIS_BYTES // (H.dim * stored.itemsize))
    return min(most, max_basis)


def _check(
    H: SymmetricOperator,
    k: int,
    ends: str,
    rtol: float,
    stop: str,
    random_share: float,
    warm: Sequence[Vector],
    max_matvecs: int,
) -> None:
    if not 1 <= k <= H.dim:
        raise ValueError(f"k={k} must be between 1 and the number of parameters, {H.dim}")
    if ends not in ("both", "top", "bottom"):
        raise ValueError(f"ends={ends!r} is not known; use 'both', 'top' or 'bottom'")
    if stop not in ("residual", "value", "sign"):
        raise ValueError(f"stop={stop!r} is not known; use 'residual', 'value' or 'sign'")
    if not rtol > 0:
        raise ValueError(f"rtol={rtol} must be positive: it is the residual relative to the eigenvalue")
    if not random_share >= 0:
        raise ValueError(
            f"random_share={random_share} must not be negative; 0 starts from the given vectors alone"
        )
    if max_matvecs < 1:
        raise ValueError(f"max_matvecs={max_matvecs} must be at least 1")
    shapes = [p.shape for p in H.like]
    if any([t.shape for t in y] != shapes for y in warm):
        raise ValueError("start is the spectrum of other parameters: its vectors have other shapes")
