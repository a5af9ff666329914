"""``optland probe``: the landscape around a trained run, as a table, a figure and a JSON file."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optland import __version__
from optland.cli.cost_progress import CostProgress
from optland.cli.needs import missing_for
from optland.cli.opened import OpenedRun, exact_enough, measuring
from optland.cli.probe_pace import clock, extent_within, seconds_per_ge
from optland.cli.probe_report import Report
from optland.cli.terminal import DONE, FAILED, complain, say, table_console
from optland.config import UserError
from optland.curvature.points.portrait import Portrait, portrait
from optland.curvature.stability.stable_rate import StableRate, stable_rate
from optland.files import write_whole
from optland.log.unwritten import Unwritten
from optland.objective import Objective
from optland.plots.curvature import plot_portrait
from optland.train.runs.trained_run import disagreement, find_checkpoint

__all__ = ["probe", "writable"]

EDGE_PRODUCTS = 60
"""Most products for the sharpness in the optimizer's metric, where the spectrum of the Hessian does not serve."""


def probe(arguments: argparse.Namespace) -> int:
    """Run ``optland probe``.

    Args:
        arguments: Those of :func:`optland.cli.probe_options.add_arguments`.

    Returns:
        The exit code.

    Raises:
        UserError: Something of what was given cannot be used.
    """
    return measuring(lambda: _Probe(arguments).run(), "Interrupted; nothing was written.")


class _Probe:
    """One probe in progress."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        a = self.arguments = arguments
        checkpoint = find_checkpoint(Path(a.run))
        self.out = writable(Path(a.out) if a.out else checkpoint.parent)
        self.opened = OpenedRun(
            a.run, config=a.config, recipe=a.recipe, device=a.device, batch_size=a.batch_size
        )
        self.trained, self.data = self.opened.trained, self.opened.data
        self.objective, coarse = exact_enough(self._objective(self.trained.evaluated))
        arguments.double = arguments.double or bool(coarse)
        # The optimizer steps other weights than those that are evaluated where there is an average.
        self.stepped = self._objective(self.trained.model) if self.trained.averaged else self.objective
        self.notes = [*self.trained.notes, *([coarse] if coarse else []), *self._decay()]
        self.rates = self._rates()

    def run(self) -> int:
        """Measure, print, write."""
        a, pace = self.arguments, self._set_extent()
        declared = self._declared(a.max_matvecs, a.density) + self._spent()
        if lacking := missing_for("optland.plots"):
            self.notes.append(f"{lacking[0].upper()}{lacking[1:]}.")
        where = f"step {self.trained.step}" + (", averaged weights" if self.trained.averaged else "")
        say(f"{self.opened.checkpoint} ({where}), with {self.opened.recipe.script}")
        passes = declared / self.objective.num_samples
        say(
            f"probing {self.objective.data}; at most {declared:.3g} gradient evaluations, "
            f"{passes:.4g} forward and backward passes over them{_at_this(pace, declared)}"
        )
        note = disagreement(self.trained, self.opened.script.loss_fn, self.data, self.opened.batch_size)
        self.notes += [note] if note else []
        with CostProgress(declared, self._spent) as progress:
            try:
                point = portrait(
                    self.objective, k=a.k, max_matvecs=a.max_matvecs, with_density=a.density,
                    is_sample=self._is_sample, seed=a.seed, watch=progress.begin,
                )  # fmt: skip
            except ValueError as error:
                raise UserError(f"{self.opened.checkpoint}: {error}") from error
            progress.begin("stability")
            stability = self._stability(point)
        about = self._about(declared)
        report = Report(point, stability, self.trained.averaged, about, tuple(self.notes))
        self._show(report)
        return self._write(report)

    @property
    def _is_sample(self) -> bool:
        """Whether the split holds more than was drawn: then it is the split's loss that is in question."""
        return self.objective.num_samples < self.data.size(self.arguments.split)

    def _objective(self, model: nn.Module) -> Objective:
        a = self.arguments
        return self.opened.objective(model, a.split, samples=a.samples, seed=a.seed, double=a.double)

    def _rates(self) -> dict[str, float]:
        """The learning rates to hold against the edge."""
        run, optimizer = self.trained, self.trained.optimizer
        if run.rates or optimizer is None:
            return run.rates
        if getattr(getattr(self.opened.config, "pilot", None), "sets_the_rate", False):
            self.notes.append(
                f"The run's learning rates are not known: auto_lr set them, and none is logged up to step {run.step}."
            )
            return {}
        return {"last": float(optimizer.param_groups[0]["lr"])}

    def _decay(self) -> list[str]:
        """A note for runs with weight decay, which the measured loss leaves out."""
        groups = self.trained.optimizer.param_groups if self.trained.optimizer is not None else []
        decays = sorted({float(group.get("weight_decay", 0.0)) for group in groups} - {0.0})
        if not decays:
            return []
        return [
            f"The loss is measured without the optimizer's weight decay ({', '.join(f'{d:g}' for d in decays)}), with "
            "which its critical points lie elsewhere; the stability ratios count it."
        ]

    def _set_extent(self) -> float | None:
        """Choose how many products are made, where the user did not; returns the seconds of a gradient evaluation."""
        a = self.arguments
        if a.max_matvecs is not None:
            a.density = a.density is not False
            return None
        pace = seconds_per_ge(self.objective)
        extent = extent_within(a.seconds, pace, self._declared, density=a.density)
        a.max_matvecs, a.density = extent.max_matvecs, extent.density
        self.notes += [extent.note] if extent.note else []
        return pace

    def _declared(self, max_matvecs: int, density: bool) -> float:
        """Most gradient evaluations that the probe can take, of both objectives together."""
        cost = portrait.cost(
            self.objective, max_matvecs=max_matvecs, with_density=density, is_sample=self._is_sample
        )
        if self.trained.optimizer is not None:
            cost += stable_rate.cost(self.stepped, len(self.rates), min(max_matvecs, EDGE_PRODUCTS))
        return cost

    def _spent(self) -> float:
        """Gradient evaluations so far, of both objectives together; an average has a meter of its own."""
        return self.objective.cost_ge + (self.stepped.cost_ge if self.trained.averaged else 0.0)

    def _stability(self, point: Portrait) -> StableRate | None:
        """Learning rates against the edge; None, with a note, where the optimizer has no known rule."""
        if self.trained.optimizer is None:
            self.notes.append("There is no optimizer, so there is no stability ratio.")
            return None
        spectrum = None if self.trained.averaged else point.spectrum
        max_matvecs = min(self.arguments.max_matvecs, EDGE_PRODUCTS)
        try:
            return stable_rate(
                self.stepped, self.trained.optimizer, self.rates, spectrum=spectrum, max_matvecs=max_matvecs,
                seed=self.arguments.seed,
            )  # fmt: skip
        except (TypeError, ValueError) as error:
            self.notes.append(f"There is no stability ratio: {error}.")
            return None

    def _about(self, declared: float) -> dict[str, Any]:
        a, source = self.arguments, self.objective
        weights = "average" if self.trained.averaged else "last step"
        return {
            "optland": __version__, "torch": torch.__version__, "run": str(self.trained.folder),
            "checkpoint": self.opened.checkpoint.name, "recipe": self.opened.recipe.name, "step": self.trained.step,
            "weights": weights, "split": a.split, "samples": source.num_samples, "of": self.data.size(a.split),
            "data": source.data, "mode": source.mode, "seed": a.seed, "dtype": source.dtype,
            "device": self.opened.device, "k": a.k, "max_matvecs": a.max_matvecs, "declared_ge": declared,
            "cost_ge": self._spent(),
        }  # fmt: skip

    def _show(self, report: Report) -> None:
        table_console().print(report.table())
        say(f"\n{report.verdict()}")
        for note in report.notes:
            say(f"note: {note}")

    def _write(self, report: Report) -> int:
        text = json.dumps(report.content(), indent=1, allow_nan=False) + "\n"
        unwritten = Unwritten()
        with unwritten.attempt("probe.json"):
            stem = _new_file(self.out, text)
            say(f"\nwrote {stem.with_suffix('.json')}")
            if not missing_for("optland.plots"):
                with unwritten.attempt("probe.png", Exception):
                    self._draw(report, stem.with_suffix(".png"))
        for line in unwritten.lines():
            complain(line)
        return FAILED if unwritten.missing else DONE

    def _draw(self, report: Report, figure: Path) -> None:
        title = f"{self.trained.folder.name}, step {self.trained.step}: {self.objective.data}"
        verdict = " ".join([report.verdict(), *report.notes])
        plot_portrait(report.portrait, figure, title=title, verdict=verdict)
        say(f"wrote {figure}")


def _at_this(pace: float | None, declared: float) -> str:
    """How long it takes at the most, where the pace is known."""
    return "" if pace is None else f", up to {clock(pace * declared)} on this machine"


def writable(folder: Path) -> Path:
    """The folder, made where missing: found out before anything is measured.

    Args:
        folder: Where the command is to write.

    Returns:
        The folder.

    Raises:
        UserError: It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / ".optland-trial"
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written to ({error.strerror}); name another with --out"
        ) from error
    return folder


def _new_file(folder: Path, text: str) -> Path:
    """Write ``probe.json``, or the first numbered one that is free with its figure; returns it without suffix."""
    for number in itertools.count(1):
        stem = folder / ("probe" if number == 1 else f"probe-{number}")
        if stem.with_suffix(".png").exists():
            continue
        try:
            stem.with_suffix(".json").touch(exist_ok=False)  # another process may be about to take this name
        except FileExistsError:
            continue
        try:
            write_whole(stem.with_suffix(".json"), text)
        except OSError:
            stem.with_suffix(".json").unlink(missing_ok=True)
            raise
        return stem
    raise AssertionError("there is always another number")
