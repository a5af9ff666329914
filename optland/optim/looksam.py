r"""LookSAM: take the second gradient every k-th step, and reuse its part across g in between.

.. math::
    \text{every k-th step:} \quad & h = \nabla L(w + \rho g / \|g\|), \qquad
        g_v = h - \frac{\langle h, g \rangle}{\|g\|^2} g, \qquad w \leftarrow \text{base}(w, h) \\
    \text{else:} \quad & w \leftarrow \text{base}\big(w, \; g + \alpha \tfrac{\|g\|}{\|g_v\|} g_v\big)

The part of h across g changes slowly, so it may be k steps old; the part along g is that of the present batch. alpha is
bounded by what was seen: in no step is the gradient turned further than the last look turned it.

**Cost.** 1 + 1/k gradient evaluations per sample and step, by construction; one copy of the weights in the state.

**When.** Large batches and vision transformers, where the authors use it with k = 5 to 10. **When not.** Small noisy
batches, whose g_v is noise by the next step.

**Defaults.** ``rho=0.05`` as SAM; ``k=5`` and ``alpha=0.7``, the paper's, and ``bounded=True``, which is not: with a
fixed 0.7 the gradient is turned by 35 degrees however little SAM would turn it, and a convolutional net without
normalisation on MNIST-1D ends at 24 % instead of 95 %. Where |g_v| / |g| is above 0.7, as in the authors' large
batches, both are the same.

**Caveats.** Under DDP the gradient of pass one has to be synchronised in the k-th steps, since g_v stays. Norms and
projection are over all parameters, as in the paper; by tensor they would be another method.

Reference: Liu, Mai, Chen, Hsieh & You, "Towards Efficient and Scalable Sharpness-Aware Minimization", 2022,
arXiv:2203.02714.
"""

from __future__ import annotations

import operator
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from optland import vectors
from optland.optim.keys import key, setting
from optland.optim.memory import Memory
from optland.optim.method import Gradients, Method
from optland.optim.projection import across
from optland.optim.two_pass import EngineOptions, TwoPass

__all__ = ["LookSAM"]

_DIRECTION = "look_direction"
_SEEN = "look_seen"


class _Look(Method):
    remembers = (_DIRECTION,)
    counts = True

    def __init__(self, k: int, bounded: bool, **hyperparameters: float) -> None:
        super().__init__(**hyperparameters, **({_SEEN: 0.0} if bounded else {}))
        self.k, self.bounded = k, bounded
        self._known: list[Tensor] = []  # g_v of the last reuse, with their versions and length
        self._versions: list[int] = []
        self._found: float | Tensor = 0.0

    def due(self, step: int) -> bool:
        """True in steps 0, k, 2k, ..."""
        return step % self.k == 0

    def combine(self, at: Gradients) -> list[Tensor]:
        """h; what of it lies across g is kept, of all micro-batches together."""
        self._known = []  # lets go of the last look's
        at.memory.add(_DIRECTION, at.params, across(at.h, at.g))
        at.memory.scratch.setdefault("lengths", []).append(at.g_norm)  # of g, in this step's looks
        return at.h

    def settle(self, memory: Memory) -> None:
        """How far the look has turned the gradient, all micro-batches together."""
        looked, lengths = memory.proposed(_DIRECTION), memory.scratch.get("lengths")
        if self.bounded and looked and lengths:
            g_norm = float(torch.stack(lengths).sum())
            seen = float(vectors.norm(list(looked.values()))) / g_norm if g_norm > 0 else 0.0
            for group in memory.groups:
                group[key(_SEEN)] = seen

    def _reused_length(self, group: dict[str, Any]) -> float:
        """Length of the reused part, relative to the gradient."""
        alpha = float(setting(group, "alpha"))
        return min(alpha, float(setting(group, _SEEN))) if self.bounded else alpha

    def reuse(self, at: Gradients) -> list[Tensor]:
        """The gradient g + alpha |g| / |g_v| g_v, alpha at most what was seen."""
        if not at.memory.has_radius:
            # rho has gone to 0, where h = g and nothing lies across
            at.memory.add(_DIRECTION, at.params, [torch.zeros_like(g) for g in at.g])
            return at.g
        g_v = at.memory.recall(_DIRECTION, at.params)
        g_norm = vectors.norm(at.g) if at.g_norm is None else at.g_norm
        length = self._length(g_v)
        if isinstance(length, float):
            share = float(g_norm) / length if length > 0 else 0.0
            parts = {id(group): share * self._reused_length(group) for group in at.memory.groups}
            one = next(iter(parts.values())) if len(parts) == 1 else [parts[id(group)] for group in at.groups]
            return vectors.add(at.g, one, g_v)
        scale = torch.where(length > 0, g_norm / length, torch.zeros_like(length))
        return [
            g + (scale * self._reused_length(group)).to(device=g.device, dtype=g.dtype) * v
            for g, v, group in zip(at.g, g_v, at.groups, strict=True)
        ]

    def _length(self, g_v: list[Tensor]) -> float | Tensor:
        """|g_v|, as a number on the CPU; taken once for as long as nobody writes to these tensors.

        A checkpoint that is loaded brings other tensors, and a rewind writes into them, which their version shows.
        """
        known, versions = self._known, [v._version for v in g_v]
        if len(g_v) == len(known) and all(map(operator.is_, g_v, known)) and versions == self._versions:
            return self._found
        found = vectors.norm(g_v)
        # A shard's own version does not show what is written to its part on this rank.
        self._known, self._versions = g_v if {type(v) for v in g_v} <= {Tensor} else [], versions
        self._found = float(found) if found.is_cpu else found
        return self._found


class LookSAM(TwoPass):
    """LookSAM around any optimizer.

    Args:
        base: The optimizer that makes the update.
        rho: Radius ||eps|| of the steps that look.
        k: Steps from one look to the next; 1 is SAM.
        alpha: Length of the reused part, relative to the gradient.
        bounded: That length is at most what it was in the last look. False is the paper's rule.
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

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        k: int = 5,
        alpha: float = 0.7,
        *,
        bounded: bool = True,
        **engine: Unpack[EngineOptions],
    ) -> None:
        if k < 1:
            raise ValueError(f"k={k} is not possible; use 1 for SAM, or more")
        super().__init__(base, _Look(k, bounded, rho=rho, alpha=alpha), **engine)
