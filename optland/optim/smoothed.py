r"""Ascent directions from more than one batch: with the noise of the batch (F-SAM), or without it (VaSSO).

.. math::
    \text{VaSSO:} \quad & m_t = (1 - \theta) m_{t-1} + \theta g_t, & d_t &= m_t \\
    \text{F-SAM:} \quad & m_t = \lambda m_{t-1} + (1 - \lambda) g_t, & d_t &= g_t - \sigma m_{t-1}

and eps = rho d / ||d||, with m_0 = g_0. They disagree on purpose. VaSSO holds that the batch makes the direction too
noisy. F-SAM holds that the part of g common to all batches is of no use in eps, and takes it away.

**Cost.** 2 gradient evaluations a sample and step; one copy of the weights in the state.

**When.** As SAM, with small batches.

**Defaults.** F-SAM ``sigma=1``, ``decay=0.9`` (the authors' runs: 0.6 to 0.95). VaSSO ``theta=0.4``, for CIFAR (0.2 for
ImageNet).

**Caveats.** With sigma = 1 a gradient that does not change gives d = 0, and then eps = 0 and no NaN. Under a GradScaler
use ``perturb(loss_scale=...)``, since gradients of different steps are added. sigma = 0 and theta = 1 are SAM.

References: Li, Zhou, He, Cheng & Huang, "Friendly Sharpness-Aware Minimization", 2024, arXiv:2403.12350. Li &
Giannakis, "Enhancing Sharpness-Aware Optimization Through Variance Suppression", 2023, arXiv:2309.15639.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from optland.optim.method import Gradients
from optland.optim.two_pass import EngineOptions, TwoPass

__all__ = ["FSAM", "VaSSO"]

_MEAN = "gradient_mean"


class _Smoothed(TwoPass):
    """Keeps a running mean of the gradient."""

    remembers = (_MEAN,)

    @property
    def true_units(self) -> bool:
        """The length of the gradient matters."""
        return True

    def _follow(self, at: Gradients, weights: list[float]) -> tuple[list[Tensor], list[Tensor]]:
        """The running mean before and after this gradient, which enters with ``weights``."""
        stored = self.recall(_MEAN, at.params)
        new = [self.is_new(_MEAN, group) for group in at.groups]
        before = [g if fresh else m for g, m, fresh in zip(at.g, stored, new, strict=True)]
        after = [torch.lerp(m, g, w) for m, g, w in zip(before, at.g, weights, strict=True)]
        self.remember(_MEAN, at.params, after)
        return before, after


class FSAM(_Smoothed):
    """Friendly SAM around any optimizer.

    Args:
        base: The optimizer that makes the update.
        rho: Radius ||eps||.
        sigma: How much of the mean is taken away.
        decay: lambda of the running mean.
        **engine: Options of :class:`~optland.optim.two_pass.TwoPass`.

    Raises:
        TypeError: ``base`` is not an optimizer instance.
        ValueError: A value is negative or not finite, or ``decay`` is above 1.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> FSAM(torch.optim.SGD([w], lr=0.1), decay=0.95).param_groups[0]["decay"]
        0.95
    """

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        sigma: float = 1.0,
        decay: float = 0.9,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base, {"rho": rho, "sigma": sigma, "decay": decay}, counts=True, **engine)

    def _validate(self, group: dict[str, Any]) -> None:
        super()._validate(group)
        if not group.get("decay", 0.0) <= 1.0:
            raise ValueError(f"decay={group['decay']} is above 1; use for example 0.9")

    def direction(self, at: Gradients) -> list[Tensor]:
        """G - sigma m, with the mean of the steps before this one; g itself in the first."""
        before, _ = self._follow(at, [1.0 - decay for decay in at.of("decay")])
        return [
            g if m is g else torch.sub(g, m, alpha=sigma)
            for g, m, sigma in zip(at.g, before, at.of("sigma"), strict=True)
        ]


class VaSSO(_Smoothed):
    """VaSSO around any optimizer.

    Args:
        base: The optimizer that makes the update.
        rho: Radius ||eps||.
        theta: Weight of this gradient in the running mean; 1 is SAM.
        **engine: Options of :class:`~optland.optim.two_pass.TwoPass`.

    Raises:
        TypeError: ``base`` is not an optimizer instance.
        ValueError: A value is negative or not finite, or ``theta`` is not within (0, 1].

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> VaSSO(torch.optim.SGD([w], lr=0.1), theta=0.2).param_groups[0]["theta"]
        0.2
    """

    def __init__(
        self, base: Optimizer, rho: float = 0.05, theta: float = 0.4, **engine: Unpack[EngineOptions]
    ) -> None:
        super().__init__(base, {"rho": rho, "theta": theta}, counts=True, **engine)

    def _validate(self, group: dict[str, Any]) -> None:
        super()._validate(group)
        if not 0.0 < group.get("theta", 1.0) <= 1.0:
            raise ValueError(
                f"theta={group['theta']} is not within (0, 1]; 1 is SAM, 0.4 the authors' for CIFAR"
            )

    def direction(self, at: Gradients) -> list[Tensor]:
        """The running mean, this gradient included."""
        return self._follow(at, at.of("theta"))[1]
