"""The pilot: probes under a budget, signals to policies, decisions to what can be turned, everything to the log.

Three lines in any loop::

    pilot = Pilot(optimizer, model, loss_fn, policies=["auto_lr"], total_steps=epochs * len(loader))
    for batch in loader:                             # or pilot.batches(loader, epochs=E): the batch may then grow
        loss = optimizer.step(closure)               # any loop: closure, phase form, GradScaler, accumulation
        pilot.after_step(batch, loss)                # may probe, decide, act and log; says why

It attaches through the optimizer's step hooks. One update goes like this:

======
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from optland.doctor.watching import Watch
from optland.log.targets import as_logger
from optland.objective import LossFn
from optland.optim.uncompiled import uncompiled
from optland.pilot.budget import Budget
from optland.pilot.closures import with_each_call
from optland.pilot.controls import Controls, Outcome, by_name
from optland.pilot.decision import Decision, Proposal
from optland.pilot.escape import escape
from optland.pilot.first_look import scalar, try_loss_fn
from optland.pilot.history import History
from optland.pilot.hooks import Hooks
from optland.pilot.host import Host
from optland.pilot.live import Live
from optland.pilot.looks import Looks
from optland.pilot.measure import Layout, Sizes
from optland.pilot.notices import apart, no_after_step, no_update
from optland.pilot.policies.base import Policy
from optland.pilot.policies.facts import HostFacts
from optland.pilot.probes.base import Probe
from optland.pilot.progress import Progress
from optland.pilot.record import Record
from optland.pilot.report import in_words, row_of
from optland.pilot.resumed import check_kind, kind_of, load_telemetry, telemetry_of
from optland.pilot.scalars import Scalars
from optland.pilot.signal import Signal
from optland.pilot.steering import Steering
from optland.pilot.trouble import Trouble, all_finite, was_left_out
from optland.vectors import no_graph

__all__ = ["Mode", "Pilot"]

Mode = Literal["off", "monitor", "shadow", "control"]
MODES = ("off", "monitor", "shadow", "control")

CHECKING = 6
"""Earlier batches that have to certify an escape."""


class Pilot:
    """Watches and steers one training run.

    Args:
        optimizer: Any ``torch.optim.Optimizer``, also optland's SAM family; or a list of several that step once each in
            every update.
        model: The module that they train.
        loss_fn: ``loss_fn(model, batch)``, the training loss; used by the probes, and tried once on the first batch.
        policies: Names, or objects: with other constants, or of a class of your own.
        mode: ``off``: no hook, no probe, the loss and the rate are logged; ``monitor``: probes and logs, and weights,
            optimizer state, random state and buffers are bit-identical to off; ``shadow``: policies decide too, and
            decisions are only logged; ``control``: they are carried out.
        budget: Probe cost as a share of training cost, in declared gradient evaluations; 0.05.
        total_steps: Updates of the whole run, epochs x len(loader); :meth:`batches` finds it by itself.
        total_samples: In its place the samples of the whole run, where a policy turns the batch size.
        open_ended: The length is unknown; ``auto_lr`` holds its height until :meth:`decay`. Worse without an end.
        log: ``wandb.run``, all that :func:`optland.log.into` takes, or an :class:`optland.log.Logger`; None: nothing.
        log_every: Updates between two logged rows; rows with a probe or a decision are always logged.
        seed: Seed of the probes' own randomness.
        probes: Further probes, of a class of your own; they run whether a policy reads them or not.
        num_samples: ``num_samples(batch)`` for batches of a type that cannot be counted by their first tensor.
        split: ``split(batch, parts)`` for batches of a type that cannot be cut along their first dimension.
        dataset_size: Samples of the training set, where no loader says it.
        watch: An :func:`optland.doctor.watch` of the same loop; it is told of every update, its findings are logged.
        host: Makes the host, called as :class:`~optland.pilot.host.Host` is: a subclass for another kind of loop.

    Raises:
        ValueError: Unknown mode or policy, two policies for one thing, a budget that is no share, two lengths, or an
            optimizer of another model.
        RuntimeError: An optimizer has a pilot already.

    Attributes:
        host, progress, budget, history: What is turned; how far the run is; what probes cost; the signals.
        controls, looks, trouble: The policies; the probes; guards, snapshots, and updates that were cancelled.
        live: The doctor; ``live.diagnosis()`` is what it finds in the run so far.
    """

    def __init__(
        self,
        optimizer: Optimizer | Sequence[Optimizer],
        model: nn.Module,
        loss_fn: LossFn,
        *,
        policies: Sequence[str | Policy] = ("auto_lr",),
        mode: Mode = "control",
        budget: float = 0.05,
        total_steps: int | None = None,
        total_samples: int | None = None,
        open_ended: bool = False,
        log: Any = None,
        log_every: int = 10,
        seed: int = 0,
        probes: Sequence[Probe] = (),
        num_samples: Callable[[Any], int] | None = None,
        split: Callable[[Any, int], list[Any]] | None = None,
        dataset_size: int | None = None,
        watch: Watch | None = None,
        host: Callable[..., Host] = Host,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is not known; choose from {MODES}")
        optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        chosen = by_name(policies)
        logger = None if log is None else as_logger(log)
        self.mode: Mode = mode
        self._acts = mode == "control"
        self.progress = Progress(total_steps, total_samples, open_ended=open_ended)
        self.host = host(
            optimizers, model, loss_fn, dataset_size=dataset_size, num_samples=num_samples, split=split
        )
        self.budget = Budget(budget if mode != "off" else 0.0)
        self.history = History(self._setting)
        deciding = mode in ("shadow", "control")
        self.controls = Controls(chosen if deciding else [], self.host, self.history, act=self._acts)
        self.controls.actions = {
            "escape": lambda: escape(self.host, list(self._recent), self.budget, seed + self.host.step),
            "skip": self._skip,
        }
        self.scalars = Scalars(self.host.ranks, self.host.device)
        self.steering = Steering(self.host, self.controls, self.scalars, act=self._acts)
        self.looks = Looks(
            self.host,
            self.history,
            self.budget,
            reads=self.controls.reads,
            shown=not self._acts,
            escapes="escape" in self.controls.turns,
            own=probes,
            seed=seed,
        )
        self.trouble = Trouble(self.host, paces=self.controls.paces)
        self.record = Record(logger, log_every, writes=self.host.ranks.leads)
        self.live = Live(self.host, watch, paced=self.steering.sets_lengths)
        self.seed = seed
        self._seconds_before = 0.0
        self._started = self._ended = time.perf_counter()
        self._facts: HostFacts | None = None
        self._stepped: set[int] = set()
        self._finished: Literal["", "update", "none"] = ""
        self._judged, self._copying, self._chosen = False, False, list[float]()
        self._recent: deque[Any] = deque(maxlen=CHECKING)
        self._escape_asked: tuple[Policy, Proposal] | None = None
        self._names: dict[Tensor, str] = {}
        self._gradients = Layout([])
        self._sizes = Sizes()
        self._hooks = None if mode == "off" else Hooks(self.host.inner, self._before_step, self._after_base)
        if self._acts:
            self.trouble.buffers.take(self.host.buffers())

    # ------------------------------------------------------------------ the loop's calls

    def batches(self, loader: Iterable[Any], epochs: int | None = None) -> Iterator[Any]:
        """The loader's batches over all epochs, with the loader at hand for the run's length and changes of the batch.

        Args:
            loader: Any iterable of batches that can be read again; one of optland's loaders where a policy turns the
                batch size.
            epochs: Passes over it; None for one, or as many as the loader makes by itself.

        Raises:
            TypeError: A policy is to turn the batch size, and the loader cannot.
            ValueError: A length was given that is not that of the loader.
        """
        turning = [p.name for p in self.controls.policies if "batch_size" in p.turns]
        if self._acts and turning and not hasattr(loader, "set_batch_size"):
            raise TypeError(
                f"{turning[0]} cannot change the batch size of a {type(loader).__name__}; wrap it in "
                "optland.train.GroupedLoader, or use mode='shadow' to log the advice only"
            )
        self.progress.learn(loader, epochs, by_samples=bool(turning))
        self._facts = self.progress.stretched(self._facts, self.controls.tell)
        self.host.loader = loader
        for _ in range(epochs or 1):
            for batch in loader:
                if not self.host.knows_batch_size:
                    self.host.saw(self.host.count(batch))
                yield batch
                if self.host.stopped:
                    return

    @uncompiled
    def after_step(self, batch: Any, loss: float | Tensor) -> None:
        """Count the update, probe if the budget allows, and log.

        Args:
            batch: The batch of the update; a list of micro-batches where several were accumulated.
            loss: Its loss at the weights before the update: the mean over all of them.

        Raises:
            RuntimeError: No update was made since the last call.
            TypeError: The arguments are swapped, or ``loss_fn`` cannot be used.
            ValueError: The loss is not that of ``loss_fn`` on this batch.
        """
        with self.live.told(batch, loss):
            self._after_step(batch, scalar(loss))

    def _after_step(self, batch: Any, loss: float | Tensor) -> None:
        host = self.host
        samples, of_all = host.counts(batch)
        host.batch = batch
        host.saw(samples)
        made = self._finished == "update" or self.mode == "off"
        if not made and not self._finished:
            self._no_update()
        self._finished, self._stepped = "", set()
        evaluations = host.last_evaluations()
        host.note_evaluations(evaluations)
        self.scalars.samples = samples
        self.budget.train(of_all * evaluations)
        self.budget.whole = self.progress.in_samples(host.batch_size) * host.expected_evaluations
        if made:
            self._count(batch, of_all, loss)
        self._write(loss)
        if self.steering.needs_weights_before() or any(p.along_update for p in self.looks.probes):
            host.before.forget()
        else:
            host.before.release()
        if self._acts:
            self.trouble.buffers.refresh()
        self._ended = time.perf_counter()

    def decay(self, num_steps: int) -> None:
        """Begin the end of a run of unknown length: ``auto_lr`` goes linearly to zero over ``num_steps`` updates.

        Until then it holds its height.

        Args:
            num_steps: Updates from now to the end of the run; a tenth to a fifth of what was trained so far is usual.

        Raises:
            ValueError: Fewer than one update.
            RuntimeError: The run has a length, or its end has begun.
        """
        self.progress.decay(self.host.step, num_steps)

    def close(self) -> None:
        """Take the pilot off the optimizer, give its memory back, and write what the log still holds."""
        if self._hooks is not None and self._hooks.close():
            self.progress.end(self.host.step)
            self.looks.end()
        for optimizer in self.host.inner:
            self.host.release_rate(optimizer)
        self.host.before.release()
        self.steering.coherence.release()
        self._recent.clear()
        self.record.close()

    def __enter__(self) -> Pilot:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ------------------------------------------------------------------ what there is to know

    @property
    def step(self) -> int:
        """Updates made."""
        return self.host.step

    @property
    def samples(self) -> int:
        """Samples that they were made with."""
        return self.progress.samples

    @property
    def decisions(self) -> deque[Decision]:
        """The decisions made, the last ten thousand of them."""
        return self.record.decisions

    @property
    def lost(self) -> int:
        """Updates that were cancelled: not finite, skipped by a policy, or in progress when the run went back."""
        return self.trouble.lost

    @property
    def seconds(self) -> float:
        """Wall time up to the last update, those of a resumed run included; reported, never decided on."""
        return self._seconds_before + self._ended - self._started

    @property
    def probe_seconds(self) -> float:
        """Wall time spent in probes."""
        return self.looks.seconds

    def __repr__(self) -> str:
        return in_words(self)

    def _setting(self, name: str) -> float | None:
        if name == "shape":
            own = self.host.shape()
            return own if own is not None else self.progress.tail(self.host.step)
        return self.host.read(name)

    def _name(self, p: Tensor) -> str:
        """The name of a parameter in the model; a number for one that the model does not know."""
        if p not in self._names:
            self._names |= {q: name for name, q in self.host.model.named_parameters()}
            self._names.setdefault(p, f"parameter {len(self._names)}")
        return self._names[p]

    # ------------------------------------------------------------------ around the optimizer's step

    def _begin(self) -> None:
        """Before the first update: tell the policies of the run, and hold what they turn against the host.

        The first batch of a run whose length is given in samples may be unknown here; then they are told again.
        """
        host, progress = self.host, self.progress
        self._facts = host.facts(
            total_steps=progress.steps(host.batch_size if host.knows_batch_size else None),
            has_length=progress.known,
            open_ended=progress.open_ended,
            lengths_set=self.steering.sets_lengths,
        )
        self.live.begin([g for o in host.optimizers for g in o.param_groups], self._facts.steps)
        for decision in self.controls.begin(self._facts, host.step):
            self.record.decided(decision)

    @property
    def _waits_for_a_batch(self) -> bool:
        """Whether the number of updates cannot be told before a batch has been seen."""
        return self.progress.known and (self._facts is None or self._facts.steps is None)

    @uncompiled
    @no_graph
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        host = self.host
        if self._finished or host.index(optimizer) in self._stepped:
            raise RuntimeError(no_after_step(type(optimizer).__name__))
        host.release_rate(optimizer)  # a closure that raised has left the rates of its step in place
        if self._facts is None:
            self._begin()
            if self._acts:
                self.trouble.begin()
        if not self._stepped:
            self._judged, self.steering.rate = False, host.rate
            self._chosen = self.looks.plan(host.step + 1)
            self._copying = host.step == 0 or self.steering.needs_weights_before() or self.looks.along_update
        if self._copying:
            host.before.take(host.parameters_of(optimizer))
        first, failed = (partial(act, optimizer) for act in (self._gradient_there, host.release_rate))
        return with_each_call(args, kwargs, first=first, failed=failed)

    def _gradient_there(self, optimizer: Optimizer, new: bool) -> None:
        """The gradient is known and not used yet: scalars come to the host, trouble is looked for, the rate is set.

        Of several optimizers the first to step looks at the gradients of all, so that the update is cancelled whole.
        """
        first, self._judged = not self._judged, True
        if first or new:
            of = self.host.inner if first else [optimizer]
            held = [p for o in of for p in self.host.parameters_of(o) if p.grad is not None]
            sizes = self._sizes([p.grad for p in held if p.grad is not None])
            found, told = self.scalars.fetch(sizes, [*self._chosen, *self.record.signs])
            if first:
                self._deliver(told)
            self._judge(optimizer, held, found, first=first)
        if self.trouble.withdrawn:
            self.trouble.take_gradient(optimizer)
        if self._acts:
            self.host.clip_gradients(optimizer)
            self.steering.set_rate(optimizer)

    def _deliver(self, told: list[float]) -> None:
        """Signals go out; what rank 0 has chosen is taken over, and what it has decided is what was decided here."""
        step = self.host.step
        self.looks.told(told[:-2])
        if not self.record.told(*told[-2:]):
            raise RuntimeError(apart(step, self.host.ranks.rank))
        self.steering.delivered()
        self.history.put(Signal(n, v, step) for n, v in self.scalars.delivered.items() if n != "lr/applied")
        self.live.measured(step, self.scalars.delivered.get("train/loss"), ())

    def _judge(self, optimizer: Optimizer, held: list[Tensor], found: list[float], *, first: bool) -> None:
        """Look at the gradient and, once per update, at the last loss; ask the policies that may skip the update."""
        scale = getattr(optimizer, "grad_scale", None)
        sizes = found if scale is None else [size / float(scale) for size in found]
        norm = math.hypot(*sizes)
        bad = self._acts and not math.isfinite(norm)
        # The norm of a gradient may overflow; every rank has to find the same.
        if bad and self.host.ranks.any(not all_finite(p.grad for p in held), self.scalars.ranks_device):
            why = self.trouble.not_finite()
            self.steering.coherence.forget()
            if why is not None:
                self._rewind("guard", why, {})
            return
        if not first:
            return
        clipped = self.controls.policies and self.trouble.is_clipped(norm)
        why = "clipped" if clipped else ""
        self.history.put([Signal("update/grad_norm", norm, self.host.step + 1, valid=not clipped, why=why)])
        if not self._gradients.fits(held):
            self._gradients = Layout(held, [self._name(p) for p in held])
        self.live.gradients(self.host.step + 1, norm if held else math.nan, sizes, self._gradients, scale)
        if self._guarded({self._gradients.names[i]: sizes[i] for i in self._gradients.matrices}):
            return
        for policy, proposal in self.controls.ask(before=True):
            self._settle_before(policy, proposal)

    def _settle_before(self, policy: Policy, proposal: Proposal) -> None:
        """Carry out what is asked for before the update: a skip, a rewind, a cap."""
        if proposal.actuator == "rewind" and self._acts:
            self._rewind(policy.name, proposal.reason, proposal.signals)
            return
        self.record.decided(self.controls.settle(policy, proposal, self.host.step + 1))

    def _skip(self) -> Outcome:
        self.trouble.withdraw()
        self.steering.coherence.forget()
        return True, "", {}

    def _guarded(self, matrices: dict[str, float]) -> bool:
        """Whether the last loss or the present gradient is trouble; then the run goes back, or would in shadow mode."""
        loss, host = self.scalars.delivered.get("train/loss"), self.host
        if loss is None:
            return False
        trouble = self.trouble.seen(loss, matrices)
        if trouble is None:
            return False
        signals = {"train/loss": loss}
        if self._acts:
            self._rewind("guard", trouble, signals)
            return True
        if self.mode == "shadow":
            reason = f"{trouble}; control mode would have gone back"
            self.record.decided(
                Decision(host.step, "guard", "rewind", host.factor, host.factor, reason, False, signals)
            )
        self.trouble.begin_again()
        return True

    def _rewind(self, who: str, why: str, signals: dict[str, float]) -> None:
        """Go back; policies that answer for the rate slow down, and without such a policy it is halved."""
        host = self.host
        at, old = self.trouble.go_back(), host.factor
        self.steering.rewound()
        if not self.controls.paces:
            host.turn("lr_factor", old / 2)
        reason = f"{why}; weights and optimizer go back to update {at}, the data go on"
        decision = Decision(host.step, who, "rewind", old, host.factor, reason, True, signals)
        self.record.decided(decision)
        self.controls.rewound(decision, host.step)

    @uncompiled
    def _after_base(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        host = self.host
        self._stepped.add(host.index(optimizer))
        host.release_rate(optimizer)
        if len(self._stepped) < len(host.inner):
            return
        if not self.trouble.withdrawn and was_left_out(optimizer):
            self.trouble.left_out(act=self._acts)
        made = not self.trouble.withdrawn
        self.trouble.over(made=made)
        self._finished = "update" if made else "none"
        if made:
            host.step += 1
            if not self._waits_for_a_batch:
                self._decide()

    @no_graph
    def _decide(self) -> None:
        """Policies look at what is known, and the update is given its length."""
        history, host, length = self.history, self.host, None
        history.step, history.progress = host.step, self.progress.at(host.step, host.batch_size)
        self.steering.measure()
        for policy, proposal in self.controls.ask(before=False):
            if proposal.actuator == "step_length":
                length = proposal.new if 0 <= proposal.new < math.inf else None
            elif proposal.actuator == "escape" and self._acts:
                self._escape_asked = policy, proposal  # made in after_step, where the batch is known
            else:
                self.record.decided(self.controls.settle(policy, proposal, host.step))
        self.steering.set_length(length)

    # ------------------------------------------------------------------ after the update

    def _no_update(self) -> None:
        """``after_step`` without an update: one that a GradScaler left out, or a mistake."""
        waiting = [o for i, o in enumerate(self.host.inner) if i not in self._stepped]
        if all_finite(p.grad for o in waiting for p in self.host.parameters_of(o)):
            raise RuntimeError(no_update(len(self._stepped), len(self.host.inner)))
        self.trouble.left_out(act=self._acts, first=self._facts is None)
        self.trouble.over(made=False)

    def _count(self, batch: Any, samples: int, loss: float | Tensor) -> None:
        """An update was made: probes, escapes and snapshots."""
        host = self.host
        if self.mode == "off":
            host.step += 1
            self.progress.count(samples, host.step)
            return
        if host.step == 1:
            self._first_batch(samples, loss)
        self.progress.count(samples, host.step)
        self.scalars.put(train__loss=loss)
        if self._escape_asked is not None:
            (policy, proposal), self._escape_asked = self._escape_asked, None
            self.record.decided(self.controls.settle(policy, proposal, host.step))
        if self.looks.needs_rate:
            self.steering.applied()
        found = self.looks.run()
        self.record.measured(found)
        self.record.found(host.step, self.live.news(host.step, found))
        if self._acts:
            self.trouble.store_if_due(self.progress.steps(host.batch_size))
        if self._acts and "escape" in self.controls.turns:
            self._recent.append(batch)

    def _first_batch(self, samples: int, loss: float | Tensor) -> None:
        """The first batch shows how long a run is whose length is in samples; its update waited for that."""
        self.progress.check_first(samples)
        try_loss_fn(self.host, self.budget, float(loss), self.seed)
        if self._waits_for_a_batch:
            self._begin()
            self._decide()

    def _write(self, loss: float | Tensor) -> None:
        """Write decisions and, where there is something new or it is time, a row."""
        due = self.record.is_due(self.host.step)
        row = row_of(self, self.scalars.of_all(loss)) if due else None
        self.record.write(self.host.step, row)

    # ------------------------------------------------------------------ resume

    def state_dict(self) -> dict[str, Any]:
        """Everything the pilot knows, for an exact resume: tensors, numbers, strings, lists and dictionaries.

        Raises:
            RuntimeError: Called between a step and ``after_step``.
        """
        if self._finished or self._stepped:
            raise RuntimeError(
                "state_dict() between a step and after_step(): the update is not counted yet; call it after that"
            )
        return {
            **{name: part.state_dict() for name, part in self._parts().items()},
            "kind": kind_of(self),
            "step": self.host.step,
            "facts": None if self._facts is None else self._facts.to_dict(),
            "coherence": {self._name(p): g for p, g in self.steering.coherence.last.items()},
            "recent": list(self._recent),
            "seconds": self.seconds,
            "fingerprint": self.record.fingerprint,
            "decisions": [d.to_dict() for d in self.decisions],
            "telemetry": telemetry_of(self.host.inner),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, with the same policies and mode.

        Raises:
            ValueError: It is not that of a pilot, or of one with other policies or optimizers.
        """
        check_kind(self, state)
        self._facts = HostFacts.of(state["facts"])  # not those of now: the batch may have grown since
        self.controls.tell(self._facts)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self._facts = self.progress.stretched(self._facts, self.controls.tell)
        self.host.step = self.history.step = state["step"]
        named = {self._name(p): p for o in self.host.inner for p in self.host.parameters_of(o)}
        self.steering.coherence.last = {named[n]: g for n, g in state["coherence"].items() if n in named}
        self._recent = deque(state["recent"], maxlen=CHECKING)
        self._seconds_before = state["seconds"]
        self.record.go_on(state["decisions"], state["fingerprint"])
        load_telemetry(self.host.inner, state["telemetry"])

    def _parts(self) -> dict[str, Any]:
        return {
            "host": self.host, "progress": self.progress, "history": self.history, "controls": self.controls,
            "budget": self.budget, "scalars": self.scalars, "steering": self.steering, "looks": self.looks,
            "trouble": self.trouble, "live": self.live,
        }  # fmt: skip
