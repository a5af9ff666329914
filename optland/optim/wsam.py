r"""WSAM: SAM with a weight on the sharpness term, from none through SAM's half to nearly all.

.. math::
    \min_w L(w) + \frac{\gamma}{1 - \gamma} \big( L(w + \epsilon) - L(w) \big)
    \quad\Rightarrow\quad (1 - a)\, g + a\, h, \qquad a = \frac{\gamma}{1 - \gamma}

gamma = 0 is the base, 1/2 is SAM. *Decoupled*, the base steps with g alone, and the sharpness is a term like AdamW's
weight decay: w <- w - lr a (h - g), kept out of momentum and preconditioner.

The gradient-norm penalty is the same mixture, written (1 - a) g + a h with a below 1: descent on L + (a rho) ||g||.

**Cost.** 2 gradient evaluations per sample and step; decoupled, one more transient copy.

**When.** When SAM helps and its one knob is not enough; noisy labels like a large gamma.

**Defaults.** WSAM ``gamma=0.9`` (best found: 0.8 to 0.95) and decoupled, as the authors'. Penalty ``a=0.8``, theirs.

**Caveats.** a = 9 at gamma = 0.9: reduce rho where it diverges. Under a GradScaler the decoupled form needs
``perturb(loss_scale=...)``, and clipping acts on g alone.

References: Yue, Jiang, Ye, Gao, Liu & Zhang, "Sharpness-Aware Minimization Revisited: Weighted Sharpness as a
Regularization Term", 2023, arXiv:2305.15817. Zhao, Zhang & Hu, "Penalizing Gradient Norm for Efficiently Improving
Generalization in Deep Learning", 2022, arXiv:2202.03599.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from optland import vectors
from optland.optim.memory import Memory
from optland.optim.method import Gradients, Method
from optland.optim.two_pass import EngineOptions, TwoPass

__all__ = ["PGN", "WSAM"]


class _Weighted(Method):
    def __init__(self, decoupled: bool, **hyperparameters: float) -> None:
        super().__init__(**hyperparameters)
        # Decoupled, the correction does not pass through a GradScaler.
        self.decoupled = self.true_units = decoupled

    @property
    def shares_matter(self) -> bool:
        """The correction adds up over micro-batches as the gradient does, and eps is of fixed length."""
        return False

    def check(self, values: dict[str, Any]) -> None:
        """Refuse a gamma of 1 or more."""
        if not values.get("gamma", 0.0) < 1.0:
            raise ValueError(f"gamma={values['gamma']} is not below 1; 0.5 is SAM, 0.9 the authors' choice")

    def combine(self, at: Gradients) -> list[Tensor]:
        """The mixture, or g alone with the rest kept for :meth:`after_update`."""
        change = vectors.subtract(at.h, at.g)
        factors = [gamma / (1.0 - gamma) for gamma in at.of("gamma")]
        if not self.decoupled:
            return [torch.add(g, c, alpha=a) for g, c, a in zip(at.g, change, factors, strict=True)]
        aside = at.memory.aside
        for p, c, a in zip(at.params, at.unscaled(change), factors, strict=True):
            c.mul_(a)  # in place, as no one else has it
            aside[p] = aside[p].add_(c) if p in aside else c
        return at.g

    @vectors.no_graph
    def after_update(self, memory: Memory) -> None:
        """Update w <- w - lr a (h - g), with + where the base maximizes."""
        for group in memory.groups:
            for p in group["params"]:
                if p in memory.aside:
                    p.sub_(self.uphill(group) * group["lr"] * memory.aside[p])


class WSAM(TwoPass):
    """WSAM around any optimizer.

    Args:
        base: The optimizer that makes the update.
        rho: Radius ||eps||.
        gamma: Weight of the sharpness, in [0, 1).
        decoupled: Keep the sharpness out of the base's momentum and preconditioner.
        **engine: Options of :class:`~optland.optim.two_pass.TwoPass`.

    Raises:
        TypeError: ``base`` is not an optimizer instance.
        ValueError: ``rho`` is negative or not finite, or ``gamma`` is not within [0, 1).

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = WSAM(torch.optim.SGD([w], lr=0.1), rho=0.5, gamma=0.5)  # SAM
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = 0.5 * w.square().sum()
        ...     loss.backward()
        ...     return loss
        >>> _ = optimizer.step(closure)
        >>> [round(x, 2) for x in w.tolist()]
        [2.67, 3.56]
    """

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        gamma: float = 0.9,
        *,
        decoupled: bool = True,
        **engine: Unpack[EngineOptions],
    ) -> None:
        super().__init__(base, _Weighted(decoupled, rho=rho, gamma=gamma), **engine)


class _Mixed(Method):
    def combine(self, at: Gradients) -> list[Tensor]:
        """(1 - a) g + a h."""
        return [torch.lerp(g, h, a) for g, h, a in zip(at.g, at.h, at.of("a"), strict=True)]


class PGN(TwoPass):
    """Gradient-norm penalty around any optimizer.

    Args:
        base: The optimizer that makes the update.
        rho: Radius ||eps||.
        a: Share of h; 1 is SAM, 0 the base.
        **engine: Options of :class:`~optland.optim.two_pass.TwoPass`.

    Raises:
        TypeError: ``base`` is not an optimizer instance.
        ValueError: ``rho`` or ``a`` is negative or not finite.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> PGN(torch.optim.SGD([w], lr=0.1), a=0.5).param_groups[0]["sam_a"]
        0.5
    """

    def __init__(
        self, base: Optimizer, rho: float = 0.05, a: float = 0.8, **engine: Unpack[EngineOptions]
    ) -> None:
        super().__init__(base, _Mixed(rho=rho, a=a), **engine)
