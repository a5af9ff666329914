"""Compare any SAM-type method with its tuned base, on any of the data sets: one table, one figure.

The base alone is tuned over a few learning rates, the method over a few radii at the best of them, both by clean
validation on the same seeds. Fresh seeds then say what the method gains, at equal epochs and at equal gradient
evaluations. Every run is kept: a comparison that was stopped goes on with `--resume`.

    optland run train_sam configs/train_sam/digits.yaml
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.cli import run_script
from optland.pilot import Pilot
from optland.plots import plot_comparison
from optland.train import (
    BatchLoader,
    ComparedRunConfig,
    Comparison,
    DataConfig,
    GracefulStop,
    History,
    ImageData,
    ModelConfig,
    PilotConfig,
    RunFolder,
    ScheduleName,
    build_model,
    check_model,
    choose_device,
    load_data,
    schedule_by_name,
    seed_everything,
    summarise,
)


@dataclass(frozen=True)
class Config(ComparedRunConfig):
    """One comparison: every key of ComparedRunConfig, and these.

    Attributes:
        data: Images and labels.
        model: The classifier.
    """

    epochs: int = 25
    schedule: ScheduleName = "cosine"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pilot: PilotConfig = field(default_factory=lambda: PilotConfig(mode="off", policies=[]))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_model(self.model, self.data.image_shape)


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of a batch."""
    x, y = batch
    return F.cross_entropy(model(x), y)


def build(config: Config, device: str) -> tuple[nn.Module, ImageData]:
    """The model, freshly initialised, and its data: for ``train``, and for ``optland probe`` after it."""
    data = load_data(config.data).to(device)
    return build_model(config.model, data.image_shape, data.num_classes).to(device), data


def train(config: Config, run: RunFolder, stop: GracefulStop, *, resume: bool) -> None:
    """One run of one method: the loop itself."""
    seed_everything(config.seed)
    device = choose_device(config.device)
    model, data = build(config, device)
    net = config.precision.prepare(model)
    loader = BatchLoader([data.train_x, data.train_y], config.batch_size, epochs=config.epochs, seed=config.seed,
                         transform=data.transform)  # fmt: skip
    optimizer = config.optimizer.build(net, loader.total_steps)
    precision = config.precision.build(optimizer, device)
    ema = config.precision.build_ema(model)
    scheduler = schedule_by_name(config.schedule, optimizer, loader)
    pilot = Pilot(
        optimizer, net, loss_fn, policies=[], mode=config.pilot.mode, budget=config.pilot.budget,
        log=run.log, log_every=config.log.every, seed=config.seed,
    )  # fmt: skip
    history = History()
    parts: dict[str, Any] = {"log": run.log, "scheduler": scheduler, "optimizer": optimizer, "model": model}
    parts |= {"ema": ema, "precision": precision, "loader": loader, "pilot": pilot, "history": history}
    checkpoint = run.checkpoints(config, **parts)
    weights = run.give_away(
        model, ema, history, data.inputs, build_model, config.model, data.image_shape, data.num_classes
    )
    checkpoint.begin(resume=resume)

    for batch in history.until_stalled(pilot.batches(loader), config.patience):

        def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
            optimizer.zero_grad()
            return precision.backward(loss_fn, net, batch, loader.weight)

        loss = precision.step(closure)
        if scheduler is not None:
            scheduler.step()
        pilot.after_step(batch, loss)
        if ema is not None:
            ema.update()
        if loader.at_epoch_end:
            accuracy = history.measure(weights.model, data, loader.epoch)
            cost = {"samples": pilot.samples, "budget/ge": pilot.budget.train_ge + pilot.budget.probe_ge}
            run.log.log({"step": pilot.step} | cost | accuracy)
            weights.keep()
        checkpoint.after_step(pilot.step)
        if stop.requested:
            stop.leave(checkpoint, pilot.step)

    checkpoint.save(pilot.step)
    run.finish(summarise(pilot, history, run.rows(), run.events()))


def main(config: Config, *, resume: bool = False) -> int:
    """Train, compare, draw; or with ``compare: null`` train one run."""
    torch.set_num_threads(config.threads)
    with GracefulStop() as stop, Comparison(config, recipe=__file__, resume=resume) as comparison:
        if comparison.finished:
            print(f"{comparison.folder.path} is finished; start a new one without --resume")
            return 0
        for member, run, begun in comparison.runs():
            train(member, run, stop, resume=begun)
            print(comparison.describe(run))
        if config.compare is not None:
            curves = comparison.finish()
            with comparison.folder.attempt("curves.png") as picture:
                plot_comparison({config.data.name: curves}, picture)
                comparison.folder.log.image("summary/curves", picture)
    print(comparison.where())
    return comparison.exit_code


if __name__ == "__main__":
    raise SystemExit(run_script(__file__))
