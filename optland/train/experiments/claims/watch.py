"""What is seen along a run: when it reaches a level of the loss, how sharp it is then and early on, its gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from optland.curvature import hessian, lanczos
from optland.landscape import effective_dimension
from optland.train.experiments.bank_run import BankRun, Splits
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.measures import Look, at_level, objective_of, spectrum

__all__ = ["Watch"]

EARLY = 0.1
"""Share of the run after which the spectrum is called early."""


class Watch:
    """Looks at the loss ``dial.checks`` times, and keeps ``dial.gradients`` gradients.

    ``found()["level"]`` is what :func:`~optland.train.experiments.claims.measures.at_level` says of the net at the
    first check with a training loss (on the probed samples, eval mode) of at most ``dial.level``, and the epochs until
    then; empty where it never came. ``found()["early"]`` is the spectrum of the net after a tenth of the run. A run
    without noise, whose batch is the whole of the data, is asked for its largest eigenvalue on all of them at every
    check.

    Args:
        dial: Sizes.
        run: The run.
        splits: Its data.
        look: How closely.
    """

    def __init__(self, dial: Dial, run: BankRun, splits: Splits, look: Look = "all") -> None:
        self.dial, self.splits, self.look = dial, splits, look
        size = len(splits.train[0])
        self.steps = run.steps(size)
        self.epochs_per_step = run.samples / size / self.steps
        self.is_noiseless = run.batch_size >= size
        self._checks = _spread(self.steps, dial.checks)
        self._keep = set(_spread(self.steps, dial.gradients))
        self._early = max(1, round(EARLY * self.steps))
        self._measure = at_level(look, dial.probed)
        self._gradients: list[Tensor] = []
        self.level: dict[str, float] = {}
        self.early: dict[str, float] = {}
        self.losses: list[float] = []
        self.sharpness: list[float] = []

    def after_step(self, model: nn.Module, step: int) -> None:
        """Keep the gradient of this step, and look at the net where it is time to.

        Args:
            model: The net with the gradient of the step; it may be left in eval mode, which the bank puts back.
            step: Steps so far, this one included.
        """
        if self.look == "all" and step in self._keep:
            kept = [p.grad.detach().flatten() for p in model.parameters() if p.grad is not None]
            self._gradients.append(torch.cat(kept))
        if self.look != "scores" and step == self._early:
            model.eval()
            self.early = spectrum(model, self.splits, self.dial.probed, ends="both")
        if step in self._checks:
            self._check(model, step)

    def found(self) -> dict[str, Any]:
        """What was seen.

        Returns:
            ``level`` and ``early`` as the class says; ``losses`` at the checks, ``sharpness`` of a run without noise;
            ``dimension`` with ``k90``, the directions that hold 90 % of the gradients' variance, its ``share`` of the
            weights, and how many gradients it is of. It is empty with fewer than four finite gradients.
        """
        return {
            "level": self.level,
            "early": self.early,
            "losses": self.losses,
            "sharpness": self.sharpness,
            "dimension": self._dimension(),
        }

    def _check(self, model: nn.Module, step: int) -> None:
        model.eval()
        objective = objective_of(model, self.splits, self.dial.probed)
        loss = objective.value()
        self.losses.append(loss)
        if loss <= self.dial.level and not self.level:
            self.level = dict(self._measure(model, self.splits)) | {"epochs": step * self.epochs_per_step}
        if self.is_noiseless and math.isfinite(loss):
            with hessian(objective_of(model, self.splits, len(self.splits.train[0]))) as H:
                self.sharpness.append(lanczos(H, k=1, ends="top", rtol=0.02, max_matvecs=30).top.value)

    def _dimension(self) -> dict[str, float]:
        rows = [g for g in self._gradients if bool(torch.isfinite(g).all())]
        if len(rows) < 4:
            return {}
        found = effective_dimension(torch.stack(rows), centred=True)
        return {
            "k90": float(found.k90),
            "share": found.k90 / len(rows[0]),
            "participation": found.participation,
            "count": float(found.count),
            "measures_count": float(found.measures_count),
        }


def _spread(steps: int, count: int) -> list[int]:
    """Up to ``count`` steps, evenly over the run, the last one among them."""
    count = min(count, steps)
    return sorted({round((k + 1) * steps / count) for k in range(count)})
