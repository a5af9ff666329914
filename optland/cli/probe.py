"""``optland probe``: the landscape around a trained run, as a table, a figure and a JSON file.

A recipe's script is run for its definitions, under a name of its own, so that its last lines do not start a run. It has
to define

- ``Config`` and ``loss_fn(model, batch)``, as ``optland run`` needs them anyway;
- ``build(config, device) -> (model, data)``, which its ``main`` uses too. ``data`` has ``size(split)`` and
  ``sample(split, num, seed)``; see :class:`optland.train.revisit.ProbeData`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from torch import nn
from torch.optim import Optimizer

from optland import __version__
from optland.cli.probe_options import check
from optland.cli.probe_report import Report
from optland.cli.recipes import Recipe, find_recipe
from optland.cli.terminal import DONE, INTERRUPTED, complain, say
from optland.config import UserError, load
from optland.curvature.points.portrait import Portrait, portrait
from optland.curvature.points.portrait import declared_cost as portrait_cost
from optland.curvature.stability.stable_rate import StableRate, stable_rate
from optland.curvature.stability.stable_rate import declared_cost as rate_cost
from optland.objective import Objective
from optland.plots import plot_portrait
from optland.train.revisit import (
    ProbeData,
    disagreement,
    find_checkpoint,
    probe_objective,
    revisit,
)
from optland.train.settings import choose_device

__all__ = ["probe"]

EDGE_PRODUCTS = 60
"""Most products for the sharpness in the optimizer's metric, where the spectrum of the Hessian does not serve."""


def probe(arguments: argparse.Namespace) -> int:
    """Run ``optland probe``.

    Args:
        arguments: Those of :func:`optland.cli.probe_options.add_probe_arguments`.

    Returns:
        The exit code.

    Raises:
        UserError: Something of what was given cannot be used.
    """
    check(arguments)
    threads = torch.get_num_threads()
    try:
        return _Probe(arguments).run()
    except KeyboardInterrupt:
        complain("\nInterrupted; nothing was written.")
        return INTERRUPTED
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the memory does not suffice ({str(error).splitlines()[0]}); use a smaller --batch-size, or --samples"
        ) from error
    finally:
        torch.set_num_threads(threads)


class _Probe:
    """One probe on its way."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.checkpoint = find_checkpoint(Path(arguments.run))
        self.out = _writable(Path(arguments.out) if arguments.out else self.checkpoint.parent)
        path = self._config_file()
        self.recipe = self._find_recipe(path)
        self.script = _definitions(self.recipe)
        device = _device(arguments.device)
        self.config = self._load(path, device)
        torch.set_num_threads(getattr(self.config, "threads", None) or torch.get_num_threads())
        model, self.data = _built(self.script, self.config, device, self.recipe)
        self.device = device
        self.trained = revisit(self.checkpoint, model, self._optimizer(model))
        self.batch_size: int = arguments.batch_size or getattr(self.config, "batch_size", 64)
        self.objective = self._objective(self.trained.evaluated)
        # The optimizer steps other weights than those that are evaluated where there is an average.
        self.stepped = self._objective(self.trained.model) if self.trained.averaged else self.objective
        self.notes = [*self.trained.notes, *self._decay()]
        self.rates = self._rates()

    def run(self) -> int:
        """Measure, print, write."""
        a, declared = self.arguments, self._declared()
        where = f"step {self.trained.step}" + (", averaged weights" if self.trained.averaged else "")
        say(f"{self.checkpoint} ({where}), with {self.recipe.script}")
        passes = declared / self.objective.num_samples
        say(
            f"probing {self.objective.data}; at most {declared:.3g} gradient evaluations, "
            f"{passes:.4g} forward and backward passes over them"
        )
        note = disagreement(self.trained, self.script.loss_fn, self.data, self.batch_size)
        self.notes += [note] if note else []
        with _Progress(declared, self._spent) as progress:
            point = portrait(
                self.objective, k=a.k, products=a.products, with_density=a.density, sample=self._is_sample,
                seed=a.seed, watch=progress.begin,
            )  # fmt: skip
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

    def _config_file(self) -> Path:
        if self.arguments.config is not None:
            path = Path(self.arguments.config)
            if not path.is_file():
                raise UserError(f"--config: there is no file {path}")
            return path
        path = self.checkpoint.parent / "config.yaml"
        if not path.is_file():
            raise UserError(
                f"{self.checkpoint}: there is no config.yaml beside it; give the run's with --config FILE"
            )
        return path

    def _find_recipe(self, config: Path) -> Recipe:
        if self.arguments.recipe is not None:
            return find_recipe(self.arguments.recipe)
        named = re.search(r"^recipe: *(\S+)\s*$", config.read_text(encoding="utf-8"), flags=re.MULTILINE)
        if named is None:
            raise UserError(f"{config}: no recipe is named; add --recipe RECIPE")
        try:
            return find_recipe(named.group(1).strip("'\""))
        except UserError as error:
            raise UserError(f"{config}: {error}, or name its script with --recipe FILE") from error

    def _load(self, path: Path, device: str) -> Any:
        """The configuration; on another machine, the device of the run may not be there."""
        schema = self.script.Config
        overrides = [f"device={device}"] if "device" in getattr(schema, "__dataclass_fields__", {}) else []
        return load(schema, path, overrides)

    def _optimizer(self, model: nn.Module) -> Optimizer | None:
        make: Callable[[nn.Module], Optimizer] | None
        make = getattr(getattr(self.config, "optimizer", None), "build", None)
        return None if make is None else make(model)

    def _objective(self, model: nn.Module) -> Objective:
        a = self.arguments
        objective = probe_objective(
            model, self.script.loss_fn, self.data, split_name=a.split, num=a.samples, seed=a.seed,
            batch_size=self.batch_size,
        )  # fmt: skip
        return objective.double() if a.double else objective

    def _rates(self) -> dict[str, float]:
        """The learning rates to hold against the edge."""
        run, optimizer = self.trained, self.trained.optimizer
        if run.rates or optimizer is None:
            return run.rates
        if getattr(getattr(self.config, "pilot", None), "sets_the_rate", False):
            self.notes.append(
                f"The run's learning rates are not known: auto_lr set them, and none is logged up to step {run.step}."
            )
            return {}
        return {"last": float(optimizer.param_groups[0]["lr"])}

    def _decay(self) -> list[str]:
        """What a measured loss without its decay means."""
        groups = self.trained.optimizer.param_groups if self.trained.optimizer is not None else []
        decays = sorted({float(group.get("weight_decay", 0.0)) for group in groups} - {0.0})
        if not decays:
            return []
        return [
            f"The loss is measured without the optimizer's weight decay ({', '.join(f'{d:g}' for d in decays)}), with "
            "which its critical points lie elsewhere; the stability ratios count it."
        ]

    def _declared(self) -> float:
        a = self.arguments
        cost = portrait_cost(
            self.objective, products=a.products, with_density=a.density, sample=self._is_sample
        )
        if self.trained.optimizer is not None:
            cost += rate_cost(self.stepped, len(self.rates), min(a.products, EDGE_PRODUCTS))
        return cost

    def _spent(self) -> float:
        # An objective of its own, where there is one, has a meter of its own.
        return sum(
            objective.cost_ge for objective in {id(o): o for o in (self.objective, self.stepped)}.values()
        )

    def _stability(self, point: Portrait) -> StableRate | None:
        if self.trained.optimizer is None:
            self.notes.append("There is no optimizer, so there is no stability ratio.")
            return None
        spectrum = None if self.trained.averaged else point.spectrum
        products = min(self.arguments.products, EDGE_PRODUCTS)
        try:
            return stable_rate(
                self.stepped, self.trained.optimizer, self.rates, spectrum=spectrum, max_products=products,
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
            "checkpoint": self.checkpoint.name, "recipe": self.recipe.name, "step": self.trained.step,
            "weights": weights, "split": a.split, "samples": source.num_samples, "of": self.data.size(a.split),
            "data": source.data, "mode": source.mode, "seed": a.seed, "dtype": source.dtype, "device": self.device,
            "k": a.k, "max_products": a.products, "declared_ge": declared, "cost_ge": self._spent(),
        }  # fmt: skip

    def _show(self, report: Report) -> None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=120)  # a file has no width
        console.print(report.table())
        say(f"\n{report.verdict()}")
        for note in report.notes:
            say(f"note: {note}")

    def _write(self, report: Report) -> int:
        text = json.dumps(report.content(), indent=1, allow_nan=False) + "\n"
        stem = _new_file(self.out, text)
        say(f"\nwrote {stem.with_suffix('.json')}")
        figure = stem.with_suffix(".png")
        title = f"{self.trained.folder.name}, step {self.trained.step}: {self.objective.data}"
        verdict = " ".join([report.verdict(), *report.notes])
        plot_portrait(report.portrait, figure, title=title, verdict=verdict)
        say(f"wrote {figure}")
        return DONE


class _Progress:
    """What is being measured, with a bar of the declared cost on a terminal and a line for each part elsewhere."""

    def __init__(self, declared: float, spent: Callable[[], float]) -> None:
        self.declared, self.spent, self.part = declared, spent, ""
        console = Console()
        self._live = Live(get_renderable=self._line, console=console, transient=True, refresh_per_second=5)
        self._shown = console.is_terminal

    def begin(self, part: str) -> None:
        """A part begins."""
        self.part = part
        if not self._shown:
            say(f"measuring: {part}")

    def _line(self) -> Group:
        done = min(self.spent(), self.declared)
        grid = Table.grid(padding=(0, 1))
        grid.add_row(
            ProgressBar(total=self.declared, completed=done, width=30),
            Text(f"{self.part}, {done:.3g} of at most {self.declared:.3g} gradient evaluations"),
        )
        return Group(grid)

    def __enter__(self) -> _Progress:
        if self._shown:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._shown:
            self._live.stop()


def _definitions(recipe: Recipe) -> types.ModuleType:
    """What the script defines; a dataclass looks its annotations up in the module of its name."""
    module = types.ModuleType(f"optland_recipe_{re.sub(r'[^0-9A-Za-z_]', '_', recipe.name)}")
    module.__file__ = str(recipe.script)
    sys.modules[module.__name__] = module
    exec(compile(recipe.script.read_text(encoding="utf-8"), str(recipe.script), "exec"), module.__dict__)
    for name, how in (
        ("Config", "a dataclass, the schema of its configs"),
        ("loss_fn", "def loss_fn(model, batch)"),
        ("build", "def build(config, device) -> (model, data), and let main use it too"),
    ):
        if not hasattr(module, name):
            raise UserError(f"{recipe.script} has no {name}, without which a run cannot be probed; add {how}")
    return module


def _built(script: types.ModuleType, config: Any, device: str, recipe: Recipe) -> tuple[nn.Module, ProbeData]:
    built = script.build(config, device)
    shape = isinstance(built, tuple) and len(built) == 2 and isinstance(built[0], nn.Module)
    if not shape or not all(callable(getattr(built[1], name, None)) for name in ("size", "sample")):
        raise UserError(
            f"{recipe.script}: build must return (model, data), and data must have size(split) and "
            "sample(split, num, seed)"
        )
    return built[0], built[1]


def _device(asked: Literal["auto", "cpu", "cuda"]) -> str:
    try:
        return choose_device(asked)
    except ValueError as error:
        raise UserError(f"--{error}") from error


def _writable(folder: Path) -> Path:
    """The folder, made where missing: found out before anything is measured."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / ".probe-trial"
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
            with stem.with_suffix(".json").open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"{stem}.json cannot be written ({error.strerror})") from error
        return stem
    raise AssertionError("there is always another number")
