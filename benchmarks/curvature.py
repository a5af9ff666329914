"""The curvature engine against PyHessian, curvlinops with SciPy's eigsh, and hessian-eigenthings.

    python benchmarks/curvature.py                        # every part, about 40 minutes on an idle machine
    python benchmarks/curvature.py --parts cold both      # some of them, kept beside the others in the result file

Needs the peers (pip install --no-deps pyhessian curvlinops-for-pytorch hessian-eigenthings, and what they import) and
`transformers` for the 124 M model; Fashion-MNIST from OPTLAND_DATA or Debian's package dataset-fashion-mnist. A peer or
a data set that is missing is left out, and the result says so. Certificates, warm runs and traces that are done lie in
runs/benchmarks, so an interrupted benchmark goes on where it was.

cold      Largest eigenvalue from a random start. Every tool gets the same net, batch and precision (float32, eval
          mode); an answer counts when it is within 1 % of the float64 value, from SciPy's eigsh on a product written
          here. A peer has several settings, and the fastest with which it reaches 1 % for every seed is its time;
          where there is none it missed. Ours has one setting, ``stop="value"``. Times include making the operator.
warm      The tracker during training, every 10 steps, against a cold run at the same weights, with either stop.
both      Products for both ends against products for the lower end alone.
trace     30 products: error against the exact trace, Hutchinson's error at 30 products, coverage of 95 % intervals.
scale     10 k to 124 M parameters: seconds per product and parameter, peak memory of lambda_max with its residual.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from kept import SCRATCH, Kept
from torch import Tensor, nn
from torch.nn import functional as F

from optland.config import UserError
from optland.curvature import SpectrumTracker, hessian, lanczos, trace_per_layer
from optland.curvature.eigen.lanczos import Stop
from optland.curvature.eigen.tracker import Tracked
from optland.objective import Objective
from optland.train import (
    BatchLoader,
    DataConfig,
    ImageData,
    ModelConfig,
    TextConfig,
    TransformerConfig,
    build_model,
    load_data,
    load_text,
)

Batch = tuple[Tensor, Tensor]
TRUE_ERROR = 0.01
SEEDS = 5
CERTIFICATE_SEEDS = 20
STOPS: tuple[Stop, ...] = ("residual", "value")


# ------------------------------------------------------------------ nets


@dataclass(frozen=True)
class Case:
    """A net at some weights and the batch it is looked at on."""

    name: str
    model: nn.Module
    batch: Batch

    @property
    def dim(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def loss_of_output(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy, of classes or of tokens."""
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    """The same as a function of model and batch."""
    return loss_of_output(model(batch[0]), batch[1])


@dataclass(frozen=True)
class ImageCase:
    """A net on images: the data, the model, epochs of training, and images of the batch it is looked at on."""

    data: DataConfig
    model: ModelConfig
    epochs: int
    batch: int = 512


IMAGES = {
    "digits CNN": ImageCase(DataConfig("digits"), ModelConfig("cnn", width=16), 20),
    # 28 x 28 pixels make an image 12 times as costly as a digit: half the width and a quarter of the batch bring a
    # product from 2 s back to the tenth of a second of the other nets.
    "Fashion-MNIST CNN": ImageCase(
        DataConfig("fashion_mnist", subset=4000), ModelConfig("cnn", width=8), 4, batch=128
    ),
    "ResNet-8, BatchNorm": ImageCase(DataConfig("digits"), ModelConfig("resnet8", width=16), 20),
}

LEFT_OUT: dict[str, str] = {}
"""Cases whose data are not on this machine, and what the loader said: part of the result."""


def images(names: list[str] | None = None) -> Iterator[tuple[str, ImageCase, ImageData]]:
    """The image cases whose data are here."""
    for name, case in IMAGES.items():
        if names and name not in names:
            continue
        try:
            data = load_data(case.data)
        except UserError as error:
            LEFT_OUT[name] = str(error)
            print(f"{name}: left out. {error}", flush=True)
            continue
        yield name, case, data


def cases(names: list[str] | None = None) -> Iterator[Case]:
    """Every net at initialisation and trained."""
    for name, case, data in images(names):
        torch.manual_seed(0)
        model = build_model(case.model, data.image_shape, data.num_classes)
        x, y = data.normalise(data.train_x), data.train_y
        yield from _both_states(name, model, (x[: case.batch], y[: case.batch]), [x, y], case.epochs)
    if not names or "2-layer GPT" in names:
        text = load_text(TextConfig(max_bytes=200_000, context=64))
        torch.manual_seed(0)
        model = TransformerConfig(depth=2, width=64, heads=4).build(text.vocabulary, text.context)
        x, y = text.windows("train")
        yield from _both_states("2-layer GPT", model, (x[:32].clone(), y[:32].clone()), [x, y], 1)


def _both_states(
    name: str, model: nn.Module, batch: Batch, data: list[Tensor], epochs: int
) -> Iterator[Case]:
    model.eval()
    yield Case(f"{name}, start", model, batch)
    train(model, data, epochs)
    model.eval()
    yield Case(f"{name}, trained", model, batch)


def train(
    model: nn.Module, data: list[Tensor], epochs: int, after: Callable[[int], None] | None = None
) -> None:
    """AdamW at 2e-3, batches of 64 images or 16 windows."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    size = 64 if data[0].is_floating_point() else 16
    for step, batch in enumerate(BatchLoader(data, size, epochs=epochs, seed=0)):
        optimizer.zero_grad()
        loss_fn(model, (batch[0], batch[1])).backward()
        optimizer.step()
        if after is not None:
            after(step)


def double(case: Case) -> tuple[list[Tensor], Callable[[np.ndarray], np.ndarray], int]:
    """Parameters, Hessian product and size in float64, written without the package: the reference."""
    import copy

    model = copy.deepcopy(case.model).double()
    x = case.batch[0].double() if case.batch[0].is_floating_point() else case.batch[0]
    params: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = loss_fn(model, (x, case.batch[1]))
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, params, create_graph=True)])

    def product(v: np.ndarray) -> np.ndarray:
        out = torch.autograd.grad(gradient, params, torch.as_tensor(v).reshape(-1), retain_graph=True)
        return torch.cat([g.reshape(-1) for g in out]).numpy()

    return params, product, gradient.numel()


def reference(case: Case, which: str = "LA") -> float:
    """An extreme eigenvalue in float64, its error of the order of the tolerance squared."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    _, product, d = double(case)
    operator = LinearOperator((d, d), matvec=product, dtype=np.float64)
    value, _ = eigsh(operator, k=1, which=which, tol=1e-5, ncv=40, maxiter=100_000)
    return float(value[0])


# ------------------------------------------------------------------ the tools


def ours(case: Case, seed: int) -> float:
    objective = Objective(case.model, loss_fn, [case.batch])
    with hessian(objective) as H:
        return lanczos(H, ends="top", stop="value", seed=seed).top.value


def pyhessian(tolerance: float) -> Callable[[Case, int], float]:
    def run(case: Case, seed: int) -> float:
        from pyhessian import hessian as peer

        torch.manual_seed(seed)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            values, _ = peer(case.model, loss_of_output, data=case.batch, cuda=False).eigenvalues(
                maxIter=1000, tol=tolerance
            )
        case.model.zero_grad()
        return float(values[0])

    return run


def curvlinops(tolerance: float) -> Callable[[Case, int], float]:
    def run(case: Case, seed: int) -> float:
        from curvlinops import HessianLinearOperator
        from scipy.sparse.linalg import eigsh

        params = [p for p in case.model.parameters() if p.requires_grad]
        flat = _Flat(case.model)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            H = HessianLinearOperator(
                flat, nn.CrossEntropyLoss(), params, [(case.batch[0], case.batch[1].flatten())],
                check_deterministic=False, num_data=len(case.batch[1].flatten()),
                batch_size_fn=lambda x: len(x) * (1 if x.is_floating_point() else x.shape[1]),
            ).to_scipy()  # fmt: skip
            start = np.random.default_rng(seed).standard_normal(H.shape[0]).astype(np.float32)
            values, _ = eigsh(H, k=1, which="LA", tol=tolerance, v0=start)
        return float(values[0])

    return run


class _Flat(nn.Module):
    """Token logits as rows, which is what curvlinops' losses take."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x)
        return output.flatten(0, -2)


def eigenthings(steps: int) -> Callable[[Case, int], float]:
    def run(case: Case, seed: int) -> float:
        from hessian_eigenthings import HessianOperator
        from hessian_eigenthings import lanczos as peer

        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            H = HessianOperator(case.model, [case.batch], loss_fn)
            found = peer(H, k=1, max_iter=steps, which="LA", seed=seed, reorthogonalize=True)
        return float(found.eigenvalues[0])

    return run


PEERS: dict[str, dict[str, Callable[[Case, int], float]]] = {
    "PyHessian": {f"tol {t:g}": pyhessian(t) for t in (1e-2, 1e-3)},
    "curvlinops + eigsh": {f"tol {t:g}": curvlinops(t) for t in (1e-1,)},
    "hessian-eigenthings": {f"{m} steps": eigenthings(m) for m in (10, 20)},
}
PACKAGES = {
    "PyHessian": "pyhessian",
    "curvlinops + eigsh": "curvlinops-for-pytorch",
    "hessian-eigenthings": "hessian-eigenthings",
}


def versions() -> dict[str, str]:
    """Names and versions of the peers that are installed."""
    found = {}
    for name, package in PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


# ------------------------------------------------------------------ cold


def timed(tool: Callable[[Case, int], float], case: Case, seed: int) -> tuple[float, float]:
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = tool(case, seed)
    return time.perf_counter() - started, value


def cold(seeds: int, names: list[str] | None = None) -> dict[str, Any]:
    """Time to 1 % true error, ours and the peers', seeds interleaved."""
    table: dict[str, dict[str, Any]] = {}
    settings: dict[str, dict[str, Callable[[Case, int], float]]] = {
        "ours": {"default": ours},
        **{k: v for k, v in PEERS.items() if versions()[k] != "not installed"},
    }
    for case in cases(names):
        truth = reference(case)
        tools = {(name, key): tool for name, some in settings.items() for key, tool in some.items()}
        seconds: dict[tuple[str, str], list[float]] = {key: [] for key in tools}
        missed = dict.fromkeys(tools, 0)
        for tool in tools.values():
            timed(tool, case, 999)  # warm
        for seed in range(seeds):
            for key, tool in tools.items():
                took, value = timed(tool, case, seed)
                seconds[key].append(took)
                missed[key] += not abs(value - truth) <= TRUE_ERROR * abs(truth)
        rows: dict[str, dict[str, Any]] = {}
        for name, some in settings.items():
            reached = [k for k in some if missed[name, k] == 0]
            best = min(reached, key=lambda k: statistics.median(seconds[name, k]), default=None)
            rows[name] = {
                "setting": best,
                "seconds": None if best is None else statistics.median(seconds[name, best]),
                "missed": {k: missed[name, k] for k in some},
                "all_seconds": {k: statistics.median(seconds[name, k]) for k in some},
            }
        peers = {k: r["seconds"] for k, r in rows.items() if k != "ours" and r["seconds"] is not None}
        fastest = min(peers, key=lambda k: peers[k], default=None)
        mine = rows["ours"]["seconds"]
        ratio = None if fastest is None or mine is None else mine / peers[fastest]
        table[case.name] = {"d": case.dim, "truth": truth, "tools": rows, "fastest": fastest, "ratio": ratio}
        print(
            f"{case.name}: {ratio and round(ratio, 3)} of {fastest}; missed {rows['ours']['missed']}",
            flush=True,
        )
    ratios = [row["ratio"] for row in table.values() if row["ratio"] is not None]
    return {
        "cases": table,
        "seeds": seeds,
        "geometric mean": statistics.geometric_mean(ratios) if ratios else None,
        "largest": max(ratios, default=None),
    }


def certificates(seeds: int) -> dict[str, Any]:
    """Whether residual intervals hold an eigenvalue and random-start certificates hold the extremes."""
    kept = Kept(SCRATCH / "curvature-certificates.jsonl")
    rows = {}
    for case in cases():
        rows[case.name] = row = kept.of(f"{case.name}, {seeds} seeds", lambda: _certified(case, seeds))  # noqa: B023
        print(f"certificates, {case.name}: {row['held']} of {seeds}", flush=True)
    return {
        "cases": rows,
        "share": sum(r["held"] for r in rows.values()) / sum(r["of"] for r in rows.values()),
    }


def _certified(case: Case, seeds: int) -> dict[str, Any]:
    top, bottom = reference(case), reference(case, "SA")
    held = 0
    for seed in range(seeds):
        with hessian(Objective(case.model, loss_fn, [case.batch])) as H:
            found = lanczos(H, seed=seed)
        slack = 1e-4 * (top - bottom)  # float32 against float64
        assert found.certificate is not None
        reach = found.certificate * (top - bottom) + slack
        inside = top - found.top.value <= reach and found.bottom.value - bottom <= reach
        sound = found.negative_curvature != "certified" or bottom < 0
        tau = found.tau is None or bottom >= -found.tau - slack
        held += inside and sound and tau
    return {"held": held, "of": seeds}


def both(seeds: int) -> dict[str, Any]:
    """Products for both ends over products for the lower end alone, same tolerance and start."""
    rows = {}
    for case in cases():
        counts: dict[Literal["both", "bottom"], int] = {"both": 0, "bottom": 0}
        for seed in range(seeds):
            for ends in counts:
                with hessian(Objective(case.model, loss_fn, [case.batch])) as H:
                    counts[ends] += lanczos(H, ends=ends, max_matvecs=400, seed=seed).num_matvecs
        rows[case.name] = counts["both"] / counts["bottom"]
        print(f"both ends, {case.name}: {rows[case.name]:.3f} of the products of the lower end", flush=True)
    return {"cases": rows, "largest": max(rows.values()), "mean": statistics.geometric_mean(rows.values())}


# ------------------------------------------------------------------ warm


def warm(seeds: int = 2, steps: int = 300, every: int = 10) -> dict[str, Any]:
    """Products of the tracker at the top, audits included, and its distance from a cold run at the same weights.

    Both stops follow the same trainings: ``"residual"`` to a residual of 1 %, as the cold runs, and ``"value"``.
    """
    kept = Kept(SCRATCH / "curvature-warm.jsonl")
    rows = {}
    for rule in ("SGD", "AdamW"):
        for seed in range(seeds):
            for name, model, batch, data in _fresh_nets(seed):
                key = f"{name}, {rule}, seed {seed}"
                rows[key] = row = kept.of(
                    f"{key}, {steps} steps",
                    lambda: _follow(model, batch, data, rule, seed, steps, every),  # noqa: B023
                )
                said = [
                    f"{stop} {row[stop]['products']:.2f}, {row[stop]['within 2 %']:.3f}" for stop in STOPS
                ]
                print(f"warm, {key}: {'; '.join(said)} within 2 %", flush=True)
    return {
        "cases": rows,
        "seeds": seeds,
        "mean cold products": statistics.mean(r["cold products"] for r in rows.values()),
        **{stop: _over_cases([r[stop] for r in rows.values()]) for stop in STOPS},
    }


def _over_cases(rows: list[dict[str, Any]]) -> dict[str, Any]:
    means = {
        f"mean {key}": statistics.mean(r[key] for r in rows)
        for key in ("products", "products of warm runs", "audits")
    }
    return {
        **means,
        "largest products": max(r["products"] for r in rows),
        "within 2 %": statistics.mean(r["within 2 %"] for r in rows),
        "largest error": max(r["largest error"] for r in rows),
    }


def _fresh_nets(seed: int) -> Iterator[tuple[str, nn.Module, Batch, list[Tensor]]]:
    for name, case, data in images():
        torch.manual_seed(seed)
        model = build_model(case.model, data.image_shape, data.num_classes)
        x = data.normalise(data.train_x)
        yield name, model, (x[:256].clone(), data.train_y[:256].clone()), [x, data.train_y]
    text = load_text(TextConfig(max_bytes=400_000, context=64))
    torch.manual_seed(seed)
    model = TransformerConfig(depth=2, width=64, heads=4).build(text.vocabulary, text.context)
    x, y = text.windows("train")
    yield "2-layer GPT", model, (x[:16].clone(), y[:16].clone()), [x, y]


def _follow(
    model: nn.Module, batch: Batch, data: list[Tensor], rule: str, seed: int, steps: int, every: int
) -> dict[str, Any]:
    """Train for some steps, and look with a tracker of each stop and with a cold run every so many."""
    trackers = {stop: SpectrumTracker(ends="top", stop=stop, seed=100 * seed) for stop in STOPS}
    found: dict[str, list[Tracked]] = {stop: [] for stop in STOPS}
    cold = []

    def look() -> None:
        objective = Objective(model, loss_fn, [batch])
        for stop, tracker in trackers.items():
            with hessian(objective) as H:
                found[stop].append(tracker.probe(H))
        with hessian(objective) as H:
            cold.append(lanczos(H, ends="top", start="random", seed=10_000 + seed))

    params = list(model.parameters())
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(params, lr=1e-3)
    if rule == "SGD":
        optimizer = torch.optim.SGD(params, lr=0.02, momentum=0.9)
    size = 64 if data[0].is_floating_point() else 16
    model.train()
    for step, part in enumerate(BatchLoader(data, size, epochs=1000, seed=seed)):
        if step == steps:
            break
        optimizer.zero_grad()
        loss_fn(model, (part[0], part[1])).backward()
        optimizer.step()
        if step % every == every - 1:
            look()
    truth = [spectrum.top.value for spectrum in cold]
    return {
        "cold products": statistics.mean(spectrum.num_matvecs for spectrum in cold),
        "probes": len(cold),
        **{stop: _against(found[stop], truth) for stop in STOPS},
    }


def _against(found: list[Tracked], truth: list[float]) -> dict[str, Any]:
    """What one tracker spent, what of it without audits, and how far its values were from the cold ones."""
    errors = [abs(f.spectrum.top.value / value - 1) for f, value in zip(found, truth, strict=True)]
    audits = [f.audit.num_matvecs for f in found if f.audit is not None]
    return {
        "products": statistics.mean(f.num_matvecs for f in found),
        "products of warm runs": (sum(f.num_matvecs for f in found) - sum(audits)) / (len(found) - 1),
        "audits": len(audits),
        "why": [f.why for f in found if f.why],
        "replaced": sum(f.replaced for f in found),
        "converged": sum(f.spectrum.converged for f in found),
        "within 2 %": sum(e <= 0.02 for e in errors) / len(errors),
        "largest error": max(errors),
    }


# ------------------------------------------------------------------ trace


SMALL = {
    "digits MLP": ModelConfig("mlp", width=24),
    "digits CNN": ModelConfig("cnn", width=4),
    "ResNet-8, BatchNorm": ModelConfig("resnet8", width=3),
}


def traces(seeds: int = 200, products: int = 30) -> dict[str, Any]:
    """Error at 30 products over Hutchinson's (in closed form from the matrix), and coverage of 95 % intervals."""
    kept = Kept(SCRATCH / "curvature-trace.jsonl")
    rows = {}
    for case in _small_cases():
        key = f"{case.name}, {seeds} seeds, {products} products"
        rows[case.name] = row = kept.of(key, lambda: _traced(case, seeds, products))  # noqa: B023
        print(
            f"trace, {case.name}: {row['ratio']:.3f} of Hutchinson's, coverage {row['coverage']:.3f}",
            flush=True,
        )
    return {
        "cases": rows,
        "seeds": seeds,
        "products": products,
        "geometric mean": statistics.geometric_mean(r["ratio"] for r in rows.values()),
        "largest": max(r["ratio"] for r in rows.values()),
        "coverage": [min(r["coverage"] for r in rows.values()), max(r["coverage"] for r in rows.values())],
    }


def _traced(case: Case, seeds: int, products: int) -> dict[str, Any]:
    with hessian(Objective(case.model, loss_fn, [case.batch]).double()) as H:
        dense = H.to_dense()
    truth = float(dense.diagonal().sum())
    hutchinson = math.sqrt(2 * float(dense.square().sum() - dense.diagonal().square().sum()) / products)
    errors, covered = [], 0
    for seed in range(seeds):
        with hessian(Objective(case.model, loss_fn, [case.batch])) as H:
            found = trace_per_layer(H, max_matvecs=products, seed=seed)
        low, high = found.interval(0.95)
        errors.append(found.total.value - truth)
        covered += low <= truth <= high
    rms = math.sqrt(statistics.mean(e * e for e in errors))
    return {"d": case.dim, "trace": truth, "ratio": rms / hutchinson, "coverage": covered / seeds}


def _small_cases() -> Iterator[Case]:
    """Trained nets whose whole Hessian can be formed."""
    data = load_data(DataConfig())
    x = data.normalise(data.train_x)
    for name, config in SMALL.items():
        torch.manual_seed(0)
        model = build_model(config, data.image_shape, data.num_classes)
        *_, trained = _both_states(name, model, (x[:256], data.train_y[:256]), [x, data.train_y], 20)
        yield trained
    text = load_text(TextConfig(max_bytes=100_000, context=32))
    torch.manual_seed(0)
    model = TransformerConfig(depth=2, width=8, heads=2).build(text.vocabulary, text.context)
    tokens, targets = text.windows("train")
    batch = (tokens[:16].clone(), targets[:16].clone())
    *_, trained = _both_states("2-layer GPT", model, batch, [tokens, targets], 2)
    yield trained


# ------------------------------------------------------------------ scale


WIDTHS = {"10 k": (1, 24), "100 k": (2, 64), "1 M": (4, 144), "10 M": (6, 368), "124 M": (0, 0)}
"""Depth and width of transformers; the last is GPT-2 small from `transformers` with random weights."""


def scale() -> dict[str, Any]:
    """Each size in a process of its own, whose peak memory is that of the probe."""
    rows = {}
    for name in WIDTHS:
        command = [sys.executable, __file__, "--one-size", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"scale, {name}: {rows[name]}", flush=True)
    large = [r for r in rows.values() if r["d"] > 5e5]
    x = [math.log(r["d"]) for r in large]
    y = [math.log(r["seconds a product"]) for r in large]
    slope = statistics.linear_regression(x, y).slope
    return {"sizes": rows, "exponent from 1 M on": slope}


def one_size(name: str) -> dict[str, Any]:
    """lambda_max of one model on 1 x 64 tokens."""
    torch.manual_seed(0)
    depth, width = WIDTHS[name]
    if depth:
        model: nn.Module = TransformerConfig(depth=depth, width=width, heads=4).build(100, 64)
        tokens = torch.randint(100, (1, 65))
        loss: Any = loss_fn
    else:
        from transformers import GPT2Config, GPT2LMHeadModel

        model = GPT2LMHeadModel(GPT2Config())
        tokens = torch.randint(50257, (1, 65))

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            return loss_of_output(model(batch[0]).logits, batch[1])

    model.eval()
    with hessian(Objective(model, loss, [(tokens[:, :-1], tokens[:, 1:])])) as H:
        started = time.perf_counter()
        H.matvec([torch.zeros_like(p) for p in H.like])
        setup = time.perf_counter() - started
        started = time.perf_counter()
        found = lanczos(H, ends="top")
        seconds = time.perf_counter() - started
    return {
        "d": sum(p.numel() for p in model.parameters()),
        "lambda_max": found.top.value,
        "residual": found.top.error,
        "converged": found.top.converged,
        "products": found.num_matvecs,
        "seconds a product": seconds / found.num_matvecs,
        "setup seconds": setup,
        "peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "cold": lambda: cold(SEEDS),
    "certificates": lambda: certificates(CERTIFICATE_SEEDS),
    "both": lambda: both(5),
    "warm": warm,
    "trace": traces,
    "scale": scale,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--one-size", choices=WIDTHS, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, default=Path("benchmarks/results/curvature.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one_size:
        print(json.dumps(one_size(arguments.one_size)))
        return 0
    known = (
        json.loads(arguments.result.read_text()) if arguments.result.exists() else {"benchmark": "curvature"}
    )
    known["machine"] = {
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }
    known["peers"] = versions()
    for part in arguments.parts:
        known[part] = PARTS[part]()
        known["left out"] = LEFT_OUT
        arguments.result.parent.mkdir(parents=True, exist_ok=True)
        arguments.result.write_text(json.dumps(known, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
