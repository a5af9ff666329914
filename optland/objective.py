r"""A loss as a function of the weights: model, loss, data and mode, evaluated anywhere, leaving no trace.

.. math:: L(w) = \frac{\sum_b \mathrm{sum}_b(w)}{\sum_b \mathrm{count}_b}

Batches are weighted by their counts, never averaged as equals: a ragged last batch or a token-level loss
would otherwise give every probe a wrong value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from optland import vectors
from optland.batches import num_samples
from optland.context import preserve_rng, probe_context
from optland.estimate import Provenance
from optland.vectors import Vector

__all__ = ["FORWARD_GE", "LossFn", "Objective"]

LossFn = Callable[[nn.Module, Any], Any]
"""``loss_fn(model, batch)`` returns the mean loss of the batch, or the pair (sum of losses, count)."""

FORWARD_GE = 1.0 / 3.0
"""Cost of one forward pass of one sample in gradient evaluations; the backward pass costs twice a forward."""


class Objective:
    """The loss of ``model`` on fixed data as a function of its trainable weights.

    Nothing of the user's model changes: weights are restored by copy, and modes, buffers, random state,
    ``.grad`` and precision settings are put back after every evaluation.

    Args:
        model: Any module, not compiled (pass the original one: compiled modules refuse double backward).
        loss_fn: ``loss_fn(model, batch)``, returning a mean loss or ``(sum, count)``.
        batches: A list of batches of any type, or any iterable that can be iterated again and again in the
            same order (a loader without shuffling).
        mode: ``"eval"`` (default: running statistics, no dropout: one deterministic function) or ``"train"``
            (the function that the step saw; its buffers are restored and its dropout masks replayed).
        data: Name of the data, kept in the provenance of every estimate.
        seed: Seed of the randomness inside the loss (dropout in train mode), the same at every evaluation.
        num_samples: Number of samples in ``batches``, the unit of cost. Counted by default; needed for batch
            types that cannot be counted, whose ``loss_fn`` then has to return ``(sum, count)``.

    Raises:
        TypeError: ``batches`` is a single tensor or tuple instead of a collection of batches, or an iterator
            that can be read only once, or its batches cannot be counted.
        ValueError: Unknown mode, no batches, or no parameter that requires a gradient.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> _ = net.weight.data.fill_(3.0)
        >>> L = Objective(net, lambda m, x: m(x).pow(2).mean(), [torch.ones(4, 1)])
        >>> L.value(), L.value([torch.zeros(1, 1)])
        (9.0, 0.0)
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        batches: Iterable[Any],
        *,
        mode: Literal["eval", "train"] = "eval",
        data: str = "probe set",
        seed: int = 0,
        num_samples: int | None = None,
    ) -> None:
        if isinstance(batches, Tensor | tuple | str):
            raise TypeError(
                f"batches is a {type(batches).__name__}, which looks like one batch; pass a list: [batch]"
            )
        if isinstance(batches, Iterator):
            raise TypeError(
                f"batches is a {type(batches).__name__}, which can be read only once; pass list(batches)"
            )
        if mode not in ("eval", "train"):
            raise ValueError(f"mode {mode!r} is not known; use 'eval' or 'train'")
        self.model = getattr(model, "_orig_mod", model)  # torch.compile keeps the original module here
        self.loss_fn = loss_fn
        self.batches = batches
        self.mode = mode
        self.data = data
        self.seed = seed
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("the model has no parameter with requires_grad=True; there is nothing to probe")
        self.names = [name for name, _ in named]
        self.params: list[Tensor] = [p for _, p in named]
        self.num_samples = self._count() if num_samples is None else num_samples
        if self.num_samples == 0:
            raise ValueError("batches holds no samples; pass at least one batch")
        self.cost_ge = 0.0
        """Gradient evaluations spent on this objective so far."""
        self.location = 0
        """Which point the weights are at: 0 is the model's own; every :meth:`at` block has its own number."""
        self._visits = 0

    def _count(self) -> int:
        # A DataLoader draws from the global generator when its iteration starts.
        with preserve_rng(self.seed):
            return sum(num_samples(batch) for batch in self.batches)

    def context(self) -> Any:
        """Guard under which the loss is evaluated; see :func:`optland.context.probe_context`."""
        return probe_context(self.model, self.mode, self.seed)

    def loss(self, batch: Any) -> tuple[Tensor, float]:
        """Loss sum (0-d, with its graph) and count of one batch; run it inside :meth:`context`."""
        loss = self.loss_fn(self.model, batch)
        if isinstance(loss, Sequence):
            total, count = loss[0], float(loss[1])
        else:
            count = float(num_samples(batch))
            total = loss * count
        if total.ndim != 0:
            raise ValueError(
                f"loss_fn returned a tensor of shape {tuple(total.shape)}; return the mean loss (a scalar) "
                "or the pair (sum of losses, count)"
            )
        return total, count

    def losses(self) -> Iterator[tuple[Tensor, float]]:
        """:meth:`loss` of each batch in turn."""
        seen = 0.0
        for batch in self.batches:
            total, count = self.loss(batch)
            seen += count
            yield total, count
        if not seen > 0:
            raise ValueError("the batches of this objective have a total count of 0; there is no mean loss")

    @contextmanager
    def at(self, point: Vector | None) -> Iterator[None]:
        """Run a block with the weights at ``point``, and restore them by copy (never by subtraction).

        The copies go behind the version counters of the weights: their bits are back at the end, so an
        autograd graph that the caller keeps stays right, and must not be declared stale.
        """
        if point is None:
            yield
            return
        weights = [p.data for p in self.params]
        saved, location = vectors.clone(weights), self.location
        try:
            self._visits += 1
            self.location = self._visits
            vectors.copy_(weights, point)
            yield
        finally:
            vectors.copy_(weights, saved)
            self.location = location

    def displaced(self, direction: Vector, t: float) -> list[Tensor]:
        """The point w + t d, a new vector."""
        return [p.detach() + t * d for p, d in zip(self.params, direction, strict=True)]

    def value(self, point: Vector | None = None) -> float:
        """L at ``point`` (default: current weights), summed in float64. Cost: a third of a GE per sample."""
        total, count = 0.0, 0.0
        with self.context(), self.at(point), torch.no_grad():
            for loss, n in self.losses():
                total += float(loss)
                count += n
        self.cost_ge += FORWARD_GE * self.num_samples
        return total / count

    def gradient(self, point: Vector | None = None) -> list[Tensor]:
        """Gradient of L at ``point``, a new vector; ``.grad`` is not touched. Cost: 1 GE per sample."""
        return self.value_and_gradient(point)[1]

    def value_and_gradient(self, point: Vector | None = None) -> tuple[float, list[Tensor]]:
        """L and its gradient from one pass; parameters the loss does not use get a zero gradient."""
        total, count = 0.0, 0.0
        gradient = vectors.accumulator(self.params)
        with self.context(), self.at(point), torch.enable_grad():
            for loss, n in self.losses():
                pieces = torch.autograd.grad(loss, self.params, allow_unused=True, materialize_grads=True)
                vectors.axpy_(1.0, pieces, gradient)
                total += float(loss.detach())
                count += n
        self.cost_ge += self.num_samples
        mean = vectors.scaled(1.0 / count, gradient)
        return total / count, [g.to(p.dtype) for g, p in zip(mean, self.params, strict=True)]

    def provenance(self, method: str, seed: int | None = None) -> Provenance:
        """The provenance of a number measured on this objective by ``method``."""
        return Provenance(method, self.num_samples, self.data, self.mode, seed, self.dtype)

    @property
    def dtype(self) -> str:
        """Floating type of the weights, for provenance."""
        return str(self.params[0].dtype).removeprefix("torch.")

    def __repr__(self) -> str:
        return (
            f"Objective({type(self.model).__name__}, {self.num_samples} samples of {self.data}, "
            f"mode={self.mode!r}, d={vectors.numel(self.params)})"
        )
