r"""Ascent directions from more than one batch: with the noise of the batch (F-SAM), or without it (VaSSO).

.. math::
    \text{VaSSO:} \quad & m_t = (1 - \theta) m_{t-1} + \theta g_t, & d_t &= m_t \\
    \text{F-SAM:} \quad & m_t = \lambda m_{t-1} + (1 - \lambda) g_t, & d_t &= g_t - \sigma m_{t-1}

and eps = rho d / ||d||, with m_0 = g_0. They disagree on purpose. VaSSO holds that the batch makes the direction too
noisy. F-SAM holds that the part of g common to all batches is of no use in eps, and takes it away. Where micro-batches
have an eps each, g in their d is their own, g in m the mean of all, and m_{t-1} the same for each.

**Cost.** 2 gradient evaluations per sample and step; one copy of the weights in the state, and with micro-batches that
have an eps each one more during the step.

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

from optland import vectors
from optland.optim.keys import setting
from optland.optim.memory import Memory, dated
from optland.optim.method import Gradients, Method
from optland.optim.two_pass import EngineOptions, TwoPass

__all__ = ["FSAM", "VaSSO"]

_MEAN = "gradient_mean"


class _Smoothed(Method):
    """Keeps a running mean of the gradient.

    The mean is moved on when the base has stepped: moved before, there would be an old and a new one during pass two,
    and a micro-batch would see the mean of those before it.
    """

    remembers = (_MEAN,)
    counts = True
    true_units = True

    def __init__(self, **hyperparameters: float) -> None:
        super().__init__(**hyperparameters, **{dated(_MEAN): 0})

    def _weight(self, group: dict[str, Any]) -> float:
        """With which a new gradient enters the mean."""
        raise NotImplementedError

    def _before(self, at: Gradients) -> list[Tensor]:
        """The running mean of the steps before this one; g itself in the first."""
        stored = at.memory.recall(_MEAN, at.params)
        return [
            g if at.memory.is_new(_MEAN, group) else m
            for g, m, group in zip(at.g, stored, at.groups, strict=True)
        ]

    def combine(self, at: Gradients) -> list[Tensor]:
        """h; g goes into the mean later."""
        seen = at.memory.scratch.setdefault("seen", {})  # of this step, all micro-batches together
        for p, g in zip(at.params, at.unscaled(at.g), strict=True):
            if at.perturbed is None or p in at.perturbed:
                seen[p] = seen[p] + g if p in seen else g
        return at.h

    @vectors.no_graph
    def settle(self, memory: Memory) -> None:
        """Move the mean on."""
        seen: dict[Tensor, Tensor] = memory.scratch.get("seen", {})
        if not seen:
            return
        groups = {p: group for group in memory.groups for p in group["params"]}
        at = Gradients(list(seen), [groups[p] for p in seen], list(seen.values()), memory)
        weights = [self._weight(group) for group in at.groups]
        after = [torch.lerp(m, g, w) for m, g, w in zip(self._before(at), at.g, weights, strict=True)]
        memory.remember(_MEAN, at.params, after)


class _Friendly(_Smoothed):
    def _weight(self, group: dict[str, Any]) -> float:
        return 1.0 - float(setting(group, "decay"))

    def check(self, values: dict[str, Any]) -> None:
        """Refuse a decay that is not a share."""
        if not values.get("decay", 0.0) <= 1.0:
            raise ValueError(f"decay={values['decay']} is above 1; use for example 0.9")

    def direction(self, at: Gradients) -> list[Tensor]:
        """The direction g - sigma m, with the mean of the steps before this one; g itself in the first."""
        return [
            g if m is g else torch.sub(g, m, alpha=sigma)
            for g, m, sigma in zip(at.g, self._before(at), at.of("sigma"), strict=True)
        ]


class _VarianceSuppressed(_Smoothed):
    def _weight(self, group: dict[str, Any]) -> float:
        return float(setting(group, "theta"))

    def check(self, values: dict[str, Any]) -> None:
        """Refuse a theta that is not a share above 0."""
        if not 0.0 < values.get("theta", 1.0) <= 1.0:
            raise ValueError(
                f"theta={values['theta']} is not within (0, 1]; 1 is SAM, 0.4 the authors' for CIFAR"
            )

    def direction(self, at: Gradients) -> list[Tensor]:
        """The running mean, this gradient included."""
        return [
            torch.lerp(m, g, theta)
            for m, g, theta in zip(self._before(at), at.g, at.of("theta"), strict=True)
        ]


class FSAM(TwoPass):
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
        >>> FSAM(torch.optim.SGD([w], lr=0.1), decay=0.95).param_groups[0]["sam_decay"]
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
        super().__init__(base, _Friendly(rho=rho, sigma=sigma, decay=decay), **engine)


class VaSSO(TwoPass):
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
        >>> VaSSO(torch.optim.SGD([w], lr=0.1), theta=0.2).param_groups[0]["sam_theta"]
        0.2
    """

    def __init__(
        self, base: Optimizer, rho: float = 0.05, theta: float = 0.4, **engine: Unpack[EngineOptions]
    ) -> None:
        super().__init__(base, _VarianceSuppressed(rho=rho, theta=theta), **engine)
