"""``optland report``: the landscape around checkpoints as one HTML page, with its pictures."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from optland.cli.cost_progress import CostProgress
from optland.cli.needs import missing_for
from optland.cli.opened import OpenedRun, exact_enough, measuring
from optland.cli.probe import writable
from optland.cli.terminal import DONE, FAILED, complain, say
from optland.config import UserError
from optland.log import WandbLogger, read_jsonl
from optland.log.wandb_environment import check_environment
from optland.objective import Objective
from optland.report import SurveySettings, investigate, log_report, write_report
from optland.report.survey import survey
from optland.train.runs.trained_run import Split, find_checkpoint

__all__ = ["report"]


def report(arguments: argparse.Namespace) -> int:
    """Run ``optland report``.

    Args:
        arguments: Those of :func:`optland.cli.report_options.add_arguments`.

    Returns:
        The exit code.

    Raises:
        UserError: Something of what was given cannot be used.
    """
    return measuring(
        lambda: _Report(arguments).run(),
        "Interrupted; what is done is kept, and the same command goes on from there.",
    )


class _Report:
    """One report in progress."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        a = self.arguments = arguments
        self.settings, self.double = _settings(a), False
        if a.wandb != "disabled":
            check_environment()
        if lacking := missing_for("optland.report"):
            raise UserError(lacking)
        if a.trajectory and len(a.runs) < 3:
            raise UserError(
                f"--trajectory: a path needs at least 3 checkpoints, not {len(a.runs)}; name more of them"
            )
        first = find_checkpoint(Path(a.runs[0]))
        self.out = writable(Path(a.out) if a.out else first.parent / "report")
        opened = [
            OpenedRun(run, config=a.config, recipe=a.recipe, device=a.device, batch_size=a.batch_size)
            for run in a.runs
        ]
        self.first, self.names = opened[0], _names(opened)
        self.runs = dict(zip(self.names, opened, strict=True))
        self.objectives = {n: self._objective(r, a.split) for n, r in self.runs.items()}
        self.notes = [f"{n}: {note}" for n, r in self.runs.items() for note in r.trained.notes]
        coarse = {note for o in self.objectives.values() if (note := exact_enough(o)[1])}
        self.double = bool(coarse)
        if self.double:  # all of them, as paths lead from one to the other
            self.objectives = {name: o.double() for name, o in self.objectives.items()}
            self.notes += sorted(coarse)

    def run(self) -> int:
        """Measure, write, and say where."""
        a = self.arguments
        chosen = self.names[-1:] if a.trajectory else self.names
        objectives = {name: self.objectives[name] for name in chosen}
        tests = self._tests(chosen)
        declared = sum(survey.cost(o, self.settings) for o in objectives.values())
        say(
            f"{len(chosen)} of {len(self.runs)} checkpoints to survey on {next(iter(objectives.values())).data}"
        )
        sample = next(iter(objectives.values())).num_samples < self.first.data.size(a.split)
        metered = [*objectives.values(), *tests.values()]
        path = (
            {n: [p.detach() for p in o.params] for n, o in self.objectives.items()} if a.trajectory else None
        )
        pairs = [] if a.trajectory else self._pairs()
        with CostProgress(declared, lambda: sum(o.cost_ge for o in metered)) as progress:
            try:
                findings = investigate(
                    self._title(), objectives, self.settings, about=self._about(), tests=tests, is_sample=sample,
                    pairs=pairs, num_curve_steps=a.curve_steps, path=path,
                    partial=self.out / "measured", watch=progress.begin, notes=self.notes,
                    results={n: _result(r) for n, r in self.runs.items()},
                    rows={n: _rows(r) for n, r in self.runs.items()},
                )  # fmt: skip
            except ValueError as error:
                raise UserError(f"{error}") from error
        try:
            page = write_report(findings, self.out)
        except OSError as error:
            complain(f"NOT WRITTEN  the report: {error}; make room, and the same command writes it")
            return FAILED
        say(f"wrote {page}\n      and its pictures beside it")
        if a.wandb != "disabled":
            log = WandbLogger(self.out, project="optland", mode=a.wandb, config=vars(a), group="report",
                              job_type="report", name=self.out.name)  # fmt: skip
            log_report(findings, self.out, log)
            log.finish({})
            say(f"wandb run {log.view_command() or ''}")
        return DONE

    def _objective(self, run: OpenedRun, split: Split) -> Objective:
        """The first run's data and loss at this run's weights."""
        a = self.arguments
        return self.first.objective(
            run.trained.evaluated, split, samples=a.samples, seed=a.seed, double=self.double
        )

    def _tests(self, chosen: list[str]) -> dict[str, Objective]:
        """The test loss beside the others, where it is not what is measured anyway."""
        if self.arguments.split == "test" or self.first.data.size("test") == 0:
            return {}
        found = {name: self._objective(self.runs[name], "test") for name in chosen}
        if not self.double:
            return found
        # A surface has one model: that of the float64 copy which is surveyed, and not a second copy of the run's.
        return {
            name: Objective(self.objectives[name].model, o.loss_fn, list(o.batches), data=o.data, seed=o.seed)
            for name, o in found.items()
        }

    def _pairs(self) -> list[tuple[str, str]]:
        """All pairs of a few that fit, and of many each with the next: their number grows with the square."""
        shapes = {name: [tuple(p.shape) for p in o.params] for name, o in self.objectives.items()}
        fitting = [n for n in self.names if shapes[n] == shapes[self.names[0]]]
        if len(fitting) < len(self.names):
            others = ", ".join(n for n in self.names if n not in fitting)
            self.notes.append(f"There are no paths to {others}: another architecture than {self.names[0]}.")
        return list(itertools.combinations(fitting, 2) if len(fitting) <= 3 else itertools.pairwise(fitting))

    def _title(self) -> str:
        return f"Loss landscape: {', '.join(self.names[:3])}{' ...' if len(self.names) > 3 else ''}"

    def _about(self) -> dict[str, str]:
        steps = [f"{n} (step {r.trained.step})" for n, r in self.runs.items()]
        return {
            "checkpoints": ", ".join(steps), "recipe": self.first.recipe.name, "device": self.first.device,
        }  # fmt: skip


_SCORES = {
    "acc": ("accuracy", " %"), "bpc": ("bits per token", ""), "perplexity": ("perplexity", ""), "loss": ("loss", ""),
}  # fmt: skip


def _rows(run: OpenedRun) -> list[dict[str, Any]]:
    """The rows that a run logged up to its checkpoint; none where its log is not beside it."""
    log = run.trained.folder / "log.jsonl"
    rows = read_jsonl(log, kind="row") if log.is_file() else []
    return [row for row in rows if row.get("step", 0) <= run.trained.step]


def _result(run: OpenedRun) -> dict[str, str]:
    """What the run says of itself: how good it was at this checkpoint, how it was made, and its verdict."""
    trained, facts = run.trained, {}
    for split, where in (("test", "test"), ("val", "validation")):
        for name, (word, unit) in _SCORES.items():
            if (value := trained.scores.get(f"{split}/{name}")) is not None:
                facts[f"{where} {word}"] = f"{value:.4g}{unit}, logged at step {trained.step}"
                break  # the first is what the run is judged by
    made = getattr(run.config, "in_words", None)
    facts |= made(trained.rates.get("median")) if made is not None else {}
    return {**facts, "verdict": trained.verdict} if trained.verdict else facts


def _settings(a: argparse.Namespace) -> SurveySettings:
    """The settings of the survey; what they refuse names the option."""
    try:
        return SurveySettings(
            num_points=a.points,
            distance=a.distance,
            max_matvecs=a.max_matvecs,
            density=a.density,
            seed=a.seed,
        )
    except ValueError as error:
        raise UserError(f"--{error}") from error


def _names(runs: list[OpenedRun]) -> list[str]:
    """The folder of each run, with the file where one folder is named twice."""
    folders = [r.checkpoint.parent.resolve().name for r in runs]
    if len(set(folders)) == len(runs):
        return folders
    names = [f"{f}/{r.checkpoint.name}" for f, r in zip(folders, runs, strict=True)]
    if len(set(names)) < len(names):
        names = [f"{n}, {i}" for i, n in enumerate(names, start=1)]
    return names
