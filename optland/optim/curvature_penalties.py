r"""Methods that change how h is used: curvature regularised (CR-SAM), and length preserving (stable SAM).

.. math::
    h_\pm = \nabla L(w \pm \epsilon), \qquad
    \text{CR-SAM:} \quad & h_+ + \gamma \, (h_+ + h_- - 2 g) + \beta \, (h_+ - h_-) \\
    \text{stable:} \quad & h \, \|g\| / \|h\|

The bracket of CR-SAM with gamma is the change of the curvature along eps, the one with beta the curvature itself, 2 rho
H g / ||g|| on a quadratic. Stable SAM descends along h with the length of g, so that the edge of stability of the step
is the base's own.

**Cost.** CR-SAM: 3 gradient evaluations per sample and step. Stable SAM: 2. No state.

**When.** CR-SAM where the third pass is affordable; stable SAM where SAM needs a smaller learning rate than its base.

**Defaults.** CR-SAM ``rho=0.1``, ``gamma=0.1``, ``beta=0.01``, the authors' command line. Stable SAM ``rho=0.05``.

**Caveats.** In phase form CR-SAM takes ``perturb()`` twice: backward, perturb(), backward, perturb(), backward, step().

References: Wu, Luo & Wunsch, "CR-SAM: Curvature Regularized Sharpness-Aware Minimization", 2024, arXiv:2312.13555. Tan,
Zhang, Liu & Gong, "Stabilizing Sharpness-aware Minimization Through A Simple Renormalization Strategy", 2025,
arXiv:2401.07250.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from optland import vectors
from optland.optim.method import Gradients, Method
from optland.optim.two_pass import EngineOptions, TwoPass

__all__ = ["CRSAM", "StableSAM"]


class _CurvatureRegularised(Method):
    two_sided = True

    def combine(self, at: Gradients) -> list[Tensor]:
        """The weighted differences."""
        return [
            up + gamma * (up + down - 2.0 * g) + beta * (up - down)
            for g, up, down, gamma, beta in zip(
                at.g, at.h, at.opposite, at.of("gamma"), at.of("beta"), strict=True
            )
        ]


class CRSAM(TwoPass):
    """CR-SAM around any optimizer.

    Args:
        base: The optimizer that makes the update.
        rho: Radius ||eps||.
        gamma: Weight of the second difference of the gradient.
        beta: Weight of its first difference.
        **engine: Options of :class:`~optland.optim.two_pass.TwoPass`.

    Raises:
        TypeError: ``base`` is not an optimizer instance.
        ValueError: A value is negative or not finite.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> CRSAM(torch.optim.SGD([w], lr=0.1)).evaluations
        3
    """

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.1,
        gamma: float = 0.1,
        beta: float = 0.01,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base, _CurvatureRegularised(rho=rho, gamma=gamma, beta=beta), **engine)


class _Stable(Method):
    def combine(self, at: Gradients) -> list[Tensor]:
        """The gradient h at the length of g."""
        length = vectors.norm(at.h)
        factor = torch.where(length > 0, vectors.norm(at.g) / length, torch.zeros_like(length))
        return [h * factor.to(device=h.device, dtype=h.dtype) for h in at.h]


class StableSAM(TwoPass):
    """Stable SAM around any optimizer.

    Args:
        base: The optimizer that makes the update.
        rho: Radius ||eps||.
        **engine: Options of :class:`~optland.optim.two_pass.TwoPass`.

    Raises:
        TypeError: ``base`` is not an optimizer instance.
        ValueError: ``rho`` is negative or not finite.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> StableSAM(torch.optim.SGD([w], lr=0.1)).evaluations
        2
    """

    def __init__(self, base: Optimizer, rho: float = 0.05, **engine: Unpack[EngineOptions]) -> None:
        super().__init__(base, _Stable(rho=rho), **engine)
