"""The pilot's three probes: where they look, what they declare to cost, and the metrics they yield.

=========  ==============================================  =====================================================
probe      looks at                                        yields
=========  ==============================================  =====================================================
edge       the step's own batch, along the realised step   ``edge/*``: critical step, ratio of the rate to it
noise      the step's own batch, in micro-batches          ``noise/*``: tr(Sigma), |G|^2, noise scale
curvature  a fixed probe set (kept in the state)           ``curv/*``: both ends of the Hessian's spectrum
=========  ==============================================  =====================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from optland.batches import num_samples, take
from optland.context import notes_of
from optland.control.signals import Signal
from optland.curvature import (
    CriticalStep,
    SpectrumTracker,
    Tracked,
    critical_step,
    gradient_noise,
    hessian,
)
from optland.failpoints import reach
from optland.objective import FORWARD_GE, LossFn, Objective
from optland.vectors import Vector

__all__ = ["Probes", "Reading"]

EDGE_FORWARDS = 5  # base loss, a warm bracket of two, two refinements
NOISE_PARTS = 4
SPECTRUM_PRODUCTS = 8  # of one run; an audited probe has two
SPECTRUM_TOL = 0.05  # a rate is scheduled on it, not a figure printed in a paper
AUDIT_EVERY = 8
"""Probes from one audit of the spectrum to the next: they are far apart in steps, so more turns in between."""


@dataclass(frozen=True)
class Reading:
    """What one probe gave: a signal for the policies, metrics for the log, and its cost."""

    probe: str
    signals: dict[str, Signal]
    metrics: dict[str, float]
    cost_ge: float


class Probes:
    """Runs probes on a model without leaving a trace.

    Args:
        model: The module that is trained.
        loss_fn: ``loss_fn(model, batch)``.
        probe_samples: Size of the fixed probe set for the spectrum, cut from the first batch seen.
        seed: Seed of the Lanczos start vectors and of dropout inside probes.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn, *, probe_samples: int = 32, seed: int = 0) -> None:
        self.model = model
        self.loss_fn = loss_fn
        self.probe_samples = probe_samples
        self.seed = seed
        self.probe_batch: Any = None
        self.edge_start = 1.0
        self.count = {"edge": 0, "noise": 0, "curvature": 0}
        self._probe_set: Objective | None = None
        # Jumps are audited with the probe that follows, so that what a probe declares is what it can cost.
        self.tracker = SpectrumTracker(
            tol=SPECTRUM_TOL,
            max_products=SPECTRUM_PRODUCTS,
            audit_every=AUDIT_EVERY,
            audit_jumps="next",
            seed=seed,
        )

    def see(self, batch: Any) -> None:
        """Keep the first samples of the first batch as the probe set: one fixed set makes a series comparable."""
        if self.probe_batch is None:
            self.probe_batch = take(batch, self.probe_samples)
        if self._probe_set is None:
            self._probe_set = Objective(
                self.model, self.loss_fn, [self.probe_batch], data="probe set", seed=self.seed
            )

    def declared(self, probe: str, batch_size: int) -> float:
        """The most the probe can cost now, in gradient evaluations; infinite while it has nothing to look at.

        A curvature probe whose audit is due declares both of its runs: the budget waits until it can pay for them.
        """
        if probe == "edge":
            return FORWARD_GE * EDGE_FORWARDS * batch_size
        if probe == "noise":
            return float(batch_size)
        return math.inf if self._probe_set is None else self.tracker.next_cost(self._probe_set)

    def edge(self, step: int, batch: Any, origin: Vector, update: Vector, lr: float) -> Reading:
        """Critical step along the realised update, from the weights before the step, as the step saw the net."""
        reach("probe.edge")
        objective = Objective(
            self.model, self.loss_fn, [batch], mode="train", data="step batch", seed=self.seed + step
        )
        found = critical_step(
            objective, update, origin=origin, start=self.edge_start, max_forwards=EDGE_FORWARDS
        )
        self.count["edge"] += 1
        usable = found.status in ("resolved", "unbounded") and found.step.value > 0
        if usable:
            self.edge_start = min(max(found.step.value, 0.25), 64.0)
        return Reading("edge", *_edge_signals(found, step, lr, usable), found.cost_ge)

    def noise(self, step: int, batch: Any) -> Reading:
        """Gradient noise of the batch at the present weights, by the two-batch-size estimator."""
        reach("probe.noise")
        parts = min(NOISE_PARTS, num_samples(batch))
        if parts < 2:
            return Reading("noise", {}, {"noise/resolved": 0.0}, 0.0)
        # In train mode BatchNorm would see other statistics in a part than in the whole batch.
        objective = Objective(self.model, self.loss_fn, [batch], data="step batch", seed=self.seed + step)
        noise = gradient_noise(objective, parts=parts)
        self.count["noise"] += 1
        valid = math.isfinite(noise.trace_cov.value) and math.isfinite(noise.grad_sq.value)
        signals = {
            "trace_cov": Signal(
                "noise/trace_cov",
                noise.trace_cov.value,
                step,
                noise.trace_cov.error,
                valid,
                "" if valid else "nonfinite",
            ),
            "grad_sq": Signal(
                "noise/grad_sq",
                noise.grad_sq.value,
                step,
                noise.grad_sq.error,
                valid,
                "" if valid else "nonfinite",
            ),
        }
        metrics = {
            "noise/trace_cov": noise.trace_cov.value,
            "noise/trace_cov_error": noise.trace_cov.error,
            "noise/grad_sq": noise.grad_sq.value,
            "noise/grad_sq_error": noise.grad_sq.error,
            "noise/resolved": float(noise.resolved),
        }
        return Reading("noise", signals, metrics, noise.cost_ge)

    def curvature(self, step: int) -> Reading:
        """Both ends of the Hessian's spectrum on the fixed probe set: warm-started, and audited by cold runs."""
        if self._probe_set is None:
            raise RuntimeError("the probe set is not known yet; call see(batch) first")
        with hessian(self._probe_set) as H:
            reach("probe.curvature")
            found = self.tracker.probe(H)
        self.count["curvature"] += 1
        return Reading("curvature", *_curvature_signals(found, step), found.cost_ge)

    def state_dict(self) -> dict[str, Any]:
        """Warm starts, audits and the probe set; a resumed run probes as the unbroken one would."""
        return {
            "probe_batch": self.probe_batch,
            "edge_start": self.edge_start,
            "tracker": self.tracker.state_dict(),
            "count": dict(self.count),
            "verdicts": notes_of(self.model).state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.probe_batch = state["probe_batch"]
        self.edge_start = state["edge_start"]
        self.tracker.load_state_dict(state["tracker"])
        self._probe_set = None
        self.count = dict(state["count"])
        notes_of(self.model).load_state_dict(
            state.get("verdicts", {})
        )  # what was compared is not paid for again


def _edge_signals(
    found: CriticalStep, step: int, lr: float, usable: bool
) -> tuple[dict[str, Signal], dict[str, float]]:
    """The critical learning rate eta_c = t_c * lr, its sharpness 2 / eta_c, and the edge ratio lr / eta_c."""
    t = found.step.value
    eta_c = t * lr
    signal = Signal(
        "edge/eta_c", eta_c, step, found.step.error * lr, valid=usable, why="" if usable else found.status
    )
    metrics = {
        "edge/resolved": float(found.status == "resolved"),
        "edge/not_descent": float(found.status == "not_descent"),
    }
    if usable:
        metrics |= {
            "edge/eta_c": eta_c,
            "edge/eta_c_error": found.step.error * lr,
            "edge/ratio": 1.0 / t,
            "edge/lambda_c": 2.0 / eta_c if eta_c > 0 else math.nan,
        }
    return {"edge": signal}, metrics


def _curvature_signals(found: Tracked, step: int) -> tuple[dict[str, Signal], dict[str, float]]:
    """Extreme eigenvalues with their residuals and whether they converged; products of the audit included."""
    top, bottom = found.spectrum.top, found.spectrum.bottom
    metrics = {
        "curv/lambda_max": top.value,
        "curv/lambda_max_error": top.error,
        "curv/lambda_max_converged": float(top.converged),
        "curv/lambda_min": bottom.value,
        "curv/lambda_min_error": bottom.error,
        "curv/lambda_min_converged": float(bottom.converged),
        "curv/ncr": -bottom.value / top.value if top.value > 0 else math.nan,
        "curv/products": float(found.num_products),
    }
    signals = {
        "lambda_max": Signal(
            "curv/lambda_max",
            top.value,
            step,
            top.error,
            top.converged,
            "" if top.converged else "unresolved",
        ),
        "lambda_min": Signal(
            "curv/lambda_min",
            bottom.value,
            step,
            bottom.error,
            bottom.converged,
            "" if bottom.converged else "unresolved",
        ),
    }
    return signals, metrics
