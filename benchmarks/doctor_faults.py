"""The faults of ``benchmarks/doctor.py``: what each kind is, how it is made, and the findings that count as right.

This table was written before the first rule of the doctor. A kind has at most two accepted findings; what else a run of
it is told counts as wrong. Cells (a task and an architecture) are split into development, on which rules are tuned, and
held-out, which have neither task nor architecture in common with the former.

The mutation operators are those of the literature on seeded faults (rates, batch sizes, activations, initialisers,
losses, optimizers, regularisers, labels and inputs changed), with the silent faults that no log of losses shows.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import Any

__all__ = ["ACCEPTED", "CELLS", "HEALTHY", "INSTABILITY", "PARTS", "SILENT", "Spec", "draw", "plan"]

HEALTHY = "healthy"

ACCEPTED: dict[str, tuple[str, ...]] = {
    # What a loss curve may show.
    "rate_high": ("rate_above_edge", "exploding_gradients"),
    "rate_low": ("rate_below_edge",),
    "vanishing": ("vanishing_gradients", "plateau"),
    "exploding": ("exploding_gradients", "rate_above_edge"),
    "dead": ("dead_units", "vanishing_gradients"),
    "wrong_labels": ("wrong_labels", "poor_generalisation"),
    "overfit": ("poor_generalisation",),
    "batch_small": ("batch_below_noise", "noise_floor"),
    "batch_large": ("batch_above_noise", "rate_below_edge"),
    "momentum": ("stale_momentum", "rate_above_edge"),
    "sam_much": ("sam_too_much",),
    "sam_little": ("sam_too_little",),
    "saddle": ("saddle_plateau", "vanishing_gradients"),
    "regularised": ("over_regularised", "plateau"),
    "corrupt": ("corrupt_batches", "not_finite"),
    "conditioning": ("ill_conditioned", "inputs_off_scale"),
    # What it does not show: each is made in two ways.
    "unheld": ("weights_not_held",),
    "stale": ("stale_optimizer",),
    "not_zeroed": ("gradients_not_zeroed",),
    "accumulation": ("accumulation_not_divided",),
    "modes": ("modes_mixed_up",),
    "unshuffled": ("data_not_shuffled",),
    "scheduler": ("scheduler_off",),
    "softmax_twice": ("softmax_twice",),
    "reduction": ("wrong_reduction",),
    "symmetric": ("symmetric_weights",),
    "inputs": ("inputs_off_scale",),
    "replicas": ("replicas_drift",),
}
"""The accepted findings of every kind, the best first."""

PARTS = ("dev", "held", "second", "more", "third", "fourth", "fifth")
"""Passes, each on seeds of its own: two on development cells, and one of every version of the rules on held-out."""

INSTABILITY = ("rate_high", "rate_low", "exploding", "momentum", "batch_small", "batch_large")
"""Kinds that curvature, noise and edge are about: the ablation without those signals is compared on them."""

SILENT = (
    "unheld", "stale", "not_zeroed", "accumulation", "modes", "unshuffled", "scheduler", "softmax_twice", "reduction",
    "symmetric", "inputs", "replicas",
)  # fmt: skip

CELLS: dict[str, dict[str, Any]] = {
    # Development.
    "digits_mlp": {"part": "dev", "task": "digits", "net": "mlp", "depth": 2, "width": 64},
    "digits_cnn": {"part": "dev", "task": "digits", "net": "conv2d", "depth": 2, "width": 12},
    "teacher_mlp": {"part": "dev", "task": "teacher", "net": "mlp", "depth": 3, "width": 48},
    "code_transformer": {"part": "dev", "task": "code", "net": "transformer", "depth": 2, "width": 32},
    "friedman_mlp": {"part": "dev", "task": "friedman", "net": "mlp", "depth": 2, "width": 48},
    "cancer_mlp": {"part": "dev", "task": "cancer", "net": "mlp", "depth": 3, "width": 32},
    # Held out.
    "mnist1d_resnet": {"part": "held", "task": "mnist1d", "net": "resnet1d", "depth": 3, "width": 12},
    "mnist1d_conv": {"part": "held", "task": "mnist1d", "net": "conv1d", "depth": 2, "width": 16},
    "tabular_residual": {"part": "held", "task": "tabular", "net": "residual", "depth": 3, "width": 64},
    "regression_residual": {"part": "held", "task": "regression", "net": "residual", "depth": 2, "width": 48},
    "topics_gru": {"part": "held", "task": "topics", "net": "gru", "depth": 1, "width": 48},
}
"""Task and architecture of each cell."""

_PLAIN = ("mlp", "conv2d", "resnet1d", "conv1d", "residual")
_STACKS = dict.fromkeys(("vanishing", "exploding", "dead", "saddle", "symmetric"), _PLAIN)
_TEXTS = ("code", "topics")
_NUMBERS = ("regression", "friedman")
_NOT_ON_TEXTS = ("corrupt", "conditioning", "inputs", "overfit", "wrong_labels")


@dataclass(frozen=True)
class Spec:
    """All that decides a run."""

    seed: int
    part: str
    cell: str
    kind: str = HEALTHY
    way: int = 0
    strength: float = 0.0
    optimizer: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch: int = 64
    steps: int = 200
    schedule: str = "constant"
    accumulation: int = 1
    rho: float = 0.0
    activation: str = "relu"
    norm: str = ""
    skips: bool = False
    depth: int = 2
    width: int = 64
    dropout: float = 0.0
    init: str = "default"
    gain: float = 1.0
    bias: float = 0.0
    labels: float = 0.0
    samples: int = 0
    inputs: str = ""
    corrupt: int = 0
    clip: float = 0.0
    frozen: bool = False
    mended: str = ""

    @property
    def key(self) -> str:
        return "/".join(str(value) for value in asdict(self).values())


def rates(cell: str, optimizer: str) -> float:
    """A rate that trains the healthy net well."""
    net = CELLS[cell]["net"]
    if optimizer == "adamw":
        return {"gru": 0.01, "transformer": 0.005}.get(net, 0.003)
    return {"gru": 0.5, "transformer": 0.1, "conv1d": 0.05}.get(net, 0.05)


def healthy(cell: str, seed: int) -> Spec:
    """A run of the cell as somebody who knows the trade would set it up; much of it is drawn."""
    chance = random.Random(f"healthy {cell} {seed}")
    what, net = CELLS[cell], CELLS[cell]["net"]
    optimizer = chance.choice(["sgd", "adamw"]) if net not in ("transformer",) else "adamw"
    norms = {"resnet1d": "batch", "residual": "layer", "transformer": "layer", "gru": ""}
    return Spec(
        seed=seed, part=what["part"], cell=cell, optimizer=optimizer,
        lr=rates(cell, optimizer) * chance.choice([0.5, 1.0, 1.0, 2.0]),
        batch=chance.choice([32, 32, 64, 64]) if what["task"] not in _TEXTS else 16,
        schedule=chance.choice(["constant", "cosine"]),
        accumulation=chance.choice([1, 1, 1, 2]),
        rho=chance.choice([0.0, 0.0, 0.0, 0.05]),
        activation=chance.choice(["relu", "relu", "tanh"]) if net in ("mlp", "conv2d", "conv1d") else
        "gelu" if net in ("residual", "transformer") else "relu",
        norm=norms.get(net, chance.choice(["", "", "batch"])),
        skips=net in ("resnet1d", "residual"), depth=what["depth"], width=what["width"],
        dropout=chance.choice([0.0, 0.1]), frozen=chance.random() < 0.05,
    )  # fmt: skip


def applies(kind: str, cell: str) -> bool:
    """Whether a kind can be made in a cell."""
    what = CELLS[cell]
    if kind in _STACKS and what["net"] not in _STACKS[kind]:
        return False
    if kind in _NOT_ON_TEXTS and what["task"] in _TEXTS:
        return False
    return not (kind in ("wrong_labels", "softmax_twice") and what["task"] in _NUMBERS)


def draw(kind: str, cell: str, seed: int) -> Spec:
    """A run with one fault, its way and strength at random; ``healthy`` gives the run without."""
    base = healthy(cell, seed)
    if kind == HEALTHY:
        return base
    chance = random.Random(f"{kind} {cell} {seed}")
    way = seed % 2
    spec = replace(base, kind=kind, way=way, frozen=False)
    plain = replace(spec, norm="", skips=False, rho=0.0, dropout=0.0)

    def between(low: float, high: float) -> float:
        """Uniform in the logarithm."""
        return float(low * (high / low) ** chance.random())

    def with_(s: Spec, strength: float, **changes: Any) -> Spec:
        return replace(s, strength=strength, **changes)

    if kind == "rate_high":
        factor = between(20, 300)
        return with_(spec, factor, lr=rates(cell, spec.optimizer) * factor, rho=0.0)
    if kind == "rate_low":
        factor = between(1e-4, 1e-2)
        return with_(spec, factor, lr=rates(cell, spec.optimizer) * factor, rho=0.0)
    if kind == "vanishing":
        deep = chance.randint(8, 14)
        return with_(plain, deep, depth=deep, activation="sigmoid" if way else "tanh",
                     gain=1.0 if way else between(0.2, 0.4))  # fmt: skip
    if kind == "exploding":
        gain = between(3, 8)
        return with_(plain, gain, gain=gain, depth=chance.randint(4, 7), activation="relu")
    if kind == "dead":
        bias = -between(3, 12)
        return with_(plain, bias, activation="relu", bias=bias)
    if kind == "wrong_labels":
        share = chance.uniform(0.3, 0.6)
        return with_(spec, share, labels=share, dropout=0.0)
    if kind == "overfit":
        count = chance.choice([30, 50, 80])
        return with_(spec, count, samples=count, batch=min(spec.batch, count), dropout=0.0)
    if kind == "batch_small":
        size = chance.choice([1, 2, 4]) if spec.norm != "batch" else 4
        return with_(spec, size, batch=size, accumulation=1, rho=0.0, lr=rates(cell, spec.optimizer))
    if kind == "batch_large":
        size = chance.choice([512, 1024])
        return with_(
            spec, size, batch=size, accumulation=1, rho=0.0, steps=max(20, spec.steps * spec.batch // size)
        )
    if kind == "momentum":
        beta = chance.choice([0.99, 0.995, 0.998])
        return with_(spec, beta, momentum=beta, rho=0.0, lr=rates(cell, spec.optimizer))
    if kind == "sam_much":
        rho = between(2, 20)
        return with_(spec, rho, rho=rho)
    if kind == "sam_little":
        rho = between(1e-6, 1e-4)
        return with_(spec, rho, rho=rho)
    if kind == "saddle":
        gain = between(1e-3, 3e-2)
        return with_(plain, gain, gain=gain, optimizer="sgd", lr=rates(cell, "sgd"), depth=3)
    if kind == "regularised":
        if way:
            decay = between(3, 30)
            return with_(spec, decay, weight_decay=decay if spec.optimizer == "adamw" else decay / 10)
        drop = chance.uniform(0.85, 0.97)
        return with_(spec, drop, dropout=drop)
    if kind == "corrupt":
        count = chance.randint(4, 12)
        return with_(spec, count, corrupt=count)
    if kind == "conditioning":
        spread = between(30, 300)
        return with_(spec, spread, inputs="spread", norm="", optimizer="sgd", lr=rates(cell, "sgd") / 4)
    return _silent(kind, cell, spec, way, chance)


def _silent(kind: str, cell: str, spec: Spec, way: int, chance: random.Random) -> Spec:
    net = CELLS[cell]["net"]
    if kind == "accumulation":
        count = chance.choice([2, 4, 8])
        return replace(spec, accumulation=count, strength=count, batch=max(spec.batch, 4 * count))
    if kind == "modes":
        norm = "batch" if net in ("mlp", "conv2d", "conv1d", "resnet1d") else spec.norm
        return replace(spec, norm=norm, dropout=0.2)
    if kind == "scheduler":
        return replace(spec, schedule="cosine")
    if kind == "symmetric":
        return replace(spec, init="constant" if way else "zeros", strength=chance.uniform(0.01, 0.2) if way else 0.0,
                       norm="", skips=False, dropout=0.0)  # fmt: skip
    if kind == "inputs":
        return replace(spec, inputs="large" if way else "small", strength=chance.uniform(100, 300))
    if kind == "unshuffled":
        return replace(spec, batch=32, accumulation=1)
    if kind == "not_zeroed":  # SAM's step clears gradients itself
        return replace(spec, rho=0.0)
    return spec


def plan(part: str, per_kind: int, num_healthy: int, kinds: tuple[str, ...] = tuple(ACCEPTED)) -> list[Spec]:
    """The runs of a part: every kind as often, its cells in turn, both ways as often."""
    development = part in ("dev", "more")
    cells = [name for name, what in CELLS.items() if (what["part"] == "dev") == development]
    offset = 10_000 * PARTS.index(part)
    specs = []
    for kind in kinds:
        if kind == "replicas":
            continue  # of two processes: benchmarks/doctor_replicas.py
        fitting = [c for c in cells if applies(kind, c)]
        # Facts need no tuning: of silent faults there are fewer among the runs on which rules are tuned.
        count = per_kind if not development or kind not in SILENT else 2
        specs += [
            draw(kind, fitting[i % len(fitting)], offset + _seed(kind, i, len(fitting))) for i in range(count)
        ]
    specs += [draw(HEALTHY, cells[i % len(cells)], offset + i) for i in range(num_healthy)]
    return specs


def _seed(kind: str, i: int, num_cells: int) -> int:
    """A seed whose parity, the way of the fault, alternates within each cell."""
    return 2 * (100 * list(ACCEPTED).index(kind) + i) + (i // num_cells + i) % 2
