"""The pilot's other half: what policies that look at every step, and the guards, do to a run."""

from __future__ import annotations

from collections import deque
from collections.abc import Sized
from typing import Any, Literal

from torch.optim import Optimizer

from optland.control import Decision, Plateau, ProbeBudget, RatioEMA, StepView, adam_betas, batch_gain
from optland.failpoints import reach
from optland.objective import Objective
from optland.optim.keys import key
from optland.optim.saddle.leave import declared_cost, leave_saddle
from optland.train.executor import Executor, Outcome, is_adam
from optland.train.probes import Probes
from optland.train.steering import Steering

__all__ = ["StepPolicies"]

LOOK_PRODUCTS, CHECKING = 8, 6
"""Of a look at a plateau: products on the step's batch, and earlier batches that have to certify what it finds."""


class StepPolicies:
    """Asks the step policies, carries out what they say, and keeps the guards; the pilot is made of it."""

    optimizer: Optimizer
    mode: Literal["off", "monitor", "shadow", "control"]
    total_samples: int | None
    executor: Executor
    steering: Steering
    probes: Probes
    budget: ProbeBudget
    noise: RatioEMA
    decisions: list[Decision]
    step: int
    samples: int
    _loader: Any
    _batch: Any
    _recent: deque[Any]
    _decay: tuple[int, int] | None
    _count: int

    @property
    def progress(self) -> float | None:
        """Share of the run that is done; None when its length is unknown."""
        raise NotImplementedError

    @property
    def _batch_size(self) -> int:
        raise NotImplementedError

    def _steps_in_run(self) -> int:
        raise NotImplementedError

    @property
    def _data_size(self) -> int | None:
        """Samples of the training set, by the loader or its data set; None where neither says."""
        if (own := getattr(self._loader, "num_samples", None)) is not None:
            return int(own)
        data = getattr(self._loader, "dataset", None)
        return len(data) if isinstance(data, Sized) else None

    def decay(self, samples: int) -> None:
        """Begin the end of a run of unknown length: ``auto_lr`` goes linearly to zero over the next ``samples``.

        Until then it holds its height. A run that said ``total_samples``, or has a scheduler, decays by itself.

        Args:
            samples: Samples from now to the end of the run; a tenth to a fifth of what was trained so far is usual.

        Raises:
            ValueError: Fewer than one sample.
            RuntimeError: The run has a length or a scheduler, no ``auto_lr``, or its end has begun.
        """
        if samples < 1:
            raise ValueError(f"samples {samples} must be at least 1: what is left of the run")
        if not self.steering.is_open_ended(self.progress):
            raise RuntimeError("decay() is for auto_lr in runs without total_samples and without a scheduler")
        if self._decay is not None:
            raise RuntimeError(f"the end of this run began at sample {self._decay[0]}")
        self._decay = (self.samples, samples)

    def _follow_decay(self) -> None:
        """The shape at the middle of the present step, once the end has begun."""
        if self._decay is not None:
            begun, length = self._decay
            self.steering.tail = max(0.0, 1.0 - (self.samples + 0.5 * self._count - begun) / length)

    def _step_policies(self, loss: float) -> bool:
        """Ask the step policies and do what they say; returns whether the step was taken back."""
        executor = self.executor
        if not executor.policies:
            return False
        decided = executor.decide(self._view(loss))
        self.decisions.extend(decided)
        return any(d.taken and d.actuator in ("skip", "rollback") for d in decided)

    def _view(self, loss: float) -> StepView:
        """The step just made, in numbers."""
        executor, steering = self.executor, self.steering
        applied = steering.applied if steering.applied > 0 else steering.rates.user
        rho = self.optimizer.param_groups[0].get(key("rho"))
        return StepView(
            self.step,
            loss,
            progress=None if self.total_samples is None else self.samples / self.total_samples,
            lr=applied / (executor.factor if self.mode == "control" else 1.0),
            shape=steering.rates.shape(),
            factor=executor.factor,
            grad_norm=executor.grad_norm,
            batch=self._batch_size,
            dataset_size=self._data_size,
            rho=None if rho is None else float(rho),
            w_dot_d=executor.dots[0],
            d_sq=executor.dots[1],
            edge_ratio=executor.signals.get("edge/ratio"),
            lambda_c=executor.signals.get("edge/lambda_c"),
            ncr=executor.signals.get("curv/ncr"),
            noise_scale=self.noise.value,
        )

    def _guarded(self, loss: float) -> Decision | None:
        """The guards that are always on in control mode: rewind on trouble, then a cool-down."""
        dead = self.executor.collapse.observe(loss, self.executor.grad_norm)
        interval = max(5, self._steps_in_run() // 20)
        decision = self.steering.rewound(loss, self.step, interval, dead)
        if decision is not None and decision.taken:
            self.executor.factor = self.steering.factor
            self.executor.rewound(self.step)
        return decision

    def _keep(self, batch: Any) -> None:
        """Remember the batch where a policy that may act wants to check a direction on it."""
        if self.mode == "control" and any(isinstance(p, Plateau) for p in self.executor.policies):
            self._recent.append(batch)

    def _set_factor(self, new: float) -> bool:
        self.executor.factor = self.steering.factor = new
        return True

    def _set_batch(self, new: float) -> bool:
        self._loader.set_batch_size(int(new))
        reach("pilot.batch_size")
        return True

    def _roll_back(self, new: float) -> bool:
        snapshot = self.steering.snapshots.rewind()
        self.steering.guard.rewind(snapshot["mark"])
        self.executor.rewound(self.step)
        return True

    def _escape(self, new: float) -> Outcome:
        """Look along negative curvature of the step's batch, and leave the point where earlier batches agree.

        Its cost is the curvature probe's, and has to fit into that budget beforehand.
        """
        seen, other = (
            Objective(self.probes.model, self.probes.loss_fn, batches, seed=self.probes.seed)
            for batches in ([self._batch], list(self._recent))
        )
        declared = declared_cost(seen, other, products=LOOK_PRODUCTS)
        if not self.budget.affords("curvature", declared):
            left = self.budget.allowance("curvature") - self.budget.spent["curvature"]
            return Outcome(
                False, f"a look may cost {declared:.3g} gradient evaluations and {left:.3g} are left"
            )
        self.steering.forget()
        event = leave_saddle(seen, check=other, products=LOOK_PRODUCTS, seed=self.probes.seed + self.step)
        self.budget.spend("curvature", seen.cost_ge + other.cost_ge)
        signals = {"curv/lambda_min": event.curvature, "train/loss_after": event.loss_after}
        return Outcome(event.kind in ("escape", "kick"), event.reason.partition("; ")[2], signals)

    def _co_scale(self, name: str, k: float, batch: int) -> None:
        """The learning rate follows the batch, and Adam's averages keep covering the same samples."""
        adam, old, act = is_adam(self.optimizer), self.executor.factor, self.mode == "control"
        new = old * batch_gain(k, batch, self.noise.value, adam=adam)
        how = (
            "by the square root, with averages over the same samples"
            if adam
            else "by the gain of its noise scale"
        )
        self.executor.factor = new
        if act:
            self.steering.factor = new
            for group in self.optimizer.param_groups if adam else ():
                group["betas"] = adam_betas(group["betas"], k)
        reason = f"the batch grew {k:g}-fold: the rate follows {how}"
        self.decisions.append(Decision(self.step, name, "lr_factor", old, new, reason, act))
