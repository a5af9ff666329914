"""Open a run again: its recipe's definitions, its configuration, its data, and its weights in its model.

A recipe's script is run for its definitions, under a name of its own, so that its last lines do not start a run. It has
to define

- ``Config`` and ``loss_fn(model, batch)``, as ``optland run`` needs them anyway;
- ``build(config, device) -> (model, data)``, which its ``main`` uses too. ``data`` has ``size(split)`` and
  ``sample(split, num, seed)``; see :class:`optland.train.runs.trained_run.ProbeData`.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from optland import batches, vectors
from optland.cli.recipes import Recipe, find_recipe, named_recipe
from optland.cli.terminal import INTERRUPTED, complain
from optland.config import UserError, load
from optland.config.scripts import ScriptRecord
from optland.curvature import hessian
from optland.objective import Objective
from optland.train.runs.settings import choose_device
from optland.train.runs.trained_run import ProbeData, Split, find_checkpoint, load_run, probe_objective

__all__ = ["ConfiguredStart", "OpenedRun", "exact_enough", "measuring", "usable_device"]


def measuring(work: Callable[[], int], interrupted: str) -> int:
    """Run a measurement on opened runs: reports Ctrl-C and lack of memory, and restores the number of threads.

    Args:
        work: Returns the exit code.
        interrupted: What Ctrl-C leaves.

    Returns:
        What ``work`` returned; 130 after Ctrl-C.

    Raises:
        UserError: The memory does not suffice.
    """
    threads = torch.get_num_threads()
    try:
        return work()
    except KeyboardInterrupt:
        complain(f"\n{interrupted}")
        return INTERRUPTED
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the memory does not suffice ({str(error).splitlines()[0]}); use a smaller --batch-size, or --samples"
        ) from error
    finally:
        torch.set_num_threads(threads)


def exact_enough(objective: Objective) -> tuple[Objective, str]:
    """The objective, or its float64 copy where products in its own precision are off, and a note that says so.

    At a loss that is all but zero float32 has hardly a digit of the curvature left.

    Args:
        objective: The loss, in the precision of the run.

    Returns:
        What to measure on, and one sentence where that is the copy, else an empty text. Costs one Hessian product with
        its check.
    """
    with hessian(objective) as H:
        product = H.matvec(vectors.random_unit(objective.params, seed=0))
        error = H.product_error
        if H.method == "finite_difference" or not error > 0:  # an error that was found beside a float64 copy
            return objective, ""
    share = 100 * error / float(vectors.norm(product))
    return (
        objective.double(),
        f"Measured in float64: in {objective.dtype} products are {share:.2g} % off here.",
    )


class OpenedRun:
    """A checkpoint with all that it takes to evaluate its loss.

    Args:
        run: Run folder or checkpoint file.
        config: The run's config; by default the one beside the checkpoint.
        recipe: Its recipe; by default the one that the config names.
        device: Where to.
        batch_size: Samples at a time; the run's by default.

    Attributes:
        checkpoint: The file that was found.
        recipe: The recipe that made the run.
        script: Its definitions.
        config: The run's configuration, with ``device`` as asked here.
        data: The run's data, with ``size`` and ``sample``.
        trained: Weights, optimizer and what the run logged.
        batch_size: Samples at a time.

    Raises:
        UserError: Something is missing, or does not fit.
    """

    def __init__(
        self,
        run: str | Path,
        *,
        config: str | None = None,
        recipe: str | None = None,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        batch_size: int | None = None,
    ) -> None:
        self.checkpoint = find_checkpoint(Path(run))
        path = self._config_file(config)
        self.recipe = self._find_recipe(path, recipe)
        self.script = _definitions(self.recipe)
        self.device = usable_device(device)
        self.config = self._load(path, self.device)
        model, self.data, optimizer = _built(self.script, self.config, self.device, self.recipe)
        self.trained = load_run(self.checkpoint, model, optimizer)
        own: int = getattr(self.config, "batch_size", 64)
        self.batch_size = batch_size or own

    def objective(
        self, model: nn.Module, split: Split, *, samples: int, seed: int, double: bool
    ) -> Objective:
        """The run's loss on random samples of a split, at the weights of ``model``.

        Args:
            model: One with the run's architecture: the last weights, the averaged ones, or another run's.
            split: ``train``, ``val`` or ``test``.
            samples: How many; all where there are no more.
            seed: Seed of the draw: the same one gives the same samples for every run on these data.
            double: Whether to measure on a float64 copy.
        """
        objective = probe_objective(
            model,
            self.script.loss_fn,
            self.data,
            split_name=split,
            num_samples=samples,
            seed=seed,
            batch_size=self.batch_size,
        )
        return objective.double() if double else objective

    def _config_file(self, given: str | None) -> Path:
        if given is not None:
            path = Path(given)
            if not path.is_file():
                raise UserError(f"--config: there is no file {path}")
            return path
        path = self.checkpoint.parent / "config.yaml"
        if not path.is_file():
            raise UserError(
                f"{self.checkpoint}: there is no config.yaml beside it; give the run's with --config FILE"
            )
        return path

    def _find_recipe(self, config: Path, given: str | None) -> Recipe:
        if given is not None:
            return find_recipe(given)
        named = named_recipe(config)
        if not named:
            raise UserError(f"{config}: no recipe is named; add --recipe RECIPE")
        record = ScriptRecord.read(config.parent)
        if record is not None and record.recipe == named:
            return _recorded(record, config.parent)
        try:
            return find_recipe(named)
        except UserError as error:
            raise UserError(f"{config}: {error}, or name its script with --recipe FILE") from error

    def _load(self, path: Path, device: str) -> Any:
        """The configuration; on another machine, the device of the run may not be there."""
        schema = self.script.Config
        overrides = [f"device={device}"] if "device" in getattr(schema, "__dataclass_fields__", {}) else []
        return load(schema, path, overrides)


class ConfiguredStart:
    """What a configured run would begin with: model, optimizer, loss and batches.

    Args:
        recipe: By name or script.
        config: A YAML file, or the bare name of a shipped one.
        overrides: Changes, ``key=value``.

    Attributes:
        config: The configuration.
        model: The fresh net, on its device.
        loss_fn: The recipe's loss.
        optimizer: The optimizer on the net.
        batches: Up to 32 batches of random training samples, without augmentation.
        batch_size: Samples of one of them.

    Raises:
        UserError: The recipe lacks what it takes, or the configuration cannot be used.
    """

    def __init__(self, recipe: str, config: str, overrides: Sequence[str]) -> None:
        found = find_recipe(recipe)
        script = _definitions(found)
        self.config = found.load_config(config, overrides, script.Config)
        device = usable_device(getattr(self.config, "device", "auto"))
        self.model, data, optimizer = _built(script, self.config, device, found)
        if optimizer is None:
            raise UserError(f"{found.script}: its configuration has no optimizer.build(model); give it one")
        self.optimizer = optimizer
        self.loss_fn = script.loss_fn
        self.batch_size: int = getattr(self.config, "batch_size", 64)
        seed = getattr(self.config, "seed", 0)
        sample = data.sample("train", 32 * self.batch_size, seed)
        self.batches = batches.split(sample, max(1, batches.num_samples(sample) // self.batch_size))


def _recorded(record: ScriptRecord, folder: Path) -> Recipe:
    """The recipe that made the run; another one of its name would be taken for it silently."""
    script = record.find(folder)
    if script is None:
        raise UserError(
            f"{folder / record.FILE}: the run was made by {record.script or record.recipe}, which is not there; name "
            "its script with --recipe FILE"
        )
    if not record.is_text_of(script):
        complain(f"{script} has been edited since it made {folder}")
    return Recipe(script.resolve())


def _definitions(recipe: Recipe) -> types.ModuleType:
    """The definitions of the script, with all that probing needs."""
    module = recipe.definitions()
    for name, how in (
        ("loss_fn", "def loss_fn(model, batch)"),
        ("build", "def build(config, device) -> (model, data), and let main use it too"),
    ):
        if not hasattr(module, name):
            raise UserError(f"{recipe.script} has no {name}, without which a run cannot be probed; add {how}")
    return module


def _built(
    script: types.ModuleType, config: Any, device: str, recipe: Recipe
) -> tuple[nn.Module, ProbeData, Optimizer | None]:
    """What the recipe's ``build`` gives, checked: a module, and data that can be sampled; and the optimizer, if any."""
    torch.set_num_threads(getattr(config, "threads", None) or torch.get_num_threads())
    built = script.build(config, device)
    shape = isinstance(built, tuple) and len(built) == 2 and isinstance(built[0], nn.Module)
    if not shape or not all(callable(getattr(built[1], name, None)) for name in ("size", "sample")):
        raise UserError(
            f"{recipe.script}: build must return (model, data), and data must have size(split) and "
            "sample(split, num, seed)"
        )
    make = getattr(getattr(config, "optimizer", None), "build", None)
    return built[0], built[1], None if make is None else make(built[0])


def usable_device(asked: Literal["auto", "cpu", "cuda"]) -> str:
    """The device that is meant.

    Args:
        asked: As on the command line or in the configuration.

    Raises:
        UserError: It is not there.
    """
    try:
        return choose_device(asked)
    except ValueError as error:
        raise UserError(f"--{error}") from error
