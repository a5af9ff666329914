"""What survives: trained nets after damage without retraining, SAM against controls at equal gradient evaluations.

    python benchmarks/survival.py --nets digits mnist1d --minutes 60   # goes on where it was; all nets by default
    python benchmarks/survival.py --plan                               # runs and minutes on one core
    python benchmarks/survival.py --table                              # only make the result file from what is there

Five nets, seven rows:

============  ======================================================================================================
base          SGD with momentum (digits, MNIST-1D, ResNet) or AdamW (ViT, GPT), cosine, the second pass of SAM spent
              on twice the steps, at the best of five rates (AdamW: four)
average       the running average of the base's weights, at the best of three decays: nothing more to train
high rate     the base at the largest of those rates that is within half a point of its best
sam           half of the steps, two passes; the best of three radii at the base's rate, then the rates on either side
sam, tail     SAM in the last fifth of the steps; the best of three radii at the base's rate
random        two passes as SAM, at SAM's radius and rate, with a Gaussian direction
weight noise  one pass at weights with relative noise; the best of three sizes at the base's rate
============  ======================================================================================================

Everything is chosen on seeds 0 and 1 by validation accuracy (loss, for the text) of the undamaged net. Reported are
seeds 10 to 17, paired: a seed shares initial weights and data order over all rows. Named beforehand: the primary
damages are 3 bits, 2 bits, 85 % pruned, noise 0.4; in each net SAM's gain over the base, and over ``random``, is
Holm-corrected over these four; "SAM's nets bear more" stands on a net where two of the four are above zero against
both, at a clean accuracy within 0.8 points of the base's. Gains are in points of accuracy, for the text of its tokens.
A dead run counts as one that guesses.

A finished run is a line of ``benchmarks/results/survival_runs.jsonl``. Nets are made whole one after another, the
cheapest first; the result file holds those that are whole.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from survival_measures import forgetting, survives
from survival_methods import METHODS
from survival_nets import NETS, Net

from optland.statistics import holm
from optland.train import OptimizerConfig
from optland.train.experiments.bank import Bank, score
from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.seed_differences import best_setting, paired_gain

RESULTS = Path(__file__).resolve().parent / "results"
RUNS, RESULT = RESULTS / "survival_runs.jsonl", RESULTS / "survival.json"
CHOICE_SEEDS, REPORT_SEEDS = (0, 1), tuple(range(10, 18))
RHOS, SIZES, DECAYS = (0.05, 0.1, 0.2), (0.05, 0.1, 0.2), (0.98, 0.995, 0.998)
TAIL, HALF_A_POINT, CLEAN_WITHIN, LEVEL = 0.2, 0.5, 0.8, 0.05
PRIMARY = ("3 bits", "2 bits", "pruned 85%", "noise 0.4")
VALIDATED = 2000
SECONDS = {"digits": (3.4, 2), "mnist1d": (7.4, 2), "resnet": (33, 6), "vit": (38, 12), "gpt": (57, 12)}
"""Of one core for training one net and for measuring it, when measured; for the plan alone."""


@dataclass(frozen=True)
class Clock:
    """The minutes that are left."""

    end: float

    @property
    def left(self) -> float:
        return (self.end - time.monotonic()) / 60.0


def over(runs: Sequence[BankRun], seeds: Sequence[int]) -> list[BankRun]:
    return [replace(run, seed=seed) for run in runs for seed in seeds]


# The settings ---------------------------------------------------------------------------------------


def with_lr(run: BankRun, lr: float) -> BankRun:
    return replace(run, optimizer=replace(run.optimizer, lr=lr))


def sam(run: BankRun, rho: float) -> BankRun:
    """SAM over the base of a run."""
    o = run.optimizer
    return replace(run, optimizer=replace(o, name="sam", base=o.name, rho=rho), averages=())


def tail(run: BankRun, rho: float) -> BankRun:
    """SAM in the last fifth."""
    made = sam(run, rho)
    gated: OptimizerConfig = replace(made.optimizer, options={"gate": f"tail(share={TAIL})"})
    return replace(made, optimizer=gated, passes=1.0 + TAIL)


def own(run: BankRun, method: str, strength: float, passes: float) -> BankRun:
    """A control of this benchmark's own."""
    return replace(run, method=method, strength=strength, passes=passes, averages=())


def merits(bank: Bank, run: BankRun, key: str) -> list[float]:
    """What a setting is chosen by, on each seed; a dead run is the worst there is."""
    lines = [bank.of(replace(run, seed=seed)) for seed in CHOICE_SEEDS]
    sign = -1.0 if key == "loss" else 1.0
    return [float("nan") if line["dead"] else sign * line["end"]["val"][key] for line in lines]


def best(bank: Bank, runs: Sequence[BankRun]) -> BankRun:
    """The best by validation; of equal accuracies that of the lower loss."""
    if runs[0].text is not None:
        return runs[best_setting({k: merits(bank, run, "loss") for k, run in enumerate(runs)})]
    scores = {}
    for k, run in enumerate(runs):
        pairs = zip(merits(bank, run, "acc"), merits(bank, run, "loss"), strict=True)
        scores[k] = [acc + 0.01 * loss for acc, loss in pairs]
    return runs[best_setting(scores)]


def best_decay(bank: Bank, run: BankRun) -> float:
    """The decay whose average validates best."""
    key, sign = ("loss", -1.0) if run.text is not None else ("acc", 1.0)
    lines = [bank.of(replace(run, seed=seed))["averages"] for seed in CHOICE_SEEDS]
    return best_setting({d: [sign * line[f"{d:g}"]["val"][key] for line in lines] for d in DECAYS})


def highest(bank: Bank, runs: Sequence[BankRun], chosen: BankRun) -> BankRun:
    """The largest rate within half a point of the best, in validation accuracy."""
    floor = statistics.fmean(merits(bank, chosen, "acc")) - HALF_A_POINT
    return [run for run in runs if statistics.fmean(merits(bank, run, "acc")) >= floor][-1]


def choose(net: Net, bank: Bank, clock: Clock) -> dict[str, BankRun] | None:
    """The setting of every row; None where time has run out before all are known."""
    grid = [replace(with_lr(net.run, lr), averages=DECAYS) for lr in net.lrs]
    if not bank.make(over(grid, CHOICE_SEEDS), clock.left):
        return None
    base = best(bank, grid)
    high = highest(bank, grid, base)
    sams, tails = [sam(base, rho) for rho in RHOS], [tail(base, rho) for rho in RHOS]
    noises = [own(base, "weight noise", size, 1.0) for size in SIZES]
    if not bank.make(over([*sams, *tails, *noises], CHOICE_SEEDS), clock.left):
        return None
    ours = best(bank, sams)
    place = net.lrs.index(base.optimizer.lr)
    beside = [with_lr(ours, lr) for lr in (*net.lrs[:place][-1:], *net.lrs[place + 1 :][:1])]
    if not bank.make(over(beside, CHOICE_SEEDS), clock.left):
        return None
    ours = best(bank, [ours, *beside])
    rho = ours.optimizer.rho or 0.0
    random = own(with_lr(base, ours.optimizer.lr), "random", rho, 2.0)
    measured = replace(base, averages=(best_decay(bank, base),))
    return {
        "base": measured,
        "high rate": measured if high == base else replace(high, averages=()),
        "sam": ours,
        "sam, tail": best(bank, tails),
        "random": random,
        "weight noise": best(bank, noises),
    }


# The runs -------------------------------------------------------------------------------------------


def choice_bank(path: Path) -> Bank:
    return Bank(path, {"val": score("val", VALIDATED)}, methods=METHODS, watch=say)


def report_bank(path: Path, net: Net) -> Bank:
    measures = {"survives": survives, "second task": forgetting(net.second)}
    return Bank(path, measures, methods=METHODS, watch=say)


def say(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, flush=True)


def make(names: Sequence[str], path: Path, clock: Clock) -> bool:
    """The nets one after another; whether all are whole."""
    for name in names:
        chosen = choose(NETS[name], choice_bank(path), clock)
        if chosen is None:
            return False
        runs = [replace(run, seed=seed) for seed in REPORT_SEEDS for run in chosen.values()]
        if not report_bank(path, NETS[name]).make(runs, clock.left):
            return False
        say(f"{name} is whole")
    return True


# What comes out -------------------------------------------------------------------------------------


def values(bank: Bank, run: BankRun, average: bool) -> dict[str, list[float]]:
    """Every number of a row, one per seed."""
    found: dict[str, list[float]] = {}
    guess = {"acc": 100.0 / 10, "loss": float("nan")}
    lines = [bank.of(replace(run, seed=seed)) for seed in REPORT_SEEDS]
    known = next(line for line in lines if not line["dead"])["end"]
    for line in lines:
        ends = line["averages"][f"{run.averages[0]:g}"] if average and not line["dead"] else line["end"]
        for measure, names in known.items():
            for name in names:
                value = guess.get(name.split("/")[-1]) if line["dead"] else ends[measure][name]
                key = name if measure == "survives" else f"{measure}/{name}"
                found.setdefault(key, []).append(float("nan") if value is None else value)
        for name in ("norm", "lr", "train_loss", "ge"):
            value = line["facts"][name]
            found.setdefault(name, []).append(float("nan") if value is None else value)
        found.setdefault("dead", []).append(float(line["dead"]))
    return found


def gains(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> dict[str, Any]:
    """The gain in accuracy for every primary damage, its interval at the level that Holm's procedure asks of it."""
    p = {name: paired_gain(ours[f"{name}/acc"], theirs[f"{name}/acc"]).p_value for name in PRIMARY}
    adjusted = dict(zip(PRIMARY, holm([p[name] for name in PRIMARY]), strict=True))
    ranked = sorted(PRIMARY, key=lambda name: p[name])
    found = {}
    for name in PRIMARY:
        confidence = 1.0 - LEVEL / (len(PRIMARY) - ranked.index(name))
        gain = paired_gain(ours[f"{name}/acc"], theirs[f"{name}/acc"], confidence)
        above = gain.mean > 0 and adjusted[name] < LEVEL
        found[name] = {"mean": gain.mean, "error": gain.error, "p": adjusted[name], "above": above}
    return found


def verdict(rows: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Whether the claim stands on this net, with what it rests on."""
    over_base, over_random = gains(rows["sam"], rows["base"]), gains(rows["sam"], rows["random"])
    clean = paired_gain(rows["sam"]["clean/acc"], rows["base"]["clean/acc"])
    both = [name for name in PRIMARY if over_base[name]["above"] and over_random[name]["above"]]
    return {
        "over base": over_base,
        "over random": over_random,
        "clean": {"mean": clean.mean, "error": clean.error},
        "better against both": both,
        "stands": len(both) >= 2 and clean.mean >= -CLEAN_WITHIN,
    }


def summarise(name: str, path: Path) -> dict[str, Any] | None:
    """The table of a net; None where it is not whole."""
    net, bank = NETS[name], choice_bank(path)
    try:
        chosen = choose(net, bank, Clock(time.monotonic() - 1.0))
    except KeyError:
        return None
    report = report_bank(path, net)
    if chosen is None or report.missing(over(list(chosen.values()), REPORT_SEEDS)):
        return None
    rows = {row: values(report, run, average=False) for row, run in chosen.items()}
    rows["average"] = values(report, chosen["base"], average=True)
    order = ("base", "average", *(row for row in rows if row not in ("base", "average")))
    settings = {
        row: {"lr": run.optimizer.lr, "strength": run.strength if run.method else run.optimizer.rho}
        for row, run in chosen.items()
    }
    settings["average"] = {"lr": chosen["base"].optimizer.lr, "strength": chosen["base"].averages[0]}
    seconds = [
        bank.kept.done[replace(run, seed=s).key]["seconds"] for run in chosen.values() for s in REPORT_SEEDS
    ]
    return {
        "title": net.title,
        "chosen": settings,
        "rows": {row: {key: _mean(of) for key, of in rows[row].items()} for row in order},
        "over base": {row: over_base(rows[row], rows["base"]) for row in order if row != "base"},
        "verdict": verdict(rows),
        "target": net.second.target,
        "seconds per run": statistics.fmean(seconds),
    }


def over_base(ours: dict[str, list[float]], base: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Gains after each damage with plain 95 % intervals, for the eye: only the primary ones are corrected."""
    found = {key: _interval(ours[key], base[key]) for key in base if key.endswith("/acc")}
    return {
        "old task" if key == "second task/acc" else key[: -len("/acc")]: gain for key, gain in found.items()
    }


def _interval(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    gain = paired_gain(ours, theirs)
    return {"mean": gain.mean, "error": gain.error}


def _mean(found: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard error; null where a run was not finite."""
    if any(value != value for value in found):
        return {"mean": None, "error": None}
    return {
        "mean": statistics.fmean(found),
        "error": statistics.stdev(found) / len(found) ** 0.5,
    }


def write(path: Path, result: Path) -> None:
    """The result file, of the nets that are whole."""
    nets = {name: found for name in NETS if (found := summarise(name, path)) is not None}
    machine = {"python": platform.python_version(), "torch": torch.__version__, "cpus": os.cpu_count()}
    content = {
        "benchmark": "survival", "machine": machine, "nets": nets,
        "missing": [net.title for name, net in NETS.items() if name not in nets],
        "primary": PRIMARY, "seeds": {"choice": CHOICE_SEEDS, "report": REPORT_SEEDS},
    }  # fmt: skip
    result.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    say(f"{result}: {len(nets)} of {len(NETS)} nets are whole")


def plan() -> None:
    """Runs and minutes on one core."""
    total = 0.0
    for name, net in NETS.items():
        chosen = len(CHOICE_SEEDS) * (len(net.lrs) + 2 * len(RHOS) + len(SIZES) + 2)
        reported = 6 * len(REPORT_SEEDS)
        train, measure = SECONDS[name]
        minutes = ((chosen + reported) * train + (reported + len(REPORT_SEEDS)) * measure) / 60
        total += minutes
        print(f"{name:<8} {chosen} runs to choose, {reported} reported, {minutes:.0f} minutes")
    print(f"all: {total:.0f} minutes on one core")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    if arguments.plan:
        plan()
        return 0
    torch.set_num_threads(1)
    done = arguments.table or make(
        arguments.nets, arguments.runs, Clock(time.monotonic() + 60 * arguments.minutes)
    )
    write(arguments.runs, arguments.result)
    return 0 if done else 75


if __name__ == "__main__":
    raise SystemExit(main())
