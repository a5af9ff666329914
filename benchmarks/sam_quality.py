"""Measure the gain of SAM over its tuned base, and how much of it the cheap methods keep.

    python benchmarks/sam_quality.py                         # everything, into benchmarks/results/sam_quality.json
    python benchmarks/sam_quality.py --plan                  # the runs and the seconds that they will take
    python benchmarks/sam_quality.py --tasks digits --methods sam

Three data sets, each with clean and with 40 % random training labels: digits, MNIST-1D, and 10,000 of Fashion-MNIST's
images, halved to 14 x 14 pixels to fit the time. The base is SGD (momentum 0.9, 5 % warm-up,
cosine). Everything is chosen on two seeds by the same rule, the mean accuracy on clean validation labels at the epoch
where early stopping would have ended: the base's learning rate, then every method's radius at that rate, then the
learning rate of a base with twice the epochs, which is SAM's cost. Five fresh seeds, each with label noise of its own,
are reported, at the last epoch and at the best by clean validation. A gain is paired over those seeds, with Student's
95 % interval; the share of SAM's gain is a ratio of means, with the interval of a jackknife over the seeds.

Each finished run is a line in a scratch file, so an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kept import Kept
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "sam_quality.json"
TUNE_SEEDS, REPORT_SEEDS = (0, 1), (10, 11, 12, 13, 14)
BASE, LONGER, SAM = "sgd", "sgd, 2x epochs", "sam"
CHEAP, KEPT = 1.25, 0.8  # the bar: at most this cost, at least this share of SAM's gain
VALIDATION = 2000  # images; more of them would cost more than they tell
BATCH = 64


@dataclass(frozen=True)
class Task:
    """A data set, a net, and for how long it trains; ``seconds`` is what one run of the base took when measured."""

    title: str
    data: dict[str, Any]
    model: dict[str, Any]
    epochs: int
    seconds: float
    lrs: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2)
    halved: bool = False  # images of half the height and width: a quarter of the time


def tasks() -> dict[str, Task]:
    """Every data set twice, clean and noisy."""
    digits = Task("digits", {"name": "digits"}, {"name": "cnn", "width": 16}, 20, 2.7)
    mnist1d = Task("MNIST-1D", {"name": "mnist1d"}, {"name": "cnn", "width": 16}, 12, 3.4)
    fashion = Task(
        "Fashion-MNIST 10k, 14 x 14", {"name": "fashion_mnist", "subset": 10_000},
        {"name": "cnn", "width": 8}, 5, 6.5, halved=True,
    )  # fmt: skip
    clean = {"digits": digits, "mnist1d": mnist1d, "fashion": fashion}
    noisy = {
        f"{name}_noisy": replace(
            task, title=f"{task.title}, 40 % noise", data=task.data | {"label_noise": 0.4}
        )
        for name, task in clean.items()
    }
    return {
        name: both
        for key in clean
        for name, both in ((key, clean[key]), (f"{key}_noisy", noisy[f"{key}_noisy"]))
    }


def _no_options(steps: int, seed: int) -> dict[str, Any]:
    return {}


def _the_papers_looksam(steps: int, seed: int) -> dict[str, Any]:
    return {"bounded": False}


def _every(steps: int, seed: int) -> dict[str, Any]:
    from optland.optim.gates import Every

    return {"gate": Every(5)}


def _bernoulli(steps: int, seed: int) -> dict[str, Any]:
    from optland.optim.gates import Bernoulli

    return {"gate": Bernoulli(0.25, seed=seed)}


def _tail(steps: int, seed: int) -> dict[str, Any]:
    from optland.optim.gates import Tail

    return {"gate": Tail(steps, 0.25)}


def _half_of_the_second_half(steps: int, seed: int) -> dict[str, Any]:
    from optland.optim.gates import Every, Tail

    late, often = Tail(steps, 0.5), Every(2)
    return {"gate": lambda optimizer: late(optimizer) and often(optimizer)}


@dataclass(frozen=True)
class Candidate:
    """A method by its registry name, its radii, and its options given the steps of the run and its seed."""

    method: str
    rhos: tuple[float | None, ...] = (None,)
    options: Callable[[int, int], dict[str, Any]] = _no_options
    cost: float = 1.0  # declared, for the plan alone; what is reported is counted
    longer: int = 1  # times the epochs


CANDIDATES = {
    BASE: Candidate("sgd"),
    LONGER: Candidate("sgd", longer=2),
    SAM: Candidate("sam", (0.05, 0.1, 0.2, 0.4), cost=2.0),
    "asam": Candidate("asam", (0.25, 0.5, 1.0, 2.0), cost=2.0),
    "msam": Candidate("msam", (0.25, 0.5, 1.0, 2.0), cost=1.0),
    "looksam, k = 5, fixed alpha": Candidate("looksam", (0.05, 0.1, 0.2, 0.4), _the_papers_looksam, cost=1.2),
    "looksam, k = 5": Candidate("looksam", (0.05, 0.1, 0.2, 0.4), cost=1.2),
    "sam, every 5th step": Candidate("sam", (0.1, 0.2, 0.4, 0.8), _every, cost=1.2),
    "sam, 1 step in 4 at random": Candidate("sam", (0.1, 0.2, 0.4, 0.8), _bernoulli, cost=1.25),
    "sam, last quarter": Candidate("sam", (0.05, 0.1, 0.2, 0.4), _tail, cost=1.25),
    "sam, every 2nd step of the second half": Candidate(
        "sam", (0.05, 0.1, 0.2, 0.4), _half_of_the_second_half, cost=1.25
    ),
}  # a line each; the first three are what the others are measured by


@dataclass(frozen=True)
class Job:
    """One run."""

    task: str
    candidate: str
    lr: float
    rho: float | None
    seed: int

    @property
    def key(self) -> str:
        rho = "-" if self.rho is None else f"{self.rho:g}"
        return f"{self.task}/{self.candidate}/lr{self.lr:g}/rho{rho}/seed{self.seed}"


@dataclass(frozen=True)
class Setup:
    """What is run, on which seeds."""

    tasks: dict[str, Task]
    candidates: dict[str, Candidate]
    tune_seeds: tuple[int, ...] = TUNE_SEEDS
    report_seeds: tuple[int, ...] = REPORT_SEEDS

    def settings(self, job: Job) -> str:
        """Whatever else decides a run's numbers: a line of the scratch file with other settings is not used."""
        candidate = self.candidates[job.candidate]
        described = {
            "method": candidate.method,
            "longer": candidate.longer,
            "options": candidate.options.__name__,
        }
        task = {
            k: v
            for k, v in asdict(self.tasks[job.task]).items()
            if k in ("data", "model", "epochs", "halved")
        }
        return json.dumps(task | described, sort_keys=True)


# One run ---------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def load(description: str, halved: bool, noise_seed: int) -> Any:
    """The data of a task, its validation split capped; kept, since a worker meets them again."""
    from torch.nn.functional import avg_pool2d

    from optland.train import DataConfig, load_data

    data = load_data(DataConfig(**json.loads(description), noise_seed=noise_seed))
    data = replace(data, val_x=data.val_x[:VALIDATION], val_y=data.val_y[:VALIDATION])
    if not halved:
        return data
    images: dict[str, Any] = {
        k: avg_pool2d(data.normalise(getattr(data, k)), 2) for k in ("train_x", "val_x", "test_x")
    }
    return replace(data, **images)


def run(job: Job, task: Task, candidate: Candidate) -> dict[str, Any]:
    """Train one net; the test set is looked at twice, for the last weights and for those of the best epoch."""
    import torch
    from torch.nn import functional as F

    from optland.optim import create
    from optland.train import BatchLoader, ModelConfig, build_model, evaluate, seed_everything
    from optland.train.loops.schedule import schedule_by_name

    torch.set_num_threads(1)
    data = load(json.dumps(task.data), task.halved, job.seed if "label_noise" in task.data else 0)
    seed_everything(job.seed)
    started, processor = time.perf_counter(), time.process_time()
    model = build_model(ModelConfig(**task.model), data.image_shape, data.num_classes)
    loader = BatchLoader(
        [data.train_x, data.train_y], BATCH, epochs=task.epochs * candidate.longer, seed=job.seed,
        transform=data.transform,
    )  # fmt: skip
    steps = loader.epochs * math.ceil(len(data.train_y) / BATCH)
    options = {"lr": job.lr, "momentum": 0.9} | candidate.options(steps, job.seed)
    if job.rho is not None:
        options |= {"rho": job.rho, "model": model}
    optimizer = create(candidate.method, model.parameters(), **options)
    scheduler = schedule_by_name("cosine", optimizer, loader)
    assert scheduler is not None
    ge, best = 0, (-1.0, 0.0)
    kept: dict[str, Any] = {}
    for x, y in loader:

        def closure(x: Any = x, y: Any = y) -> Any:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
        scheduler.step()
        ge += len(y) * int(getattr(optimizer, "last_evaluations", 1))
        if loader.at_epoch_end:
            found = evaluate(model, data.val_x, data.val_y, normalise=data.normalise)
            score = (found["acc"], -found["loss"])
            if score > best:
                best = score
                kept = {name: value.clone() for name, value in model.state_dict().items()}
    telemetry = optimizer.telemetry.read() if hasattr(optimizer, "telemetry") else {}
    last = evaluate(model, data.test_x, data.test_y, normalise=data.normalise)["acc"]
    model.load_state_dict(kept)
    stopped = evaluate(model, data.test_x, data.test_y, normalise=data.normalise)["acc"]
    return {
        "key": job.key, "last": last, "best": stopped, "val": best[0], "ge": ge,
        "seconds": time.perf_counter() - started, "processor": time.process_time() - processor,
        "curvature": telemetry.get("sam/curvature"),
    }  # fmt: skip


# All runs --------------------------------------------------------------------------------------------


@dataclass
class Runs:
    """Runs jobs side by side and remembers every one that has ended."""

    setup: Setup
    scratch: Path
    workers: int
    kept: Kept = field(init=False)

    def __post_init__(self) -> None:
        self.kept = Kept(self.scratch, key=lambda found: f"{found['key']} {found['settings']}")

    def result(self, job: Job) -> dict[str, Any]:
        return self.kept.done[f"{job.key} {self.setup.settings(job)}"]

    def make(self, jobs: Iterable[Job], what: str) -> None:
        """Run what has not been run; the longest start first."""
        missing = [job for job in jobs if f"{job.key} {self.setup.settings(job)}" not in self.kept.done]
        missing = sorted(missing, key=self.seconds, reverse=True)
        if not missing:
            return
        context = multiprocessing.get_context("spawn")
        with (
            ProcessPoolExecutor(self.workers, mp_context=context) as pool,
            Progress(transient=True) as progress,
        ):
            bar = progress.add_task(what, total=len(missing))
            # By name, since a function of the candidates' table need not be one that can be sent.
            waiting = {pool.submit(run_by_name, job, self.setup.tasks[job.task]): job for job in missing}
            for ended in as_completed(waiting):
                job, found = waiting[ended], ended.result()
                found["settings"] = self.setup.settings(job)
                self.kept.add(found)
                progress.advance(bar)

    def seconds(self, job: Job) -> float:
        """What a run will take, from the declared cost."""
        candidate = self.setup.candidates[job.candidate]
        return self.setup.tasks[job.task].seconds * candidate.cost * candidate.longer

    def best(self, jobs: Sequence[Job]) -> Job:
        """The setting of the highest mean validation accuracy over the tuning seeds."""
        from optland.train.experiments.seed_differences import best_setting

        scores: dict[tuple[float, float | None], list[float]] = {}
        for job in jobs:
            scores.setdefault((job.lr, job.rho), []).append(self.result(job)["val"])
        lr, rho = best_setting(scores)
        return replace(jobs[0], lr=lr, rho=rho)


def run_by_name(job: Job, task: Task) -> dict[str, Any]:
    """In a worker: the candidate comes from its own table."""
    return run(job, task, CANDIDATES[job.candidate])


def tuning(setup: Setup, task: str, name: str, lrs: Sequence[float]) -> list[Job]:
    """The jobs that choose a candidate's setting."""
    rhos = setup.candidates[name].rhos
    return [Job(task, name, lr, rho, seed) for lr in lrs for rho in rhos for seed in setup.tune_seeds]


def near(lrs: Sequence[float], best: float) -> list[float]:
    """The best rate and its neighbours: the longer base is tuned anew, but not from far away."""
    place = lrs.index(best)
    return list(lrs[max(0, place - 1) : place + 2])


def measure(setup: Setup, runs: Runs) -> dict[str, dict[str, Job]]:
    """Every run in three rounds; returns what was chosen, by task and candidate."""
    rounds = {task: tuning(setup, task, BASE, setup.tasks[task].lrs) for task in setup.tasks}
    runs.make([job for jobs in rounds.values() for job in jobs], "learning rates")
    chosen = {task: {BASE: runs.best(jobs)} for task, jobs in rounds.items()}
    tuned: dict[tuple[str, str], list[Job]] = {}
    for task, settings in chosen.items():
        lr = settings[BASE].lr
        for name in setup.candidates:
            if name != BASE:
                lrs = near(setup.tasks[task].lrs, lr) if name == LONGER else [lr]
                tuned[task, name] = tuning(setup, task, name, lrs)
    runs.make([job for jobs in tuned.values() for job in jobs], "radii")
    for (task, name), jobs in tuned.items():
        chosen[task][name] = runs.best(jobs)
    runs.make(fresh(setup, chosen), "fresh seeds")
    return chosen


def fresh(setup: Setup, chosen: dict[str, dict[str, Job]]) -> list[Job]:
    """The runs that are reported."""
    settings = [job for of_task in chosen.values() for job in of_task.values()]
    return [replace(job, seed=seed) for job in settings for seed in setup.report_seeds]


# What comes out --------------------------------------------------------------------------------------


def share(kept: Sequence[float], whole: Sequence[float]) -> dict[str, float | None]:
    """The mean of ``kept`` over that of ``whole``, with the 95 % interval of a jackknife over the seeds."""
    from optland.statistics import student_quantile

    n, value = len(kept), statistics.fmean(kept) / statistics.fmean(whole)
    if n < 2:
        return {"value": value, "error": None}
    without = [
        (sum(kept) - a) / (sum(whole) - b) if sum(whole) != b else math.inf
        for a, b in zip(kept, whole, strict=True)
    ]
    spread = (
        math.sqrt((n - 1) / n * sum((x - statistics.fmean(without)) ** 2 for x in without))
        if all(map(math.isfinite, without))
        else math.inf
    )
    error = student_quantile(0.975, n - 1) * spread
    return {"value": value, "error": error if math.isfinite(error) else None}


def summarise(setup: Setup, runs: Runs, chosen: dict[str, dict[str, Job]]) -> dict[str, Any]:
    """By task and candidate: accuracy, cost, gains, and the share of SAM's gain; then each bar with its figure."""
    from optland.train.experiments.seed_differences import paired_gain

    table: dict[str, Any] = {}
    for task, settings in chosen.items():
        found = {
            name: [runs.result(replace(job, seed=seed)) for seed in setup.report_seeds]
            for name, job in settings.items()
        }

        def values(name: str, key: str, found: dict[str, Any] = found) -> list[float]:
            return [float(result[key]) for result in found[name]]

        rows = {}
        for name, job in settings.items():
            row: dict[str, Any] = {"lr": job.lr, "rho": job.rho}
            row["ge"] = statistics.fmean(values(name, "ge"))
            row["cost"] = row["ge"] / statistics.fmean(values(BASE, "ge"))
            row["seconds"] = statistics.fmean(values(name, "seconds"))
            for which in ("last", "best"):
                ours = values(name, which)
                row[which] = {
                    "mean": statistics.fmean(ours),
                    "min": min(ours),
                    "max": max(ours),
                    "seeds": ours,
                }
                for other, key in ((BASE, "gain"), (LONGER, "gain over 2x epochs")):
                    if name != other and other in found:
                        gain = paired_gain(ours, values(other, which))
                        row[f"{key}, {which}"] = {
                            "mean": gain.mean,
                            "error": None if math.isnan(gain.error) else gain.error,
                        }
                if name not in (BASE, SAM) and SAM in found:
                    base = values(BASE, which)
                    parts = [
                        [a - b for a, b in zip(x, base, strict=True)] for x in (ours, values(SAM, which))
                    ]
                    row[f"share, {which}"] = share(*parts) if statistics.fmean(parts[1]) > 0 else None
            rows[name] = row
        table[task] = {"title": setup.tasks[task].title, "rows": rows}
    return {"table": table, "bars": {which: bars(table, which) for which in ("best", "last")}}


def bars(table: dict[str, Any], which: str) -> dict[str, Any]:
    """Where SAM gains (its interval is above 0), where not, and which cheap candidates keep enough of it everywhere."""
    gains = {
        task: content["rows"][SAM][f"gain, {which}"]
        for task, content in table.items()
        if SAM in content["rows"]
    }
    where = [
        task for task, gain in gains.items() if gain["error"] is not None and gain["mean"] - gain["error"] > 0
    ]
    names = [name for name in next(iter(table.values()))["rows"] if name not in (BASE, LONGER, SAM)]
    least = {}
    for name in names:
        rows = [table[task]["rows"][name] for task in where]
        if rows:
            least[name] = {
                "cost": max(row["cost"] for row in rows),
                "share": min(row[f"share, {which}"]["value"] for row in rows),
            }
    cheap = {
        name: found for name, found in least.items() if found["cost"] <= CHEAP + 0.01
    }  # 1 step in 4 is 1.25 on average
    return {
        "SAM gains": where,
        "SAM does not help": [task for task in gains if task not in where],
        "least share": least,
        f"at most {CHEAP}x, keep {KEPT:.0%} everywhere": [n for n, f in cheap.items() if f["share"] >= KEPT],
    }


def show(summary: dict[str, Any], console: Console) -> None:
    """The tables as people read them."""
    for content in summary["table"].values():
        table = Table(title=content["title"], title_justify="left")
        for column in (
            "",
            "lr",
            "rho",
            "cost",
            "last, %",
            "gain, last",
            "best, %",
            "gain, best",
            "over 2x",
            "share, best",
            "s",
        ):
            table.add_column(column, justify="left" if not column else "right", no_wrap=True)
        for name, row in content["rows"].items():
            cells = [f"{row['lr']:g}", "" if row["rho"] is None else f"{row['rho']:g}", f"{row['cost']:.2f}"]
            for which in ("last", "best"):
                cells += [f"{row[which]['mean']:.1f}", interval(row.get(f"gain, {which}"))]
            cells += [
                interval(row.get("gain over 2x epochs, best")),
                interval(row.get("share, best"), "value", 100, "%"),
            ]
            table.add_row(name, *cells, f"{row['seconds']:.1f}")
        console.print(table)
    for which, found in summary["bars"].items():
        console.print(f"{which}: {json.dumps(found)}", highlight=False, soft_wrap=True)


def interval(found: dict[str, Any] | None, key: str = "mean", unit: float = 1.0, sign: str = "") -> str:
    """A number with its interval; empty without a number."""
    if found is None:
        return ""
    digits = 0 if sign else 2
    text = f"{unit * found[key]:{'' if sign else '+'}.{digits}f}"
    return (
        f"{text} ± {unit * found['error']:.{digits}f}{sign}"
        if found["error"] is not None
        else f"{text}{sign}"
    )


def plan(setup: Setup, workers: int) -> None:
    """Runs and seconds of every task, before anything is started."""
    total = 0.0
    for name, task in setup.tasks.items():
        runs, units = 0, 0.0
        for key, candidate in setup.candidates.items():
            settings = {BASE: len(task.lrs), LONGER: 3}.get(key, len(candidate.rhos))
            mine = settings * len(setup.tune_seeds) + len(setup.report_seeds)
            runs, units = runs + mine, units + mine * candidate.cost * candidate.longer
        total += units * task.seconds
        seconds = units * task.seconds
        print(
            f"{name:<16} {runs:>4} runs, {units:6.1f} times the base's {task.seconds:.1f} s = {seconds:6.0f} s"
        )
    print(f"all: {total:.0f} s of processor time, {total / workers / 60:.0f} minutes in {workers} processes")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    everything = tasks()
    parser.add_argument("--tasks", nargs="+", choices=list(everything), default=list(everything))
    parser.add_argument("--methods", nargs="+", default=[*CANDIDATES][2:], choices=[*CANDIDATES][2:])
    parser.add_argument("--epochs", type=int, help="epochs of every task, for a trial")
    parser.add_argument("--report-seeds", type=int, nargs="+", default=list(REPORT_SEEDS))
    parser.add_argument("--scratch", type=Path, default=Path("runs/sam_quality/runs.jsonl"))
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--plan", action="store_true", help="only say what would be run")
    arguments = parser.parse_args()
    chosen_tasks = {name: everything[name] for name in arguments.tasks}
    if arguments.epochs is not None:
        chosen_tasks = {k: replace(t, epochs=arguments.epochs) for k, t in chosen_tasks.items()}
    names = [BASE, LONGER, *arguments.methods]
    setup = Setup(chosen_tasks, {n: CANDIDATES[n] for n in names}, report_seeds=tuple(arguments.report_seeds))
    if arguments.plan:
        plan(setup, arguments.workers)
        return 0
    runs = Runs(setup, arguments.scratch, arguments.workers)
    summary = summarise(setup, runs, chosen := measure(setup, runs))
    show(summary, Console(width=150))
    write(arguments.result, setup, runs, chosen, summary)
    return 0


def write(
    path: Path, setup: Setup, runs: Runs, chosen: dict[str, dict[str, Job]], summary: dict[str, Any]
) -> None:
    """The result file: summary, every run that was reported, and where it was measured."""
    import torch

    machine: dict[str, object] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
    }
    machine |= {"processor": platform.machine(), "argv": sys.argv[1:]}
    seeds = {"tune": setup.tune_seeds, "report": setup.report_seeds}
    reported = [runs.result(job) for job in fresh(setup, chosen)]
    content = {"benchmark": "sam_quality", "machine": machine, "seeds": seeds, **summary, "runs": reported}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
