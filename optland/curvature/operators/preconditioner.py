r"""The diagonal P by which an adaptive optimizer divides its update, read from its state.

.. math:: \theta \leftarrow \theta - \eta\, P^{-1} \bar m, \qquad
          P_{\text{Adam}} = (1 - \beta_1^t) \left( \sqrt{v / (1 - \beta_2^t)} + \epsilon \right)

=================  ==================================================================
optimizer          P
=================  ==================================================================
SGD, any momentum  1
Adam, AdamW        as above; with ``amsgrad`` v is its running maximum
RMSprop            sqrt(v) + eps; centered: sqrt(v - g^2) + eps with the mean gradient g
Adagrad            sqrt(sum of squares) + eps
=================  ==================================================================

The stability of such an optimizer is decided by P^(-1/2) H P^(-1/2): on Adam's the edge of stability is 38 / lr
for beta1 = 0.9.

**References.** Kingma & Ba 2015, arXiv:1412.6980; Cohen et al. 2022, arXiv:2207.14484 (adaptive edge of
stability).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from optland.objective import Objective

__all__ = ["innermost", "preconditioner"]


@torch.no_grad()
def preconditioner(optimizer: Any, objective: Objective) -> list[Tensor]:
    """The diagonal P of ``optimizer`` for the parameters of ``objective``.

    Args:
        optimizer: A ``torch.optim`` optimizer after at least one step, or a wrapper of one.
        objective: Whose parameters; parameters are matched by identity, whatever their groups.

    Returns:
        One tensor for each parameter, positive, in its shape and at least float32.

    Raises:
        TypeError: The optimizer is of a kind whose P is not known.
        ValueError: The optimizer does not hold a parameter, or has no state for it yet.

    Example:
        >>> from optland.problems import saddle
        >>> L = saddle()
        >>> preconditioner(SGD(L.params, lr=0.1, momentum=0.9), L)[0].tolist()
        [1.0, 1.0]
    """
    optimizer = innermost(optimizer)
    rule = _rule(optimizer)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    diagonal = []
    for name, p, here in zip(objective.names, objective.sources, objective.params, strict=True):
        if id(p) not in groups:
            raise ValueError(
                f"the optimizer does not hold parameter {name!r}; pass the one that trains this model, or leave the "
                "parameter out with subset(H, ...)"
            )
        P = rule(name, p, groups[id(p)], optimizer.state.get(p, {}))
        if not bool((P > 0).all()):
            raise ValueError(
                f"the optimizer divides by zero somewhere in {name!r} (eps is 0 and a gradient has always been 0); "
                "use eps > 0"
            )
        wide = torch.promote_types(here.dtype, torch.float32)
        diagonal.append(P.to(device=here.device, dtype=wide).expand_as(here))
    return diagonal


def innermost(optimizer: Any) -> Optimizer:
    """The optimizer that owns the state, below wrappers that keep theirs in ``base`` or ``optimizer``.

    Args:
        optimizer: Such as a SAM around it, or what a trainer has wrapped it in.

    Raises:
        TypeError: There is no optimizer at the bottom.

    Example:
        >>> from optland.optim import SAM
        >>> base = SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        >>> innermost(SAM(base)) is base
        True
    """
    while True:
        inner = next(
            (
                found
                for name in ("base", "optimizer")
                if isinstance(found := getattr(optimizer, name, None), Optimizer)
            ),
            None,
        )
        if inner is None:
            break
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer is a {type(optimizer).__name__}; pass a torch.optim.Optimizer")
    return optimizer


Rule = Callable[[str, Tensor, Mapping[str, Any], Mapping[str, Any]], Tensor]


def _rule(optimizer: Optimizer) -> Rule:
    rules: list[tuple[tuple[type, ...], Rule]] = [
        ((SGD,), _identity),
        ((Adam, AdamW), _adam),
        ((RMSprop,), _rmsprop),
        ((Adagrad,), _adagrad),
    ]
    for kinds, rule in rules:
        if isinstance(optimizer, kinds):
            return rule
    raise TypeError(
        f"the preconditioner of {type(optimizer).__name__} is not known (SGD, Adam, AdamW, RMSprop and "
        f"Adagrad are); pass "
        "its diagonal P instead, one positive tensor for each parameter: preconditioned(H, P)"
    )


def _identity(name: str, p: Tensor, group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    return torch.ones_like(p)


def _adam(name: str, p: Tensor, group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    key = "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq"
    v, t = _moment(name, state, key), float(state["step"])
    beta1, beta2 = (float(beta) for beta in group["betas"])
    P: Tensor = (1 - beta1**t) * ((v / (1 - beta2**t)).sqrt() + float(group["eps"]))
    return P


def _rmsprop(name: str, p: Tensor, group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    v = _moment(name, state, "square_avg")
    if group.get("centered"):
        v = (v - _moment(name, state, "grad_avg").square()).clamp_min(0.0)
    return v.sqrt() + float(group["eps"])


def _adagrad(name: str, p: Tensor, group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    if float(state.get("step", 0)) == 0:  # Adagrad fills its state before any step
        state = {}
    return _moment(name, state, "sum").sqrt() + float(group["eps"])


def _moment(name: str, state: Mapping[str, Any], key: str) -> Tensor:
    if key not in state:
        raise ValueError(
            f"the optimizer has no {key!r} for parameter {name!r} yet: it has not made a step with a "
            f"gradient for it. Take "
            "a step first, or leave the parameter out with subset(H, ...)"
        )
    moment: Tensor = state[key]
    return moment.detach().to(torch.promote_types(moment.dtype, torch.float32))
