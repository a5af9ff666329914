r"""What makes one two-pass method differ from another: a handful of choices, each one function.

.. math:: \epsilon = \rho \, \frac{T^2 d}{\|T d\|}, \qquad g = \nabla L(w), \quad h = \nabla L(w + \epsilon)

=====================  ====================================================  ==================
choice                 question                                              default
=====================  ====================================================  ==================
``direction``          which way d is up?                                    g
``metric``             in which diagonal metric T?                           identity
``radius``             how far?                                              the group's rho
``p``, ``scope``       in which norm, over which tensors?                    2, all together
``two_sided``          also at w - eps?                                      no
``combine``            what does the base optimizer receive?                 h
``reuse``              and in a step without a second pass?                  g
``due``                does this step pay for the second pass?               what the gate says
``sign``               up or down?                                           up
``selected``           which parameters are perturbed?                       all
``remembers``          which tensors are kept from step to step?             none
=====================  ====================================================  ==================

A hyper-parameter of the method is read from a group by its name with :func:`optland.optim.keys.setting`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from optland import vectors
from optland.optim.keys import key, setting
from optland.optim.memory import Remembering
from optland.optim.radius import Scope, dual_norm, scopes, steepest, times

__all__ = ["Gradients", "Method"]


@dataclass(slots=True)
class Gradients:
    """Parameters with their groups and the gradients that a step has seen so far, entry by entry.

    Attributes:
        params: The parameters.
        groups: The group of each.
        g: Gradients at w.
        h: Gradients at w + eps, once they are there.
        opposite: Gradients at w - eps, for methods that look there.
        loss_scale: The factor that the loss, and so g, h and opposite, were multiplied by, a micro-batch's share in it.
        g_norm: The length of g, where it is known already.
    """

    params: list[Tensor]
    groups: list[dict[str, Any]]
    g: list[Tensor]
    h: list[Tensor]
    opposite: list[Tensor]
    loss_scale: float | Tensor = 1.0
    g_norm: Tensor | None = None

    def of(self, name: str) -> list[float]:
        """A hyper-parameter of ours, entry by entry."""
        its = key(name)
        return [float(group[its]) for group in self.groups]


class Method(Remembering):
    """The choices of a method, to be overridden, and the perturbation that follows from them."""

    p: float = 2.0
    scope: Scope = "global"

    two_sided: ClassVar[bool] = False
    """Whether there is a third pass, at w - eps."""

    sign: ClassVar[float] = 1.0
    """Of the perturbation: -1 goes down the direction."""

    def uphill(self, group: dict[str, Any]) -> float:
        """Sign of the perturbation in a group: where the base maximizes, the worst point nearby lies below."""
        return -self.sign if group.get("maximize") else self.sign

    @property
    def true_units(self) -> bool:
        """Whether the length of g decides the perturbation, so that a loss scale has to be taken out of it."""
        return False

    @property
    def shares_matter(self) -> bool:
        """Whether a micro-batch with an eps of its own has to tell its share of the mean loss."""
        return self.true_units

    @property
    def evaluations(self) -> int:
        """Gradient evaluations a sample that a full step costs."""
        return 3 if self.two_sided else 2

    def direction(self, at: Gradients) -> list[Tensor]:
        """Ascent direction d of the perturbed parameters; never write into ``at.g``."""
        return at.g

    def metric(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> Tensor | None:
        """Diagonal of T in the shape of ``p``; None is the identity."""
        return None

    def radius(self, group: dict[str, Any], length: Tensor) -> Tensor | float:
        """The radius rho of a group, given the length of T d that its perturbation is divided by."""
        rho: Tensor | float = setting(group, "rho")
        return rho

    def combine(self, at: Gradients) -> list[Tensor]:
        """The gradient for the base optimizer; never write into what is given.

        All gradients may carry the same loss scale, so the result has to scale with them.
        """
        return at.h

    def reuse(self, at: Gradients) -> list[Tensor]:
        """The gradient for the base optimizer in a step without a second pass; there is no ``at.h`` then."""
        return at.g

    def due(self) -> bool:
        """Whether this step takes its second pass; asked once a step, after pass one."""
        return True

    def after_update(self) -> None:
        """The base has made its update; what a decoupled method adds to it goes here."""

    def factor(self, at: Gradients) -> float | None:
        """The one number c with eps = c g, where there is one and the host has it at hand; None where not.

        Then eps need not be made, which saves a copy of the weights and an operation on every tensor.
        """
        length = at.g_norm
        radii = {(self.uphill(group), setting(group, "rho")) for group in at.groups}
        if not self._is_straight or length is None or not length.is_cpu or len(radii) != 1:
            return None
        if not {g.dtype for g in at.g} <= {torch.float32, torch.float64}:  # where c may underflow
            return None
        norm, (sign, rho) = float(length), radii.pop()
        return sign * float(rho) / norm if 0.0 < norm < math.inf else None

    @property
    def _is_straight(self) -> bool:
        mine = type(self)
        chosen = (mine.direction, mine.radius, mine.perturbation)
        usual = (Method.direction, Method.radius, Method.perturbation)
        return chosen == usual and not self.has_metric and self.p == 2 and self.scope == "global"

    @property
    def has_metric(self) -> bool:
        """Whether T is another than the identity anywhere."""
        return type(self).metric is not Method.metric

    @vectors.no_graph
    def perturbation(self, at: Gradients) -> list[Tensor]:
        """The perturbation eps of each entry, 0 where d is zero or not finite.

        By default there is one norm over all entries: with a norm for each tensor, the radius of the whole would grow
        with the square root of their number.
        """
        T: list[Tensor | None] = [None] * len(at.g)
        if self.has_metric:
            T = [self.metric(p, g, group) for p, g, group in zip(at.params, at.g, at.groups, strict=True)]
        d = self.direction(at)
        x = d if not any(t is not None for t in T) else [_scaled(t, di) for t, di in zip(T, d, strict=True)]
        known = at.g_norm if x is at.g and self.p == 2 and self.scope == "global" else None
        eps = list(x)
        for indices in scopes(at.groups, self.scope):
            length = dual_norm([x[i] for i in indices], self.p) if known is None else known
            for group, where in _by_group(at.groups, indices):
                steep = steepest([x[i] for i in where], self.p)
                radius = self.uphill(group) * self.radius(group, length)
                for i, e in zip(where, times(steep, radius, length, self.p), strict=True):
                    eps[i] = e
        return [
            _typed(e if t is None else e.mul_(t.to(e.dtype)), p)
            for e, t, p in zip(eps, T, at.params, strict=True)
        ]


def _scaled(t: Tensor | None, x: Tensor) -> Tensor:
    return x if t is None else t * x


def _typed(x: Tensor, like: Tensor) -> Tensor:
    return x if x.dtype is like.dtype else x.to(like.dtype)


def _by_group(groups: list[dict[str, Any]], indices: list[int]) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Indices that belong to the same group; each group may have a radius of its own."""
    owners = {id(groups[i]): groups[i] for i in indices}
    if len(owners) == 1:
        yield groups[indices[0]], indices
        return
    for owner, group in owners.items():
        yield group, [i for i in indices if id(groups[i]) == owner]
