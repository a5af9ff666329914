"""Several ends of one training, compared by what is left of them after a damage.

The loss of every sample after the damage is kept, so that two nets are compared on the same samples: the difference has
a standard error far below that of either loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.landscape import Damage, DamageSpec, damage, damaged
from optland.objective import LossFn
from optland.train.runs.settings import OptimizerConfig, PilotConfig, RunConfig
from optland.train.runs.trained_run import ProbeData, probe_objective

__all__ = ["End", "EndedRunConfig", "choose", "end_of"]

SAMPLES = 1000
"""Validation samples that the damage is predicted on."""


@dataclass(frozen=True)
class EndedRunConfig(RunConfig):
    """A run that is ended in several ways: every key of RunConfig, and these.

    Attributes:
        damage: What the net has to bear: ``int3``, ``prune=0.8`` or ``noise=0.2``.
        decay: Share of the run in which the rate comes down.
        rho: Radius of SAM in the decay.

    Raises:
        ValueError: A value that cannot be, or a two-pass method, schedule or pilot, of which it has its own.
    """

    epochs: int = 20
    can_grow = False  # its nets are trained one after another
    damage: str = "int3"
    decay: float = 0.2
    rho: float = 0.1
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig("sgd", lr=0.1))
    pilot: PilotConfig = field(default_factory=lambda: PilotConfig(mode="off", policies=[]))

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            DamageSpec.parse(self.damage)
        except ValueError as error:
            raise ValueError(f"damage: {error}") from error
        if not 0 < self.decay < 1:
            raise ValueError(f"decay: {self.decay} is no share of the run; use for example 0.2")
        if not self.rho > 0:
            raise ValueError(f"rho: {self.rho} must be above 0, for example 0.1")
        if self.optimizer.is_method:
            raise ValueError(
                f"optimizer.name: {self.optimizer.name!r} takes two passes; use its base, such as sgd"
            )
        if self.schedule != "none" or self.pilot.mode != "off":
            raise ValueError(f"schedule: {self.schedule}, pilot.mode: {self.pilot.mode}: use none and off")


@dataclass(frozen=True)
class End:
    """A trained net and what is left of it.

    Attributes:
        name: Its name.
        clean: Test loss without damage.
        told: The damage, predicted and measured on validation samples.
        val: Loss of every validation sample after the damage, of noise the mean over its draws.
        test: Of every test sample.
    """

    name: str
    clean: float
    told: Damage
    val: Tensor
    test: Tensor

    def row(self) -> dict[str, float]:
        """Its figures, for a table.

        Returns:
            Losses and rises of the loss in nats per sample, each name led by that of the end.
        """
        return {
            f"{self.name}: test loss": self.clean,
            f"{self.name}: predicted rise": self.told.predicted.value,
            f"{self.name}: measured rise": self.told.measured.value,
            f"{self.name}: val loss after": float(self.val.mean()),
            f"{self.name}: test loss after": float(self.test.mean()),
        }

    def beats(self, other: End, split: str = "test") -> tuple[float, float]:
        """How much lower its loss after the damage is, with the standard error over the samples.

        Args:
            other: Measured on the same samples.
            split: ``val`` or ``test``.

        Returns:
            The mean over samples of the other's loss less its own, in nats, and the standard error of that mean. The
            losses of one sample under two nets are paired, and their common part cancels.
        """
        gain = getattr(other, split) - getattr(self, split)
        return float(gain.mean()), float(gain.std() / math.sqrt(len(gain)))


def end_of(name: str, model: nn.Module, loss_fn: LossFn, data: ProbeData, spec: DamageSpec) -> End:
    """Measure a classifier that has been trained; it is in evaluation mode afterwards.

    Args:
        name: What to call it.
        model: The net.
        loss_fn: Mean cross-entropy of a batch.
        data: Its data, see :class:`~optland.train.runs.trained_run.ProbeData`.
        spec: The damage.

    Returns:
        Its losses before and after the damage, and what was predicted. Costs a few passes over the validation samples
        for each draw of the damage.
    """
    model.eval()
    L = probe_objective(model, loss_fn, data, split_name="val", num_samples=SAMPLES, seed=0, batch_size=512)
    told = damage(L, spec.weights(model), max_matvecs=0)
    val, test = (data.sample(split, data.size(split)) for split in ("val", "test"))
    clean = float(_losses(model, test, None).mean())
    return End(name, clean, told, _losses(model, val, spec), _losses(model, test, spec))


def choose(ends: Sequence[End]) -> tuple[End, str]:
    """The end of lowest validation loss after the damage, and how sure that is; where it is not, the first given.

    Args:
        ends: At least one, the one to be taken in case of doubt first.

    Returns:
        The end, and one sentence. To be taken, another end has to be better than the first by more than one standard
        error of the paired difference, or the loss of the first has to be no finite number.
    """
    first, best = ends[0], min(ends, key=lambda end: _or_inf(float(end.val.mean())))
    if best is first:
        return best, f"{best.name} is taken: none is better on validation data"
    if not math.isfinite(float(first.val.mean())):
        return best, f"{best.name} is taken: the validation loss of {first.name} is not finite"
    gain, error = best.beats(first, "val")
    if not gain > error:
        return first, f"{first.name} is taken: {best.name} is lower by {gain:.2g} ± {error:.2g}, undecided"
    how = f"lower than {first.name} by {gain:.3g} ± {error:.2g} on validation data"
    return best, f"{best.name} is taken: {how}"


@torch.no_grad()
def _losses(model: nn.Module, batch: Any, spec: DamageSpec | None) -> Tensor:
    """Loss of every sample ``(n,)``, in nats: as the net is with None, else the mean over the draws of a damage."""
    found = []
    for weights in spec.weights(model) if spec else [{}]:
        with damaged(model, weights):
            pairs = zip(batch[0].split(512), batch[1].split(512), strict=True)
            found.append(torch.cat([F.cross_entropy(model(x), y, reduction="none") for x, y in pairs]))
    return torch.stack(found).mean(dim=0)


def _or_inf(value: float) -> float:
    return value if math.isfinite(value) else math.inf
