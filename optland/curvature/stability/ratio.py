r"""The stability ratio of an optimizer: measured sharpness over the largest at which it is stable.

.. math:: r = \lambda_{\max}\big( D^{-1/2} H D^{-1/2} \big), \qquad D = P\, \lambda_\mathrm{stable} - \mathrm{wd}

with the thresholds of :mod:`optland.curvature.stability.thresholds` before decay, the optimizer's preconditioner P (1
without one) and its coupled weight decay wd, each coordinate by coordinate; without decay and with one group that is
lambda_max(P^-1 H) / lambda_stable.

**Cost.** A Lanczos run, or nothing where a spectrum is given; with SAM a gradient.

**When.** One line in the log that means the same for every optimizer: far below 1 the learning rate could be larger as
far as curvature goes, at 1 training is at the edge of stability and settles there, beyond it the loss has to rise.

**Defaults.** "At the edge" is within 10 % of 1, the width in which full-batch training hovers.

**Caveats.** For full batches; under minibatch noise the largest eigenvalue stays below the edge, and batch sharpness is
the number to watch. Adam's preconditioner is frozen, though in training it follows the gradients. Groups of different
learning rates and decays are scaled into one matrix, which is exact; with SAM around them, or with different momenta,
the ratio is a guide.

**References.** Cohen et al. 2021, arXiv:2103.00065, and 2022, arXiv:2207.14484 (edge of stability). The scaling by
groups is derived: D^{-1/2} H D^{-1/2} < 1 is H + wd < P lambda_stable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from torch.optim import Optimizer

from optland import vectors
from optland.archive import Archived
from optland.curvature.cost import costs
from optland.curvature.eigen.lanczos import lanczos
from optland.curvature.eigen.spectrum import Spectrum
from optland.curvature.operators.hessian import Method, hessian
from optland.curvature.operators.preconditioner import innermost, preconditioner
from optland.curvature.operators.transforms import in_metric
from optland.curvature.stability.thresholds import Threshold, stability_threshold
from optland.estimate import Estimate
from optland.objective import Objective
from optland.vectors import Vector
from optland.words import Words

__all__ = [
    "StabilityRatio",
    "StabilityVerdict",
    "stability_ratio",
]


class StabilityVerdict(Words):
    """On which side of the edge a step is."""

    BELOW = "below the edge"
    AT = "at the edge"
    BEYOND = "beyond the edge"
    UNKNOWN = "unknown"


EDGE_WIDTH = 0.1
"""Ratios within this distance of 1 are at the edge."""

_BEYOND = "weight decay alone is beyond the stability edge in group {} ({}); lower it or the learning rate"


@dataclass(frozen=True, slots=True)
class StabilityRatio(Archived):
    """Sharpness over threshold, in a number and in words.

    Attributes:
        ratio: Largest eigenvalue over the largest stable one; above 1 the full-batch step is unstable.
        verdict: ``below the edge``, ``at the edge`` (within a tenth), ``beyond the edge``, or ``unknown`` where the
            eigenvalue did not converge and nothing follows from its lower bound.
        sharpness: The eigenvalue of H (of P^-1/2 H P^-1/2 where adaptive) that the ratio stands for, the ratio times
            the threshold; NaN where groups have different thresholds.
        thresholds: One for each parameter group.
        spectrum: What was measured, for the next warm start.
    """

    ratio: Estimate
    verdict: StabilityVerdict
    sharpness: Estimate
    thresholds: tuple[Threshold, ...]
    spectrum: Spectrum

    def __str__(self) -> str:
        return f"{self.ratio} of the stability threshold: {self.verdict} ({self.thresholds[0].rule})"


def _cost(objective: Objective, max_matvecs: int = 40, *, method: Method = "auto") -> float:
    """The most that :func:`stability_ratio` can cost, in gradient evaluations."""
    return lanczos.cost(objective, max_matvecs, method=method) + objective.num_samples


@costs(_cost)
def stability_ratio(
    objective: Objective,
    optimizer: Optimizer,
    *,
    spectrum: Spectrum | None = None,
    start: Spectrum | Sequence[Vector] | None = None,
    rtol: float = 1e-2,
    max_matvecs: int = 40,
    method: Method = "auto",
    seed: int = 0,
) -> StabilityRatio:
    r"""The largest eigenvalue over ``optimizer``'s largest stable one, at the present weights and state.

    Computed as the largest eigenvalue of D^{-1/2} H D^{-1/2} with D = P threshold - wd, coordinate by coordinate, which
    is 1 exactly at the edge, also where groups differ in learning rate and decay.

    Args:
        objective: The loss, best on all data or a large fixed probe set.
        optimizer: The optimizer that trains the model; an adaptive one must have made a step.
        spectrum: A spectrum that was measured anyway: of the Hessian, or of the preconditioned one for an adaptive
            optimizer. Then nothing is computed but SAM's gradient.
        start: Spectrum of the last ratio, for a warm start.
        rtol: Wanted residual relative to the eigenvalue.
        max_matvecs: Most Hessian products.
        method: How products are computed.
        seed: Seed of the start vector.

    Returns:
        A :class:`StabilityRatio`.

    Raises:
        TypeError: The optimizer's threshold is not known.
        ValueError: The optimizer lacks a parameter of the objective, or has made no step (adaptive ones); weight decay
            alone is beyond the edge; or ``spectrum`` is of another matrix, or cannot serve because groups have
            different thresholds or decay is coupled to an adaptive optimizer.

    Example:
        >>> import torch
        >>> from optland.problems import quadratic
        >>> L = quadratic(torch.diag(torch.tensor([1.0, 10.0], dtype=torch.float64)))
        >>> found = stability_ratio(L, torch.optim.SGD(L.params, lr=0.1))
        >>> round(found.ratio.value, 4), found.verdict, found.thresholds[0].rule
        (0.5, 'below the edge', 'gradient descent, 2 / lr')
    """
    spent = objective.cost_ge
    thresholds = stability_threshold(optimizer, grad_norm=_grad_norm(objective, optimizer))
    own = _of_parameters(objective, optimizer, thresholds)
    alike = len({t.sharpness for t in own}) == 1
    if spectrum is None:
        with hessian(objective, method=method) as H:
            scaled = in_metric(H, _scale(objective, optimizer, own))
            spectrum = lanczos(scaled, ends="top", rtol=rtol, start=start, max_matvecs=max_matvecs, seed=seed)
        per_threshold = 1.0
    else:
        _check_spectrum(spectrum, own, alike)
        per_threshold = own[0].sharpness
    cost = objective.cost_ge - spent
    top = spectrum.top
    ratio = replace(top, value=top.value / per_threshold, error=top.error / per_threshold, cost_ge=cost)
    unit = own[0].sharpness / per_threshold if alike else math.nan
    sharpness = replace(top, value=top.value * unit, error=top.error * unit)
    note = " ".join(dict.fromkeys(t.note for t in own if t.note))
    ratio = ratio.with_note(note) if note else ratio
    return StabilityRatio(ratio, _verdict(ratio), sharpness, thresholds, spectrum)


def thresholds_of(objective: Objective, optimizer: Optimizer) -> tuple[list[Tensor], list[Threshold]]:
    """D^-1/2, the metric in which the largest eigenvalue of H is the ratio, and the threshold of every parameter.

    Args:
        objective: Gives the parameters.
        optimizer: That trains them, at its present rate and state.

    Returns:
        D^-1/2 in the shapes of the parameters, and as many thresholds, the same object for parameters of one group.

    Raises:
        ValueError: The optimizer does not hold a parameter, or weight decay alone is beyond the edge in its group.
    """
    own = _of_parameters(objective, optimizer, stability_threshold(optimizer))
    return _scale(objective, optimizer, own), own


def _grad_norm(objective: Objective, optimizer: Optimizer) -> float | None:
    """Norm of the gradient where SAM's threshold needs it."""
    if type(optimizer).__name__ != "SAM" or optimizer is innermost(optimizer):
        return None
    return float(vectors.norm(objective.gradient()))


def _of_parameters(
    objective: Objective, optimizer: Optimizer, thresholds: Sequence[Threshold]
) -> list[Threshold]:
    """The threshold of every parameter of the objective."""
    held = {
        p: t for t, group in zip(thresholds, optimizer.param_groups, strict=True) for p in group["params"]
    }
    missing = [name for name, p in zip(objective.names, objective.sources, strict=True) if p not in held]
    if missing:
        raise ValueError(
            f"the optimizer does not hold parameter {missing[0]!r}; pass the one that trains this model, or freeze the "
            "parameter with requires_grad_(False) while the objective is made"
        )
    own = [held[p] for p in objective.sources]
    beyond = next((t for t in own if not t.sharpness > 0), None)
    if beyond is not None:
        raise ValueError(_BEYOND.format(beyond.group, beyond.rule))
    return own


def _scale(objective: Objective, optimizer: Optimizer, own: Sequence[Threshold]) -> list[Tensor]:
    """D^-1/2 with D = P threshold - wd; zero where lr is 0 and nothing moves."""
    scale = []
    for P, t in zip(preconditioner(optimizer, objective), own, strict=True):
        D = P * t.sharpness - t.coupled_decay
        if not bool((D > 0).all()):
            raise ValueError(_BEYOND.format(t.group, t.rule))
        scale.append(D.rsqrt())
    return scale


def _check_spectrum(spectrum: Spectrum, own: Sequence[Threshold], alike: bool) -> None:
    if not alike or any(t.coupled_decay for t in own):
        raise ValueError(
            "one eigenvalue cannot be held against thresholds that differ between parameters, or against an adaptive "
            "optimizer with coupled weight decay; leave spectrum out, and the scaled matrix is measured"
        )
    preconditioned = "precondition" in spectrum.provenance.method
    if own[0].adaptive != preconditioned:
        needed = "preconditioned(hessian(objective), optimizer)" if own[0].adaptive else "hessian(objective)"
        raise ValueError(
            f"the spectrum was measured by {spectrum.provenance.method}, but the threshold is one on {needed}"
        )


def _verdict(ratio: Estimate) -> StabilityVerdict:
    # An eigenvalue from a Krylov space is never above the largest, so "beyond" needs no convergence.
    if ratio.value > 1.0 + EDGE_WIDTH:
        return StabilityVerdict.BEYOND
    if not ratio.converged:
        return StabilityVerdict.UNKNOWN
    return StabilityVerdict.BELOW if ratio.value < 1.0 - EDGE_WIDTH else StabilityVerdict.AT
