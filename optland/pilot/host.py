"""The host of a pilot: the only place that reads and changes optimizer, model and loader.

:class:`Host` is a plain PyTorch loop. Another loop (a trainer that owns the batch, say) is a subclass that overrides
what differs there: :meth:`Host.can_turn`, :meth:`Host.read`, :meth:`Host.turn`, and for one that owns the batch
:attr:`Host.own_batch_size` and :attr:`Host.knows_batch_size`. ``Pilot(host=...)`` takes it, and
:func:`optland.pilot.contract.check_host` holds it against the contract.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Sized
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, NAdam, Optimizer, RAdam

from optland import processes
from optland.batches import BatchKind, join, take, to_device
from optland.objective import LossFn, Objective
from optland.optim.keys import key
from optland.optim.saddle.krylov_solver import KrylovSolver
from optland.optim.saddle.wrapper import SaddleWrapper
from optland.optim.two_pass import TwoPass
from optland.pilot.decision import TURNED
from optland.pilot.linear import innermost_of, why_not_linear
from optland.pilot.measure import WeightsBefore
from optland.pilot.policies.facts import HostFacts
from optland.pilot.ranks import Ranks
from optland.pilot.refused import refuse_misread

__all__ = ["Host", "unwrapped"]

_TRAINERS = (
    "accelerate",
    "lightning",
    "pytorch_lightning",
)  # whose wrappers keep the user's under ``.optimizer``

_ADAMS = (Adam, AdamW, NAdam, RAdam)  # AdamW became a subclass of Adam in PyTorch 2.7
_OURS = (
    TwoPass,
    SaddleWrapper,
    KrylovSolver,
)  # by their class, since an attribute of that name may mean anything
_IN_GROUPS = {"weight_decay": "weight_decay", "momentum": "momentum", "rho": key("rho")}
_BETAS = {"beta1": 0, "beta2": 1}

_Wrapped = TypeVar("_Wrapped")


class Host:
    """A plain loop.

    Args:
        optimizers: One, or several that step once each in every update.
        model: The module that they train, also compiled or wrapped by DDP.
        loss_fn: ``loss_fn(model, batch)``, the training loss.
        dataset_size: Samples of the training set; None asks the loader.
        num_samples: Counts the samples of a batch of a type that cannot be counted by its first tensor.
        split: Cuts a batch of such a type: ``split(batch, parts)`` gives a list of batches.

    Attributes:
        factor: The factor on the learning rate; this is its only owner.
        before: The weights before the present update, where they were copied.
        kind: How batches are counted and cut.
        batch: The batch of the present update: a list of micro-batches where there are several.
        applied: Learning rate of the last update, once it is known on the host.
        step: Updates made.

    Raises:
        ValueError: The optimizers hold no parameter of the model, or maximize.
        TypeError: A parameter is complex.
    """

    fixed: ClassVar[frozenset[str]] = frozenset()
    """What can never be turned here, whatever comes later: refused when the pilot is made."""

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        model: nn.Module,
        loss_fn: LossFn,
        *,
        dataset_size: int | None = None,
        num_samples: Callable[[Any], int] | None = None,
        split: Callable[[Any, int], list[Any]] | None = None,
    ) -> None:
        self.optimizers = [unwrapped(o) for o in optimizers]
        self.inner = [_below_saddle_wrappers(o) for o in self.optimizers]
        """What the pilot's hooks are on: an escape of a wrapper around it is no step, and is not rescaled."""
        self._places = {id(o): i for i, o in enumerate(self.inner)}
        self.model = unwrapped(model)
        self.ranks = Ranks(self.model, model)
        self.loss_fn = loss_fn
        self.kind = BatchKind(num_samples, split)
        self.factor = 1.0
        self.before = WeightsBefore()
        self.batch: Any = None
        self.applied = math.nan
        self.step = 0
        self.loader: Any = None
        self.stopped = False
        self._nominal: int | None = None
        self._dataset_size = dataset_size
        self._own_kind: dict[str, Any] = {"num_samples": num_samples, "split": split}
        self._largest = 0  # samples of the largest batch so far, of this rank or as they were dealt out
        self._evaluations = [0.0, 0.0]  # gradient evaluations per sample, summed over updates; updates
        self._held: dict[int, list[float | Tensor]] = {}
        self._own_gate = next((o.gate for o in self.inner if isinstance(o, TwoPass)), None)
        self._clip: float | None = None
        self._highest = 0.0  # of all rates that were scheduled so far
        refuse_misread(self.inner)
        if not self.parameters() and not self._named_in_groups():
            raise ValueError(
                "the optimizer holds no parameter of the model: it is another model's, or model= is; "
                "pass the module whose parameters() the optimizer was made with"
            )

    # ------------------------------------------------------------------ what there is

    def _named_in_groups(self) -> dict[str, Tensor]:
        held = {p for o in self.optimizers for group in o.param_groups for p in group["params"]}
        return {name: p for name, p in self.model.named_parameters() if p in held}

    def parameters(self) -> dict[str, Tensor]:
        """The parameters that are trained now, by name, in the model's order whatever the groups' is.

        A frozen one is left out, one that was unfrozen or added is in; looked up at every update.
        """
        return {name: p for name, p in self._named_in_groups().items() if p.requires_grad}

    def parameters_of(self, optimizer: Optimizer) -> list[Tensor]:
        """Those of one optimizer, trained now, in its own order; also such as the model does not know."""
        return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]

    def index(self, optimizer: Optimizer) -> int:
        """Which of the optimizers it is."""
        return self._places[id(optimizer)]

    @property
    def device(self) -> torch.device:
        """Where the optimizers' parameters are, those of the first at least."""
        held = (p.device for o in self.optimizers for group in o.param_groups for p in group["params"])
        return next(held, torch.device("cpu"))

    def buffers(self) -> dict[str, Tensor]:
        """Floating-point buffers by name: running statistics."""
        return {name: b for name, b in self.model.named_buffers() if b.is_floating_point()}

    def say_loaded(self) -> None:
        """Tell followers of the weights, such as an average, that others were written into them: run load hooks."""
        self.model.load_state_dict(self.model.state_dict())

    @property
    def two_pass(self) -> bool:
        """Whether an update may take two passes."""
        return any(isinstance(o, TwoPass) and o.evaluations > 1 for o in self.inner)

    @property
    def is_adam(self) -> bool:
        """Whether the steps, below any wrappers, are divided by the root of a second moment as Adam's are."""
        return any(isinstance(innermost_of(o), _ADAMS) for o in self.optimizers)

    def last_evaluations(self) -> float:
        """Gradient evaluations per sample that the last update took."""
        return max([float(o.last_evaluations) if isinstance(o, _OURS) else 1.0 for o in self.optimizers])

    def note_evaluations(self, evaluations: float) -> None:
        """Take in what an update took."""
        self._evaluations = [self._evaluations[0] + evaluations, self._evaluations[1] + 1.0]

    @property
    def expected_evaluations(self) -> float:
        """Gradient evaluations per sample that an update is expected to take, as measured so far."""
        total, count = self._evaluations
        return total / count if count else 2.0 if self.two_pass else 1.0

    @property
    def own_batch_size(self) -> int:
        """Samples of an update on this rank: the loader's, or those of the first batch."""
        own = getattr(self.loader, "batch_size", None)
        shared_by = self.ranks.size if self._deals else 1
        return -(-int(own) // shared_by) if own else self._nominal or 1

    @property
    def probed_batch_size(self) -> int:
        """Samples that a probe of the batch looks at: those of all ranks where they measure it together."""
        together = self.ranks.evaluate_together or self.ranks.replicas is not None
        return self.batch_size if together else self.own_batch_size

    @property
    def batch_size(self) -> int:
        """Samples of an update on all ranks; the last one of an epoch may be smaller."""
        return int(self.loader.batch_size) if self._deals else self.own_batch_size * self.ranks.size

    @property
    def _deals(self) -> bool:
        """Whether the loader's batches are those of all ranks, of which each gets its part."""
        return self.loader is not None and processes.size() > 1 and hasattr(self.loader, "served")

    @property
    def knows_batch_size(self) -> bool:
        """Whether a batch has been seen, or the loader says."""
        return bool(getattr(self.loader, "batch_size", None) or self._nominal)

    def saw(self, num_samples: int) -> None:
        """Take in the size of a batch; the first one is the nominal one where no loader says it."""
        self._nominal = self._nominal or num_samples
        self._largest = max(self._largest, self._compared(num_samples))

    def is_ragged(self, num_samples: int) -> bool:
        """Whether a batch is smaller than those before it, as at the end of an epoch."""
        return self._compared(num_samples) < min(self._largest, self._full)

    def _compared(self, num_samples: int) -> int:
        """The size of the present batch, up to that of a full one.

        That of all ranks where the loader deals it out: their parts are of several sizes, and a run may go on with
        another number of them.
        """
        return min(self.loader.served if self._deals and self.loader.served else num_samples, self._full)

    @property
    def _full(self) -> int:
        """The size that batches are compared with."""
        return int(self.loader.batch_size) if self._deals else self.own_batch_size

    @property
    def dataset_size(self) -> int | None:
        """Samples of the training set, as told, by the loader or by its data set; None where nobody says."""
        if self._dataset_size is not None:
            return self._dataset_size
        if (own := getattr(self.loader, "num_samples", None)) is not None:
            return int(own)
        data = getattr(self.loader, "dataset", None)
        return len(data) if isinstance(data, Sized) else None

    def count(self, batch: Any) -> int:
        """Samples of a batch, or of all micro-batches of an update."""
        return sum(self.kind.count(piece) for piece in self.pieces(batch))

    def counts(self, batch: Any) -> tuple[int, int]:
        """Samples of the batch of an update that count, of this rank and of all.

        Args:
            batch: Of the update; where the loader deals batches out, the loader knows both.
        """
        if self._deals and self.loader.served:
            return self.loader.own, self.loader.served
        own = self.count(batch)
        return own, own * self.ranks.size

    def objective(self, batch: Any, *, mode: Literal["train", "eval"] = "eval", data: str = "step batch",
                  seed: int, joint: bool = False) -> Objective:  # fmt: skip
        """The loss on a batch, or on all micro-batches of an update, at the present weights; see :meth:`over`."""
        return self.over(self.pieces(batch), mode=mode, data=data, seed=seed, joint=joint)

    def over(self, batches: Sequence[Any], *, mode: Literal["train", "eval"] = "eval", data: str = "step batch",
             seed: int, joint: bool = False) -> Objective:  # fmt: skip
        """The loss on batches or parts of them, weighted by their counts.

        Args:
            batches: The batches.
            mode: Of the model.
            data: What they are, in words.
            seed: Of dropout masks.
            joint: Together with the batches of all ranks, where each has a replica; then all of them have to measure.
        """
        model = self.ranks.replicas if joint and self.ranks.replicas is not None else self.model
        return Objective(
            model, self.loss_fn, list(batches), mode=mode, data=data, seed=seed, **self._own_kind
        )

    def parts(self, batch: Any, num_parts: int) -> list[Any]:
        """A batch cut into about ``num_parts`` pieces, at least two where that can be.

        Where each of several ranks has a batch of its own they are cut into so many together, and each at least once.

        Args:
            batch: Of the update, or a list of micro-batches.
            num_parts: Of all ranks together.
        """
        if self.ranks.replicas is not None:
            num_parts = max(num_parts // self.ranks.size, 1)
        pieces = self.pieces(batch)
        each = -(-num_parts // len(pieces))
        cut = self.kind.cut
        return [
            x
            for piece in pieces
            for x in (cut(piece, min(each, self.kind.count(piece))) if each > 1 else [piece])
        ]

    def some(self, batch: Any, num_samples: int) -> Any:
        """The first samples of a batch; of that of all ranks, where each has a part of it, on every one of them."""
        piece = self.pieces(batch)[0]
        if self.kind.by_rows and self.ranks.replicas is not None:
            return self._some_of_all(piece, num_samples)
        return self.kind.first(piece, num_samples)

    def _some_of_all(self, piece: Any, num_samples: int) -> Any:
        """No more is sent than is wanted of each rank."""
        here = self.counts(piece)[0] if self._deals else self.kind.count(piece)
        before = sum(self.ranks.gathered(here)[: self.ranks.rank])
        wanted = min(here, max(num_samples - before, 0))
        mine = to_device(take(piece, wanted), "cpu") if wanted else None
        held = [part for part in self.ranks.gathered(mine) if part is not None]
        return to_device(join(held) if len(held) > 1 else held[0], self.device)

    def pieces(self, batch: Any) -> list[Any]:
        """The micro-batches of an update: a list of batches, each of which is no tensor, is taken for several."""
        several = (
            isinstance(batch, list)
            and len(batch) > 0
            and not any(isinstance(x, Tensor | int | float) for x in batch)
        )
        return list(batch) if several else [batch]

    # ------------------------------------------------------------------ the learning rate

    @property
    def rate(self) -> float:
        """The user's largest learning rate over all groups, as scheduled now; NaN where groups have none."""
        rates: list[float] = []
        for i, optimizer in enumerate(self.inner):
            held = self._held.get(i) or [group.get("lr", math.nan) for group in optimizer.param_groups]
            rates += map(float, held)
        return max(rates, default=math.nan)

    def shape(self) -> float | None:
        """Scheduled over peak rate (of a cyclic schedule the highest so far), 0 to 1; None without a scheduler."""
        groups = [g for o in self.inner for g in o.param_groups]
        if not [g for g in groups if "initial_lr" in g]:
            return None
        rate = self.rate
        self._highest = max(self._highest, rate)
        peak = max(self._highest, *(float(g.get("max_lr", g.get("initial_lr", g["lr"]))) for g in groups))
        return max(rate, 0.0) / peak if peak > 0 else 0.0

    def hold_rate(self, optimizer: Optimizer, rate: float, largest: float) -> None:
        """Give the groups of one optimizer ``rate`` times their share of the user's ``largest``, until released.

        Args:
            optimizer: One of :attr:`inner`.
            rate: That of the group whose rate is ``largest``.
            largest: The largest rate over the groups of all optimizers; of 0 every group gets ``rate``.
        """
        i = self.index(optimizer)
        self._held[i] = [
            lr.clone() if isinstance(lr := g["lr"], Tensor) else lr for g in optimizer.param_groups
        ]
        for group in optimizer.param_groups:
            share = float(group["lr"]) / largest if largest > 0 else 1.0
            _write_lr(group, rate * share)

    def release_rate(self, optimizer: Optimizer) -> None:
        """Put the user's learning rates back; does nothing where none are held."""
        held = self._held.pop(self.index(optimizer), None)
        if held is not None:
            for group, lr in zip(optimizer.param_groups, held, strict=False):
                _write_lr(group, lr)

    # ------------------------------------------------------------------ what can be turned

    def can_turn(self, name: str) -> bool:
        """Whether this host can turn something, a key of :data:`~optland.pilot.decision.TURNED`."""
        if name in ("step_length",):
            return self.why_not_rescaled() is None
        if name in ("lr", "lr_factor"):
            return all("lr" in g for o in self.inner for g in o.param_groups)
        if name == "batch_size":
            return hasattr(self.loader, "set_batch_size")
        if name == "escape":
            return not self.ranks.several
        if name == "gate":
            return any(isinstance(o, TwoPass) for o in self.inner)
        if name in _IN_GROUPS:
            return any(_IN_GROUPS[name] in g for o in self.inner for g in o.param_groups)
        if name in _BETAS:
            return any("betas" in g for o in self.inner for g in o.param_groups)
        if name == "stop":
            return self.loader is not None
        return name in TURNED

    def lacking(self, name: str) -> str:
        """What to do where something cannot be turned, in words."""
        return TURNED[name].lacking

    def why_not_rescaled(self) -> str | None:
        """Why an update cannot be given another length afterwards; None where it can."""
        for optimizer in self.inner:
            if (why := why_not_linear(optimizer)) is not None:
                return f"the move of {type(innermost_of(optimizer)).__name__} is not linear in the learning rate: {why}"
        low = [name for name, p in self.parameters().items() if p.dtype in (torch.bfloat16, torch.float16)]
        if low:
            return (
                f"{low[0]} is {str(self.parameters()[low[0]].dtype).removeprefix('torch.')} without a float32 master "
                "copy, and a small step is lost to its rounding; keep the weights in float32 and use autocast"
            )
        return None

    def read(self, name: str) -> float | None:
        """A present setting; None where the run has none.

        Args:
            name: ``lr`` (of the schedule), ``lr_factor``, ``lr_applied`` (in the update just made), ``shape`` (the
                schedule's, 1 at its peak), ``batch_size``, ``rho``, ``weight_decay``, ``momentum``, ``beta1``,
                ``beta2``, ``gate`` or ``clip``. Of several groups the first that has it.
        """
        if name == "lr":
            return self.rate
        if name == "lr_factor":
            return self.factor
        if name == "lr_applied":
            return self.applied if math.isfinite(self.applied) else None
        if name == "shape":
            return self.shape()
        if name == "batch_size":
            return float(self.batch_size) if self.knows_batch_size else None
        if name == "clip":
            return self._clip or 0.0
        groups = [g for o in self.inner for g in o.param_groups]
        if name in _IN_GROUPS:
            return next((float(g[_IN_GROUPS[name]]) for g in groups if _IN_GROUPS[name] in g), None)
        if name in _BETAS:
            return next((float(g["betas"][_BETAS[name]]) for g in groups if "betas" in g), None)
        if name == "gate":
            closed = any(isinstance(o, TwoPass) and o.gate is _closed for o in self.inner)
            return (0.0 if closed else 1.0) if self.can_turn("gate") else None
        return None

    def turn(self, name: str, new: float) -> bool:
        """Turn something for the updates to come; returns whether that was done.

        Args:
            name: A key of :data:`~optland.pilot.decision.TURNED`.
            new: The value, within its bounds; a batch size is that of all processes together.
        """
        if not self.can_turn(name):
            return False
        if name == "lr_factor":
            self.factor = new
        elif name == "batch_size":
            shared_by = 1 if self._deals else self.ranks.size
            self.loader.set_batch_size(max(int(new) // shared_by, 1))
            self._largest = 0
        elif name == "clip":
            self._clip = new if new > 0 else None
        elif name == "gate":
            for o in self.inner:
                if isinstance(o, TwoPass):
                    o.gate = self._own_gate if new > 0 else _closed
        elif name == "stop":
            self.stopped = True
        elif name in _IN_GROUPS or name in _BETAS:
            self._turn_in_groups(name, new)
        else:
            return False
        return True

    def _turn_in_groups(self, name: str, new: float) -> None:
        for group in (g for o in self.inner for g in o.param_groups):
            if name in _BETAS and "betas" in group:
                betas = list(group["betas"])
                betas[_BETAS[name]] = new
                group["betas"] = tuple(betas)
            elif name in _IN_GROUPS and _IN_GROUPS[name] in group:
                group[_IN_GROUPS[name]] = new

    def clip_gradients(self, optimizer: Optimizer) -> None:
        """Cut the norm of the gradients of one optimizer where that is asked for."""
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters_of(optimizer), self._clip)

    def facts(
        self, *, total_steps: int | None, has_length: bool, open_ended: bool, lengths_set: bool
    ) -> HostFacts:
        """This host in numbers, for policies.

        Args:
            total_steps: Updates of the whole run; None where it is unknown.
            has_length: Whether the length is known, in updates or samples.
            open_ended: Whether it is unknown on purpose.
            lengths_set: Whether a policy sets the length of each update.
        """
        size = self.dataset_size
        passes = (
            total_steps * self.batch_size / size if total_steps and size and self.knows_batch_size else None
        )
        return HostFacts(
            steps=total_steps,
            has_length=has_length,
            passes=passes,
            has_schedule=self.shape() is not None,
            two_pass=self.two_pass,
            adam=self.is_adam,
            can=frozenset(name for name in TURNED if self.can_turn(name)),
            lengths_set=lengths_set,
            samples=size,
            open_ended=open_ended,
        )

    # ------------------------------------------------------------------ the update just made

    def update(self) -> tuple[list[Tensor], list[Tensor]] | None:
        """The weights before the update and the realised move, for every trainable parameter of the model in its order.

        None where the weights were not copied. A parameter that no optimizer holds has not moved.

        Returns:
            Two lists in the shapes of those parameters, w_before and w_after - w_before.
        """
        if not self.before:
            return None
        origin, moved = [], []
        trained = [p for p in self.model.parameters() if p.requires_grad]
        with torch.no_grad():
            for p, kept in zip(trained, self.before.of(trained), strict=True):
                origin.append(p.detach() if kept is None else kept)
                moved.append(torch.zeros_like(p) if kept is None else p.detach() - kept)
        return origin, moved

    def state_dict(self) -> dict[str, Any]:
        """Plain values for the checkpoint; what is in the groups travels in the optimizer's own state."""
        return {
            "factor": self.factor,
            "clip": self._clip,
            "gate": self.read("gate"),
            "stopped": self.stopped,
            "nominal": self._nominal,
            "largest": self._largest,
            "evaluations": list(self._evaluations),
            "applied": self.applied,
            "highest": self._highest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.factor, self._clip, self.stopped = state["factor"], state["clip"], state["stopped"]
        self._nominal, self._evaluations = state["nominal"], list(state["evaluations"])
        self.applied, self._largest = state["applied"], state["largest"]
        self._highest = state["highest"]
        if state["gate"] is not None and state["gate"] != self.read("gate"):
            self.turn("gate", state["gate"])


def _write_lr(group: dict[str, Any], lr: float | Tensor) -> None:
    """A tensor learning rate (capturable optimizers) is filled in place: replacing it would recompile."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def _below_saddle_wrappers(optimizer: Optimizer) -> Optimizer:
    while isinstance(optimizer, SaddleWrapper):
        optimizer = optimizer.base
    return optimizer


def unwrapped(wrapped: _Wrapped) -> _Wrapped:
    """The user's own optimizer or module, below what a trainer has put around it.

    An optimizer that Accelerate (and with it the Hugging Face Trainer) or Lightning has prepared hides the methods and
    the step hooks of the one inside. A module is freed of DDP, whose forward passes wait for the other ranks, and of
    the compiler. What is not wrapped is returned as it is.

    Args:
        wrapped: An optimizer or a module.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> unwrapped(nn.DataParallel(net)) is net
        True
    """
    while True:
        inner = _inside_module(wrapped) if isinstance(wrapped, nn.Module) else _inside_optimizer(wrapped)
        if inner is wrapped:
            return wrapped
        wrapped = inner


def _inside_module(model: nn.Module) -> Any:
    inner = getattr(model, "_orig_mod", model)
    return inner.module if isinstance(inner, nn.parallel.DistributedDataParallel | nn.DataParallel) else inner


def _inside_optimizer(optimizer: Any) -> Any:
    """By the name of its package, which need not be installed."""
    packages = {cls.__module__.partition(".")[0] for cls in type(optimizer).__mro__}
    inner = getattr(optimizer, "optimizer", None) if packages & set(_TRAINERS) else None
    return inner if isinstance(inner, Optimizer) else optimizer


def _closed(optimizer: Any) -> bool:
    """A gate that leaves out every second pass."""
    return False
