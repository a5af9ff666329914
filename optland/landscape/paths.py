r"""Paths between two minima and the barrier along them.

For a path :math:`\phi(t)`, t in [0, 1], with losses L_0 and L_1 at its ends, three definitions of the barrier are in
use:

=========  ==========================================================  ======================================
name       barrier                                                     source
=========  ==========================================================  ======================================
above      max_t L(phi(t)) - max(L_0, L_1)                             the height that has to be climbed
entezari   max_t [ L(phi(t)) - ((1 - t) L_0 + t L_1) ]                 Entezari et al. 2022, arXiv:2110.06296
frankle    max_t L(phi(t)) - (L_0 + L_1) / 2                           Frankle et al. 2020, arXiv:1912.05671
=========  ==========================================================  ======================================

All three are at least 0 as reported. The verdict *connected* means that the loss along the path never exceeds
``threshold`` times the larger end.

**BatchNorm.** Running statistics of two nets do not belong to the weights between them: a net with them is recalibrated
at every point, on the objective's own data, in one forward pass; without it most barriers are artefacts.

**Cost.** One forward per point, two with recalibration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from optland import vectors
from optland.archive import Archived
from optland.context.modules import BATCH_NORMS, BufferSnapshot, preserve_buffers, set_modes
from optland.estimate import Provenance
from optland.objective import FORWARD_GE, Objective
from optland.vectors import Vector

__all__ = ["PathLoss", "along", "linear_path", "recalibrated", "weights_of"]

Checkpoint = nn.Module | Mapping[str, Tensor] | Sequence[Tensor]
Curve = Callable[[float], Vector]

THRESHOLD = 1.1


@dataclass(frozen=True, slots=True)
class PathLoss(Archived):
    """Losses along a path.

    Attributes:
        kind: ``linear``, ``bezier``, ``chain``.
        t: Where on the path, from 0 to 1.
        loss: Loss at each.
        length: Arc length at each point from the start, in the units of the weights.
        threshold: Of the verdict.
        recalibrated: Whether BatchNorm statistics were taken anew at each point.
        provenance: Data and mode.
        cost_ge: Gradient evaluations.
    """

    kind: str
    t: Tensor
    loss: Tensor
    length: Tensor
    threshold: float
    recalibrated: bool
    provenance: Provenance
    cost_ge: float

    @property
    def ends(self) -> tuple[float, float]:
        """Losses at both ends."""
        return float(self.loss[0]), float(self.loss[-1])

    @property
    def highest(self) -> float:
        """The largest loss on the path; NaN where one is not a number."""
        return float(self.loss.max())

    @property
    def above(self) -> float:
        """Barrier over the larger end."""
        return max(self.highest - max(self.ends), 0.0)

    @property
    def entezari(self) -> float:
        """Barrier over the straight line between the two losses."""
        first, last = self.ends
        return max(float((self.loss - ((1 - self.t) * first + self.t * last)).max()), 0.0)

    @property
    def frankle(self) -> float:
        """Barrier over the mean of the two losses."""
        return max(self.highest - 0.5 * sum(self.ends), 0.0)

    @property
    def mean(self) -> float:
        """Mean loss, uniform in t (trapezoids)."""
        return float(torch.trapezoid(self.loss, self.t))

    @property
    def connected(self) -> bool:
        """Whether the loss stays below ``threshold`` times the larger end everywhere."""
        return bool(self.highest <= self.threshold * max(self.ends))

    def __str__(self) -> str:
        word = "connected" if self.connected else "not connected"
        return (
            f"{self.kind} path: ends {self.ends[0]:.4g} and {self.ends[1]:.4g}, highest {self.highest:.4g} at "
            f"t={float(self.t[int(self.loss.argmax())]):.2f}, barrier {self.above:.4g}: {word} at {self.threshold:g}x"
        )


def linear_path(
    objective: Objective,
    other: Checkpoint,
    *,
    num_points: int = 25,
    threshold: float = THRESHOLD,
    num_refined: int = 8,
) -> PathLoss:
    """The loss along the straight line from the present weights to another checkpoint's.

    Args:
        objective: The loss, at the first checkpoint.
        other: The second: a module of the same architecture, its state dict, or a list of tensors.
        num_points: On the line, both ends included; 25.
        threshold: Of the verdict, above 1; 1.1.
        num_refined: Further points around the highest one.

    Raises:
        ValueError: The checkpoints do not fit, fewer than 3 points, or a threshold that is not above 1.

    Example:
        >>> from optland.problems.critical import two_factor
        >>> path = linear_path(two_factor(1.0, 1.0), [-torch.ones(2).double()])
        >>> path.above, path.connected
        (0.5, False)
    """
    start = [p.detach().clone() for p in objective.params]
    end = weights_of(objective, other)
    gap = vectors.subtract(end, start)

    def curve(t: float) -> list[Tensor]:
        return end if t == 1.0 else [a + t * d for a, d in zip(start, gap, strict=True)]

    return along(objective, curve, kind="linear", points=num_points, threshold=threshold, refine=num_refined)


def along(
    objective: Objective,
    curve: Curve,
    *,
    kind: str,
    points: int = 61,
    threshold: float = THRESHOLD,
    refine: int = 0,
) -> PathLoss:
    """The loss along any curve t -> weights; more points are put around the highest one (``refine``).

    Args:
        objective: Loss and data; in eval mode a net with running statistics has them taken anew at each point.
        curve: t in [0, 1] to weights in the shapes of the parameters.
        kind: What it is, for the record.
        points: Evenly spaced ones, both ends included.
        threshold: Factor on the larger end up to which a path counts as free of a barrier.
        refine: Further points within one spacing on both sides of the highest one.

    Returns:
        Losses at all of them, ordered by t, with the arc length along the polygon through them.

    Raises:
        ValueError: Fewer than three points, or a threshold that is not above 1.
    """
    if points < 3:
        raise ValueError(f"num_points {points}: a path needs at least 3")
    if not threshold > 1:
        raise ValueError(f"threshold {threshold} must be above 1; 1.1 allows a tenth more than the worse end")
    before = objective.cost_ge
    has_running = any(isinstance(m, BATCH_NORMS) and m.track_running_stats for m in objective.model.modules())
    recalibrate = has_running and objective.mode == "eval"
    t = torch.linspace(0.0, 1.0, points, dtype=torch.float64).tolist()
    losses = {x: _loss(objective, curve(x), recalibrate) for x in t}
    if refine:
        top = max(losses, key=lambda x: losses[x] if math.isfinite(losses[x]) else math.inf)
        step = 1.0 / (points - 1)
        extra = [top + step * (2 * i / (refine + 1) - 1) for i in range(1, refine + 1)]
        losses |= {x: _loss(objective, curve(x), recalibrate) for x in extra if 0 < x < 1}
    places = sorted(losses)
    lengths, last = [0.0], curve(places[0])
    for x in places[1:]:
        now = curve(x)
        lengths.append(lengths[-1] + float(vectors.norm(vectors.subtract(now, last))))
        last = now
    return PathLoss(
        kind, torch.tensor(places, dtype=torch.float64), torch.tensor([losses[x] for x in places]).double(),
        torch.tensor(lengths, dtype=torch.float64), threshold, recalibrate,
        objective.provenance(f"{kind} path"), objective.cost_ge - before,
    )  # fmt: skip


def _loss(objective: Objective, point: Vector, recalibrate: bool) -> float:
    if not recalibrate:
        return objective.value(point)
    with recalibrated(objective, point):
        return objective.value()


@contextmanager
def recalibrated(objective: Objective, point: Vector) -> Iterator[None]:
    """Hold the weights at ``point`` with BatchNorm statistics of the objective's data there (one forward pass).

    The running mean becomes the mean over the data of the batch means, the running variance likewise, both weighted by
    what each layer saw of the batch (samples times positions); ``momentum=None`` weighs a ragged last batch as a full
    one.

    Args:
        objective: Loss and data.
        point: In the shapes of the parameters.
    """
    model = objective.model
    layers = [m for m in model.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    seen = dict.fromkeys(layers, 0)

    def weigh(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        size = inputs[0].numel() // inputs[0].shape[1]
        seen[layer] += size
        layer.momentum = size / seen[layer]

    with objective.at(point), preserve_buffers(model):
        with objective.context(), torch.no_grad():
            momenta, hooks = (
                [m.momentum for m in layers],
                [m.register_forward_pre_hook(weigh) for m in layers],
            )
            try:
                set_modes(model, training=False)
                for m in layers:
                    m.training = True
                    m.reset_running_stats()
                for _ in objective.losses():
                    continue
            finally:
                for m, momentum, hook in zip(layers, momenta, hooks, strict=True):
                    m.momentum = momentum
                    hook.remove()
            statistics = BufferSnapshot(model)
        statistics.restore()
        objective.cost_ge += FORWARD_GE * objective.num_samples
        yield


def weights_of(objective: Objective, other: Checkpoint) -> list[Tensor]:
    """The trainable weights of a checkpoint in the order, type and place of the objective's parameters.

    Args:
        objective: Gives names, shapes, types and devices.
        other: A module, a mapping of names to tensors, or tensors in the order of the objective's parameters.

    Raises:
        ValueError: A parameter is missing, or has another shape.
    """
    if isinstance(other, nn.Module):
        other = dict(other.named_parameters())
    if isinstance(other, Mapping):
        missing = [name for name in objective.names if name not in other]
        if missing:
            raise ValueError(
                f"the other checkpoint has no {missing[0]!r}; it belongs to another architecture"
            )
        other = [other[name] for name in objective.names]
    other = vectors.require_shapes(other, objective.params, "the other checkpoint", objective.names)
    return [
        t.detach().to(device=p.device, dtype=p.dtype) for t, p in zip(other, objective.params, strict=True)
    ]
