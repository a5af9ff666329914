"""Measure planes of the loss: forwards per point, and time against loss-landscapes for the same grid.

    python benchmarks/slices.py                  # into benchmarks/results/slices.json, two minutes on an idle machine

Both draw a 25 x 25 plane of the same net and batch along two filter-normalised random directions, float32, eval mode,
one thread. Ours reports each point with the exact curvature of both directions and puts the model back; that is in its
time. The peer works on a copy of the model. A forward counts when the model is called. Repeats are interleaved; the
ratio is of medians.

Where a forward takes less than 2 ms, ours runs 32 points in one call (``num_together=32``). Its values are held against
the same plane in float64, written out point by point.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.landscape import plane, random_direction
from optland.objective import Objective
from optland.train import DataConfig, ModelConfig, build_model, load_data, seed_everything

RESULT = Path(__file__).resolve().parent / "results" / "slices.json"
POINTS, REPEATS = 25, 5
SHORT = 2e-3
"""Seconds of a forward below which ours runs 32 points in one call."""

NETS = {
    "digits MLP": (ModelConfig("mlp", width=32), 128),
    "small CNN": (ModelConfig("cnn", width=4), 64),
    "small ResNet-8, BatchNorm": (ModelConfig("resnet8", width=4), 16),
    "digits CNN": (ModelConfig("cnn", width=16), 256),
    "ResNet-8, BatchNorm": (ModelConfig("resnet8", width=8), 256),
}


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class Counter:
    """Counts calls of a module."""

    def __init__(self, model: nn.Module) -> None:
        self.calls = 0
        model.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.calls += 1


def ours(model: nn.Module, batch: tuple[Tensor, Tensor], together: int = 1) -> Any:
    objective = Objective(model, loss_fn, [batch])
    first, second = (random_direction(objective, seed=i) for i in (1, 2))
    return plane(objective, first, second, num_points=POINTS, num_together=together)


def peer(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Any:
    import loss_landscapes
    from loss_landscapes.metrics import Loss

    metric = Loss(nn.CrossEntropyLoss(), *batch)
    # Its filter normalisation fails on gains and biases of one dimension: its layer normalisation is timed, less work.
    return loss_landscapes.random_plane(model, metric, 1, POINTS, normalization="layer", deepcopy_model=True)


def seconds(draw: Callable[[], Any]) -> float:
    started = time.perf_counter()
    draw()
    return time.perf_counter() - started


def one(name: str) -> dict[str, Any]:
    config, size = NETS[name]
    seed_everything(0)
    data = load_data(DataConfig("digits"))
    model = build_model(config, data.image_shape, data.num_classes).eval()
    batch = (data.normalise(data.train_x)[:size], data.train_y[:size])
    with torch.no_grad():
        model(batch[0])
        forward = statistics.median(seconds(lambda: model(batch[0])) for _ in range(50))
    counter = Counter(model)
    ours(model, batch)
    forwards = counter.calls
    times: dict[str, list[float]] = {"ours": [], "loss-landscapes": []}
    stacked = 32 if forward < SHORT else 1
    tools: dict[str, Callable[[], object]] = {
        "ours": lambda: ours(model, batch, stacked),
        "loss-landscapes": lambda: peer(model, batch),
    }
    for draw in tools.values():
        draw()
    for _ in range(REPEATS):
        for tool, draw in tools.items():
            times[tool].append(seconds(draw))
    exact, found = ours_in_double(model, batch), ours(model, batch, stacked)
    medians = {tool: statistics.median(t) for tool, t in times.items()}
    return {
        "forward ms": 1e3 * forward,
        "points together": stacked,
        "forwards a point": forwards / POINTS**2,
        "seconds": medians,
        "ratio": medians["ours"] / medians["loss-landscapes"],
        "largest relative error": float(((found.loss - exact) / exact).abs().max()),
    }


def ours_in_double(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The same plane written out in float64: weights set by hand, one forward per point."""
    import copy

    objective = Objective(model, loss_fn, [batch])
    directions = [random_direction(objective, seed=i).tensors for i in (1, 2)]
    wide = copy.deepcopy(model).double().eval()
    weights = [p.detach().clone() for p in wide.parameters()]
    axis = torch.linspace(-1, 1, POINTS, dtype=torch.float64)
    values = torch.empty(POINTS, POINTS, dtype=torch.float64)
    with torch.no_grad():
        for i, a in enumerate(axis):
            for j, b in enumerate(axis):
                for p, w, d, e in zip(wide.parameters(), weights, *directions, strict=True):
                    p.copy_(w + a * d.double() + b * e.double())
                values[i, j] = F.cross_entropy(wide(batch[0].double()), batch[1])
    return values


def main() -> int:
    torch.set_num_threads(1)
    rows = {}
    for name in NETS:
        rows[name] = one(name)
        print(name, rows[name], flush=True)
    content = {
        "benchmark": "slices",
        "machine": {"python": platform.python_version(), "torch": torch.__version__},
        "peer": importlib.metadata.version("loss-landscapes"),
        "points": POINTS,
        "repeats": REPEATS,
        "nets": rows,
    }
    RESULT.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
