r"""SAM in a metric that the gradients themselves give: Fisher SAM, and SAM preconditioned as Adam is.

.. math::
    \text{Fisher:} \quad & \epsilon = \gamma \, \frac{F^{-1} g}{\sqrt{g^T F^{-1} g}}, \qquad F = 1 + \eta_F \, g^2 \\
    \text{preconditioned:} \quad & \epsilon = \rho \, \frac{P^{-1} g}{\|P^{-1} g\|}, \qquad P = \sqrt{\hat v} + \delta

with g^2 and the products taken coordinate by coordinate, and v-hat the second moment that Adam or a relative keeps,
corrected for its start. The preconditioned form keeps the Euclidean length rho, so that rho means what it means in SAM
and the scale of the loss does not matter; only the direction is that of steepest ascent in Adam's geometry.

**Cost.** 2 gradient evaluations per sample and step; no state of their own.

**When.** Fisher SAM: as SAM. Preconditioned: transformers under AdamW, whose gradients differ by layer so much that a
Euclidean eps moves a few layers only.

**Defaults.** Fisher ``rho=0.1`` (gamma) and ``eta=1``, as public implementations. Preconditioned ``rho=0.05``,
``delta`` 1e-8, Adam's own floor.

**Caveats.** The Fisher diagonal is that of one batch. Under a GradScaler Fisher SAM needs ``perturb(loss_scale=...)``.
Before Adam's first update there is no second moment, and P = 1.

References: Kim, Li, Hu & Hospedales, "Fisher SAM: Information Geometry and Sharpness Aware Minimisation", 2022,
arXiv:2206.04920. Singh et al. 2025, "Avoiding spurious sharpness minimization broadens applicability of SAM",
arXiv:2502.02407 (preconditioned and functional SAM for language models).
"""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor
from torch.optim import Optimizer

from optland.optim.keys import setting
from optland.optim.memory import Memory
from optland.optim.method import Gradients, Method
from optland.optim.two_pass import EngineOptions, TwoPass

__all__ = ["FisherSAM", "PreconditionedSAM"]


class _Fisher(Method):
    true_units = True

    def metric(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> Tensor | None:
        """T = F^(-1/2)."""
        # A NaN would come through the zero radius that such a gradient gets: 0 * NaN is NaN.
        return g.square().mul_(setting(group, "eta")).add_(1.0).rsqrt_().nan_to_num_(0.0)


class FisherSAM(TwoPass):
    """Fisher SAM around any optimizer.

    Args:
        base: The optimizer that makes the update.
        rho: Radius gamma in the metric F: eps' F eps = gamma^2.
        eta: Weight of the squared gradient in F.
        **engine: Options of :class:`~optland.optim.two_pass.TwoPass`.

    Raises:
        TypeError: ``base`` is not an optimizer instance.
        ValueError: ``rho`` or ``eta`` is negative or not finite.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> FisherSAM(torch.optim.SGD([w], lr=0.1)).param_groups[0]["sam_rho"]
        0.1
    """

    def __init__(
        self, base: Optimizer, rho: float = 0.1, eta: float = 1.0, **engine: Unpack[EngineOptions]
    ) -> None:
        super().__init__(base, _Fisher(rho=rho, eta=eta), **engine)


class _Preconditioned(Method):
    def direction(self, at: Gradients) -> list[Tensor]:
        """P^-1 g."""
        return [
            _preconditioned(at.memory, p, g, group)
            for p, g, group in zip(at.params, at.g, at.groups, strict=True)
        ]


class PreconditionedSAM(TwoPass):
    """SAM along the direction in which Adam's geometry is steepest.

    Args:
        base: Adam, AdamW, or an optimizer that keeps ``exp_avg_sq`` as they do.
        rho: Radius ||eps||.
        delta: Floor of P.
        **engine: Options of :class:`~optland.optim.two_pass.TwoPass`.

    Raises:
        TypeError: ``base`` is not an optimizer instance.
        ValueError: ``rho`` or ``delta`` is negative or not finite, or ``base`` keeps no second moment.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> PreconditionedSAM(torch.optim.AdamW([w], lr=0.1), rho=0.1).param_groups[0]["sam_rho"]
        0.1
    """

    def __init__(
        self, base: Optimizer, rho: float = 0.05, delta: float = 1e-8, **engine: Unpack[EngineOptions]
    ) -> None:
        super().__init__(base, _Preconditioned(rho=rho, delta=delta), **engine)
        if not all("betas" in group for group in self.param_groups):
            raise ValueError(
                f"PreconditionedSAM reads the second moment of Adam or a relative, and {type(base).__name__} keeps "
                "none; use for example torch.optim.AdamW, or SAM"
            )


def _preconditioned(memory: Memory, p: Tensor, g: Tensor, group: dict[str, Any]) -> Tensor:
    state = memory.state_of(p)
    if not state:
        return g
    if "exp_avg_sq" not in state:
        raise ValueError(
            f"{memory.base} keeps no second moment under exp_avg_sq, so PreconditionedSAM has no "
            "metric; use Adam, AdamW or a relative of theirs, or SAM"
        )
    second: Tensor = state["exp_avg_sq"]
    if "step" in state:  # where it is counted elsewhere: the correction cancels in d / |d|, but for delta
        step = state["step"]  # in float32, which is not enough for beta^step; on a device it stays there
        steps = step.to(second.dtype) if isinstance(step, Tensor) and not step.is_cpu else float(step)
        second = second / (1.0 - group["betas"][1] ** steps)
    return g / second.sqrt().add_(setting(group, "delta"))
