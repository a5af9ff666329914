r"""The choices that define a two-pass method, each one function or one value.

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
``due``                may this step pay for the second pass?                yes, where the gate agrees
``sign``               up or down?                                           up
``selected``           which parameters are perturbed?                       all
``remembers``          which tensors are kept from step to step?             none
=====================  ====================================================  ==================

A method knows no optimizer: :class:`~optland.optim.two_pass.TwoPass` is given one, and hands it what a step has seen,
:class:`Gradients`. Its hyper-parameters go into the parameter groups, where schedules may change them, and are read
from there: ``at.of("rho")``, or :func:`optland.optim.keys.setting`. What it remembers goes through ``at.memory``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from optland import vectors
from optland.optim.keys import key, setting
from optland.optim.memory import Memory
from optland.optim.radius import Scope, dual_norm, scopes, steepest, times

__all__ = ["Gradients", "Method", "divided"]


@dataclass(slots=True)
class Gradients:
    """Parameters with their groups and the gradients that a step has seen so far, entry by entry.

    Attributes:
        params: The parameters.
        groups: The group of each.
        g: Gradients at w.
        memory: What the base and the method keep for each parameter.
        h: Gradients at w + eps, once they are there.
        opposite: Gradients at w - eps, for methods that look there.
        loss_scale: The factor that a GradScaler has multiplied the loss by, and so g, h and opposite.
        share: The part of the batch that this micro-batch is, by which its loss was multiplied besides.
        g_norm: The length of g, where it is known already.
        perturbed: The parameters that are perturbed; None is all.
        unrecorded: Makes a context for evaluations of the model that are part of no pass.
    """

    params: list[Tensor]
    groups: list[dict[str, Any]]
    g: list[Tensor]
    memory: Memory
    h: list[Tensor] = field(default_factory=list)
    opposite: list[Tensor] = field(default_factory=list)
    loss_scale: float | Tensor = 1.0
    share: float = 1.0
    g_norm: Tensor | None = None
    perturbed: set[Tensor] | None = None
    unrecorded: Callable[[], AbstractContextManager[None]] = nullcontext

    def of(self, name: str) -> list[float]:
        """The method's hyper-parameter of this name, entry by entry.

        Args:
            name: Without the prefix, such as ``rho``.
        """
        its = key(name)
        return [float(group[its]) for group in self.groups]

    def unscaled(self, x: list[Tensor]) -> list[Tensor]:
        """Gradients without the loss scale, but with the share: what adds up to the whole batch's.

        Args:
            x: g, h or opposite.
        """
        return divided(x, self.loss_scale)


def divided(x: list[Tensor], scale: float | Tensor) -> list[Tensor]:
    """The tensors over a number, and they themselves where that is 1.

    Args:
        x: Tensors.
        scale: A number, or a 0-d tensor beside them.

    Example:
        >>> divided([torch.tensor([4.0])], 2.0)
        [tensor([2.])]
    """
    return x if isinstance(scale, float) and scale == 1.0 else [t / scale for t in x]


class Method:
    """The choices of a method, to be overridden, and the perturbation that follows from them. As it stands: SAM.

    Args:
        **hyperparameters: Values for the parameter groups, ``rho`` among them.

    Example:
        >>> from optland.optim.two_pass import TwoPass
        >>> class Signed(Method):  # climb along the sign of the gradient
        ...     def direction(self, at: Gradients) -> list[Tensor]:
        ...         return [g.sign() for g in at.g]
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = TwoPass(torch.optim.SGD([w], lr=0.1), Signed(rho=2.0**0.5))
        >>> (0.5 * w.square().sum()).backward()
        >>> with optimizer.perturbed():
        ...     print([round(x, 3) for x in w.tolist()])
        [4.0, 5.0]
    """

    remembers: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors that are kept for each parameter from step to step."""

    counts: ClassVar[bool] = False
    """Whether updates are counted, which what is remembered with a date needs."""

    two_sided: ClassVar[bool] = False
    """Whether there is a third pass, at w - eps."""

    sign: ClassVar[float] = 1.0
    """Of the perturbation: -1 goes down the direction."""

    true_units: bool = False
    """Whether the length of g decides the perturbation, so that a loss scale has to be taken out of it."""

    ascent_share: float = 1.0
    """The share of the batch that pass one is over, where that is no more than the way to w + eps."""

    p: float = 2.0
    """The ball is that of the p-norm."""

    scope: Scope = "global"
    """What has the length rho: all parameters together, each group, or each tensor."""

    def __init__(self, **hyperparameters: float) -> None:
        self.hyperparameters = hyperparameters

    def check(self, values: dict[str, Any]) -> None:
        """Refuse hyper-parameters that are not possible, given some of them by name; all are finite and >= 0.

        Raises:
            ValueError: They are not.
        """

    @property
    def shares_matter(self) -> bool:
        """Whether a micro-batch with an eps of its own has to tell its share of the mean loss."""
        return self.true_units

    @property
    def evaluations(self) -> float:
        """Gradient evaluations per sample that a full step costs."""
        if self.two_sided:
            return 3
        return 2 if self.ascent_share == 1 else 1 + self.ascent_share

    def overrides(self, *choices: str) -> bool:
        """Whether one of these choices is another than the default."""
        own, plain = type(self), Method
        return [getattr(own, name) for name in choices] != [getattr(plain, name) for name in choices]

    def uphill(self, group: dict[str, Any]) -> float:
        """Sign of the perturbation in a group: where the base maximizes, the worst point nearby lies below."""
        return -self.sign if group.get("maximize") else self.sign

    def direction(self, at: Gradients) -> list[Tensor]:
        """Ascent direction d of the perturbed parameters; never write into ``at.g``.

        Args:
            at: With ``g`` of the perturbed parameters.

        Returns:
            In the shapes of ``at.g``; its length does not matter, since the radius is set afterwards.
        """
        return at.g

    def metric(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> Tensor | None:
        """Diagonal of T in the shape of ``p``; None is the identity.

        Args:
            p: The parameter, at w.
            g: Its gradient.
            group: Its group.

        Returns:
            Entries at or above 0, in units that rho then is measured against: eps = rho T (T d) / ||T d||.
        """
        return None

    def radius(self, group: dict[str, Any], length: Tensor) -> Tensor | float:
        """The radius rho of a group, given the length of T d that its perturbation is divided by.

        Args:
            group: With its hyper-parameters.
            length: A 0-d tensor on the device of the weights, with the loss scale and the share in it, unless
                the method has ``true_units`` or remembers something.
        """
        rho: Tensor | float = setting(group, "rho")
        return rho

    def combine(self, at: Gradients) -> list[Tensor]:
        """The gradient for the base optimizer; never write into what is given.

        All gradients may carry the same loss scale, so the result has to scale with them.

        Args:
            at: With ``g``, ``h``, and ``opposite`` where the method looks there.

        Returns:
            In the shapes of ``at.h``; by default h itself.
        """
        return at.h

    def reuse(self, at: Gradients) -> list[Tensor]:
        """The gradient for the base optimizer in a step without a second pass; there is no ``at.h`` then.

        Args:
            at: With ``g`` alone.

        Returns:
            By default g itself, so that a step that a gate leaves out is the base's own.
        """
        return at.g

    def due(self, step: int) -> bool:
        """Whether the step after so many updates may take its second pass; the gate is asked where it may."""
        return True

    def settle(self, memory: Memory) -> None:
        """The base has made its update: what of this step is to be remembered, beside what was proposed already."""

    def after_update(self, memory: Memory) -> None:
        """The base has made its update; what a decoupled method adds to it goes here."""

    def factor(self, at: Gradients) -> float | None:
        """The one number c with eps = c g, where there is one and the host has it at hand; None where not.

        Then eps need not be made, which saves a copy of the weights and an operation on every tensor.

        Args:
            at: With ``g_norm`` where it is known on the host.

        Returns:
            rho / ||g|| with its sign; None for methods with a metric, a direction of their own, groups of several
            radii, or half precision.
        """
        length = at.g_norm
        if length is None or not length.is_cpu:
            return None
        groups = list({id(group): group for group in at.groups}.values())
        radii = {(self.uphill(group), setting(group, "rho")) for group in groups}
        if len(radii) != 1 or not self._is_straight(groups):
            return None
        if not {g.dtype for g in at.g} <= {torch.float32, torch.float64}:  # where c may underflow
            return None
        norm, (sign, rho) = float(length), radii.pop()
        return sign * float(rho) / norm if 0.0 < norm < math.inf else None

    def _is_straight(self, groups: list[dict[str, Any]]) -> bool:
        chosen = self.overrides("direction", "radius", "perturbation")
        return not chosen and self.p == 2 and self.scope == "global" and not self.has_metric(groups)

    def has_metric(self, groups: list[dict[str, Any]]) -> bool:
        """Whether T is another than the identity in some of these groups."""
        return self.overrides("metric")

    @vectors.no_graph
    def perturbation(self, at: Gradients) -> list[Tensor]:
        r"""The perturbation eps of each entry, 0 where d is zero or not finite.

        By default there is one norm over all entries: with a norm for each tensor, the radius of the whole would grow
        with the square root of their number.

        .. math:: \epsilon = \rho \, \frac{T \, \mathrm{sign}(x) |x|^{q-1}}{\|x\|_q^{q-1}}, \qquad x = T d, \quad
                  \tfrac1p + \tfrac1q = 1

        Args:
            at: With ``g`` of the perturbed parameters.

        Returns:
            In the types of the parameters; for p = 2 eps = rho T^2 d / ||T d||.
        """
        T: list[Tensor | None] = [None] * len(at.g)
        if self.has_metric(at.groups):
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
