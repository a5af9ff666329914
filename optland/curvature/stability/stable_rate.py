r"""The largest stable learning rate of an optimizer at a point, and how far given rates are from it.

.. math:: \eta^* = \sup \{ \eta : \lambda_{\max} \le \lambda_\mathrm{stable}(\eta) \}

with the sharpness in the optimizer's own metric and the thresholds of :mod:`optland.curvature.stability.thresholds`,
which fall as the rate grows. One spectrum serves every rate.

**Cost.** One Lanczos run for the upper end, none where a spectrum of the Hessian is given and the optimizer is not
adaptive; a gradient for SAM's threshold, and one more a rate.

**When.** At the end of a run, where the rate has decayed and the ratio at the last rate says nothing: the largest
stable rate depends on the weights alone, and the rates that the run used can be held against it.

**Caveats.** Those of :mod:`optland.curvature.stability.ratio`: for full batches and a frozen preconditioner. Where
groups have different thresholds, or decay is coupled to an adaptive optimizer, no single eigenvalue decides; the
ratios are then measured rate by rate, and the largest stable rate is left out. Adam's state is that of the last step,
whatever the rate it is held against.

**References.** Cohen et al. 2021, arXiv:2103.00065, and 2022, arXiv:2207.14484 (edge of stability).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch.optim import Optimizer

from optland import vectors
from optland.archive import Archived
from optland.curvature.cost import costs
from optland.curvature.eigen.lanczos import lanczos
from optland.curvature.eigen.spectrum import Spectrum
from optland.curvature.operators.hessian import Method, hessian
from optland.curvature.operators.preconditioner import innermost
from optland.curvature.operators.transforms import preconditioned
from optland.curvature.stability.ratio import StabilityRatio, stability_ratio
from optland.curvature.stability.thresholds import Threshold, stability_threshold
from optland.estimate import Estimate
from optland.objective import Objective

__all__ = ["StableRate", "stable_rate"]

SMALLEST, LARGEST = 1e-15, 1e15
"""Learning rates between which the edge is sought."""

HALVINGS = 120
"""Bisections of the logarithm: the interval ends below rounding."""


@dataclass(frozen=True, slots=True)
class StableRate(Archived):
    """The edge of stability, in learning rates of the first parameter group.

    Attributes:
        largest: The largest stable learning rate; inf where nothing curves upwards; NaN where no single eigenvalue
            decides. Half the distance of the rates that belong to the ends of the eigenvalue's interval is its error.
        ratios: By the rate's name: sharpness over threshold, above 1 unstable.
        rates: The learning rates behind the names.
        rule: Optimizer and threshold in words, without the rate.
        adaptive: Whether the sharpness is that of the preconditioned Hessian.
        sharpness: The eigenvalue that decides; NaN where no single one does.
        note: A sentence when something needs saying.
    """

    largest: Estimate
    ratios: dict[str, StabilityRatio]
    rates: dict[str, float]
    rule: str
    adaptive: bool
    sharpness: Estimate
    note: str = ""

    def __str__(self) -> str:
        lines = [f"largest stable learning rate: {self.largest} ({self.rule})"]
        lines += [f"  at {name} {self.rates[name]:.4g}: {ratio}" for name, ratio in self.ratios.items()]
        return "\n".join(lines + ([f"  {self.note}"] if self.note else []))


def _cost(
    objective: Objective, num_rates: int = 1, max_matvecs: int = 40, *, method: Method = "auto"
) -> float:
    """The most that :func:`stable_rate` can cost where one eigenvalue decides, in gradient evaluations.

    Where none does, every rate costs a Lanczos run of its own.
    """
    return lanczos.cost(objective, max_matvecs, method=method, ends="top") + objective.num_samples * (
        1 + num_rates
    )


@costs(_cost)
def stable_rate(
    objective: Objective,
    optimizer: Optimizer,
    rates: Mapping[str, float],
    *,
    spectrum: Spectrum | None = None,
    rtol: float = 1e-2,
    max_matvecs: int = 40,
    method: Method = "auto",
    seed: int = 0,
) -> StableRate:
    """Hold learning rates against the stability edge at the present weights and optimizer state.

    Args:
        objective: The loss, best on all data or a large fixed probe set.
        optimizer: The optimizer that trains the model; its learning rates are as before when this returns.
        rates: Learning rates of its first group, by a name of your choice; other groups keep their ratio to it. May be
            empty.
        spectrum: A spectrum of the Hessian that was measured anyway; not used for an adaptive optimizer.
        rtol: Wanted residual relative to the eigenvalue.
        max_matvecs: Most Hessian products.
        method: How products are computed.
        seed: Seed of the start vector.

    Returns:
        A :class:`StableRate`.

    Raises:
        TypeError: The optimizer's threshold is not known.
        ValueError: A rate is negative or not finite; or the optimizer lacks a parameter, has made no step (adaptive
            ones), maximizes, or weight decay alone is beyond the edge.

    Example:
        >>> import torch
        >>> from optland.problems import quadratic
        >>> L = quadratic(torch.diag(torch.tensor([1.0, 10.0], dtype=torch.float64)))
        >>> sgd = torch.optim.SGD(L.params, lr=1.0, momentum=0.9)
        >>> found = stable_rate(L, sgd, {"last": 0.19})
        >>> round(found.largest.value, 6), round(found.ratios["last"].ratio.value, 6), sgd.param_groups[0]["lr"]
        (0.38, 0.5, 1.0)
    """
    for name, rate in rates.items():
        if not (rate >= 0 and math.isfinite(rate)):
            raise ValueError(
                f"the {name} learning rate {rate} is not valid; use a finite number of 0 or more"
            )
    grad_norm = float(vectors.norm(objective.gradient()))
    thresholds = _thresholds(optimizer, 1.0, grad_norm)
    alike = len({t.sharpness for t in thresholds}) == 1
    if not alike or any(t.coupled_decay for t in thresholds):
        return _rate_by_rate(objective, optimizer, rates, thresholds, rtol, max_matvecs, method, seed)
    first = thresholds[0]
    if first.adaptive or spectrum is None:
        with hessian(objective, method=method) as H:
            A = preconditioned(H, optimizer) if first.adaptive else H
            spectrum = lanczos(A, ends="top", rtol=rtol, max_matvecs=max_matvecs, seed=seed)
    ratios = {}
    for name, rate in rates.items():
        with _at_rate(optimizer, rate):
            ratios[name] = stability_ratio(objective, optimizer, spectrum=spectrum)
    largest = _largest(optimizer, spectrum.top, grad_norm)
    return StableRate(largest, ratios, dict(rates), first.rule, first.adaptive, spectrum.top, first.note)


def _rate_by_rate(
    objective: Objective,
    optimizer: Optimizer,
    rates: Mapping[str, float],
    thresholds: tuple[Threshold, ...],
    rtol: float,
    max_matvecs: int,
    method: Method,
    seed: int,
) -> StableRate:
    """A matrix of its own for every rate, each warm from the last."""
    ratios: dict[str, StabilityRatio] = {}
    last: Spectrum | None = None
    for name, rate in rates.items():
        with _at_rate(optimizer, rate):
            found = stability_ratio(
                objective, optimizer, start=last, rtol=rtol, max_matvecs=max_matvecs, method=method, seed=seed
            )
        ratios[name], last = found, found.spectrum
    note = "No single eigenvalue decides: groups have different thresholds, or decay is coupled to the preconditioner."
    nothing = Estimate(math.nan, math.nan, "none", False, 0.0, objective.provenance("not measured"), note)
    return StableRate(nothing, ratios, dict(rates), thresholds[0].rule, thresholds[0].adaptive, nothing, note)


@contextmanager
def _at_rate(optimizer: Optimizer, rate: float) -> Iterator[None]:
    """Run a block with the first group's learning rate at ``rate``, the other groups' in proportion."""
    groups = innermost(optimizer).param_groups
    before = [group["lr"] for group in groups]
    first = float(before[0])
    try:
        for group, own in zip(groups, before, strict=True):
            group["lr"] = rate * (float(own) / first if first > 0 else 1.0)
        yield
    finally:
        for group, own in zip(groups, before, strict=True):
            group["lr"] = own


def _thresholds(optimizer: Optimizer, rate: float, grad_norm: float) -> tuple[Threshold, ...]:
    with _at_rate(optimizer, rate):
        return stability_threshold(optimizer, grad_norm=grad_norm)


def _largest(optimizer: Optimizer, top: Estimate, grad_norm: float) -> Estimate:
    """The rate whose threshold is the eigenvalue, and those of both ends of its interval."""

    def edge(sharpness: float) -> float:
        if not sharpness > 0:
            return math.inf if sharpness <= 0 else math.nan
        low, high = math.log(SMALLEST), math.log(LARGEST)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            stable = _thresholds(optimizer, math.exp(middle), grad_norm)[0].sharpness >= sharpness
            low, high = (middle, high) if stable else (low, middle)
        return math.exp(low)

    value = edge(top.value)
    error = abs(edge(top.value - top.error) - edge(top.value + top.error)) / 2 if value < math.inf else 0.0
    note = top.note if top.converged else f"An upper bound: the eigenvalue may be larger. {top.note}".strip()
    return replace(top, value=value, error=error, note=note)
