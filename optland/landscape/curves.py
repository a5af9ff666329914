r"""Curves of low loss between two minima: a quadratic Bezier curve or a chain of straight pieces, their bends trained.

.. math:: \phi(t) = \sum_i b_i(t)\, c_i, \qquad c_0, c_n \text{ fixed}, \qquad
          \frac{\partial L(\phi(t))}{\partial c_i} = b_i(t)\, \nabla L(\phi(t))

The model is never rewritten: the gradient at a point of the curve is an ordinary gradient, and a bend gets its share
b_i(t) of it. b_i are Bernstein polynomials for ``bezier`` (any number of bends gives a higher degree) and hat functions
for ``chain``. What is minimised:

=========  ===================================================================================
objective  meaning
=========  ===================================================================================
mean       E over t uniform in [0, 1] of L(phi(t)): one t per step
arc        the same, uniform in arc length: t is drawn with density |phi'(t)|
max        the largest loss on a jittered grid of the curve: its gradient at the highest point
=========  ===================================================================================

**Cost.** One gradient per step (for ``max`` and 7 forwards).

References: Garipov et al. 2018, arXiv:1802.10026; Draxler et al. 2018, arXiv:1803.00885.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from optland import vectors
from optland.archive import Archived
from optland.landscape.paths import THRESHOLD, Checkpoint, PathLoss, along, linear_path, weights_of
from optland.objective import Objective
from optland.vectors import Vector

__all__ = ["Connection", "connect", "curve_point"]

Kind = Literal["bezier", "chain"]
What = Literal["mean", "arc", "max"]

GRID = 7


@dataclass(frozen=True, slots=True)
class Connection(Archived):
    """Two minima, the straight line between them, and the curve that was found.

    Attributes:
        linear: The straight line.
        curve: The trained curve; None where the line already connects them, or no steps were asked for.
        bends: The trained control points.
        history: Loss that each step saw.
        steps: Steps made.
        cost_ge: Gradient evaluations, training and evaluation.
    """

    linear: PathLoss
    curve: PathLoss | None
    bends: tuple[tuple[Tensor, ...], ...]
    history: tuple[float, ...]
    steps: int
    cost_ge: float

    @property
    def connected(self) -> bool:
        """Whether either path stays below the threshold."""
        return self.linear.connected or (self.curve is not None and self.curve.connected)

    @property
    def remaining(self) -> float:
        """The curve's barrier as a share of the line's; 0 where the line has none."""
        if self.curve is None or self.linear.above == 0.0:
            return 0.0 if self.linear.above == 0.0 else 1.0
        return self.curve.above / self.linear.above

    def __str__(self) -> str:
        return f"{self.linear}\n{self.curve}" if self.curve is not None else str(self.linear)


def weights_on(kind: Kind, t: float, n: int) -> list[float]:
    """b_0 ... b_n at t: Bernstein polynomials, or hat functions on n equal pieces.

    Args:
        kind: ``bezier`` or ``chain``.
        t: Where on the curve, from 0 to 1.
        n: Number of control points, less one.

    Returns:
        n + 1 weights that sum to 1.
    """
    if kind == "bezier":
        return [math.comb(n, i) * t**i * (1 - t) ** (n - i) for i in range(n + 1)]
    return [max(0.0, 1.0 - abs(n * t - i)) for i in range(n + 1)]


def curve_point(kind: Kind, t: float, controls: Sequence[Vector]) -> list[Tensor]:
    """phi(t) of the curve with these control points, both ends included.

    Args:
        kind: ``bezier`` or ``chain``.
        t: Where on the curve, from 0 to 1.
        controls: Vectors in the shapes of the parameters, two or more.

    Example:
        >>> ends = [[torch.tensor([0.0])], [torch.tensor([1.0])], [torch.tensor([0.0])]]
        >>> curve_point("bezier", 0.5, ends)[0].item(), curve_point("chain", 0.5, ends)[0].item()
        (0.5, 1.0)
    """
    return vectors.combine(weights_on(kind, t, len(controls) - 1), controls)


def connect(
    objective: Objective,
    other: Checkpoint,
    *,
    kind: Kind = "bezier",
    num_bends: int = 1,
    minimise: What = "mean",
    num_steps: int = 300,
    lr: float = 0.01,
    batches: Iterable[Any] | None = None,
    threshold: float = THRESHOLD,
    num_points: int = 61,
    seed: int = 0,
) -> Connection:
    """The straight line between two minima and a trained curve of low loss, with the verdict on both.

    Args:
        objective: The loss that is reported, at the first minimum.
        other: The second minimum: a module, a state dict, or tensors.
        kind: ``bezier`` or ``chain``.
        num_bends: Control points between the ends, at least 1; they start on the line.
        minimise: ``mean``, ``arc`` or ``max``.
        num_steps: Steps of Adam with a linear decay to zero; 0 looks at the line alone.
        lr: Its learning rate, a move of a weight in a step; 0.01.
        batches: Training batches, gone through again and again; default those of the objective. The net is in train
            mode on them, so BatchNorm uses the batch's statistics.
        threshold: Of the verdict, above 1.
        num_points: Points at which the curve is evaluated.
        seed: Of t.

    Returns:
        Losses along both, each with its barrier and verdict; the bends; and the loss of every training step. A curve
        that is found is a proof, one that is not found proves nothing.

    Raises:
        ValueError: Checkpoints that do not fit or are the same, no bends, unknown kind or objective.
    """
    if kind not in ("bezier", "chain"):
        raise ValueError(f"kind {kind!r} is not known; use 'bezier' or 'chain'")
    if minimise not in ("mean", "arc", "max"):
        raise ValueError(f"minimise {minimise!r} is not known; use 'mean', 'arc' or 'max'")
    if num_bends < 1 or num_steps < 0 or not lr > 0:
        raise ValueError(
            f"num_bends {num_bends} must be at least 1, num_steps {num_steps} at least 0, and lr {lr} above 0"
        )
    before = objective.cost_ge
    linear = linear_path(objective, other, threshold=threshold)
    if num_steps == 0:
        return Connection(linear, None, (), (), 0, objective.cost_ge - before)
    start = [p.detach().clone() for p in objective.params]
    end = weights_of(objective, other)
    if float(vectors.norm(vectors.subtract(end, start))) == 0.0:
        raise ValueError("both checkpoints have the same weights; there is nothing to connect")
    trainer = _Trainer(objective, kind, start, end, num_bends, lr, num_steps, seed)
    history = trainer.train(_endless(batches if batches is not None else objective.batches), minimise)
    controls = trainer.controls
    curve = along(
        objective, lambda t: curve_point(kind, t, controls), kind=kind, points=num_points, threshold=threshold
    )
    kept = tuple(tuple(t.detach().clone() for t in bend) for bend in controls[1:-1])
    return Connection(linear, curve, kept, tuple(history), num_steps, objective.cost_ge - before)


class _Trainer:
    """Trains the control points of a curve."""

    def __init__(
        self,
        objective: Objective,
        kind: Kind,
        start: Vector,
        end: Vector,
        bends: int,
        lr: float,
        steps: int,
        seed: int,
    ) -> None:
        self.objective, self.kind, self.steps = objective, kind, steps
        shares = [(i + 1) / (bends + 1) for i in range(bends)]
        self.bends = [
            [nn.Parameter((1 - s) * a + s * b) for a, b in zip(start, end, strict=True)] for s in shares
        ]
        self.start, self.end = list(start), list(end)
        self.optimizer = torch.optim.Adam([p for bend in self.bends for p in bend], lr=lr)
        self.lr = lr
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def controls(self) -> list[list[Tensor]]:
        return [self.start, *([p.detach() for p in bend] for bend in self.bends), self.end]

    def train(self, batches: Iterator[Any], minimise: What) -> list[float]:
        """All steps; returns the losses that they saw."""
        history = []
        for step in range(self.steps):
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * (1 - step / self.steps)
            L = self._on(next(batches))
            t = self._highest(L) if minimise == "max" else self._draw(minimise)
            loss, gradient = L.value_and_gradient(curve_point(self.kind, t, self.controls))
            if not math.isfinite(loss):
                raise ValueError(
                    f"the loss on the curve is {loss} at step {step}; use a smaller lr than {self.lr:g}"
                )
            shares = weights_on(self.kind, t, len(self.bends) + 1)[1:-1]
            for bend, share in zip(self.bends, shares, strict=True):
                for p, g in zip(bend, gradient, strict=True):
                    p.grad = share * g
            self.optimizer.step()
            history.append(loss)
        return history

    def _on(self, batch: Any) -> Objective:
        """The training loss on one batch, its cost booked to the objective that is reported."""
        return self.objective.on(batch, self.objective.kind.count(batch), mode="train")

    def _uniform(self) -> float:
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def _draw(self, minimise: What) -> float:
        """Draw t uniformly, or with the density of the arc length (by rejection)."""
        if minimise == "mean":
            return self._uniform()
        controls = self.controls
        speeds = [self._speed(controls, (i + 0.5) / GRID) for i in range(GRID)]
        top = 1.2 * max(speeds)
        while True:
            t = self._uniform()
            if self._uniform() * top <= self._speed(controls, t):
                return t

    def _speed(self, controls: Sequence[Vector], t: float) -> float:
        """|phi'(t)| by a central difference, exact for both kinds up to rounding away from a bend."""
        h = 1e-4
        low, high = max(t - h, 0.0), min(t + h, 1.0)
        there = vectors.subtract(
            curve_point(self.kind, high, controls), curve_point(self.kind, low, controls)
        )
        return float(vectors.norm(there)) / (high - low)

    def _highest(self, L: Objective) -> float:
        """The place of the largest loss on a grid that is shifted at random."""
        places = [(i + self._uniform()) / GRID for i in range(GRID)]
        controls = self.controls
        return max(places, key=lambda t: L.value(curve_point(self.kind, t, controls)))


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        found = False
        for batch in batches:
            found = True
            yield batch
        if not found:
            raise ValueError("batches holds nothing to train the curve on; pass a list or a loader")
