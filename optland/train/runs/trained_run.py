"""Load a trained run: its weights, its optimizer, the learning rates it used, and data to probe it on.

Which weights: those that the run was evaluated with, the average where it kept one; the stability of training is that
of the weights that the optimizer steps, which are then others. Which learning rate: under a schedule that decays, the
last one is next to 0 and says nothing, so the median and the peak of the logged ones stand beside it.

Nothing of the run is changed; a checkpoint that was damaged gives way to the one before it.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from optland import batches
from optland.config import UserError, did_you_mean
from optland.log import read_jsonl
from optland.objective import LossFn, Objective
from optland.train.runs.checkpoint import CheckpointError, has_checkpoint, load_checkpoint
from optland.train.runs.weights import about_weights

__all__ = [
    "ProbeData",
    "Split",
    "TrainedRun",
    "disagreement",
    "find_checkpoint",
    "load_run",
    "probe_objective",
]

CHECKPOINT = "checkpoint.pt"

Split = Literal["train", "val", "test"]

SCORES = tuple(
    f"{split}/{name}" for split in ("test", "val") for name in ("acc", "loss", "bpc", "perplexity")
)
"""What is taken from the log for a checkpoint."""

SPLITS = {"train": "training", "val": "validation", "test": "test"}

SAME_LOSS = 1e-3
"""Relative difference up to which two losses on the same data are the same: machines and batch sizes round apart."""


class ProbeData(Protocol):
    """Data that a run can be probed on: :class:`ImageData`, :class:`TextData`, or a recipe's own."""

    def size(self, split: Split) -> int:
        """Number of samples of a split."""

    def sample(self, split: Split, num: int, seed: int = 0) -> Any:
        """A batch of random samples of a split, as ``loss_fn`` takes it; all of them where there are no more.

        Args:
            split: ``train``, ``val`` or ``test``.
            num: How many samples to draw, without replacement.
            seed: Seed of the draw: the same one gives the same samples.
        """


@dataclass(frozen=True)
class TrainedRun:
    """A run as its checkpoint left it.

    Attributes:
        folder: Where the checkpoint lies.
        step: Optimizer steps it was taken after.
        model: The weights of the last step, which ``optimizer`` holds.
        evaluated: The weights that the run was evaluated with: ``model``, or a copy with the averaged ones.
        optimizer: The optimizer with its state; None where it could not be had.
        rates: Logged learning rates up to ``step``: ``last``, ``median`` and ``peak``; empty without a log.
        val_loss: Validation loss that the run logged at ``step``; None where it logged none there.
        notes: Sentences about what is not as it should be.
        scores: Losses and accuracies that the run logged at ``step``, such as ``test/acc``; empty where it logged none.
        verdict: What the run said of itself at its end, where the checkpoint is of its end; else empty.
    """

    folder: Path
    step: int
    model: nn.Module
    evaluated: nn.Module
    optimizer: Optimizer | None
    rates: dict[str, float]
    val_loss: float | None
    notes: tuple[str, ...]
    scores: Mapping[str, float] = field(default_factory=dict)
    verdict: str = ""

    @property
    def averaged(self) -> bool:
        """Whether the run was evaluated with an average of its weights."""
        return self.evaluated is not self.model


def find_checkpoint(path: Path) -> Path:
    """The checkpoint of a run folder, or the file itself.

    Args:
        path: A run folder, or a file of any name.

    Returns:
        The file. Of a folder ``checkpoint.pt``, which need not be there itself: an older one beside it is enough for
        :func:`load_run`.

    Raises:
        UserError: There is nothing of that name, or a folder without a checkpoint.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        here = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"{path}: there is no such run folder or checkpoint.{did_you_mean(path.name, here)} "
            "Name the folder that a run printed at its end, for example runs/landscape_train/digits"
        )
    checkpoint = path / CHECKPOINT
    if has_checkpoint(checkpoint):
        return checkpoint
    inside = sorted({str(file.parent) for file in path.glob(f"*/**/{CHECKPOINT}")})
    if inside:
        raise UserError(f"{path} is no run folder, but holds some: name one of them, such as {inside[0]}")
    what = "its run has saved none" if (path / "config.yaml").exists() else "it is no run folder"
    raise UserError(
        f"{path}: there is no {CHECKPOINT} ({what}); name the folder of a run, or a checkpoint file"
    )


def load_run(checkpoint: Path, model: nn.Module, optimizer: Optimizer | None = None) -> TrainedRun:
    """Load a checkpoint, or the weights that a run gives away, into a model and optimizer as the run built them.

    Args:
        checkpoint: The file; where it is damaged, the one before it is taken, and ``notes`` say so. One that ends in
            ``.safetensors`` has no state of the optimizer.
        model: A freshly built model; its weights are overwritten.
        optimizer: A freshly built optimizer on ``model``; its state is overwritten.

    Returns:
        A :class:`TrainedRun`.

    Raises:
        UserError: No checkpoint that can be read, one of another model, or weights that are not finite.
    """
    if checkpoint.suffix == ".safetensors":
        return _load_weights(checkpoint, model)
    saved, notes = _load(checkpoint)
    parts, step = saved["parts"], int(saved["step"])
    _fill(model, parts["model"], checkpoint)
    evaluated = model
    if "ema" in parts:
        evaluated = copy.deepcopy(model)
        averaged = parts["ema"]["average"]
        _fill(
            evaluated,
            {k.removeprefix("module."): v for k, v in averaged.items() if k != "n_averaged"},
            checkpoint,
        )
    _require_finite(evaluated, step)
    if optimizer is not None:
        try:
            optimizer.load_state_dict(parts["optimizer"])
        except (KeyError, ValueError) as error:
            optimizer = None
            notes.append(
                f"The optimizer's state could not be loaded ({error}), so there is no stability ratio."
            )
    rows = _rows(checkpoint.parent, step, notes)
    notes += _not_the_end(checkpoint.parent, step)
    scores = _scores(rows, step)
    return TrainedRun(
        checkpoint.parent, step, model, evaluated, optimizer, _rates(rows), scores.get("val/loss"), tuple(notes),
        scores, _verdict(checkpoint.parent, step),
    )  # fmt: skip


def _load_weights(file: Path, model: nn.Module) -> TrainedRun:
    """The weights of an epoch; the step and the loss are those of the log's row of that epoch."""
    from safetensors.torch import load_file

    try:
        about, state = about_weights(file), load_file(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{error}") from error
    same = {name: stored for name, stored in about.items() if stored in state and name not in state}
    _fill(model, state | {name: state[stored] for name, stored in same.items()}, file)
    notes = [f"The file holds {about.get('weights', 'weights')}, and no state of the optimizer."]
    every = _rows(file.parent, None, notes)
    rows = [
        row for row in every if row.get("epoch") is not None and str(int(row["epoch"])) == about.get("epoch")
    ]
    step = int(rows[-1]["step"]) if rows else 0
    _require_finite(model, step)
    rates = _rates([row for row in every if row["step"] <= step])
    scores = _scores(rows, step)
    return TrainedRun(
        file.parent, step, model, model, None, rates, scores.get("val/loss"), tuple(notes), scores
    )


def probe_objective(
    model: nn.Module,
    loss_fn: LossFn,
    data: ProbeData,
    *,
    split_name: Split,
    num_samples: int,
    seed: int,
    batch_size: int,
) -> Objective:
    """The loss on random samples of a split, without augmentation and in evaluation mode.

    Args:
        model: The model, on the device of the data.
        loss_fn: The run's loss.
        data: The run's data.
        split_name: Which split.
        num_samples: Samples; all where there are no more.
        seed: Seed of the draw.
        batch_size: Samples at a time; memory alone depends on it.

    Returns:
        An objective whose ``data`` says how many samples of which split it is over, for every estimate made on it.

    Example:
        >>> from optland.train.data import DataConfig, load_data
        >>> data = load_data(DataConfig("teacher", num_samples=100))
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> mean_loss = lambda net, batch: nn.functional.cross_entropy(net(batch[0]), batch[1])
        >>> L = probe_objective(net, mean_loss, data, split_name="train", num_samples=30, seed=0, batch_size=8)
        >>> L.data, len(L.batches), L.mode
        ('30 of 70 training samples', 4, 'eval')
    """
    total = data.size(split_name)
    batch = data.sample(split_name, num_samples, seed)
    count = batches.num_samples(batch)
    which = f"all {count}" if count == total else f"{count} of {total}"
    pieces = batches.split(batch, math.ceil(count / batch_size))
    return Objective(model, loss_fn, pieces, data=f"{which} {SPLITS[split_name]} samples", seed=seed)


def disagreement(run: TrainedRun, loss_fn: LossFn, data: ProbeData, batch_size: int) -> str:
    """Whether recipe, data and weights give the validation loss that the run logged; a sentence where they do not.

    The proof that what is probed is what was trained: a recipe that was edited, or data that changed, show here. Costs
    a forward pass over the validation split, and nothing where the run logged no loss at the checkpoint's step.

    Args:
        run: The run as it was loaded; its evaluated weights are taken.
        loss_fn: The loss of the recipe as it is now.
        data: The data of the recipe as they are now.
        batch_size: Samples at a time; memory alone depends on it.

    Returns:
        Empty where the two losses agree to a relative 1e-3, and where none was logged.
    """
    if run.val_loss is None or not math.isfinite(run.val_loss):
        return ""
    num = data.size("val")
    objective = probe_objective(
        run.evaluated, loss_fn, data, split_name="val", num_samples=num, seed=0, batch_size=batch_size
    )
    found = objective.value()
    if abs(found - run.val_loss) <= SAME_LOSS * max(abs(run.val_loss), SAME_LOSS):
        return ""
    return (
        f"The validation loss is {found:.6g}, but the run logged {run.val_loss:.6g} at this step: the recipe or the "
        "data are not those of the run, or it logged another loss."
    )


def _load(checkpoint: Path) -> tuple[dict[str, Any], list[str]]:
    """The newest usable state, and why it is not the newest file's."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        saved = load_checkpoint(checkpoint, _accept)
    notes = [f"{str(warning.message)[0].upper()}{str(warning.message)[1:]}." for warning in caught]
    if not checkpoint.exists():
        notes.append(f"{checkpoint.name} is missing; the one before it was used.")
    return saved, notes


def _accept(saved: Mapping[str, Any]) -> None:
    if not {"step", "parts"} <= set(saved):
        raise CheckpointError("it is not the checkpoint of a run: step or parts are missing")
    if "model" not in saved["parts"]:
        raise CheckpointError(
            f"it holds {sorted(saved['parts'])} and no 'model'; save the weights under that name"
        )


def _fill(model: nn.Module, state: Mapping[str, Any], checkpoint: Path) -> None:
    """Load weights into a freshly built model; PyTorch's list of what does not fit becomes its first line."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise UserError(
            f"{checkpoint}: its weights do not fit the model that the recipe builds from this config "
            f"({lines[0] if lines else error}); name the recipe and the config that the run was started with"
        ) from error


def _require_finite(model: nn.Module, step: int) -> None:
    for name, p in model.named_parameters():
        bad = int((~torch.isfinite(p)).sum())
        if bad:
            raise UserError(
                f"{bad} of {p.numel()} values of {name!r} are not finite after step {step}: the run has diverged, and "
                "there is no curvature to measure; probe an earlier checkpoint, such as checkpoint.pt.previous"
            )


def _rows(folder: Path, step: int | None, notes: list[str]) -> list[dict[str, Any]]:
    """The logged rows up to the checkpoint; all of them with None."""
    try:
        rows = read_jsonl(folder / "log.jsonl", kind="row")
    except (ValueError, KeyError) as error:
        notes.append(f"log.jsonl cannot be read ({error}), so the run's learning rates are not known.")
        return []
    return [row for row in rows if step is None or row["step"] <= step]


def _not_the_end(folder: Path, step: int) -> list[str]:
    """A finished run whose last checkpoint is not of its last step."""
    end = _summary(folder).get("train/steps", step)
    if end == step:
        return []
    return [f"The run went on to step {end}: these are not its final weights, but the last that were saved."]


def _verdict(folder: Path, step: int) -> str:
    """What a finished run said at its end; nothing where the weights are earlier ones."""
    summary = _summary(folder)
    return str(summary.get("summary/verdict", "")) if summary.get("train/steps") == step else ""


def _summary(folder: Path) -> dict[str, Any]:
    """The run's closing table; empty where there is none that can be read."""
    try:
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _scores(rows: list[dict[str, Any]], step: int) -> dict[str, float]:
    """Losses and accuracies of the evaluation at a step, as it was last logged."""
    scores: dict[str, float] = {}
    for row in rows:
        if row["step"] == step:
            scores |= {key: float(row[key]) for key in SCORES if row.get(key) is not None}
    return scores


def _rates(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Last, median and highest of the logged learning rates; what is not finite or below 0 does not count."""
    logged = [float(row["lr/applied"]) for row in rows if row.get("lr/applied") is not None]
    used = [rate for rate in logged if math.isfinite(rate) and rate >= 0]
    return {"last": used[-1], "median": statistics.median(used), "peak": max(used)} if used else {}
