r"""The generalised Gauss-Newton matrix: the part of the Hessian that comes from the loss's own curvature.

.. math:: G = \frac{1}{C} \sum_b J_b^T \, \nabla_z^2 f_b(z_b) \, J_b, \qquad
          H = G + \sum_i \frac{\partial f}{\partial z_i} \nabla_\theta^2 z_i

J is the Jacobian of the model's outputs z by the weights, f the loss as a function of the outputs.

**Cost.** As a product with the Hessian or a little less, ``LINEARISED_GE``; memory of a kept graph likewise.

**When.** Where f is convex (cross entropy, squared error) G is positive semi-definite, and near a minimum that fits the
data it is close to H. **When not.** It has no negative curvature, and early in training it is not the Hessian.

**Caveats.** G depends on where the model ends and the loss begins; :mod:`optland.curvature.operators.outputs` says
how they are distinguished. For cross entropy of logits, and for squared error, G is the exact Fisher matrix.

**References.** Schraudolph 2002; Martens 2020, arXiv:1412.1193.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from optland import vectors
from optland.curvature.operators.hessian import CurvatureOperator, Method
from optland.curvature.operators.linearised import linearised
from optland.curvature.operators.outputs import Piece, Split
from optland.derivatives import derivative
from optland.objective import Objective

__all__ = ["declared_product_cost", "ggn", "loss_hessian"]

KIND = "generalised Gauss-Newton"


def ggn(objective: Objective, *, split: Split | None = None, method: Method = "auto") -> CurvatureOperator:
    """The generalised Gauss-Newton matrix of ``objective`` at its current weights.

    Args:
        objective: Model, loss and data.
        split: ``(outputs, loss)`` with ``outputs(model, batch)`` and ``loss(outputs, batch)``, a mean or the pair (sum,
            count). By default what ``model(...)`` returns inside ``loss_fn`` is the outputs.
        method: How products are computed; ``"auto"`` chooses, falls back when it must, and says why.

    Returns:
        A :class:`~optland.curvature.operators.hessian.CurvatureOperator` of kind "generalised Gauss-Newton".

    Raises:
        ValueError: At the first product, where the loss is no function of the model's outputs alone.

    Example:
        The model w^2 under the loss (w^2 - 1)^2 / 2: at w = 2 J is 2w = 4, so G = 16, while H = 16 + 2 (w^2 - 1) = 22.

        >>> from optland.curvature.operators.hessian import hessian
        >>> class Square(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = torch.nn.Parameter(torch.tensor([2.0]))
        ...     def forward(self, x):
        ...         return x * self.w**2
        >>> L = Objective(Square(), lambda m, x: (m(x) - 1).square().sum() / 2, [torch.ones(1)])
        >>> ggn(L).to_dense().item(), hessian(L).to_dense().item()
        (16.0, 22.0)
    """
    return CurvatureOperator(objective, linearised(KIND, _loss_hessian, split), method)


def declared_product_cost(objective: Objective, num_matvecs: int, *, method: Method = "auto") -> float:
    """The most that ``num_matvecs`` products can cost in gradient evaluations, set-up and fallback included.

    Args:
        objective: Its samples are the unit.
        num_matvecs: How many.
        method: How they are computed.
    """
    return linearised(KIND, _loss_hessian, None).declared(objective, num_matvecs, method)


def loss_hessian(piece: Piece, u: list[Tensor]) -> list[Tensor]:
    """Product of u with the Hessian of the loss sum in the outputs.

    Args:
        piece: One batch, split; the loss is differentiated twice by its ``leaves``.
        u: In the shapes of the outputs.

    Returns:
        In the same shapes; of the sum over the batch, not the mean.
    """
    return _loss_hessian(0, piece)(u)


def _loss_hessian(number: int, piece: Piece) -> Callable[[list[Tensor]], list[Tensor]]:
    if piece.shifted is not None:
        return _by_difference(piece, piece.shifted)
    gradient = piece.gradient(create_graph=True)

    def multiply(u: list[Tensor]) -> list[Tensor]:
        live = [(g, x) for g, x in zip(gradient, u, strict=True) if g.requires_grad]
        if not live:
            return [torch.zeros_like(z) for z in piece.leaves]
        outputs, seeds = zip(*live, strict=True)
        return derivative(outputs, piece.leaves, seeds, retain_graph=True)

    return multiply


def _by_difference(
    piece: Piece, shifted: Callable[[list[Tensor]], list[Tensor]]
) -> Callable[[list[Tensor]], list[Tensor]]:
    """The same from two derivatives of the loss by the outputs, for losses that cannot be differentiated twice."""
    size = float(vectors.norm([z.detach() for z in piece.leaves]))

    def multiply(u: list[Tensor]) -> list[Tensor]:
        length = float(vectors.norm(u))
        if length == 0.0:
            return [torch.zeros_like(z) for z in piece.leaves]
        h = (
            piece.reach
            * 0.1
            * (1.0 + size)
            * float(torch.finfo(piece.leaves[0].dtype).eps) ** (1 / 3)
            / length
        )
        ahead, behind = (shifted([t * x for x in u]) for t in (h, -h))
        return [(a - b) / (2 * h) for a, b in zip(ahead, behind, strict=True)]

    return multiply
