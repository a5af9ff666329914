"""Configuration shared by all recipes: the run itself, and its sections optimizer, pilot and log."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from optland import processes
from optland.config import RUN_FOLDER, UserError, did_you_mean
from optland.config.schema import default_of
from optland.log.wandb_environment import LONGEST_NAME, LONGEST_TAG, NOT_IN_A_PROJECT
from optland.optim import available, create
from optland.optim.gates import as_gate
from optland.optim.keys import setting
from optland.optim.registry import BASES, METHODS, SOLVERS, options_of
from optland.pilot import AutoLR, HostFacts, NoiseBatch, Policy
from optland.pilot.controls import check_setters
from optland.pilot.policies import POLICIES
from optland.ranks import ranks_of
from optland.train.loops.precision import PrecisionConfig
from optland.train.loops.schedule import ScheduleName, check_schedule

__all__ = [
    "LogConfig",
    "OptimizerConfig",
    "PilotConfig",
    "RunConfig",
    "ValidatedRunConfig",
    "choose_device",
]

_WITH_MOMENTUM = ("sgd", "rmsprop")
_KEYS = ("lr", "momentum", "weight_decay", "rho")

_MOST_THREADS = 1024


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer, around which base.

    Attributes:
        name: A name of ``optland.optim.available()``: ``sam``, ``asam``, or a base alone such as ``sgd``; ``none``
            is the base alone too.
        base: The base that a SAM-type optimizer wraps; ignored for a base alone.
        lr: Learning rate. ``auto_lr`` finds it: then only the ratios between parameter groups count, and another one
            than the recipe's default is refused, wherever it is written.
        momentum: For bases that have one (``sgd``, ``rmsprop``).
        weight_decay: L2 or decoupled decay, as the base defines it.
        rho: Radius of the perturbation of SAM-type optimizers; null takes the method's own default (0.05 for SAM, 0.5
            for ASAM). A base alone has no use for it.
        options: Any other option of the method or of its base, by name: ``{eta: 0.0, nesterov: true}``; for SAM also
            ``{ascent_share: 0.25}``, which takes pass one over a quarter of each batch.

    Raises:
        ValueError: A name or an option that is not known, or a value that cannot be.
    """

    name: str = "sam"
    base: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    rho: float | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, value, known in (("name", self.name, available()), ("base", self.base, sorted(BASES))):
            if value not in known:
                hint = did_you_mean(value, known)
                raise ValueError(f"{key}: optimizer {value!r} is not known; choose from {known}.{hint}")
        if self.name in SOLVERS:
            raise ValueError(
                f"name: {self.name!r} makes its steps without a base, which is not for the loops of the recipes; use "
                "optland.optim.create in Python, or choose for example 'sam'"
            )
        if not self.lr > 0:
            raise ValueError(f"lr: {self.lr} must be above 0, for example 0.1")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: {self.momentum} is not in [0, 1); use for example 0.9")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay: {self.weight_decay} is negative; use 0 or more")
        if self.rho is not None and self.rho < 0:
            raise ValueError(f"rho: {self.rho} is negative; use 0 or more, for example 0.1")
        self._check_options()
        self._check_made()

    @property
    def is_method(self) -> bool:
        """Whether there is a method around the base."""
        return self.name in METHODS

    @property
    def own_rho(self) -> float | None:
        """The method's own default radius; None for one that has none, and for a base alone."""
        if not self.is_method or "rho" not in options_of(self.name, self._base):
            return None
        made = replace(self, rho=None)._create([nn.Parameter(torch.zeros(1))], steps=1)
        return float(setting(made.param_groups[0], "rho"))

    def build(self, model: nn.Module, total_steps: int | None = None) -> Optimizer:
        """The optimizer on the model's parameters.

        Args:
            model: What is trained.
            total_steps: Updates in the run, for a gate such as ``tail(share=0.25)`` that counts from its end.

        Returns:
            The optimizer with one parameter group, the method around its base.

        Raises:
            UserError: Several processes share the run, and the model does not average their gradients.
            ValueError: A gate that counts from the end of the run, and no ``total_steps``.
        """
        if processes.size() > 1 and ranks_of(model) is None:
            raise UserError(
                f"{processes.size()} processes share this run, and the model would be another one in each: let the "
                "loop call, and the optimizer be built for, what config.precision.prepare(model) returns"
            )
        return self._create(list(model.parameters()), total_steps, model=model)

    def in_words(self) -> str:
        """What it is, in one line.

        Example:
            >>> OptimizerConfig(rho=0.1).in_words()
            'sam around sgd, rho 0.1, momentum 0.9'
        """
        parts = [f"{self.name} around {self._base}" if self.is_method else self._base]
        parts += [] if (rho := self.own_rho if self.rho is None else self.rho) is None else [f"rho {rho:g}"]
        parts += [f"momentum {self.momentum:g}"] if self._base in _WITH_MOMENTUM else []
        parts += [f"weight decay {self.weight_decay:g}"] if self.weight_decay else []
        return ", ".join([*parts, *(f"{key} {value}" for key, value in self.options.items())])

    def alone(self) -> OptimizerConfig:
        """The base without the method, with the same settings: what the method is compared with.

        Example:
            >>> OptimizerConfig(rho=0.1, options={"nesterov": True}).alone().in_words()
            'sgd, momentum 0.9, nesterov True'
        """
        base = self._base
        kept = {key: value for key, value in self.options.items() if key in options_of("none", base)}
        return replace(self, name=base, base=base, rho=None, options=kept)

    @property
    def _base(self) -> str:
        return self.name if self.name in BASES else self.base

    def _create(self, params: list[nn.Parameter], steps: int | None = None, **more: Any) -> Optimizer:
        """The optimizer of this section on some parameters; a gate's text needs the run's length."""
        options: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
        if self._base in _WITH_MOMENTUM:
            options["momentum"] = self.momentum
        if self.is_method and self.rho is not None:
            options["rho"] = self.rho
        if isinstance(gate := self.options.get("gate"), str):
            more["gate"] = as_gate(gate, steps)
        return create(self.name, params, base=self._base, **options, **{**self.options, **more})

    def _check_options(self) -> None:
        """Refuse an option that the method and its base do not have."""
        known = sorted(set(options_of(self.name, self._base)) - {"model", *_KEYS})
        if self.is_method and self.rho is not None and "rho" not in options_of(self.name, self._base):
            raise ValueError(f"rho: {self.rho} means nothing for {self.name!r}; use null")
        for key, value in self.options.items():
            if key in _KEYS:
                raise ValueError(
                    f"options: {key} is a key of this section; write {key}: {value} outside of options"
                )
            if key not in known:
                hint = did_you_mean(key, known)
                raise ValueError(
                    f"options: {self.name!r} over {self._base!r} has no option {key!r} (given: {value!r}); "
                    f"choose from {known}.{hint}"
                )

    def _check_made(self) -> None:
        """Make the optimizer once, so that what its constructor refuses is refused before data are read."""
        try:
            self._create([nn.Parameter(torch.zeros(1))], steps=1)
        except (TypeError, ValueError) as error:
            what = f"options: {self.options} of {self.name!r}" if self.options else f"name: {self.name!r}"
            around = "" if self.name in BASES else f" over base: {self.base!r}"
            raise ValueError(f"{what}{around} cannot be used: {error}") from error


@dataclass(frozen=True)
class PilotConfig:
    """Settings of the pilot: what it may do.

    Attributes:
        mode: ``off``, ``monitor``, ``shadow`` or ``control``.
        policies: Names of policies.
        budget: Probe cost as a share of training cost.
        tau: Relative step of ``auto_lr``; null takes its default.
        max_batch: Largest batch of ``noise_batch``; null takes an eighth of the training set.

    Raises:
        ValueError: An unknown policy, a value out of range, or two policies that turn the same thing.

    Example:
        >>> PilotConfig(tau=0.01).sets_the_rate, PilotConfig(mode="monitor").sets_the_rate
        (True, False)
    """

    mode: Literal["off", "monitor", "shadow", "control"] = "control"
    policies: list[str] = field(default_factory=lambda: ["auto_lr", "noise_batch"])
    budget: float = 0.05
    tau: float | None = None
    max_batch: int | None = None

    def __post_init__(self) -> None:
        for policy in self.policies:
            if policy not in POLICIES:
                hint = did_you_mean(policy, POLICIES)
                raise ValueError(f"policies: {policy!r} is not known; choose from {sorted(POLICIES)}.{hint}")
        if not 0 <= self.budget <= 1:
            raise ValueError(
                f"budget: {self.budget} is not a share; use a number from 0 to 1, for example 0.05"
            )
        if self.tau is not None and not self.tau > 0:
            raise ValueError(f"tau: {self.tau} must be above 0, for example 0.02, or null for the default")
        if self.max_batch is not None and self.max_batch < 1:
            raise ValueError(f"max_batch: {self.max_batch} must be at least 1, or null for the default")
        policies = self.build_policies()
        facts = HostFacts(has_length=True, lengths_set=any("step_length" in p.turns for p in policies))
        for made in policies:
            made.begin(facts)  # what they turn may depend on each other
        try:
            check_setters(policies)
        except ValueError as error:
            raise ValueError(f"policies: {error}") from error

    @property
    def sets_the_rate(self) -> bool:
        """Whether a policy finds the height of the learning rate, whatever height is given."""
        return self.mode == "control" and "auto_lr" in self.policies

    def build_policies(self) -> list[Policy]:
        """The policy objects with this section's constants.

        Returns:
            New objects, one for each name, in the order of ``policies``; a name that is given twice is taken once.
        """
        made: dict[str, Policy] = {
            "auto_lr": AutoLR(tau=self.tau),
            "noise_batch": NoiseBatch(max_batch=self.max_batch),
        }
        return [made[name] if name in made else POLICIES[name]() for name in dict.fromkeys(self.policies)]


@dataclass(frozen=True)
class LogConfig:
    """Settings of the log: where a run is written.

    Attributes:
        wandb: ``offline`` (viewed in the terminal), ``online`` (needs a login) or ``disabled``.
        project: Project name in wandb.
        group: Runs that wandb shows together, such as the seeds of one experiment; null takes the recipe's name.
        tags: Labels in wandb.
        every: Steps between two logged rows; rows with a probe, decision or evaluation are always written.
        console: Whether to show the run on the console.

    Raises:
        ValueError: An interval below 1, or a project, group or tag that wandb would refuse in the middle of the run.
    """

    wandb: Literal["offline", "online", "disabled"] = "offline"
    project: str = "optland"
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    every: int = 10
    console: bool = True

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every: {self.every} must be at least 1 step")
        if not self.project:
            raise ValueError("project: the name is empty; use for example 'optland'")
        if len(self.project) > LONGEST_NAME or NOT_IN_A_PROJECT & set(self.project):
            raise ValueError(
                f"project: wandb takes names of at most {LONGEST_NAME} characters without "
                f"{' '.join(sorted(NOT_IN_A_PROJECT))}; {self.project[:40]!r} is not one, use e.g. 'optland'"
            )
        if self.group is not None and not 0 < len(self.group) <= LONGEST_NAME:
            raise ValueError(
                f"group: {self.group[:40]!r} has {len(self.group)} characters; use 1 to {LONGEST_NAME}, or null"
            )
        for tag in self.tags:
            if not 0 < len(tag) <= LONGEST_TAG:
                raise ValueError(f"tags: {tag[:40]!r} has {len(tag)} characters; use 1 to {LONGEST_TAG}")
        if len(set(self.tags)) < len(self.tags):
            raise ValueError(f"tags: {self.tags} names one twice; leave the second out")


def choose_device(asked: Literal["auto", "cpu", "cuda"]) -> str:
    """``cuda`` where it is asked for or, by ``auto``, where there is one; else ``cpu``.

    Args:
        asked: What the configuration says.

    Raises:
        ValueError: ``cuda`` is asked for and not available.

    Example:
        >>> choose_device("cpu")
        'cpu'
    """
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise ValueError("device: cuda is not available here; use auto or cpu")
    return "cuda" if asked != "cpu" and there else "cpu"


@dataclass(frozen=True)
class RunConfig:
    """The configuration that every recipe has; a recipe's ``Config`` inherits it and adds its data and model.

    Attributes:
        seed: Seed of the initial weights and of the order of the data.
        epochs: Passes over the training data.
        batch_size: Samples per batch at the start; ``noise_batch`` may grow it.
        schedule: A name of :mod:`optland.train.loops.schedule`; ``auto_lr`` takes its shape and finds
            its height; with ``none`` it brings a shape of its own.
        device: ``cpu``, ``cuda`` or ``auto`` (cuda where there is one).
        threads: CPU threads; one is fastest for small nets.
        checkpoint_every: Steps between two checkpoints, beside those by time; null takes one by time alone.
        checkpoint_seconds: Seconds between two checkpoints, which is what ``kill -9`` can cost: after SIGTERM or Ctrl-C
            one is saved at once. At 60 a save may take 1.2 s before checkpoints cost more than 2 % of the time.
        out: Folder of the run; on the command line ``runs/<recipe>/<config>`` where none is named.
        optimizer: The optimizer.
        precision: How a step is computed.
        pilot: What watches and steers.
        log: Where it is written.

    Raises:
        ValueError: A value that cannot be, or two that cannot be together.
    """

    can_grow: ClassVar[bool] = True
    """Whether ``--resume`` may give a run more epochs; False where it is not one training from one checkpoint."""

    can_share: ClassVar[bool] = True
    """Whether the processes of a launcher share the batches of a run; False runs it in the first of them alone."""

    seed: int = 0
    epochs: int = 1
    batch_size: int = 64
    schedule: ScheduleName = "none"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1
    checkpoint_every: int | None = None
    checkpoint_seconds: float = 60.0
    out: str = RUN_FOLDER
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    pilot: PilotConfig = field(default_factory=PilotConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "threads", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} must be at least 1")
        if self.threads > _MOST_THREADS:
            raise ValueError(f"threads: {self.threads} are too many; use at most {_MOST_THREADS}")
        if not self.checkpoint_seconds > 0:
            raise ValueError(
                f"checkpoint_seconds: {self.checkpoint_seconds} s must be above 0, for example 60"
            )
        if not self.out.strip():
            raise ValueError(f"out: {self.out!r} names no folder; use for example runs/mine")
        choose_device(self.device)
        check_schedule(self.schedule)
        share = self.optimizer.options.get("ascent_share", 1.0)
        if self.batch_size * share < processes.size():
            raise ValueError(
                f"optimizer.options: ascent_share: {share} of batch_size: {self.batch_size} is less than one sample "
                "for each process; use 0.25, or larger batches"
            )
        own = next(f for f in fields(self) if f.name == "optimizer")
        if self.pilot.sets_the_rate and self.optimizer.lr != default_of(own).lr:
            raise ValueError(
                f"optimizer.lr: {self.optimizer.lr} beside auto_lr, which finds the learning rate, so that another one "
                "would change nothing; leave it out, turn pilot.tau for longer or shorter steps, or use the rate as "
                "it is with 'pilot.policies=[noise_batch]'"
            )

    def in_words(self, rate: float | None = None) -> dict[str, str]:
        """Optimizer, learning rate and length of the run, by name: what a report says of how weights were made.

        Args:
            rate: Median of the learning rates that were used, where it is known.

        Returns:
            Texts under ``optimizer``, ``learning rate`` and ``training``.

        Example:
            >>> RunConfig(epochs=3).in_words()["learning rate"]
            'found by auto_lr'
        """
        source = "found by auto_lr" if self.pilot.sets_the_rate else f"{self.optimizer.lr:g}, as configured"
        shape = "" if self.schedule == "none" else f", schedule {self.schedule}"
        used = "" if rate is None else f": {rate:.3g} in the median"
        return {
            "optimizer": self.optimizer.in_words(),
            "learning rate": f"{source}{shape}{used}",
            "training": f"{self.epochs} epochs, batches of {self.batch_size}, seed {self.seed}",
        }


@dataclass(frozen=True)
class ValidatedRunConfig(RunConfig):
    """A run that is evaluated on validation data after every epoch.

    Attributes:
        patience: Early stopping: epochs without a better validation result after which the run ends; null or 0 trains
            all epochs. The schedule is laid out over ``epochs`` all the same, as is ``auto_lr``'s: a run that stops
            early ends at a rate that has not come down yet, so its best weights are to be taken, and not its last.

    Raises:
        ValueError: As :class:`RunConfig`, or a negative patience.
    """

    patience: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience is not None and self.patience < 0:
            raise ValueError(
                f"patience: {self.patience} epochs is negative; use for example 5, or null for never"
            )
