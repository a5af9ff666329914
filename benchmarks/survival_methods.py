"""Controls of ``benchmarks/survival.py``: a random perturbation of SAM's size, and noise on the weights in one pass.

``random``: w <- base(w, grad L(w + rho u / |u|)), u Gaussian: SAM's cost and radius without its direction.
``weight noise``: w <- base(w, grad L(w + sigma rms(w_l) u)) in each matrix l: the damage of the table, in training, at
the cost of a plain step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optland.landscape import shaken
from optland.optim import TwoPass
from optland.optim.method import Gradients, Method
from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.bank_training import MakeOptimizer

__all__ = ["METHODS", "RandomSAM", "WeightNoise"]


class _RandomDirection(Method):
    def __init__(self, rho: float, seed: int) -> None:
        super().__init__(rho=rho)
        self.generator = torch.Generator().manual_seed(seed)

    def direction(self, at: Gradients) -> list[Tensor]:
        """Gaussian, whatever the gradient is."""
        return [torch.randn(g.shape, generator=self.generator, dtype=g.dtype) for g in at.g]


class RandomSAM(TwoPass):
    """SAM with a random direction in place of the gradient's."""

    def __init__(self, base: Optimizer, rho: float, seed: int, model: nn.Module | None = None) -> None:
        super().__init__(base, _RandomDirection(rho, seed), model=model, telemetry_every=0)


class WeightNoise(Optimizer):
    """A base whose one gradient is taken at weights with relative Gaussian noise on every matrix."""

    def __init__(self, base: Optimizer, model: nn.Module, sigma: float, seed: int) -> None:
        self.base, self.model, self.sigma = base, model, sigma
        self.seeds = torch.Generator().manual_seed(seed)
        super().__init__(base.param_groups, base.defaults)  # the groups are the base's own, for schedules

    def step(self, closure: Any = None) -> Any:
        seed = int(torch.randint(2**62, (1,), generator=self.seeds))
        with torch.no_grad():
            noisy = shaken(self.model, self.sigma, seed=seed)
            weights = {name: self.model.get_parameter(name) for name in noisy}
            kept = {name: w.detach().clone() for name, w in weights.items()}
            for name, w in weights.items():
                w.copy_(noisy[name])
        loss = closure()
        with torch.no_grad():
            for name, w in weights.items():
                w.copy_(kept[name])
        self.base.step()
        return loss


def _random(run: BankRun, model: nn.Module, steps: int) -> Optimizer:
    return RandomSAM(run.optimizer.build(model, steps), _strength(run), run.seed, model)


def _weight_noise(run: BankRun, model: nn.Module, steps: int) -> Optimizer:
    return WeightNoise(run.optimizer.build(model, steps), model, _strength(run), run.seed)


def _strength(run: BankRun) -> float:
    if run.strength is None:
        raise ValueError(f"strength: {run.method!r} needs a radius or a size; give for example 0.1")
    return run.strength


METHODS: dict[str, MakeOptimizer] = {"random": _random, "weight noise": _weight_noise}
