r"""A loss as a function of the weights: model, loss, data and mode, evaluated anywhere, leaving no trace.

.. math:: L(w) = \frac{\sum_b \mathrm{sum}_b(w)}{\sum_b \mathrm{count}_b}

Batches are weighted by their counts, never averaged as equals: a ragged last batch or a token-level loss
would otherwise give every probe a wrong value.

**Several processes.** What is passed as the model says whose data the loss is over. A ``DistributedDataParallel``
wrapper, or a module sharded by FSDP2: the data of all its processes together, each with batches of its own; sums and
counts are added up, so that every process gets the number that one process with all batches would get. Every process
then makes every call. The module inside the wrapper (``model.module``): this process's own data, and no communication.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from optland import vectors
from optland.batches import BatchKind, Cast
from optland.context.modules import reshard
from optland.context.notes import Notes, notes_of
from optland.context.probe import probe_context
from optland.context.rng import preserve_rng
from optland.derivatives import Leaves, gradient, sharded_gradient, with_weights
from optland.estimate import Provenance
from optland.losses import mean_or_pair
from optland.ranks import Ranks, ranks_of
from optland.vectors import Vector

__all__ = ["Objective"]

LossFn = Callable[[nn.Module, Any], Any]
"""``loss_fn(model, batch)`` returns the mean loss of the batch, or the pair (sum of losses, count).

Of what holds more, such as the ``ModelOutput`` of transformers, its ``loss`` is the mean.
"""

FORWARD_GE = 1.0 / 3.0
"""Cost of one forward pass of one sample in gradient evaluations; the backward pass costs twice a forward."""


NO_COUNT = "the batches of this objective have a total count of 0; there is no mean loss"

T = TypeVar("T")


@dataclass(slots=True)
class _Meter:
    """Cost of an objective, which its views and its copies in another precision add to as well."""

    cost_ge: float = 0.0


@dataclass(slots=True)
class _Place:
    """Where the weights of a model are, known to every view of it."""

    location: int = 0
    visits: int = 0


class Objective:
    """The loss of ``model`` on fixed data as a function of its trainable weights.

    Nothing of the user's model changes: weights are restored by copy, and modes, buffers, random state,
    ``.grad`` and precision settings are put back after every evaluation.

    Args:
        model: Any module, not compiled (pass the original one: compiled modules refuse double backward). One wrapped by
            ``DistributedDataParallel``, or sharded by FSDP2, stands for the data of all its processes; under FSDP2
            each of them needs the same number of batches.
        loss_fn: ``loss_fn(model, batch)``, returning a mean loss or ``(sum, count)``.
        batches: A list of batches of any type, or any iterable that can be iterated again and again in the
            same order (a loader without shuffling).
        mode: ``"eval"`` (default: running statistics, no dropout: one deterministic function) or ``"train"``
            (the function that the step saw; its buffers are restored and its dropout masks replayed).
        data: Name of the data, kept in the provenance of every estimate.
        seed: Seed of the randomness inside the loss (dropout in train mode), the same at every evaluation.
        num_samples: For batches that are not counted by the leading dimension of their first tensor:
            ``num_samples(batch)``; or the number of samples in all of them, whose ``loss_fn`` then has to return
            ``(sum, count)``. Samples are the unit of cost, and the weight of a mean loss.
        split: ``split(batch, parts)`` for batches that are not cut along their first dimension; a list of batches.

    Attributes:
        names: Names of the trainable parameters.
        params: The parameters themselves, in the same order.
        sources: The user's own parameters that ``params`` stand for: other tensors only after :meth:`cast`.
        ranks: The processes whose data it is the loss of; None for this one's alone.
        own_batches: This process's own batches.
        kind: How they are counted and cut.

    Raises:
        TypeError: ``batches`` is a single tensor or tuple instead of a collection of batches, or an iterator
            that can be read only once, or its batches cannot be counted; or a parameter is complex.
        ValueError: Unknown mode, no batches, no parameter that requires a gradient, a wrapper of several processes
            somewhere inside the model, or processes of a sharded model with different numbers of batches.

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
        num_samples: int | Callable[[Any], int] | None = None,
        split: Callable[[Any, int], Sequence[Any]] | None = None,
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
        self.model, self.ranks = _alone(model)
        self.loss_fn = loss_fn
        self.own_batches = batches
        self.mode = mode
        self.data = data
        self.seed = seed
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("the model has no parameter with requires_grad=True; there is nothing to probe")
        self.names = [name for name, _ in named]
        self.params: list[Tensor] = [p for _, p in named]
        self.sources = self.params
        _refuse_complex(self.names, self.params)
        by_batch = num_samples if callable(num_samples) else None
        self.kind = BatchKind(by_batch, split)
        self.num_samples = self._count(None if callable(num_samples) else num_samples)
        self._meter = _Meter()
        self._place = _Place()

    @property
    def notes(self) -> Notes:
        """The notes of probes on the model; see :mod:`optland.context.notes`.

        Looked up and not kept: in a copy of the objective and its model they would be those of the old model.
        """
        return notes_of(self.model)

    @property
    def batches(self) -> Iterable[Any]:
        """All batches of the loss.

        Raises:
            ValueError: Other processes hold a part of them.
        """
        if self.ranks is not None:
            raise ValueError(
                f"this measurement goes through the batches one by one, and those of {self.ranks.size} processes are "
                "not here; measure this process's own data: Objective(model.module, ...) inside "
                "DistributedDataParallel, or an unsharded copy of the model"
            )
        return self.own_batches

    @batches.setter
    def batches(self, batches: Iterable[Any]) -> None:
        self.own_batches = batches

    @property
    def cost_ge(self) -> float:
        """Gradient evaluations spent on this objective so far, by its views and copies too."""
        return self._meter.cost_ge

    @cost_ge.setter
    def cost_ge(self, value: float) -> None:
        self._meter.cost_ge = value

    @property
    def location(self) -> int:
        """Which point the weights are at: 0 is the model's own; every :meth:`at` block has its own number."""
        return self._place.location

    def select(self, indices: Sequence[int]) -> Objective:
        """The same loss as a function of some of the parameters only, the others held where they are.

        Args:
            indices: Positions in :attr:`params`.

        Returns:
            A view: same model, data and cost meter; gradients are taken for these parameters alone.

        Raises:
            ValueError: No parameter is left.

        Example:
            >>> L = Objective(nn.Linear(2, 1), lambda m, x: m(x).square().mean(), [torch.ones(4, 2)])
            >>> L.select([1]).names
            ['bias']
        """
        if not indices:
            raise ValueError(f"no parameter was selected; choose among {', '.join(self.names)}")
        view = copy.copy(self)
        view.names = [self.names[i] for i in indices]
        view.params = [self.params[i] for i in indices]
        view.sources = [self.sources[i] for i in indices]
        return view

    def on(self, batch: Any, num_samples: int, *, mode: Literal["eval", "train"] | None = None) -> Objective:
        """The same loss on one batch: a view with the same model, parameters and cost meter.

        Args:
            batch: The batch.
            num_samples: Its number of samples; of several processes each gives its own.
            mode: Another mode than this objective's.
        """
        view = copy.copy(self)
        view.own_batches, view.mode = [batch], mode or self.mode
        view._own_samples, view.num_samples = num_samples, view._over_ranks(num_samples)
        return view

    def alone(self) -> Objective:
        """The loss on this process's own batches: a view, whose cost is added to the same meter."""
        view = copy.copy(self)
        view.ranks, view.num_samples = None, self._own_samples
        return view

    def double(self) -> Objective:
        """:meth:`cast` to float64, the precision of oracles and of nearly flat minima."""
        return self.cast(torch.float64)

    def cast(self, dtype: torch.dtype) -> Objective:
        """The same loss in another precision: on a deep copy of the model, with floating data cast as they come.

        The copy has the weights of now and does not follow the model; :meth:`refresh` brings it up to date. Dropout in
        train mode may draw other masks in another precision. Tensors that ``loss_fn`` holds itself are not
        cast: let it cast them to the type of the outputs.

        Returns:
            An objective of its own, on the same data and with the same cost meter.

        Raises:
            ValueError: ``dtype`` is not a real floating type, or the model cannot be copied.

        Example:
            >>> L = Objective(nn.Linear(2, 1), lambda m, x: m(x).square().mean(), [torch.ones(4, 2)])
            >>> L.double().params[0].dtype, L.params[0].dtype
            (torch.float64, torch.float32)
        """
        if not dtype.is_floating_point:
            raise ValueError(f"dtype={dtype} is not a floating type; use torch.float64 or torch.float32")
        # Weights that the older weight and spectral norms compute carry a graph, which is not copied.
        modules = self.model.modules()
        computed = [t for m in modules for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
        try:
            model = copy.deepcopy(self.model, {id(t): t.detach().clone() for t in computed}).to(dtype)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"{type(self.model).__name__} cannot be copied ({error}); build it in {dtype} and make "
                f"its own Objective"
            ) from error
        model.zero_grad(set_to_none=True)
        named = dict(model.named_parameters())
        other = copy.copy(self)
        other.model, other.params = model, [named[name] for name in self.names]
        other.own_batches = Cast(self.own_batches, dtype)
        if isinstance(self.own_batches, Sequence):
            other.own_batches = list(other.own_batches)
        other._place = _Place()
        return other

    @torch.no_grad()
    def refresh(self, source: Objective) -> None:
        """Copy the weights and buffers of the objective that this one was cast from, in this one's precision."""
        pairs = [*zip(self.model.parameters(), source.model.parameters(), strict=True)]
        buffers = [*zip(self.model.buffers(), source.model.buffers(), strict=True)]
        for mine, theirs in [*pairs, *buffers]:
            mine.copy_(theirs)

    def _count(self, told: int | None) -> int:
        """Samples of all processes, as told or counted."""
        counted: list[int] = []

        def count() -> tuple[list[Tensor], list[float]]:
            # A DataLoader draws from the global generator when its iteration starts.
            with preserve_rng(self.seed):
                sizes = [self.kind.count(batch) for batch in self.own_batches] if told is None else [told]
            counted.extend(sizes)
            if not sum(sizes):
                raise ValueError("batches holds no samples; pass at least one batch")
            return [], [sum(sizes)]

        _, (samples,) = self._joined(count)
        self._own_samples = round(samples) if self.ranks is None else sum(counted)
        if self.ranks is not None and self.ranks.sharded:
            self._require_equal_numbers(self.ranks)
        return round(samples)

    def _require_equal_numbers(self, ranks: Ranks) -> None:
        numbers = ranks.gathered(sum(1 for _ in self.own_batches))
        if len(set(numbers)) > 1:
            raise ValueError(
                f"the processes of this sharded model have {numbers} batches; all evaluate it together, so give each "
                "the same number"
            )

    def _over_ranks(self, value: float) -> int:
        return round(self._joined(lambda: ([], [value]))[1][0])

    def _joined(
        self, work: Callable[[], tuple[list[Tensor], list[float]]]
    ) -> tuple[list[Tensor], list[float]]:
        """What ``work`` gives, summed over the processes where there are several."""
        return work() if self.ranks is None else self.ranks.sums(work, self.params)

    def summed(self, work: Callable[[], tuple[list[Tensor], float]]) -> tuple[list[Tensor], float]:
        """A sum over all batches and their count, from the function that works it out for this process's own.

        Args:
            work: Goes through :attr:`own_batches`; a failure in it is one on all processes.

        Returns:
            The sums, not divided, and the count of all batches; of several processes over all of them.

        Raises:
            ValueError: The count of all batches is 0.
            RuntimeError: ``work`` failed, on whichever of several processes; or the model is sharded.
        """
        if self.ranks is not None and self.ranks.sharded:
            raise RuntimeError(
                "the model is sharded, and sharded parameters have no double backward and no forward-mode derivatives; "
                "use method='finite_difference'"
            )

        def counted() -> tuple[list[Tensor], list[float]]:
            tensors, count = work()
            return tensors, [count]

        tensors, (total,) = self._joined(counted)
        if not total > 0:
            raise ValueError(NO_COUNT)
        return tensors, total

    def context(self, standing: dict[int, Tensor] | None = None) -> Any:
        """Guard under which the loss is evaluated; see :func:`optland.context.probe.probe_context`.

        Enter it after :meth:`at`: what stands in for a parameter inside is a copy of what it is on entry.

        Args:
            standing: Stand-ins for parameters that a graph to be run again was built with.
        """
        return probe_context(self.model, self.mode, self.seed, standing)

    @property
    def settled(self) -> bool:
        """Whether the forward is known to write no parameter, so that one guard does for many evaluations."""
        return bool(self.notes.looked.get(self.mode)) and not self.notes.written.get(self.mode)

    @property
    def rewritten(self) -> str:
        """Names of parameters of this objective that the last evaluation's forward has changed; empty for none."""
        return ", ".join(self.notes.active[id(p)] for p in self.params if id(p) in self.notes.active)

    def leaves(self) -> Leaves:
        """The tensors to differentiate by, inside :meth:`context`."""
        return Leaves(self.params, self.notes.standing or {})

    def replacing(self, weights: Vector, evaluate: Callable[[], T]) -> T:
        """``evaluate()`` while these tensors, which it may write, stand in the model for :attr:`params`."""
        self.notes.replaced = True
        return with_weights(self.model, dict(zip(self.names, weights, strict=True)), evaluate)

    def loss(self, batch: Any, loss_fn: LossFn | None = None) -> tuple[Tensor, float]:
        """Loss sum (0-d, with its graph) and count of one batch; run it inside :meth:`context`.

        Args:
            batch: The batch.
            loss_fn: Stands in for the objective's own.

        Raises:
            TypeError: ``loss_fn`` returned neither a tensor, a pair nor a mapping with a loss.
            ValueError: The loss is no scalar, is complex, or has no graph while gradients are on.
        """
        loss = mean_or_pair((loss_fn or self.loss_fn)(self.model, batch))
        if isinstance(loss, Tensor):
            count = float(self.kind.count(batch))
            total = loss * count
        else:
            total, count = loss[0], float(loss[1])
        if total.ndim != 0:
            raise ValueError(
                f"loss_fn returned a tensor of shape {tuple(total.shape)}; return the mean loss (a scalar) "
                "or the pair (sum of losses, count)"
            )
        if total.is_complex():
            raise ValueError(
                "loss_fn returned a complex number; return a real loss, such as its abs() or real part"
            )
        if count > 0 and torch.is_grad_enabled() and not total.requires_grad:
            raise ValueError(
                "the loss has no graph: nothing in it depends on a trainable parameter of the model. Let "
                "loss_fn call the "
                "model that it is given, without no_grad(), detach() or item()"
            )
        return total, count

    def losses(self) -> Iterator[tuple[Tensor, float]]:
        """:meth:`loss` of each batch in turn."""
        seen = 0.0
        for batch in self.own_batches:
            total, count = self.loss(batch)
            seen += count
            if count > 0 or total.requires_grad or not torch.is_grad_enabled():
                yield total, count  # a batch whose terms are all masked may have a constant for its loss
        if self.ranks is None and not seen > 0:
            raise ValueError(NO_COUNT)

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
            self._place.visits += 1
            self._place.location = self._place.visits
            vectors.copy_(weights, point)
            yield
        finally:
            vectors.copy_(weights, saved)
            self._place.location = location

    def displaced(self, direction: Vector, t: float) -> list[Tensor]:
        """The point w + t d, a new vector.

        Args:
            direction: d, in the order and shapes of :attr:`params`.
            t: How far, in multiples of it.
        """
        return [p.detach() + t * d for p, d in zip(self.params, direction, strict=True)]

    def value(self, point: Vector | None = None) -> float:
        """L at ``point`` (default: current weights), summed in float64.

        Cost: a third of a GE per sample.

        Args:
            point: Other weights, in the order and shapes of :attr:`params`.

        Raises:
            ValueError: The count of all batches is 0.
        """

        def added() -> tuple[list[Tensor], list[float]]:
            total, count = 0.0, 0.0
            with self.at(point), self.context(), torch.no_grad():
                for loss, n in self.losses():
                    total += float(loss)
                    count += n
            return [], [total, count]

        _, (total, count) = self._joined(added)
        if not count > 0:
            raise ValueError(NO_COUNT)
        self.cost_ge += FORWARD_GE * self.num_samples
        return total / count

    def gradient(self, point: Vector | None = None) -> list[Tensor]:
        """Gradient of L at ``point``, a new vector; ``.grad`` is not touched.

        Cost: 1 GE per sample.
        """
        return self.value_and_gradient(point)[1]

    def value_and_gradient(self, point: Vector | None = None) -> tuple[float, list[Tensor]]:
        """L and its gradient from one pass; parameters the loss does not use get a zero gradient.

        Args:
            point: Other weights, in the order and shapes of :attr:`params`; None for those of the model, which stay
                as they are either way.

        Returns:
            The mean loss over all samples and its gradient, as a list in the same order; 1 gradient evaluation per
            sample.

        Raises:
            ValueError: The count of all batches is 0, or the loss has no graph.
        """

        def added() -> tuple[list[Tensor], list[float]]:
            total, count = 0.0, 0.0
            gradients = vectors.accumulator(self.params)
            with self.at(point), self.context(), torch.enable_grad():
                for batch in self.own_batches:
                    loss, n, pieces = self.batch_gradient(batch)
                    vectors.axpy_(1.0, pieces, gradients)
                    total += float(loss)
                    count += n
            return gradients, [total, count]

        together = self.ranks is not None and self.ranks.sharded  # then each batch is that of all
        total_gradient, (total, count) = added() if together else self._joined(added)
        if not count > 0:
            raise ValueError(NO_COUNT)
        self.cost_ge += self.num_samples
        mean = vectors.scaled(1.0 / count, total_gradient)
        return total / count, [g.to(p.dtype) for g, p in zip(mean, self.params, strict=True)]

    def batch_gradient(self, batch: Any) -> tuple[Tensor, float, list[Tensor]]:
        """Loss sum without a graph, count, and gradient of the sum; inside :meth:`context`, with gradients on.

        Of a sharded model they are those of the batches of all processes together, else those of this one.
        """
        loss, count = self.loss(batch)
        if self.ranks is not None and self.ranks.sharded:
            return self._shared_gradient(loss, count, self.ranks)
        if not loss.requires_grad:  # all terms masked
            return loss, count, [torch.zeros_like(p) for p in self.params]
        return loss.detach(), count, gradient(self, loss, lambda: self.loss(batch)[0])

    def _shared_gradient(
        self, loss: Tensor, count: float, ranks: Ranks
    ) -> tuple[Tensor, float, list[Tensor]]:
        mean = sharded_gradient(self, loss)  # the backward pass itself averages over the processes
        total, counted = ranks.total([loss, count], loss.device)
        return loss.new_tensor(total), counted, vectors.scaled(float(ranks.size), mean)

    def provenance(self, method: str, seed: int | None = None) -> Provenance:
        """The provenance of a number measured on this objective by ``method``."""
        if self.notes.backward:
            method = f"{method}, gradients by backward()"
        data = self.data if self.ranks is None else f"{self.data} of {self.ranks.size} processes"
        return Provenance(method, self.num_samples, data, self.mode, seed, self.dtype)

    @property
    def dtype(self) -> str:
        """Floating type of the weights, for provenance."""
        return str(self.params[0].dtype).removeprefix("torch.")

    def __repr__(self) -> str:
        return (
            f"Objective({type(self.model).__name__}, {self.num_samples} samples of {self.data}, "
            f"mode={self.mode!r}, d={vectors.numel(self.params)})"
        )


def _alone(model: Any) -> tuple[Any, Ranks | None]:
    """The module without a wrapper whose forward waits for other processes, and those processes."""
    ranks = ranks_of(model)
    wrapped: Any = None
    while wrapped is not model:
        wrapped = model
        model = getattr(model, "_orig_mod", model)  # torch.compile keeps the original module here
        model = model.module if isinstance(model, DistributedDataParallel) else model
    if ranks is not None and any(m is ranks.replicas for m in model.modules()):
        raise ValueError(
            f"the model holds a DistributedDataParallel somewhere inside {type(model).__name__}; pass that wrapper "
            "itself for the data of all processes, or its module for this one's"
        )
    reshard(model)
    return model, ranks


def _refuse_complex(names: Sequence[str], params: Sequence[Tensor]) -> None:
    for name, p in zip(names, params, strict=True):
        if p.is_complex():
            raise TypeError(
                f"parameter {name!r} is complex: its curvature is not a symmetric matrix of that size. "
                f"Hold it as a real "
                "tensor (torch.view_as_real) and form the complex one inside the model"
            )
