r"""Track both ends of a spectrum through training by warm starts, checked by cold audits.

.. math:: x_t = y_{t-1} + a\,\xi, \qquad y_t = \text{the Ritz vector of } K_m(H_t, x_t)
          \text{ at the wanted end}, \qquad \xi \sim \text{unit sphere}

**How.** Every probe starts from the eigenvectors of the last one. Each ``audit_every``-th probe, and each probe that
jumps or does not converge, is audited: a second run from a random start at the same weights. Where the two disagree
the better value stays (a Ritz value never lies outside the spectrum, so the larger top and the smaller bottom are
nearer), and the result says so.

**Cost.** At the top 3 to 6 products per warm probe; an audit adds a cold run, 6 to 9 products, so that ``audit_every``
20 adds 0.3 to 0.5 per probe. At most 2 ``max_matvecs`` per probe: ``SpectrumTracker.cost``.

**When.** Whenever the same operator is probed again and again while the weights move. What a warm start saves depends
on how far the eigenvectors turn in between. On digits nets of 2000 and 6000 weights probed every 10 steps, residual
1 %, first probe and audits included (41 probes per run; cold runs at the same weights for comparison):

=====================================================  ===============  =======
training                                               products, top    cold
=====================================================  ===============  =======
MLP, SGD 0.01 with momentum 0.9, clean / 20 % noise    4.8 / 6.7        7.6 / 9.0
MLP, Adam 5e-4, clean / 20 % noise                     5.2 / 6.1        8.4 / 9.1
CNN, SGD 0.01 with momentum 0.9, clean / 20 % noise    4.4 / 5.0        7.2 / 7.9
CNN, Adam 5e-4, clean / 20 % noise                     5.0 / 4.7        7.9 / 8.3
=====================================================  ===============  =======

All 328 values were within 0.7 % of a converged cold run, and no audit found a wrong pair. Both ends together took 19
and 21 products where cold runs took 23 and 28. Where the rate was 0.05 the old eigenvector had a cosine of only
0.4 to 0.9 with the new one, a probe took 5.5 to 6, and one value in 82 was 4 % off.

With ``stop="value"`` a probe takes 4.4 products where cold runs to a residual of 1 % take 6.6, and 98 % of 240 values
were within 2 % of those (two CNNs, a ResNet and a transformer, SGD and AdamW; benchmarks/results/curvature.json). The
others had followed a pair that another one had overtaken, until the next audit.

**Tried and left out** (products per probe at the top on five runs at rate 0.05 or Adam 2e-3, without audits). The last
vector alone: 4.74. With a random part of 0.03 or 0.1: 4.75. With the second Ritz vector at weight 0.3: 4.94, and a
third at 0.1: 4.98. A recycled space of 4, 8 or 16 old Ritz vectors as preconditioner (generalised Davidson): 4.71,
4.61, 4.60, for two to six times the memory. On four such runs, a moving average of the last vectors: 4.72 for 4.95;
the gradient mixed in: 4.89. None is worth its state, so the plain warm start with a small random part is what is done.

**Tried on a part of the data and left out.** 30 probes on 256 samples every 10 steps, rate 0.05, residual 1 %, without
audits; a product on every eighth sample counts as an eighth. Mean of a CNN with 20 % noise and an MLP, in brackets the
products on all of the data:

================================================================================  ===========
start, or next direction                                                          products
================================================================================  ===========
the last vector                                                                   5.19
two grids: 4 products on the part from it, then its mixture of positive pairs     5.81 (5.31)
two grids: 4 products on the part from it, then its top pair                      5.47 (4.97)
two grids: the mixture and the last vector                                        6.33 (5.83)
Jacobi-Davidson, 2 products per step on the part, corrected on the known space      7.67 (5.93)
================================================================================  ===========

32 samples of 256 show too little of the Hessian to steer by: at best they save 0.2 products and cost 0.5, and on a CPU
a product of the MLP on 32 samples takes half the time of one on all. Nor do they show what overtakes: with a start that
also held the mixture of a random start on the part, stopped by value on the MLP, 2 of 30 values were more than 2 % off
for 1 with the last vector alone. Corrections kept from the probe before made the surrogate diverge. The vector of least
residual in place of the Ritz vector saves 0.07 products.

**Defaults.** ``rtol`` 1e-2; ``audit_every`` 20; a jump is a change of either end by half of the larger value.

**Caveats.** Between audits a warm start can lock on to a pair that is not extreme, however small its residual: between
two audits the verdict on negative curvature is ``unknown`` or ``certified``, never ``none below -tau``.

**References.** Kuczynski & Wozniakowski 1992 (what a random start certifies); Saad 2011, Numerical Methods for Large
Eigenvalue Problems (warm starts and Rayleigh-Ritz).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from optland import vectors
from optland.archive import Archived
from optland.curvature.eigen.lanczos import Ends, Stop, lanczos
from optland.curvature.eigen.spectrum import Spectrum
from optland.curvature.operators.hessian import Method, declared_product_cost
from optland.curvature.operators.linear_operator import SymmetricOperator
from optland.objective import Objective

__all__ = [
    "SpectrumTracker",
    "Tracked",
]

JUMP = 0.5
"""Change of an end, relative to the larger of the two values, after which a probe is audited at once."""

SEED_STRIDE = 2
"""Seeds used by a probe: one for its warm start and one for its audit."""


@dataclass(frozen=True, slots=True)
class Tracked(Archived):
    """One probe of a tracker.

    Attributes:
        spectrum: What holds now: of the warm run, or of the audit where it is better or there was no warm run.
        audit: The cold run, where there was one.
        why: Why there was an audit: ``"first"``, ``"due"``, ``"jump"``, ``"not converged"``; empty without one.
            A ``"jump"`` is that of this probe or, with ``audit_jumps="next"``, of the one before.
        replaced: Whether a warm run disagreed with its audit and was replaced by it.
        num_matvecs: Products of both runs.
        cost_ge: Gradient evaluations of both runs.
    """

    spectrum: Spectrum
    audit: Spectrum | None
    why: str
    replaced: bool
    num_matvecs: int
    cost_ge: float

    def __str__(self) -> str:
        audit = f"audited ({self.why})" if self.audit is not None else "not audited"
        verdict = ", WARM RUN REPLACED" if self.replaced else ""
        return f"{self.spectrum}\n  {audit}{verdict}, {self.num_matvecs} products in all"


def _cost(
    objective: Objective, max_matvecs: int = 40, *, method: Method = "auto", ends: Ends = "both"
) -> float:
    """The most that one probe of a tracker on a fresh Hessian of ``objective`` can cost, its audit included."""
    audit = lanczos.cost(objective, max_matvecs, method=method, ends=ends)
    both = declared_product_cost(objective, 2 * max_matvecs, method=method)
    return audit + both - declared_product_cost(objective, max_matvecs, method=method)


class SpectrumTracker:
    """Follows the k outermost eigenvalues while the weights move.

    Args:
        k: Number of pairs at each end.
        ends: Which ends have to converge.
        rtol: Wanted error relative to the eigenvalue, as in :func:`~optland.curvature.eigen.lanczos.lanczos`.
        stop: What ends a run, as there.
        audit_every: Probes from one audit to the next.
        audit_jumps: When a probe that jumps or does not converge is audited: ``"at once"``; or ``"next"``, together
            with the probe that follows and for jumps alone, so that :meth:`next_cost` is known before a probe runs.
        random_share: Length of the random part of a warm start.
        max_matvecs: Most products of one run; an audited probe has two runs.
        max_basis: Most vectors of the basis.
        seed: Seed of every random vector; probe n uses seeds that depend on n alone.
        store: Device whose memory the eigenvectors wait in from one probe to the next; None leaves them where they are.

    Raises:
        ValueError: ``audit_every`` is not positive, or ``audit_jumps`` is unknown.

    Example:
        >>> from optland.curvature import hessian
        >>> from optland.problems import quadratic, with_spectrum
        >>> tracker = SpectrumTracker(ends="top", rtol=1e-3)
        >>> A = with_spectrum([9.0, 3.0, 1.0, 0.5, -1.0])
        >>> first, second = tracker.probe(hessian(quadratic(A))), tracker.probe(hessian(quadratic(1.01 * A)))
        >>> first.why, second.why, second.num_matvecs, round(second.spectrum.top.value, 3)
        ('first', '', 3, 9.09)
    """

    cost = staticmethod(_cost)

    def __init__(
        self,
        k: int = 1,
        *,
        ends: Ends = "both",
        rtol: float = 1e-2,
        stop: Stop = "residual",
        audit_every: int = 20,
        audit_jumps: Literal["at once", "next"] = "at once",
        random_share: float = 0.03,
        max_matvecs: int = 40,
        max_basis: int | None = None,
        seed: int = 0,
        store: torch.device | str | None = None,
    ) -> None:
        if audit_every < 1:
            raise ValueError(f"audit_every={audit_every} must be at least 1; 1 audits every probe")
        if audit_jumps not in ("at once", "next"):
            raise ValueError(f"audit_jumps={audit_jumps!r} is not known; use 'at once' or 'next'")
        self.k, self.ends, self.rtol = k, ends, rtol
        self.audit_jumps = audit_jumps
        self.stop: Stop = stop
        self.audit_every, self.random_share, self.seed = audit_every, random_share, seed
        self.max_matvecs, self.max_basis, self.store = max_matvecs, max_basis, store
        self.num_probes = 0
        self.num_matvecs = 0
        self.num_audits = 0
        self.num_replaced = 0
        self._since_audit = 0
        self._owed = ""  # why the next probe is audited whatever it finds
        self._kept: list[list[Tensor]] = []
        self._last: list[float] = []

    def next_cost(self, objective: Objective, *, method: Method = "auto") -> float:
        """The most that the next probe on a fresh Hessian of ``objective`` can cost, in gradient evaluations.

        With ``audit_jumps="next"`` it is one run where no audit is due, and two where one is; a caller with a budget
        then waits until an audit is affordable, and no probe takes more than it declared.

        Args:
            objective: What the Hessian would be of; its samples and product method decide the cost.
            method: How products would be computed.
        """
        if not self._kept:
            return lanczos.cost(objective, self.max_matvecs, method=method, ends=self.ends)
        if self.audit_jumps == "next" and not self._due():
            return declared_product_cost(objective, self.max_matvecs, method=method)
        return _cost(objective, self.max_matvecs, method=method, ends=self.ends)

    def probe(self, H: SymmetricOperator) -> Tracked:
        """The ends of the spectrum of ``H``, from where the last probe left off.

        Args:
            H: The operator at the present weights, with vectors of the same shapes as before.

        Returns:
            A :class:`Tracked`.
        """
        warm = self._run(H, cold=False) if self._kept else None
        why = self._reason(warm)
        audit = self._run(H, cold=True) if why else None
        spectrum, replaced = self._choose(warm, audit)
        runs = [run for run in (warm, audit) if run is not None]
        tracked = Tracked(
            spectrum=spectrum,
            audit=audit,
            why=why,
            replaced=replaced,
            num_matvecs=sum(run.num_matvecs for run in runs),
            cost_ge=sum(run.cost_ge for run in runs),
        )
        self._remember(tracked)
        return tracked

    def _run(self, H: SymmetricOperator, *, cold: bool) -> Spectrum:
        return lanczos(
            H,
            self.k,
            ends=self.ends,
            rtol=self.rtol,
            stop=self.stop,
            start=None if cold else self._starts(H),
            random_share=self.random_share,
            max_matvecs=self.max_matvecs,
            max_basis=self.max_basis,
            seed=self.seed + SEED_STRIDE * self.num_probes + cold,
        )

    def _starts(self, H: SymmetricOperator) -> list[list[Tensor]]:
        """The last eigenvectors, where the weights are."""
        return [[v.to(p.device) for v, p in zip(y, H.like, strict=True)] for y in self._kept]

    def _reason(self, warm: Spectrum | None) -> str:
        """Why this probe is audited; empty when it is not."""
        if warm is None:
            return "first"
        if due := self._due():
            return due
        if self.audit_jumps == "next":
            return ""
        return self._jump(self._wanted(warm)) or ("" if warm.converged else "not converged")

    def _due(self) -> str:
        """Why the next probe is audited whatever it finds; empty when that depends on it."""
        return self._owed or ("due" if self._since_audit + 1 >= self.audit_every else "")

    def _jump(self, now: list[float]) -> str:
        """``"jump"`` where an end has left the last one far behind; empty when not."""
        pairs = zip(now, self._last, strict=True)
        near = all(abs(new - old) <= JUMP * max(abs(new), abs(old)) for new, old in pairs)
        return "" if near else "jump"  # a NaN is one too

    def _wanted(self, spectrum: Spectrum) -> list[float]:
        """The outermost values at the ends that are followed."""
        values = {"top": [spectrum.top], "bottom": [spectrum.bottom], "both": [spectrum.top, spectrum.bottom]}
        return [estimate.value for estimate in values[self.ends]]

    def _choose(self, warm: Spectrum | None, audit: Spectrum | None) -> tuple[Spectrum, bool]:
        """The run to believe, and whether a warm one lost to its audit.

        They agree when no end of the audit lies further out than the warm one by more than ``rtol`` of it, or of
        the audit's residual.
        """
        if warm is None or audit is None:
            only = warm if audit is None else audit
            assert only is not None  # one of the two has always run
            return only, False
        missed = [self._further_out(audit, warm, upper) for upper in self._ends()]
        gained = [self._further_out(warm, audit, upper) for upper in self._ends()]
        if any(missed) or not math.isfinite(warm.top.value):
            return audit, True
        # An audit that found as much has a certificate besides; one that found less was the one to miss a pair.
        return (warm if any(gained) or not audit.converged else audit), False

    def _ends(self) -> list[bool]:
        """True for the top, False for the bottom."""
        return {"top": [True], "bottom": [False], "both": [True, False]}[self.ends]

    def _further_out(self, one: Spectrum, other: Spectrum, upper: bool) -> bool:
        """Whether the end of ``one`` lies beyond that of ``other`` by more than the tolerance."""
        a, b = (one.top, other.top) if upper else (one.bottom, other.bottom)
        scale = max(abs(one.top.value), abs(one.bottom.value))
        beyond = (a.value - b.value) if upper else (b.value - a.value)
        return beyond > self.rtol * max(abs(a.value), 0.1 * scale)

    def _remember(self, tracked: Tracked) -> None:
        self.num_probes += 1
        self.num_matvecs += tracked.num_matvecs
        self.num_audits += tracked.audit is not None
        self.num_replaced += tracked.replaced
        jumped = tracked.audit is None and self._jump(self._wanted(tracked.spectrum))
        self._owed = jumped or ""  # only where jumps are not audited at once
        self._since_audit = 0 if tracked.audit is not None else self._since_audit + 1
        finite = all(math.isfinite(value) for value in self._wanted(tracked.spectrum))
        found = tracked.spectrum.vectors if finite else []
        self._kept = [[v if self.store is None else v.to(self.store) for v in y] for y in found]
        self._last = self._wanted(tracked.spectrum) if finite else []

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next probe depends on; a resumed tracker probes as the unbroken one would.

        Returns:
            Counts, and the eigenvectors as copies; settings such as ``rtol`` are those of the constructor.
        """
        return {
            "num_probes": self.num_probes,
            "num_matvecs": self.num_matvecs,
            "num_audits": self.num_audits,
            "num_replaced": self.num_replaced,
            "since_audit": self._since_audit,
            "owed": self._owed,
            "kept": [vectors.clone(y) for y in self._kept],
            "last": list(self._last),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, with the same arguments."""
        self.num_probes, self.num_matvecs = state["num_probes"], state["num_matvecs"]
        self.num_audits, self.num_replaced = state["num_audits"], state["num_replaced"]
        self._since_audit, self._owed = state["since_audit"], state["owed"]
        self._kept = [vectors.clone(y) for y in state["kept"]]
        self._last = list(state["last"])
