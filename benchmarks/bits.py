"""Bits dealt out over the layers at 3 on average, against 3 everywhere: the rise of the test loss.

    python benchmarks/bits.py --minutes 40     # goes on where it was; about 10 minutes on one idle core

Three kinds of net with matrices of like size (a ViT and a ResNet-8 on Fashion-MNIST 10k at 14 x 14; a 2-layer GPT on
Python sources), five seeds each, 2 to 5 bits for a layer, rounded to nearest. Ways to deal them out, all from the same
300 validation samples (100 windows):

================  ================================================================================================
everywhere        3 bits for every matrix
size              the least sum of squared changes of the weights: no curvature
trace             the least sum of tr(H_l) times the mean square of the change, 30 products (Dong et al. 2020)
layer by layer    the least sum of g'd + d'Hd / 2 of each layer alone
second order      the least g'd + d'Hd / 2 of all layers together
taken             of everywhere, layer by layer and second order that of the least measured rise on validation:
                  ``optland.landscape.bits_by_layer``
================  ================================================================================================

The rise is of 2,000 test samples (400 windows). A finished net is a line of ``benchmarks/results/bits_runs.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from damage import IMAGES
from damage import KINDS as DAMAGED
from torch import nn

from optland.curvature import hessian, subset, trace_per_layer
from optland.landscape import damage, damaged, rounded
from optland.landscape.bits import _least, _second_order
from optland.objective import Objective
from optland.train import ModelConfig, OptimizerConfig
from optland.train.experiments.bank import Bank, score
from optland.train.experiments.bank_run import BankRun, Splits, cross_entropy

RESULTS = Path(__file__).resolve().parent / "results"
SEEDS, MEAN_BITS, LEVELS, PRODUCTS = range(5), 3, (2, 3, 4, 5), 30
VALIDATED, TESTED, WINDOWS = 300, 2000, (100, 400)
WAYS = ("everywhere", "size", "trace", "layer by layer", "second order")
MEASURED = ("everywhere", "layer by layer", "second order")


def first(kind: str) -> BankRun:
    """The first setting of ``damage.py``."""
    base, rates, _ = DAMAGED[kind]
    return replace(base, optimizer=replace(base.optimizer, lr=rates[0]))


KINDS = {
    "vit": first("vit"),
    "gpt": first("gpt"),
    "resnet": BankRun(
        51_200, net=ModelConfig("resnet", depth=8, width=8),
        optimizer=OptimizerConfig("sgd", lr=0.1, weight_decay=5e-4), **IMAGES,
    ),
}  # fmt: skip


def runs(kind: str) -> list[BankRun]:
    return [replace(KINDS[kind], seed=seed) for seed in SEEDS]


def objective(model: nn.Module, splits: Splits, split: str) -> Objective:
    """The loss on the first samples of a split."""
    x, y = getattr(splits, split)
    tested = split == "test"
    num = WINDOWS[tested] if y.ndim == 2 else (VALIDATED, TESTED)[tested]
    batches = list(zip(x[:num].contiguous().split(500), y[:num].contiguous().split(500), strict=True))
    return Objective(model, cross_entropy, batches, data=split)


def separate(model: nn.Module, harm: Mapping[str, list[float]]) -> dict[str, int]:
    """The least sum of harms of layers that do not see each other, by layer and level."""
    sizes = [float(model.get_parameter(name).numel()) for name in harm]
    flat = len(harm) * len(LEVELS)
    picked = _least(
        np.array(list(harm.values())),
        np.zeros((flat, flat)),
        np.outer(sizes, LEVELS),
        MEAN_BITS * sum(sizes) * (1 + 1e-9),
    )
    return {name: LEVELS[k] for name, k in zip(harm, picked, strict=True)}


def together(L: Objective, names: list[str]) -> dict[str, int]:
    """The least second-order rise of all layers together."""
    slope, bend = _second_order(L, names, LEVELS, "auto")
    sizes = [float(L.model.get_parameter(name).numel()) for name in names]
    picked = _least(slope, bend, np.outer(sizes, LEVELS), MEAN_BITS * sum(sizes) * (1 + 1e-9))
    return {name: LEVELS[k] for name, k in zip(names, picked, strict=True)}


def dealt(L: Objective) -> dict[str, dict[str, int]]:
    """The bits of every way."""
    model = L.model
    after = {b: rounded(model, b) for b in LEVELS}
    own = {name: model.get_parameter(name).detach() for name in after[MEAN_BITS]}
    with hessian(L) as H:
        traces = trace_per_layer(subset(H, list(own)), max_matvecs=PRODUCTS).per_layer

    def square(name: str, b: int) -> float:
        return float((after[b][name] - own[name]).double().square().sum())

    def alone(name: str, b: int) -> float:
        return damage(L, {name: after[b][name]}, max_matvecs=0).predicted.value

    weight = {name: max(traces[name].value, traces[name].error, 0.0) / own[name].numel() for name in own}
    return {
        "everywhere": dict.fromkeys(own, MEAN_BITS),
        "size": separate(model, {n: [square(n, b) for b in LEVELS] for n in own}),
        "trace": separate(model, {n: [0.5 * weight[n] * square(n, b) for b in LEVELS] for n in own}),
        "layer by layer": separate(model, {n: [alone(n, b) for b in LEVELS] for n in own}),
        "second order": together(L, list(own)),
    }


def bits(model: nn.Module, splits: Splits) -> dict[str, Any]:
    """By way: the rise that is predicted and measured on validation, that of the test, and the bits."""
    val, test = objective(model, splits, "val"), objective(model, splits, "test")
    before = test.value()
    found: dict[str, Any] = {}
    for way, chosen in dealt(val).items():
        weights = rounded(model, chosen)
        seen = damage(val, weights, max_matvecs=0)
        found |= {f"{way} predicted": seen.predicted.value, f"{way} val": seen.measured.value}
        with damaged(model, weights):
            found[f"{way} test"] = test.value() - before
        found[f"{way} bits"] = list(chosen.values())
    return found


def summary(bank: Bank) -> dict[str, Any]:
    """By kind and way, one number for each seed that is there."""
    kinds: dict[str, Any] = {}
    for kind in KINDS:
        done = [run for run in runs(kind) if not bank.missing([run])]
        if not done:
            continue
        ends = [with_taken(bank.of(run)["end"]["bits"]) for run in done]
        kinds[kind] = {
            way: {key: [end[f"{way} {key}"] for end in ends] for key in ("predicted", "val", "test", "bits")}
            for way in (*WAYS, "taken")
        }
    ratios = {
        kind: {way: mean_ratio(of[way]["test"], of["everywhere"]["test"]) for way in of}
        for kind, of in kinds.items()
    }
    return {"torch": torch.__version__, "seeds": len(SEEDS), "kinds": kinds, "of everywhere": ratios}


def with_taken(end: dict[str, Any]) -> dict[str, Any]:
    """With the way that validation prefers."""
    way = min(MEASURED, key=lambda name: end[f"{name} val"])
    return end | {f"taken {key}": end[f"{way} {key}"] for key in ("predicted", "val", "test", "bits")}


def mean_ratio(rises: list[float], everywhere: list[float]) -> float:
    """The ratio of the means over the seeds: single rises may be near 0."""
    return statistics.fmean(rises) / statistics.fmean(everywhere)


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="no net is begun after these")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    arguments = parser.parse_args(None if argv is None else list(argv))
    torch.set_num_threads(1)
    bank = Bank(
        RESULTS / "bits_runs.jsonl", {"val": score("val", VALIDATED), "bits": bits},
        watch=lambda line: print(line, flush=True),
    )  # fmt: skip
    bank.make([run for kind in arguments.kinds for run in runs(kind)], arguments.minutes)
    found = summary(bank)
    (RESULTS / "bits.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found["of everywhere"]))


if __name__ == "__main__":
    main()
