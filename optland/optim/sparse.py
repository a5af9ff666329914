r"""Sparse SAM: perturb only the coordinates that matter most.

.. math:: \epsilon = M \odot \rho \, g / \|g\|, \qquad
          M_i = 1 \text{ for the share } 1 - s \text{ with the largest } g_i^2

The mask is applied after the scaling, so ||eps|| <= rho. It is drawn anew every ``refresh`` steps, from the squares of
that step's gradient, over all perturbed parameters.

**Cost.** 2 gradient evaluations per sample and step, as no sparse kernel takes part; one copy of the weights in the
state.

**When.** To see how few coordinates SAM needs. **When not.** To save time.

**Defaults.** ``sparsity=0.5``, the authors' usual; ``refresh=100`` steps.

**Caveats.** The authors' Fisher mask takes squares of the gradients of single samples (128 to 1024 of them); here they
are those of one batch, which is what a step has in hand, and of micro-batches with an eps each those of the first.

Reference: Mi, Shen, Ren, Zhou, Sun, Ji & Tao, "Make Sharpness-Aware Minimization Stronger: A Sparsified Perturbation
Approach", 2022, arXiv:2210.05177.
"""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor
from torch.optim import Optimizer

from optland import vectors
from optland.optim.memory import dated
from optland.optim.method import Gradients, Method
from optland.optim.two_pass import EngineOptions, TwoPass

__all__ = ["SparseSAM"]

_MASK = "sparse_mask"


class _Sparse(Method):
    remembers = (_MASK,)
    counts = True

    def __init__(self, refresh: int, **hyperparameters: float) -> None:
        super().__init__(**hyperparameters, **{dated(_MASK): 0})
        self.refresh = refresh

    def check(self, values: dict[str, Any]) -> None:
        """Refuse a sparsity that is not a share below 1."""
        if not values.get("sparsity", 0.0) < 1.0:
            raise ValueError(
                f"sparsity={values['sparsity']} leaves nothing; use a share below 1, for example 0.5"
            )

    def perturbation(self, at: Gradients) -> list[Tensor]:
        """SAM's, masked."""
        return [m * e for m, e in zip(self._mask(at), super().perturbation(at), strict=True)]

    def _mask(self, at: Gradients) -> list[Tensor]:
        if at.memory.is_stale(_MASK, self.refresh):
            sparsity = max(at.of("sparsity"))
            # The threshold is one over all shards, so each rank needs all coordinates once.
            magnitudes = vectors.flatten([_whole(g) for g in at.g]).abs()
            rank = int(sparsity * magnitudes.numel())  # coordinates to leave out
            threshold = magnitudes.kthvalue(rank).values if rank else magnitudes.new_tensor(-1.0)
            kept = [(g.abs() > threshold).to(p.dtype) for g, p in zip(at.g, at.params, strict=True)]
            at.memory.remember(_MASK, at.params, kept)
        return at.memory.recall(_MASK, at.params)


class SparseSAM(TwoPass):
    """Sparse SAM around any optimizer.

    Args:
        base: The optimizer that makes the update.
        rho: Radius before the mask.
        sparsity: Share of the coordinates that stay where they are.
        refresh: Updates from one mask to the next.
        **engine: Options of :class:`~optland.optim.two_pass.TwoPass`.

    Raises:
        TypeError: ``base`` is not an optimizer instance.
        ValueError: ``rho`` is negative or not finite, ``sparsity`` is not within [0, 1), or ``refresh`` is below 1.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = SparseSAM(torch.optim.SGD([w], lr=0.1), rho=0.5)
        >>> (0.5 * w.square().sum()).backward()
        >>> with optimizer.perturbed():
        ...     print([round(x, 3) for x in w.tolist()])
        [3.0, 4.4]
    """

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        sparsity: float = 0.5,
        refresh: int = 100,
        **engine: Unpack[EngineOptions],
    ) -> None:
        if refresh < 1:
            raise ValueError(f"refresh={refresh} is not possible; use 1 for a new mask every step, or more")
        super().__init__(base, _Sparse(refresh, rho=rho, sparsity=sparsity), **engine)


def _whole(g: Tensor) -> Tensor:
    whole: Tensor = g.full_tensor() if hasattr(g, "full_tensor") else g
    return whole
