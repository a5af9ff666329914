"""Compare how optimizers leave a saddle, or the plateau of a deep autoencoder, their cost and their verdicts.

All start at the same point; looks at the curvature count as gradient evaluations.

    optland run escape_saddle configs/escape_saddle/saddle.yaml
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam

from optland.cli import run_script
from optland.config import RUN_FOLDER, did_you_mean
from optland.files import write_whole
from optland.objective import Objective
from optland.optim import create
from optland.plots import Descent, plot_escapes
from optland.problems import SURFACES, deep_autoencoder
from optland.train import DataConfig, LogConfig, RunFolder, load_data

PLAIN = {"sgd": (SGD, {}), "momentum": (SGD, {"momentum": 0.9}), "adam": (Adam, {})}
WRAPPERS = ("noisy_gradient", "perturbed_gradient", "negative_curvature")  # around SGD
SOLVERS = ("saddle_free_newton", "cubic_newton", "trust_region_newton")
OPTIMIZERS = (*PLAIN, *WRAPPERS, *SOLVERS)
COLUMNS = ["optimizer", "loss", "moves", "curvature", "looks", "verdict"]


@dataclass(frozen=True)
class Config:
    """One comparison.

    Attributes:
        problem: A name of ``optland.problems.SURFACES``, or ``autoencoder``.
        start: (x, y) on a surface; a saddle's exact place has a gradient of zero.
        data: Images of the autoencoder.
        samples: Of them, all in one batch.
        widths: Of its encoder; the last is the bottleneck.
        optimizers: Which, of OPTIMIZERS.
        lrs: Learning rate of ``sgd``, ``momentum`` and the wrappers, and of ``adam``.
        calls: Closure calls that each may make.
        seed: Of kicks and Krylov spaces, and of the autoencoder's weights.
        out: Run folder.
        log: Where to log.
    """

    problem: str = "saddle"
    start: tuple[float, float] = (0.0, 0.0)
    data: DataConfig = field(default_factory=DataConfig)
    samples: int = 500
    widths: tuple[int, ...] = (64, 32, 8)
    optimizers: tuple[str, ...] = OPTIMIZERS
    lrs: tuple[float, float] = (0.05, 0.01)
    calls: int = 200
    seed: int = 0
    out: str = RUN_FOLDER
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        asked = [(self.problem, [*SURFACES, "autoencoder"]), *((o, OPTIMIZERS) for o in self.optimizers)]
        for one, known in asked:
            if one not in known:
                raise ValueError(f"{one!r} is not known; choose from {[*known]}.{did_you_mean(one, known)}")
        if min(self.calls, self.samples, len(self.optimizers)) < 1 or not min(self.lrs) > 0:
            raise ValueError(f"calls: {self.calls}, samples: {self.samples} and the number of optimizers must be at "
                             f"least 1, lrs: {self.lrs} above 0")  # fmt: skip


def problem(config: Config) -> Objective:
    """The loss at its start, anew for each optimizer."""
    if config.problem in SURFACES:
        return SURFACES[config.problem].objective(*config.start)
    return deep_autoencoder(load_data(config.data).train_x[: config.samples], config.widths, seed=config.seed)


def descend(name: str, config: Config) -> tuple[Descent, Any]:
    """Step until the calls are spent; a step of a solver, or one with a look, makes several."""
    objective = problem(config)
    (batch,), model = objective.batches, objective.model
    lr, params = config.lrs[name == "adam"], list(model.parameters())
    if name in PLAIN:
        optimizer: Any = PLAIN[name][0](params, lr, **PLAIN[name][1])
    else:
        base: dict[str, Any] = {"base": "sgd", "lr": lr} if name in WRAPPERS else {}
        optimizer = create(name, params, seed=config.seed, **base)
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss: Tensor = objective.loss_fn(model, batch)
        loss.backward()
        return loss

    ge, losses, places, escapes = [0.0], [objective.value()], [params[0].detach().flatten()[:2].tolist()], []
    while calls < config.calls:
        seen = len(getattr(optimizer, "events", []))
        optimizer.step(closure)
        ge, losses = [*ge, float(calls * objective.num_samples)], [*losses, objective.value()]
        places.append(params[0].detach().flatten()[:2].tolist())
        if any(e.taken for e in getattr(optimizer, "events", [])[seen:]):
            escapes.append((ge[-1], losses[-1]))
    return Descent(ge, losses, [(p[0], p[1]) for p in places], escapes), optimizer


def tell(run: RunFolder, name: str, loss: float, optimizer: Any) -> list[Any]:
    """Log every move with its reason, count the looks that moved nothing, and give the row of the table."""
    events, verdict = getattr(optimizer, "events", []), getattr(optimizer, "verdict", "says nothing")
    moves = [e for e in events if e.kind != "probe"]
    for event in moves:
        run.log.event(event.to_log(name))
    left_at = next((e.curvature for e in moves if e.kind == "escape"), None)
    return [name, loss, sum(e.taken for e in moves), left_at, len(events) - len(moves), verdict]


def main(config: Config, *, resume: bool = False) -> int:
    """Run each, draw, and say who left."""
    torch.set_num_threads(1)
    count, surface = len(config.optimizers), SURFACES.get(config.problem)
    run = RunFolder(config.out, config, config.log, recipe=__file__, length=count, resume=resume)
    if run.finished:
        print(f"the run in {run.path} is finished; start a new one without --resume")
        return 0
    with run:
        found, rows = {}, []
        for number, name in enumerate(config.optimizers, start=1):
            print(f"{number} of {count}: {name}")
            found[name], optimizer = descend(name, config)
            rows.append(tell(run, name, found[name].loss[-1], optimizer))
        run.log.table("landscape/escapes_table", COLUMNS, [["" if x is None else x for x in r] for r in rows])
        left = sum(descent.left(surface) for descent in found.values())
        words = f"{left} of {count} ended below {'the saddle' if surface else 'where they began'}."
        run.finish({"landscape/left": left, "summary/verdict": words})
        with run.attempt("escapes.json") as file:
            write_whole(file, json.dumps([dict(zip(COLUMNS, r, strict=True)) for r in rows], indent=1) + "\n")
        with run.attempt("escapes.png") as picture:
            plot_escapes(found, picture, surface=surface)
            run.log.image("landscape/escapes", picture)
    print(run.where())
    return run.exit_code


if __name__ == "__main__":
    raise SystemExit(run_script(__file__))
