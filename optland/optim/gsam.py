r"""Surrogate gap guided SAM: descend at the worst point, and shrink the gap to it without undoing the descent.

.. math::
    \tilde g = h - \alpha \Big( g - \frac{\langle g, h \rangle}{\|h\|^2} h \Big), \qquad
    \rho_t = \rho_{\min} + (\rho - \rho_{\min}) \frac{\eta_t - \eta_{\min}}{\eta_{\max} - \eta_{\min}}

The part of g across h is climbed: L(w) rises there, L(w + eps) stays, so the gap between them falls. The other form,
``descend="w"``, is g + alpha (h - its part along g): the authors' later code has it, and notes fewer loss spikes.

**Cost.** 2 gradient evaluations per sample and step; no state.

**When.** Vision transformers and mixers trained long, where the gap is large: their gains over SAM are the largest.

**Defaults.** ``rho=0.05`` and ``alpha=0.01``, of the size that the authors use for ResNets (rho_max 0.04, alpha 0.005
to 0.01); for transformers 0.6 and 0.05 to 1. Without ``lr_max`` the radius is constant.

**Caveats.** alpha = 0 is SAM. The tie to the learning rate needs the rates at its ends; beyond them rho is cut.

Reference: Zhuang, Gong, Yuan, Cui, Adam, Dvornek, Tatikonda, Duncan & Liu, "Surrogate Gap Minimization Improves
Sharpness-Aware Training", 2022, arXiv:2203.08065.
"""

from __future__ import annotations

from typing import Any, Literal, Unpack

from torch import Tensor
from torch.optim import Optimizer

from optland import vectors
from optland.optim.keys import key, setting
from optland.optim.method import Gradients, Method
from optland.optim.projection import across
from optland.optim.two_pass import EngineOptions, TwoPass

__all__ = ["GSAM"]


class _SurrogateGap(Method):
    def __init__(self, descend: Literal["w+eps", "w"], **hyperparameters: float) -> None:
        super().__init__(**hyperparameters)
        self.descend = descend

    def radius(self, group: dict[str, Any], length: Tensor) -> Tensor | float:
        """rho, scaled with the learning rate between its ends."""
        if key("rho_lr_max") not in group:
            return super().radius(group, length)
        low_rate, high_rate = float(setting(group, "rho_lr_min")), float(setting(group, "rho_lr_max"))
        share = (float(group["lr"]) - low_rate) / (high_rate - low_rate)
        low, high = float(setting(group, "rho_min")), float(setting(group, "rho"))
        return low + (high - low) * min(1.0, max(0.0, share))

    def combine(self, at: Gradients) -> list[Tensor]:
        """The gradient h - alpha times g across h, or g + alpha times h across g."""
        if self.descend == "w":
            rest, kept, sign = across(at.h, at.g), at.g, 1.0
        else:
            rest, kept, sign = across(at.g, at.h), at.h, -1.0
        alphas = at.of("alpha")
        if not any(alphas):
            return kept
        return vectors.add(kept, [sign * alpha for alpha in alphas], rest)


class GSAM(TwoPass):
    """GSAM around any optimizer.

    Args:
        base: The optimizer that makes the update.
        rho: Radius ||eps|| at the largest learning rate.
        alpha: Weight of the part that shrinks the gap.
        descend: ``"w+eps"``: h is descended, and the part of g across it climbed; ``"w"``: g is descended, and the part
            of h across it too.
        rho_min: Radius at the smallest learning rate.
        lr_max: The largest learning rate; None keeps rho constant.
        lr_min: The smallest learning rate.
        **engine: Options of :class:`~optland.optim.two_pass.TwoPass`.

    Raises:
        TypeError: ``base`` is not an optimizer instance.
        ValueError: A value is negative or not finite, ``descend`` is not known, or ``lr_max`` is not above ``lr_min``.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> GSAM(torch.optim.SGD([w], lr=0.1), rho=0.1, alpha=0.2).param_groups[0]["sam_alpha"]
        0.2
    """

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        alpha: float = 0.01,
        *,
        descend: Literal["w+eps", "w"] = "w+eps",
        rho_min: float = 0.0,
        lr_max: float | None = None,
        lr_min: float = 0.0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        if descend not in ("w+eps", "w"):
            raise ValueError(f"descend={descend!r} is not known; use 'w+eps' or 'w'")
        if lr_max is not None and not lr_max > lr_min:
            raise ValueError(f"lr_max={lr_max} is not above lr_min={lr_min}; give the ends of the schedule")
        tie = {} if lr_max is None else {"rho_min": rho_min, "rho_lr_max": lr_max, "rho_lr_min": lr_min}
        super().__init__(base, _SurrogateGap(descend, rho=rho, alpha=alpha, **tie), **engine)
