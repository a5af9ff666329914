r"""What makes one two-pass method differ from another: six choices, each one function.

.. math:: \epsilon = \rho \, \frac{T^2 d}{\|T d\|}

=====================  ==============================================  ==================
choice                 question                                        default
=====================  ==============================================  ==================
``direction``          which way d is up?                              g
``metric``             in which diagonal metric T?                     identity
``radius``             how far?                                        the group's rho
``combine``            what does the base optimizer receive?           h
``due``                does this step pay for the second pass?         where some rho > 0
``selects``            which parameters are perturbed?                 all
=====================  ==============================================  ==================
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optland import vectors
from optland.optim.delegate import Delegating

__all__ = ["Method"]


class Method(Delegating):
    """The choices of a method, to be overridden, and the perturbation that follows from them."""

    @property
    def evaluations(self) -> int:
        """Gradient evaluations a sample that a full step costs."""
        return 2

    def direction(self, params: list[Tensor], g: list[Tensor]) -> list[Tensor]:
        """Ascent direction d of the perturbed parameters; never write into ``g``."""
        return g

    def metric(self, p: Tensor, group: dict[str, Any]) -> Tensor | None:
        """Diagonal of T in the shape of ``p``; None is the identity."""
        return None

    def radius(self, group: dict[str, Any], length: Tensor) -> Tensor | float:
        """The radius rho of a group, given the length ||T d|| over all groups."""
        rho: Tensor | float = group["rho"]
        return rho

    def combine(self, g: list[Tensor], h: list[Tensor]) -> list[Tensor]:
        """The gradient for the base optimizer; never write into ``g`` or ``h``.

        Both may carry the same loss scale, so the result has to scale with them.
        """
        return h

    def due(self) -> bool:
        """Gate of the closure form. With every rho at 0 a second pass would only find h = g."""
        return any(group["rho"] != 0 for group in self.param_groups)

    def selects(self, p: Tensor, group: dict[str, Any]) -> bool:
        """Filter: whether this parameter is perturbed."""
        return True

    @torch.no_grad()
    def perturbation(self, entries: list[tuple[Tensor, Tensor, dict[str, Any]]]) -> list[Tensor]:
        """The perturbation eps of each entry (parameter, gradient, group); 0 where d is zero or not finite.

        There is one norm over all entries: with a norm for each tensor or group, the radius would grow with
        the square root of their number.
        """
        params = [p for p, _, _ in entries]
        T = [self.metric(p, group) for p, _, group in entries]
        d = self.direction(params, [g for _, g, _ in entries])
        Td = [x if t is None else t * x for t, x in zip(T, d, strict=True)]
        length = vectors.norm(Td)
        usable = length.isfinite() & (length > 0)
        inverse = torch.where(usable, 1.0 / length, torch.zeros_like(length))  # decided on the device
        eps = []
        for (p, _, group), t, td in zip(entries, T, Td, strict=True):
            factor = (self.radius(group, length) * inverse).to(p.device)
            # A half-precision factor may underflow, hence the product in float32; and 0 * inf would be NaN.
            wide = td.to(torch.promote_types(td.dtype, torch.float32)).nan_to_num(0.0, 0.0, 0.0).mul_(factor)
            eps.append((wide if t is None else wide.mul_(t)).to(p.dtype))
        return eps
