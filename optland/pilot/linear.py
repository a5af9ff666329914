"""Test whether an optimizer's move is linear in its learning rate, so that a step can be rescaled afterwards.

PyTorch's own optimizers are known one by one. Any other is tried once, on copies of a few of its parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from optland.optim.delegate import Delegating

__all__ = ["innermost_of", "why_not_linear"]

LINEAR = frozenset({
    "SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta", "Muon", "SparseAdam",
})  # fmt: skip
"""PyTorch's optimizers whose move is linear in ``lr``."""

NOT_LINEAR = {
    "LBFGS": "its step is a line search",
    "Rprop": "lr is only the length of its first step",
    "ASGD": "its rate decays by a formula of its own and it keeps an average of the weights",
    "Adafactor": "it limits lr by the size of the update",
    "SaddleFreeNewton": "its step comes from a Newton system",
    "CubicNewton": "its step comes from a cubic model",
    "TrustRegionNewton": "its step comes from a trust region",
}
"""Optimizers whose move is not, and why."""

_TRIED = 4
"""Parameters that an unknown optimizer is tried on."""


def innermost_of(optimizer: Optimizer) -> Optimizer:
    """The optimizer below all wrappers of this package.

    Example:
        >>> from optland.optim import SAM
        >>> base = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        >>> innermost_of(SAM(base)) is base
        True
    """
    while isinstance(optimizer, Delegating):
        optimizer = optimizer.base
    return optimizer


def why_not_linear(optimizer: Optimizer) -> str | None:
    """Why the move of this optimizer is not linear in the learning rate; None where it is, or has to be tried.

    Args:
        optimizer: Wrappers of this package are looked through.

    Example:
        >>> why_not_linear(torch.optim.SGD([torch.zeros(1)], lr=0.1)) is None
        True
        >>> why_not_linear(torch.optim.LBFGS([torch.zeros(1)]))
        'its step is a line search'
    """
    base = innermost_of(optimizer)
    name = type(base).__name__
    if name in NOT_LINEAR:
        return NOT_LINEAR[name]
    if "schedulefree" in name.lower().replace("_", ""):
        return "its weights are an average over the run"
    if any("lr" not in group for group in base.param_groups):
        return "its parameter groups have no lr"
    return None


def has_to_be_tried(optimizer: Optimizer) -> bool:
    """Whether nothing is known of this optimizer."""
    base = innermost_of(optimizer)
    return not (type(base).__module__.startswith("torch.optim") and type(base).__name__ in LINEAR)


@torch.no_grad()
def tried(optimizer: Optimizer, params: Sequence[Tensor]) -> str | None:
    """Make a step of a copy of ``optimizer`` at its rate and at half of it, and compare the moves.

    Args:
        optimizer: Its gradients have been made.
        params: Its parameters.

    Returns:
        None where the moves are as 2 : 1, or where the copy cannot be made to step; else the reason against it.
    """
    base = innermost_of(optimizer)
    chosen = [p for p in params if p.grad is not None and p.grad.layout is torch.strided][:_TRIED]
    if not chosen:
        return None
    moves = []
    for share in (1.0, 0.5):
        try:
            moves.append(_move(base, chosen, share))
        except Exception:  # an optimizer of somebody else's, on parameters that it does not know
            return None
    whole, half = (torch.linalg.vector_norm(m) for m in moves)
    apart = torch.linalg.vector_norm(moves[0] - 2.0 * moves[1])
    if not bool(torch.isfinite(whole)) or float(apart) <= 0.01 * float(whole):
        return None
    share = float(half / whole)
    return f"at half the rate its move is {share:.2g} times as long, and it may have another direction"


def _move(base: Optimizer, chosen: Sequence[Tensor], share: float) -> Tensor:
    """The move of a copy at ``share`` of the learning rate, in float64."""
    copies = {p: torch.nn.Parameter(p.detach().clone()) for p in chosen}
    alone = copy.copy(base)
    alone.__dict__ = {k: v for k, v in base.__dict__.items() if not k.startswith("_optimizer_")}
    torch.optim.Optimizer.__setstate__(alone, {})
    alone.param_groups = []
    for group in base.param_groups:
        held = [copies[p] for p in group["params"] if p in copies]
        if held:
            options = {k: copy.deepcopy(v) for k, v in group.items() if k != "params"}
            alone.param_groups.append({**options, "params": held, "lr": group["lr"] * share})
    alone.state = type(base.state)(
        getattr(base.state, "default_factory", dict),
        {copies[p]: copy.deepcopy(dict(base.state[p])) for p in chosen if p in base.state},
    )
    for p, mine in copies.items():
        mine.grad = None if p.grad is None else p.grad.detach().clone()
    with torch.enable_grad():
        alone.step()
    return torch.cat([(mine.detach() - p).double().flatten() for p, mine in copies.items()])
