"""The pilot: probes under a budget, signals to policies, decisions to actuators, everything to the log.

Three lines in any loop::

    pilot = Pilot(optimizer, model, loss_fn, policies=["auto_lr", "noise_batch"], total_samples=epochs * len(data))
    for batch in pilot.batches(loader):          # the batch size may follow the noise scale
        loss = optimizer.step(closure)
        pilot.after_step(batch, loss)            # may probe, decide, act and log; says why

It attaches through the optimizer's step hooks. What it probes is the *realised* update w_after - w_before: exact for
any optimizer, weight decay, clipping and SAM, with no virtual step.

========== ============================================================================================
mode       meaning
========== ============================================================================================
off        no hook, no probe; the loss and the learning rate are logged
monitor    probes and logs; weights, optimizer state, random state and buffers are bit-identical to off
shadow     as monitor, and policies decide; decisions are logged and not carried out
control    decisions are carried out
========== ============================================================================================
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from optland.batches import num_samples
from optland.control import AutoLR, Decision, ProbeBudget, RatioEMA, SafeLR
from optland.log import Logger, NullLogger
from optland.objective import LossFn
from optland.optim.delegate import Delegating
from optland.optim.two_pass import TwoPass
from optland.train.choice import Policy, choose_policies
from optland.train.executor import Executor
from optland.train.probes import Probes, Reading
from optland.train.steering import Steering, refuse_several_ranks
from optland.train.step_policies import CHECKING, StepPolicies

__all__ = ["MODES", "Mode", "Pilot"]

Mode = Literal["off", "monitor", "shadow", "control"]
MODES = ("off", "monitor", "shadow", "control")
SHARES = {"edge": 0.25, "noise": 0.15, "curvature": 0.6}
CAP_SHARES = {"edge": 0.7, "noise": 0.1, "curvature": 0.2}
"""Shares of the probe budget; safe_lr lives on the edge probe alone, the other policies only watch it."""

ADVANCE, CAP_ADVANCE = 0.05, 0.5
"""Part of the run's probe budget that may be spent ahead; a cap that is found late holds the run back until then."""

EVERY = {"edge": 5, "noise": 10, "curvature": 20}
"""Fewest steps between two runs of a probe, however large the budget."""

BURN_IN, BURN_EVERY = 20, 3
"""Edge probes at the start of a run, and steps between them: the edge moves fastest there and a cap has to find it, but
no faster than the momentum builds up that makes the same rate a longer step."""


class Pilot(StepPolicies):
    """Watches and steers one training run.

    Args:
        optimizer: Any ``torch.optim.Optimizer``, also optland's SAM family.
        model: The module it trains.
        loss_fn: ``loss_fn(model, batch)``, the training loss; used by the probes.
        policies: Names of :data:`optland.control.POLICIES`, or policy objects with other constants.
        mode: ``off``, ``monitor``, ``shadow`` or ``control``.
        budget: Probe cost as a share of training cost, in declared gradient evaluations; 0.05.
        total_samples: Samples the whole run will see (epochs x training set). ``auto_lr`` needs it, or a scheduler
            attached to the optimizer, for the shape of the schedule.
        open_ended: The length is unknown; ``auto_lr`` holds its height until :meth:`decay`. Worse without an end.
        log: A :class:`optland.log.Logger`; None logs nothing.
        log_every: Steps between two logged rows; rows with a probe or a decision are always logged.
        seed: Seed of the probes' own randomness.

    Raises:
        ValueError: Unknown mode or policy, two policies for the learning rate, a negative budget, or no horizon.
        RuntimeError: More than one process: probes are not reduced over ranks yet.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        loss_fn: LossFn,
        *,
        policies: Sequence[str | Policy] = ("auto_lr",),
        mode: Mode = "control",
        budget: float = 0.05,
        total_samples: int | None = None,
        open_ended: bool = False,
        log: Logger | None = None,
        log_every: int = 10,
        seed: int = 0,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is not known; choose from {MODES}")
        if total_samples is not None and total_samples < 1:
            raise ValueError(
                f"total_samples {total_samples} must be at least 1 (epochs x size of the training set)"
            )
        if mode != "off":
            refuse_several_ranks()
        self.optimizer = optimizer
        self.mode: Mode = mode
        self.log = log if log is not None else NullLogger()
        self.log_every = log_every
        self.total_samples = total_samples
        passes = optimizer.evaluations if isinstance(optimizer, TwoPass) else 1
        lr_policy, self.batch_policy, others = choose_policies(policies, two_pass=passes > 1)
        if mode in ("off", "monitor"):
            lr_policy, self.batch_policy, others = None, None, []
        horizon = None if total_samples is None else float(total_samples * passes)
        shares, advance = (CAP_SHARES, CAP_ADVANCE) if isinstance(lr_policy, SafeLR) else (SHARES, ADVANCE)
        self.budget = ProbeBudget(budget, shares, horizon_ge=horizon, advance=advance)
        self.probes = Probes(model, loss_fn, seed=seed)
        self.steering = Steering(optimizer, model, lr_policy, act=mode == "control")
        self.executor = Executor(optimizer, model, others, act=mode == "control")
        self.executor.actions |= {
            "lr_factor": self._set_factor,
            "batch_size": self._set_batch,
            "rollback": self._roll_back,
            "escape": self._escape,
        }
        self._batch: Any = None
        self._telemetry = optimizer.telemetry if isinstance(optimizer, TwoPass) else None
        self._recent: deque[Any] = deque(maxlen=CHECKING)
        self._replaying = False
        self.noise = RatioEMA(0.8)
        self.step = 0
        self.samples = 0
        self.decisions: list[Decision] = []
        self._last_probe: dict[str, int] = {}
        self._loader: Any = None
        self._count = 1
        self.probe_seconds = 0.0
        self._seconds_before = 0.0
        self._started = self._ended = time.perf_counter()
        self._decay: tuple[int, int] | None = None
        if lr_policy is not None and self.steering.is_open_ended(self.progress) and not open_ended:
            raise ValueError(
                f"{lr_policy.name} needs to know the length of the run: pass total_samples=epochs * len(dataset), "
                "attach a scheduler to the optimizer first, or say open_ended=True and call pilot.decay(samples)"
            )
        if mode != "off":
            optimizer.register_step_pre_hook(self._before_step)
            optimizer.register_step_post_hook(self._after_update)

    # ------------------------------------------------------------------ the loop's two calls

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The loader's batches, with the loader at hand for changes of the batch size.

        Raises:
            TypeError: ``noise_batch`` is to act, and the loader cannot change its batch size.
        """
        growing = [p.name for p in self.executor.policies if "batch_size" in p.needs]
        growing += [self.batch_policy.name] if self.batch_policy is not None else []
        if self.mode == "control" and growing and not hasattr(loader, "set_batch_size"):
            raise TypeError(
                f"{growing[0]} cannot change the batch size of a {type(loader).__name__}; wrap it in "
                "optland.train.GroupedLoader, or use mode='shadow' to log the advice only"
            )
        self._loader = loader
        for batch in loader:
            self._count = num_samples(batch)
            yield batch
            if self.executor.stopped:
                return

    def after_step(self, batch: Any, loss: float | torch.Tensor) -> None:
        """Count the step, rewind if the guard says so, probe if the budget allows, decide, act and log.

        Args:
            batch: The batch of the step.
            loss: Its loss at the weights before the step.
        """
        value = float(loss.detach() if isinstance(loss, torch.Tensor) else loss)
        self.step += 1
        self._count = num_samples(batch)
        self.samples += self._count
        ours = isinstance(self.optimizer, Delegating)
        self.budget.train(self._count * int(getattr(self.optimizer, "last_evaluations", 1) if ours else 1))
        decided = len(self.decisions)
        fresh: dict[str, float] = {}
        self._batch = batch
        undone = self._step_policies(value)
        rewind = None if undone else self._guarded(value)
        if rewind is not None:
            self.decisions.append(rewind)
        elif self.mode != "off" and not undone:
            started = time.perf_counter()
            fresh = self._probe(batch)
            self.probe_seconds += time.perf_counter() - started
            self.executor.signals = {
                k: fresh[k] for k in ("edge/ratio", "edge/lambda_c", "curv/ncr") if k in fresh
            }
        for decision in self.decisions[decided:]:
            self.log.event(decision.to_dict())
        if fresh or len(self.decisions) > decided or self.step % self.log_every == 0:
            self.log.log(self._row(value, fresh))
        self.steering.forget()
        self._keep(batch)
        self._ended = time.perf_counter()

    # ------------------------------------------------------------------ around the optimizer's step

    @property
    def progress(self) -> float | None:
        """Share of the run done at the middle of the present step; None when the horizon is unknown."""
        if self.total_samples is None:
            return None
        return (self.samples + 0.5 * self._count) / self.total_samples

    @property
    def seconds(self) -> float:
        """Wall time up to the last step, earlier parts of a resumed run included. Reported, never decided on."""
        return self._seconds_before + self._ended - self._started

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if self._replaying:
            return None
        if self.step == 0 and self.total_samples and isinstance(self.steering.policy, AutoLR):
            size = self._data_size
            self.steering.policy.begin(self._steps_in_run(), self.total_samples / size if size else None)
        replays = self.executor.wants_v0(self.step + 1)
        self.steering.factor = self.executor.factor if self.mode == "control" else 1.0
        self.steering.before(measure=replays or self.executor.reads_sasa or self._due("edge", self.step + 1))
        return self.executor.before(args, kwargs)

    def _after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._replaying:
            return
        before = self.steering.record.before
        if before is not None and self.executor.wants_v0(self.step + 1):
            self._replaying = True
            try:
                self.executor.repeat_with_v0(before)
            finally:
                self._replaying = False
        self._follow_decay()
        self.steering.after(self.step + 1, self.progress)
        self.executor.after(before, self.steering.applied)

    @property
    def _batch_size(self) -> int:
        """The loader's batch size; a ragged batch at the end of an epoch is smaller."""
        return int(getattr(self._loader, "batch_size", None) or self._count)

    def _steps_in_run(self) -> int:
        """Steps of the whole run at the present batch size (1000 when the horizon is unknown)."""
        return 1000 if self.total_samples is None else self.total_samples // self._batch_size

    # ------------------------------------------------------------------ probes and policies

    def _due(self, probe: str, step: int) -> bool:
        """Whether the probe runs at ``step``: often enough apart, and its declared cost fits the budget.

        A ragged batch at the end of an epoch is cheaper, so probes would always land there; they are kept off it.
        """
        nominal = self._batch_size
        if self._count < nominal and probe != "curvature":
            return False
        every = BURN_EVERY if probe == "edge" and self.probes.count["edge"] < BURN_IN else EVERY[probe]
        waited = step - self._last_probe.get(probe, -every)
        return waited >= every and self.budget.affords(probe, self.probes.declared(probe, nominal))

    def _probe(self, batch: Any) -> dict[str, float]:
        """Run the probes that are due and hand their signals on; returns the metrics they gave."""
        metrics: dict[str, float] = {}
        steering = self.steering
        self.probes.see(batch)
        if (
            steering.update is not None
            and steering.record.before is not None
            and steering.applied > 0
            and self._due("edge", self.step)
        ):
            reading = self.probes.edge(
                self.step, batch, steering.record.before, steering.update, steering.applied
            )
            metrics |= self._took(reading)
            if reading.signals["edge"].valid:
                met = reading.metrics["edge/resolved"] == 1.0
                self._append(steering.observe_edge(reading.signals["edge"].value, self.step, resolved=met))
        if self._due("noise", self.step):
            reading = self.probes.noise(self.step, batch)
            metrics |= self._took(reading)
            self._observe_noise(reading)
            if self.noise.value is not None:
                metrics["noise/b_simple"] = self.noise.value
                metrics["noise/efficiency"] = 1.0 / (1.0 + self._count / max(self.noise.value, 1e-12))
        if self._due("curvature", self.step):
            metrics |= self._took(self.probes.curvature(self.step))
        return metrics

    def _took(self, reading: Reading) -> dict[str, float]:
        """Book a probe's cost and time of day; returns its metrics."""
        self.budget.spend(reading.probe, reading.cost_ge)
        self._last_probe[reading.probe] = self.step
        return reading.metrics

    def _observe_noise(self, reading: Reading) -> None:
        trace, grad = reading.signals.get("trace_cov"), reading.signals.get("grad_sq")
        if trace is None or grad is None or not (trace.valid and grad.valid):
            return
        # tr(Sigma)/B + |G|^2 is the squared norm of this batch's own gradient: the natural unit of the pair.
        self.noise.update(trace.value, grad.value, scale=trace.value / self._count + grad.value)
        policy = self.batch_policy
        if policy is None:
            return
        size = self._batch_size
        proposal = policy.propose(self.noise.value, self.step, size, self._data_size)
        if proposal is None:
            return
        new, reason = proposal
        if self.mode == "control":
            self._set_batch(new)
        signals = {"noise/b_simple": self.noise.value or 0.0}
        self._append(
            Decision(self.step, policy.name, "batch_size", size, new, reason, self.mode == "control", signals)
        )
        if policy.scale_lr or (policy.scale_lr is None and not isinstance(self.steering.policy, AutoLR)):
            self._co_scale(policy.name, new / size, size)

    def _append(self, decision: Decision | None) -> None:
        if decision is not None:
            self.decisions.append(decision)

    # ------------------------------------------------------------------ the record

    def _row(self, loss: float, fresh: dict[str, float]) -> dict[str, float]:
        """One row of the log: everything known about this step under the names of the metric vocabulary."""
        row: dict[str, float] = {
            "step": self.step,
            "samples": self.samples,
            "train/loss": loss,
            **self.steering.metrics(),
            **self.executor.metrics(),
            "noise/b_current": float(self._batch_size),
            "budget/ge": self.budget.train_ge + self.budget.probe_ge,
            "budget/probe_frac": self.budget.used,
            "budget/allowed": self.budget.allowed,
            "budget/probe_ms": 1e3 * self.probe_seconds,
            **fresh,
        }
        if "curv/lambda_max" in row:
            row["curv/eta_lambda"] = row["lr/applied"] * row["curv/lambda_max"]
        row |= {f"probe/age_{name}": float(self.step - at) for name, at in self._last_probe.items()}
        return row if self._telemetry is None else row | self._telemetry.read()

    def state_dict(self) -> dict[str, Any]:
        """Everything the pilot knows, for an exact resume: tensors, numbers, strings, lists and dictionaries."""
        return {
            "step": self.step,
            "samples": self.samples,
            "count": self._count,
            "recent": list(self._recent),
            "decay": self._decay,
            "telemetry": None if self._telemetry is None else self._telemetry.state_dict(),
            "seconds": [self.seconds, self.probe_seconds],
            "last_probe": dict(self._last_probe),
            "budget": self.budget.state_dict(),
            "probes": self.probes.state_dict(),
            "steering": self.steering.state_dict(),
            "noise": self.noise.state_dict(),
            "executor": self.executor.state_dict(),
            "decisions": [d.to_dict() for d in self.decisions],
            "batch_policy": None if self.batch_policy is None else self.batch_policy.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, with the same policies and mode."""
        self.step, self.samples, self._count = state["step"], state["samples"], state["count"]
        self._seconds_before, self.probe_seconds = state["seconds"]
        self._last_probe = dict(state["last_probe"])
        if self._telemetry is not None:
            self._telemetry.load_state_dict(state["telemetry"])
        self._decay = None if state["decay"] is None else (state["decay"][0], state["decay"][1])
        self._recent.clear()
        self._recent.extend(state["recent"])
        self.budget.load_state_dict(state["budget"])
        self.probes.load_state_dict(state["probes"])
        self.steering.load_state_dict(state["steering"])
        self.noise.load_state_dict(state["noise"])
        self.executor.load_state_dict(state["executor"])
        self.steering.factor = self.executor.factor if self.mode == "control" else 1.0
        self.decisions = [Decision(**d) for d in state["decisions"]]
        if self.batch_policy is not None and state["batch_policy"] is not None:
            self.batch_policy.load_state_dict(state["batch_policy"])
