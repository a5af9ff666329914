r"""LookSAM: look for the worst point every k-th step, and reuse what was seen there in between.

.. math::
    \text{every k-th step:} \quad & h = \nabla L(w + \rho g / \|g\|), \qquad
        g_v = h - \frac{\langle h, g \rangle}{\|g\|^2} g, \qquad w \leftarrow \text{base}(w, h) \\
    \text{else:} \quad & w \leftarrow \text{base}\big(w, \; g + \alpha \tfrac{\|g\|}{\|g_v\|} g_v\big)

The part of h across g changes slowly, so it may be k steps old; the part along g is that of the present batch.

**Cost.** 1 + 1/k gradient evaluations a sample and step, by construction; one copy of the weights in the state.

**When.** Large batches and vision transformers, where the authors use it with k = 5 to 10. **When not.** Small noisy
batches, whose g_v is noise by the next step.

**Defaults.** ``rho=0.05`` as SAM; ``k=5`` and ``alpha=0.7``, the paper's.

**Caveats.** Under DDP the gradient of pass one has to be synchronised in the k-th steps, since g_v stays. Norms and
projection are over all parameters, as in the paper; by tensor they would be another method.

Reference: Liu, Mai, Chen, Hsieh & You, "Towards Efficient and Scalable Sharpness-Aware Minimization", 2022,
arXiv:2203.02714.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from optland import vectors
from optland.optim.method import Gradients
from optland.optim.projection import across
from optland.optim.two_pass import EngineOptions, TwoPass

__all__ = ["LookSAM"]

_DIRECTION = "look_direction"


class LookSAM(TwoPass):
    """LookSAM around any optimizer.

    Args:
        base: The optimizer that makes the update.
        rho: Radius ||eps|| of the steps that look.
        k: Steps from one look to the next; 1 is SAM.
        alpha: Length of the reused part, relative to the gradient.
        **engine: Options of :class:`~optland.optim.two_pass.TwoPass`; a ``gate`` may leave out looks.

    Raises:
        TypeError: ``base`` is not an optimizer instance.
        ValueError: ``rho`` or ``alpha`` is negative or not finite, or ``k`` is not positive.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = LookSAM(torch.optim.SGD([w], lr=0.1), k=2)
        >>> calls = 0
        >>> def closure():
        ...     global calls
        ...     calls += 1
        ...     optimizer.zero_grad()
        ...     loss = 0.5 * (w * w * torch.tensor([1.0, 3.0])).sum()
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(10):
        ...     _ = optimizer.step(closure)
        >>> calls
        15
    """

    remembers = (_DIRECTION,)

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        k: int = 5,
        alpha: float = 0.7,
        **engine: Unpack[EngineOptions],
    ) -> None:
        if k < 1:
            raise ValueError(f"k={k} is not possible; use 1 for SAM, or more")
        super().__init__(base, {"rho": rho, "alpha": alpha}, counts=True, **engine)
        self.k = k

    def due(self) -> bool:
        """True in steps 0, k, 2k, ... where the gate agrees."""
        return self.steps % self.k == 0 and super().due()

    def combine(self, at: Gradients) -> list[Tensor]:
        """h; what of it lies across g is kept, of all micro-batches together."""
        self.add(_DIRECTION, at.params, across(at.h, at.g))
        return at.h

    def reuse(self, at: Gradients) -> list[Tensor]:
        """G + alpha |g| / |g_v| g_v."""
        if not self._worthwhile():  # rho has gone to 0, where h = g and nothing lies across
            self.add(_DIRECTION, at.params, [torch.zeros_like(g) for g in at.g])
            return at.g
        g_v = self.recall(_DIRECTION, at.params)
        length, g_norm = vectors.norm(g_v), vectors.norm(at.g) if at.g_norm is None else at.g_norm
        if length.is_cpu:
            share = float(g_norm) / float(length) if length > 0 else 0.0
            return vectors.add(at.g, [share * alpha for alpha in at.of("alpha")], g_v)
        scale = torch.where(length > 0, g_norm / length, torch.zeros_like(length))
        return [
            g + (scale * alpha).to(device=g.device, dtype=g.dtype) * v
            for g, v, alpha in zip(at.g, g_v, at.of("alpha"), strict=True)
        ]
