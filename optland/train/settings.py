"""Configuration sections that recipes share: optimizer, pilot, log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from optland.config import did_you_mean
from optland.control.policies import POLICIES, AutoLR, NoiseBatch, SafeLR
from optland.optim import available, create

__all__ = ["LogConfig", "OptimizerConfig", "PilotConfig"]


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimizer, around which base.

    Attributes:
        name: A name of ``optland.optim.available()``: ``sam``, ``asam``, or a base alone such as ``sgd``.
        base: The base that a SAM-type optimizer wraps; ignored for a base alone.
        lr: Learning rate; under ``auto_lr`` only the ratios between parameter groups count.
        momentum: For bases that have one (``sgd``, ``rmsprop``).
        weight_decay: L2 or decoupled decay, as the base defines it.
        rho: Radius of the perturbation of SAM-type optimizers.
    """

    name: str = "sam"
    base: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    rho: float = 0.1

    def __post_init__(self) -> None:
        for key, value in (("name", self.name), ("base", self.base)):
            if value not in available():
                hint = did_you_mean(value, available())
                raise ValueError(f"{key}: optimizer {value!r} is not known; choose from {available()}.{hint}")
        if not self.lr > 0:
            raise ValueError(f"lr: {self.lr} must be above 0")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: {self.momentum} is not in [0, 1); use for example 0.9")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay: {self.weight_decay} is negative; use 0 or more")
        if self.rho < 0:
            raise ValueError(f"rho: {self.rho} is negative; use 0 or more, for example 0.1")

    def build(self, model: nn.Module) -> Optimizer:
        """The optimizer on the model's parameters."""
        two_pass = self.name in ("sam", "asam")
        options: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
        if (self.base if two_pass else self.name) in ("sgd", "rmsprop"):
            options["momentum"] = self.momentum
        if two_pass:
            return create(self.name, model.parameters(), base=self.base, rho=self.rho, model=model, **options)
        return create(self.name, model.parameters(), **options)


@dataclass(frozen=True)
class PilotConfig:
    """What the pilot may do.

    Attributes:
        mode: ``off``, ``monitor``, ``shadow`` or ``control``.
        policies: Names of policies.
        budget: Probe cost as a share of training cost.
        tau: Relative step of ``auto_lr``; null takes its default.
        max_batch: Largest batch of ``noise_batch``; null takes an eighth of the training set.
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
        if {"auto_lr", "safe_lr"} <= set(self.policies):
            raise ValueError("policies: auto_lr and safe_lr both set the learning rate; choose one of them")
        if not 0 <= self.budget <= 1:
            raise ValueError(
                f"budget: {self.budget} is not a share; use a number from 0 to 1, for example 0.05"
            )
        if self.tau is not None and not self.tau > 0:
            raise ValueError(f"tau: {self.tau} must be above 0, or null for the default")
        if self.max_batch is not None and self.max_batch < 1:
            raise ValueError(f"max_batch: {self.max_batch} must be at least 1, or null for the default")

    @property
    def sets_the_rate(self) -> bool:
        """Whether ``auto_lr`` brings the whole schedule."""
        return self.mode == "control" and "auto_lr" in self.policies

    def build_policies(self, *, two_pass: bool, steps: int) -> list[AutoLR | SafeLR | NoiseBatch]:
        """The policy objects with this section's constants, for a run of about ``steps`` steps."""
        made: dict[str, AutoLR | SafeLR | NoiseBatch] = {
            "auto_lr": AutoLR(tau=self.tau, two_pass=two_pass, steps=steps),
            "safe_lr": SafeLR(),
            "noise_batch": NoiseBatch(max_batch=self.max_batch),
        }
        return [made[name] for name in dict.fromkeys(self.policies)]


@dataclass(frozen=True)
class LogConfig:
    """Where a run is written.

    Attributes:
        wandb: ``offline`` (viewed in the terminal), ``online`` (needs a login) or ``disabled``.
        project: Project name in wandb.
        every: Steps between two logged rows; rows with a probe, decision or evaluation are always written.
        console: Whether to show the run on the console.
    """

    wandb: Literal["offline", "online", "disabled"] = "offline"
    project: str = "optland"
    every: int = 10
    console: bool = True

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every: {self.every} must be at least 1 step")
        if not self.project:
            raise ValueError("project: the name is empty; use for example 'optland'")
