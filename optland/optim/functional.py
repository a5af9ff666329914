r"""Functional SAM: the loss's own slope from w, the model's sensitivity from w + eps.

.. math:: \tilde g = J(w + \epsilon)^T \, \nabla_F \ell \big( F(w), y \big), \qquad J = \partial F / \partial w

SAM's h changes both factors. In language models much of what it lowers is then the confidence of the outputs rather
than the sharpness of the function; keeping the slope of the loss at F(w) leaves only the latter.

**Cost.** That of SAM, and one evaluation of the loss function on detached outputs.

**When.** Language models and other nets with many outputs, together with
:class:`~optland.optim.metrics.PreconditionedSAM`. **When not.** A model that is linear in its weights: J is constant,
and what remains is the base's gradient.

**Caveats.** It needs the outputs, so it is a loss and not an optimizer. Forwards of pass two have to come in the order
of pass one (micro-batches too). Both passes need the same dropout masks, as the engine has them.

Reference: Singh, Mobahi, Agarwala & Dauphin, "Avoiding spurious sharpness minimization broadens applicability of SAM",
2025, arXiv:2502.02407.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from optland.optim.ascent_share import refuse_part
from optland.optim.two_pass import TwoPass

__all__ = ["FunctionalLoss"]


class FunctionalLoss:
    """A loss that remembers its slope in pass one and uses it again in pass two.

    Args:
        optimizer: The two-pass optimizer that the closure belongs to; it knows which pass this is.
        loss_fn: ``loss_fn(outputs, targets)``, a scalar.

    Raises:
        TypeError: ``optimizer`` makes no second pass.
        ValueError: Its first pass is over a part of the batch.

    Example:
        >>> from optland.optim import SAM
        >>> net = torch.nn.Linear(2, 1)
        >>> optimizer = SAM(torch.optim.SGD(net.parameters(), lr=0.1))
        >>> loss_fn = FunctionalLoss(optimizer, torch.nn.functional.mse_loss)
        >>> x, y = torch.ones(3, 2), torch.zeros(3, 1)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = loss_fn(net(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
    """

    def __init__(self, optimizer: TwoPass, loss_fn: Callable[[Tensor, Any], Tensor]) -> None:
        if not isinstance(optimizer, TwoPass):
            raise TypeError(
                f"FunctionalLoss works with the two passes of SAM and was given a {type(optimizer).__name__}; "
                "wrap it: SAM(optimizer)"
            )
        refuse_part(optimizer, "functional SAM, which compares outputs of the same samples,")
        if optimizer.evaluations < 2:
            raise TypeError(
                f"{type(optimizer).__name__} has no pass at w that the slope could come from; use SAM or another "
                "method with two passes"
            )
        self.optimizer, self.loss_fn = optimizer, loss_fn
        self._slopes: list[Tensor] = []
        self._used = 0
        self._beginning = -1

    def __call__(self, outputs: Tensor, targets: Any) -> Tensor:
        """The loss in pass one; in pass two its value with the gradient J' slope.

        Raises:
            RuntimeError: Pass two has more forwards than pass one, or outputs of another shape.
        """
        if not torch.is_grad_enabled():
            return self.loss_fn(outputs, targets)
        if self.optimizer.is_perturbed:
            return self._with_old_slope(outputs, targets)
        if self._beginning != self.optimizer.beginnings:
            self._beginning, self._slopes, self._used = self.optimizer.beginnings, [], 0
        leaf = outputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.loss_fn(leaf, targets), leaf)
        self._slopes.append(slope)
        return self.loss_fn(outputs, targets)

    def _with_old_slope(self, outputs: Tensor, targets: Any) -> Tensor:
        passes = round(self.optimizer.evaluations) - 1  # at w + eps, and at w - eps where a method goes there
        left = self._used < passes * len(self._slopes)
        slope = self._slopes[self._used % len(self._slopes)] if left else None
        if slope is None or slope.shape != outputs.shape:
            was = "none left" if slope is None else tuple(slope.shape)
            raise RuntimeError(
                f"pass two called the loss with outputs of shape {tuple(outputs.shape)}, where pass one had {was}: "
                "both passes need the same forwards in the same order"
            )
        self._used += 1
        surrogate = (outputs * slope).sum()
        with torch.no_grad():
            value = self.loss_fn(outputs, targets)
        return surrogate + (value - surrogate.detach())
