r"""The largest stable sharpness of an optimizer, from its hyper-parameters.

On a quadratic of curvature lam an optimizer diverges once lam exceeds a threshold set by its own hyper-parameters:

==========================  ==============================================  ===========================
optimizer                   threshold                                       on
==========================  ==============================================  ===========================
gradient descent            2 / lr                                          H
heavy ball                  (2 + 2b) / ((1 - dampening) lr)                 H
Nesterov                    (2 + 2b) / ((1 + 2b) lr)                        H
Adam, AdamW                 (2 + 2 b1) / ((1 - b1) lr)                      P^-1/2 H P^-1/2, P frozen
RMSprop                     2 / lr, with momentum (2 + 2b) / lr             P^-1/2 H P^-1/2, P frozen
SAM around descent          lam (1 + rho lam / ``|g|``) = that of descent   H
==========================  ==============================================  ===========================

Coupled weight decay wd adds wd to every eigenvalue, so the threshold on H falls by wd; AdamW's own decay replaces the
2 in (2 + 2 b1) = 2 (1 + b1) by 2 - lr wd. For *small batches* the curvature along the batch's own gradient
(:func:`optland.curvature.lines.line.batch_sharpness`) settles at another edge, 2 over the learning rate that a
gradient gets in all: 2 (1 - b) / ((1 - dampening) lr) with momentum of any kind, 2 / lr for Adam's averaged one.

**Cost.** None; SAM's threshold needs ``|g|``.

**Caveats.** For full batches and a frozen preconditioner, though in training Adam's follows the gradients. SAM's is
that of a gradient along the top eigenvector. Perturbations in another metric, or around an adaptive base, are left out
and ``exact`` says so.

**References.** Cohen et al. 2021, arXiv:2103.00065 (descent, momentum); Cohen et al. 2022, arXiv:2207.14484 (adaptive
ones); Long & Bartlett 2023, arXiv:2309.12488 (SAM); Andreyev & Beneventano 2024, arXiv:2412.20553, and arXiv:2604.14108
(batch sharpness, small batches with momentum). The edges with weight decay are derived from the same recursions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.optim import Optimizer

from optland.archive import Archived
from optland.curvature.operators.preconditioner import innermost

__all__ = ["Threshold", "stability_threshold"]


@dataclass(frozen=True, slots=True)
class Threshold(Archived):
    """The largest stable sharpness of one parameter group.

    Attributes:
        sharpness: Largest stable eigenvalue of H, or of P^-1/2 H P^-1/2 where ``adaptive``; at lr 0 infinite.
        batch_sharpness: Where the curvature along the batch's own gradient settles with small batches; NaN for SAM,
            for which no such edge is known.
        adaptive: Whether it is one on the preconditioned curvature.
        group: Number of the parameter group.
        rule: Optimizer and formula in words.
        coupled_decay: Weight decay that joins the gradient ahead of a preconditioner, which no single threshold can
            count; 0 where ``sharpness`` counts it.
        exact: False where a part of the optimizer is left out; ``note`` says which.
        note: One sentence when something needs saying.
    """

    sharpness: float
    batch_sharpness: float
    adaptive: bool
    group: int
    rule: str
    coupled_decay: float = 0.0
    exact: bool = True
    note: str = ""

    def __str__(self) -> str:
        matrix = "P^-1/2 H P^-1/2" if self.adaptive else "H"
        return f"group {self.group}: lambda_max({matrix}) < {self.sharpness:.4g} ({self.rule}) {self.note}".rstrip()


def stability_threshold(optimizer: Optimizer, *, grad_norm: float | None = None) -> tuple[Threshold, ...]:
    """The largest stable sharpness of every parameter group, from the optimizer's hyper-parameters alone.

    Args:
        optimizer: SGD, Adam, AdamW or RMSprop of PyTorch, or a wrapper with one of these as its ``base``.
        grad_norm: Norm of the full gradient, which SAM's threshold depends on.

    Returns:
        One :class:`Threshold` for each group.

    Raises:
        TypeError: The optimizer is not one of these.
        ValueError: It maximizes, or is SAM and ``grad_norm`` is missing or not positive.

    Example:
        >>> w = [torch.nn.Parameter(torch.zeros(1))]
        >>> print(stability_threshold(torch.optim.SGD(w, lr=0.1, momentum=0.9))[0])
        group 0: lambda_max(H) < 38 (heavy ball, (2 + 2 momentum) / lr)
        >>> print(stability_threshold(torch.optim.Adam(w, lr=0.1))[0])
        group 0: lambda_max(P^-1/2 H P^-1/2) < 380 (Adam, (2 + 2 beta1) / ((1 - beta1) lr))
    """
    inner = innermost(optimizer)
    thresholds = []
    for number, group in enumerate(inner.param_groups):
        if group.get("maximize"):
            raise ValueError(
                "the optimizer has maximize=True; minimize the negated loss instead, and pass that"
            )
        base = _base_threshold(inner, group, number)
        thresholds.append(_with_perturbation(optimizer, inner, group, base, grad_norm))
    return tuple(thresholds)


def _base_threshold(optimizer: Optimizer, group: dict[str, Any], number: int) -> Threshold:
    """Threshold of the optimizer that makes the update."""
    if isinstance(optimizer, torch.optim.SGD):
        return _descent(group, number)
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        return _adam(optimizer, group, number)
    if isinstance(optimizer, torch.optim.RMSprop):
        lr, b = float(group["lr"]), float(group["momentum"])
        rule = "RMSprop, (2 + 2 momentum) / lr" if b else "RMSprop, 2 / lr"
        return _adaptive(2.0 + 2.0 * b, 2.0 * (1.0 - b), lr, float(group["weight_decay"]), number, rule)
    raise TypeError(
        f"the stability threshold of {type(optimizer).__name__} is not known; those of SGD, Adam, AdamW and RMSprop are"
    )


def _descent(group: dict[str, Any], number: int) -> Threshold:
    lr, b = float(group["lr"]), float(group["momentum"])
    wd, gain = float(group["weight_decay"]), 1.0 - float(group["dampening"]) if b else 1.0
    if b == 0.0:
        edge, rule = 2.0, "gradient descent, 2 / lr"
    elif group["nesterov"]:
        edge, rule = (2.0 + 2.0 * b) / (1.0 + 2.0 * b), "Nesterov, (2 + 2 momentum) / ((1 + 2 momentum) lr)"
    elif gain == 1.0:
        edge, rule = 2.0 + 2.0 * b, "heavy ball, (2 + 2 momentum) / lr"
    else:
        edge, rule = 2.0 + 2.0 * b, "heavy ball, (2 + 2 momentum) / ((1 - dampening) lr)"
    bare = _over(edge, gain * lr)
    small = _over(2.0 * (1.0 - b), gain * lr)
    return Threshold(bare - wd, small - wd, False, number, rule + _decay_words(wd))


def _adam(optimizer: Optimizer, group: dict[str, Any], number: int) -> Threshold:
    lr, b = float(group["lr"]), float(group["betas"][0])
    wd = float(group["weight_decay"])
    name = type(optimizer).__name__
    rule = f"{name}, (2 + 2 beta1) / ((1 - beta1) lr)"
    if not group.get("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW)):
        return _adaptive(2.0 * (1.0 + b) / (1.0 - b), 2.0, lr, wd, number, rule)
    # The decay shrinks the weights by 1 - lr wd in the same step, which leaves the root at -1 with 2 - lr wd.
    if wd:
        rule = f"{name}, (2 - lr wd) (1 + beta1) / ((1 - beta1) lr)"
    reach = 2.0 - lr * wd
    return _adaptive(reach * (1.0 + b) / (1.0 - b), reach, lr, 0.0, number, rule)


def _adaptive(edge: float, small: float, lr: float, wd: float, number: int, rule: str) -> Threshold:
    """A threshold on the preconditioned curvature; coupled decay adds wd P^-1 to it, which no number can take off."""
    note = f"The curvature is that of H + {wd:g}, preconditioned." if wd else ""
    rule += _decay_words(wd)
    return Threshold(_over(edge, lr), _over(small, lr), True, number, rule, coupled_decay=wd, note=note)


def _over(edge: float, lr: float) -> float:
    return edge / lr if lr > 0.0 else math.inf


def _decay_words(wd: float) -> str:
    return f", weight decay {wd:g}" if wd else ""


def _with_perturbation(
    optimizer: Optimizer, inner: Optimizer, group: dict[str, Any], base: Threshold, grad_norm: float | None
) -> Threshold:
    """The threshold under a gradient taken at w + rho g / |g|."""
    rho = float(group.get("sam_rho", 0.0))
    if optimizer is inner or rho == 0.0:
        return base
    name = type(optimizer).__name__
    if name != "SAM" or group.get("sam_adaptive") or base.adaptive:
        note = f"The part of {name}'s perturbation has no closed form here and is left out."
        return replace(
            base, rule=f"{name} around {base.rule}", exact=False, note=f"{base.note} {note}".strip()
        )
    if grad_norm is None or not (grad_norm > 0.0 and math.isfinite(grad_norm)):
        raise ValueError(
            f"grad_norm={grad_norm}: SAM's threshold depends on the norm of the full gradient; pass a positive one"
        )
    return replace(
        base,
        sharpness=_sam_edge(base.sharpness, rho, grad_norm),
        batch_sharpness=math.nan,
        rule=f"SAM rho {rho:g} around {base.rule}",
    )


def _sam_edge(edge: float, rho: float, grad_norm: float) -> float:
    """The lam at which lam (1 + rho lam / |g|) reaches ``edge``, in a form that is exact for tiny rho too."""
    if not 0.0 < edge < math.inf:
        return edge
    return 2.0 * edge / (1.0 + math.sqrt(1.0 + 4.0 * rho * edge / grad_norm))
