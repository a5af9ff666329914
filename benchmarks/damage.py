"""Is the rise of the loss under rounding, pruning and noise predicted?

    python benchmarks/damage.py --minutes 40     # goes on where it was; about 20 minutes on one idle core

Five kinds of net (CNNs on digits, on MNIST-1D and on Fashion-MNIST 10k at 14 x 14, a ViT on the last, and a 2-layer GPT
on Python sources), twelve nets each: two learning rates, a decay to 0 or none, the base optimizer or SAM at the same
gradient evaluations, and four more seeds of the first. Each is damaged in eight ways. True and predicted rise are of
the same 500 validation samples (300 of the ViT, 100 windows of the GPT; of digits, which have 180, those and the test:
nothing is chosen here). A net whose validation loss is above 90 % of that of guessing has not learnt and is left out.

Predictions: ``second order`` (g'd + d'Hd / 2), ``trace form``, ``linearised`` (the loss at outputs that move by Jd,
from two forwards); controls: the size of the damage without curvature, the norm of the weights, and the rate at the
end.
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

import torch
from torch import Tensor, nn

from optland.curvature import hessian, subset, trace_per_layer
from optland.landscape import damage, pruned, rounded, shaken
from optland.landscape.damages import rounding_steps
from optland.objective import Objective
from optland.train import DataConfig, ModelConfig, OptimizerConfig, TextConfig, TransformerConfig
from optland.train.experiments.bank import Bank, score
from optland.train.experiments.bank_run import BankRun, Splits, cross_entropy
from optland.train.models.vit import VisionTransformer

RESULTS = Path(__file__).resolve().parent / "results"
FASHION = DataConfig("fashion_mnist", subset=10_000)
TEXT = TextConfig(tokens="bytes", context=48, max_bytes=1_000_000)
IMAGES: dict[str, Any] = {"data": FASHION, "halved": True, "schedule": "linear"}
SAMPLES, FEWER, WINDOWS, PRODUCTS, DRAWS = 500, 300, 100, 12, 2
GUESSING = 0.9
RESOLVED = (0.02, 0.5)
KINDS: dict[str, tuple[BankRun, tuple[float, float], str]] = {
    "cnn": (BankRun(25_600, net=ModelConfig("cnn", width=8), optimizer=OptimizerConfig("sgd", weight_decay=5e-4),
                    **IMAGES), (0.03, 0.1), "sam"),
    "vit": (BankRun(12_800, net=ModelConfig("vit", depth=2, width=32),
                    optimizer=OptimizerConfig("adamw", weight_decay=0.05), **IMAGES), (0.002, 0.006), "sam_adamw"),
    "gpt": (BankRun(7_200, batch_size=24, text=TEXT, schedule="linear",
                    transformer=TransformerConfig(depth=2, width=64, heads=4),
                    optimizer=OptimizerConfig("adamw", weight_decay=0.05)), (0.003, 0.01), "sam_adamw"),
    "digits": (BankRun(36_000, net=ModelConfig("cnn", width=16), schedule="linear",
                       optimizer=OptimizerConfig("sgd", weight_decay=5e-4)), (0.03, 0.1), "sam"),
    "mnist1d": (BankRun(96_000, data=DataConfig("mnist1d"), net=ModelConfig("cnn", width=16), schedule="linear",
                        optimizer=OptimizerConfig("sgd", weight_decay=5e-4)), (0.03, 0.1), "sam"),
}  # fmt: skip
RHO = {"sam": 0.1, "sam_adamw": 0.05}
DAMAGES = ("int4", "int3", "int2", "prune=0.5", "prune=0.7", "prune=0.85", "noise=0.2", "noise=0.4")
PREDICTIONS = ("second order", "trace form", "linearised")
CONTROLS = ("size of the damage", "norm of the weights", "rate at the end")


def sam(run: BankRun, model: nn.Module, steps: int) -> Any:
    """SAM around the run's own optimizer."""
    from optland.optim import SAM

    return SAM(run.optimizer.build(model, steps), rho=run.strength or 0.0, model=model)


def runs(kind: str) -> list[BankRun]:
    """The twelve nets of a kind."""
    base, rates, _ = KINDS[kind]
    first = [replace(base, seed=seed, optimizer=replace(base.optimizer, lr=rates[0])) for seed in range(5)]
    second = {"method": "sam", "strength": RHO[KINDS[kind][2]], "passes": 2.0}
    methods: list[dict[str, Any]] = [{}, second]
    grid = [
        replace(base, schedule=schedule, optimizer=replace(base.optimizer, lr=lr), **more)
        for lr in rates
        for schedule in ("linear", "constant")
        for more in methods
    ]
    return list({run.key: run for run in [*first, *grid]}.values())


def objective(model: nn.Module, splits: Splits) -> Objective:
    """The loss on held-out samples; where validation has too few to rank nets by, on those of the test too."""
    x, y = splits.val
    if len(y) < FEWER and y.ndim == 1:
        x, y = torch.cat([x, splits.test[0]]), torch.cat([y, splits.test[1]])
    count = WINDOWS if y.ndim == 2 else FEWER if isinstance(model, VisionTransformer) else SAMPLES
    return Objective(model, cross_entropy, [(x[:count].contiguous(), y[:count].contiguous())], data="val")


def changed(model: nn.Module, name: str) -> list[dict[str, Tensor]]:
    """The weights after a damage, several draws of a random one."""
    kind, _, amount = name.partition("=")
    if kind == "prune":
        return [pruned(model, float(amount))]
    if kind == "noise":
        return [shaken(model, float(amount), seed=seed) for seed in range(DRAWS)]
    return [rounded(model, int(kind.removeprefix("int")))]


@torch.no_grad()
def linearised(L: Objective, weights: Mapping[str, Tensor]) -> float:
    """The rise of the loss when the outputs move by Jd, a central difference over a fiftieth of d each way."""
    own = {name: p.detach() for name, p in L.model.named_parameters()}
    ((x, y),) = L.own_batches

    def outputs(t: float) -> Tensor:
        there = {name: own[name] + t * (v - own[name]) for name, v in weights.items()}
        found: Tensor = torch.func.functional_call(L.model, there, (x,))
        return found.double()

    def loss(z: Tensor) -> float:
        return float(nn.functional.cross_entropy(z.flatten(0, -2), y.flatten()))

    z = outputs(0.0)
    return loss(z + (outputs(0.02) - outputs(-0.02)) / 0.04) - loss(z)


def damages(model: nn.Module, splits: Splits) -> dict[str, float]:
    """True and predicted rises of every damage."""
    L = objective(model, splits)
    names = list(rounded(model, 3))
    with hessian(L) as H:
        traces = trace_per_layer(subset(H, names), max_matvecs=PRODUCTS)
    own = {name: model.get_parameter(name).detach().clone() for name in names}
    found: dict[str, float] = {"loss": L.value()}
    for name in DAMAGES:
        every = changed(model, name)
        seen = damage(L, every, max_matvecs=0)
        squares = {n: statistics.fmean(float((w[n] - own[n]).square().mean()) for w in every) for n in names}
        found |= {
            f"{name} true": seen.measured.value,
            f"{name} second order": seen.predicted.value,
            f"{name} trace form": sum(0.5 * traces.per_layer[n].value * s for n, s in squares.items()),
            f"{name} linearised": statistics.fmean(linearised(L, w) for w in every),
            f"{name} size of the damage": seen.distance**2,
        }
    for b in (2, 3, 4):
        steps = rounding_steps(model, b)
        found[f"int{b} steps"] = sum(
            0.5 * traces.per_layer[n].value * float(steps[n].square().mean()) / 12 for n in names
        )
    return found


def tau(a: list[float], b: list[float]) -> float:
    from scipy import stats

    return float(stats.kendalltau(a, b).statistic)


def learnt(line: Mapping[str, Any], run: BankRun) -> bool:
    outputs = 256 if run.text is not None else 10
    return not line["dead"] and line["end"]["val"]["loss"] < GUESSING * math.log(outputs)


def summary(bank: Bank) -> dict[str, Any]:
    """What the table shows, of the kinds whose nets are all there."""
    kinds: dict[str, Any] = {}
    within: dict[str, list[bool]] = {name: [] for name in PREDICTIONS}
    for kind in KINDS:
        if bank.missing(runs(kind)):
            continue
        lines = [line for run in runs(kind) if learnt(line := bank.of(run), run)]
        ends = [line["end"]["damages"] for line in lines]
        by_damage = {}
        for name in DAMAGES:
            truth = [end[f"{name} true"] for end in ends]
            of = {p: [end[f"{name} {p}"] for end in ends] for p in (*PREDICTIONS, CONTROLS[0])}
            of |= {CONTROLS[1]: [line["facts"]["norm"] for line in lines]}
            of |= {CONTROLS[2]: [line["facts"]["lr"] for line in lines]}
            by_damage[name] = {p: round(tau(values, truth), 3) for p, values in of.items()}
            for p in PREDICTIONS:
                pairs = [(t, v) for t, v in zip(truth, of[p], strict=True) if RESOLVED[0] <= t <= RESOLVED[1]]
                within[p] += [t / 2 <= v <= 2 * t for t, v in pairs]
        kinds[kind] = {"nets": len(lines), "tau": by_damage}
    taus = [of for kind in kinds.values() for of in kind["tau"].values()]
    means = {
        p: round(statistics.fmean(of[p] for of in taus if math.isfinite(of[p])), 3)
        for p in (*PREDICTIONS, *CONTROLS) if taus
    }  # fmt: skip
    shares = {p: [sum(found), len(found)] for p, found in within.items()}
    return {"torch": torch.__version__, "kinds": kinds, "mean_tau": means, "within_factor_2": shares}


def main(argv: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=math.inf, help="no net is begun after these")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    arguments = parser.parse_args(None if argv is None else list(argv))
    torch.set_num_threads(1)
    bank = Bank(
        RESULTS / "damage_runs.jsonl", {"val": score("val", SAMPLES), "damages": damages}, methods={"sam": sam},
        watch=lambda line: print(line, flush=True),
    )  # fmt: skip
    bank.make([run for kind in arguments.kinds for run in runs(kind)], arguments.minutes)
    found = summary(bank)
    (RESULTS / "damage.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: found[k] for k in ("mean_tau", "within_factor_2")}))


if __name__ == "__main__":
    main()
