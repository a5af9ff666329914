"""Both ends of the Hessian's spectrum on a fixed set of samples: warm-started, and audited by cold runs."""

from __future__ import annotations

import math
from typing import Any

from optland.curvature import SpectrumTracker, hessian
from optland.curvature.eigen.tracker import Tracked
from optland.failpoints import reach
from optland.objective import Objective
from optland.pilot.host import Host
from optland.pilot.probes.base import Probe
from optland.pilot.signal import Signal

__all__ = ["CurvatureProbe"]

SAMPLES = 32
PRODUCTS = 8  # of one run; an audited probe has two
TOL = 0.05  # a rate is scheduled on it, not a figure printed in a paper
AUDIT_EVERY = 8
"""Probes from one audit of the spectrum to the next: they are far apart in updates, so more turns in between."""


class CurvatureProbe(Probe):
    """``curv/lambda_max``, ``curv/lambda_min`` and their negative ratio ``curv/ncr``.

    The two eigenvectors, two copies of the trained parameters, wait in the host's memory for the next run.

    Args:
        seed: Seed of the Lanczos start vectors.
    """

    name = "curvature"
    yields = frozenset({"curv/lambda_max", "curv/lambda_min", "curv/ncr"})
    every = 20
    weight = 2.0
    whole_batches = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.batch: Any = None
        self.tracker = self._tracker()
        self._objective: Objective | None = None
        self._names: list[str] = []  # of the parameters that the spectrum is of

    def _tracker(self) -> SpectrumTracker:
        # Jumps are audited with the probe that follows, so that what a probe declares is what it can cost.
        return SpectrumTracker(
            rtol=TOL,
            max_matvecs=PRODUCTS,
            audit_every=AUDIT_EVERY,
            audit_jumps="next",
            seed=self.seed,
            store="cpu",
        )

    def see(self, host: Host) -> None:
        """Keep the first samples of the first batch: one fixed set makes a series comparable."""
        if self.batch is None:
            self.batch = host.some(host.batch, SAMPLES)

    def _on_the_set(self, host: Host) -> Objective | None:
        """The loss on the probe set; where layers were frozen or unfrozen it is another spectrum, sought anew."""
        if self.batch is None:
            return None
        present = {name: p for name, p in host.model.named_parameters() if p.requires_grad}
        known = [] if self._objective is None else self._objective.params
        if len(known) == len(present) and all(p is q for p, q in zip(known, present.values(), strict=True)):
            return self._objective
        if self._names not in ([], list(present)):
            self.tracker = self._tracker()
        self._names = list(present)
        self._objective = host.over([self.batch], data="probe set", seed=self.seed)
        return self._objective

    def cost(self, host: Host) -> float:
        """Up to eight products; one whose audit is due declares both of its runs."""
        objective = self._on_the_set(host)
        return math.inf if objective is None else self.tracker.next_cost(objective)

    def measure(self, host: Host) -> list[Signal]:
        """Extreme eigenvalues with their residuals and whether they converged.

        Args:
            host: Its weights are looked at, on the samples that were kept at the first update.

        Returns:
            Both ends with their residuals as errors, a flag beside each, the ratio -lambda_min / lambda_max, and the
            products that it took.

        Raises:
            RuntimeError: No batch was seen yet.
        """
        objective = self._on_the_set(host)
        if objective is None:
            raise RuntimeError("the probe set is not known yet; call see(host) first")
        with hessian(objective) as H:
            reach("probe.curvature")
            found = self.tracker.probe(H)
        self.spent = found.cost_ge
        return _signals(found, host.step)

    def state_dict(self) -> dict[str, Any]:
        """Warm starts, audits and the probe set."""
        return {"batch": self.batch, "names": list(self._names), "tracker": self.tracker.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.batch, self._names, self._objective = state["batch"], list(state["names"]), None
        self.tracker.load_state_dict(state["tracker"])


def _signals(found: Tracked, step: int) -> list[Signal]:
    top, bottom = found.spectrum.top, found.spectrum.bottom
    signals = []
    for name, pair in (("curv/lambda_max", top), ("curv/lambda_min", bottom)):
        why = "" if pair.converged else "unresolved"
        signals.append(Signal(name, pair.value, step, pair.error, pair.converged, why))
        signals.append(Signal(f"{name}_converged", float(pair.converged), step))
    positive = top.value > 0
    ncr = -bottom.value / top.value if positive else math.nan
    signals.append(Signal("curv/ncr", ncr, step, valid=positive, why="" if positive else "unresolved"))
    return [*signals, Signal("curv/products", float(found.num_matvecs), step)]
