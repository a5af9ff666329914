"""Train an image classifier with the loss landscape in view: no learning rate to choose.

SAM seeks a flat minimum; the pilot probes the landscape inside a budget, sets the learning rate from a relative step,
grows the batch with the gradient noise, rewinds when a step was too long, and logs every decision with its reason.

    optland run landscape_train configs/landscape_train/digits.yaml
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.cli import run_script
from optland.pilot import Pilot
from optland.plots import plot_run
from optland.train import (
    BatchLoader,
    DataConfig,
    GracefulStop,
    History,
    ImageData,
    ModelConfig,
    RunFolder,
    ValidatedRunConfig,
    build_model,
    check_model,
    choose_device,
    load_data,
    schedule_by_name,
    seed_everything,
    summarise,
)


@dataclass(frozen=True)
class Config(ValidatedRunConfig):
    """One run: every key of ValidatedRunConfig, and these.

    Attributes:
        data: Images and labels.
        model: The classifier.
    """

    epochs: int = 25
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_model(self.model, self.data.image_shape)


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of a batch."""
    x, y = batch
    return F.cross_entropy(model(x), y)


def build(config: Config, device: str) -> tuple[nn.Module, ImageData]:
    """The model, freshly initialised, and its data: for ``main``, and for ``optland probe`` after it."""
    data = load_data(config.data).to(device)
    return build_model(config.model, data.image_shape, data.num_classes).to(device), data


def main(config: Config, *, resume: bool = False) -> int:
    """Train, log, draw and summarise one run."""
    torch.set_num_threads(config.threads)
    seed_everything(config.seed)
    device = choose_device(config.device)
    model, data = build(config, device)
    net = config.precision.prepare(model)
    images = [data.train_x, data.train_y]
    loader = BatchLoader(
        images, config.batch_size, epochs=config.epochs, seed=config.seed, transform=data.transform
    )
    optimizer = config.optimizer.build(net, loader.total_steps)
    precision = config.precision.build(optimizer, device)
    ema = config.precision.build_ema(model)
    scheduler = schedule_by_name(config.schedule, optimizer, loader)
    run = RunFolder(
        config.out, config, config.log, recipe=__file__, length=loader.total_samples, resume=resume
    )
    if run.finished:
        print(f"the run in {run.path} is finished; start a new one without --resume")
        return 0
    pilot = Pilot(
        optimizer, net, loss_fn, policies=config.pilot.build_policies(), mode=config.pilot.mode,
        budget=config.pilot.budget, log=run.log, log_every=config.log.every, seed=config.seed,
    )  # fmt: skip
    history = History()
    parts: dict[str, Any] = {"log": run.log, "scheduler": scheduler, "optimizer": optimizer, "model": model}
    parts |= {"ema": ema, "precision": precision, "loader": loader, "pilot": pilot, "history": history}
    checkpoint = run.checkpoints(config, **parts)
    weights = run.give_away(
        model, ema, history, data.inputs, build_model, config.model, data.image_shape, data.num_classes
    )
    done = checkpoint.begin(resume=resume)
    if resume:
        print(f"resuming {run.path} after step {done}")

    with GracefulStop() as stop, run:
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
                run.log.log({"step": pilot.step, "samples": pilot.samples, **accuracy})
                weights.keep()
            checkpoint.after_step(pilot.step)
            if stop.requested:
                stop.leave(checkpoint, pilot.step)

        checkpoint.save(pilot.step)
        run.finish(summarise(pilot, history, run.rows(), run.events()))
        with run.attempt("curves.png") as picture:
            plot_run(run.rows(), run.events(), picture)
            run.log.image("summary/curves", picture)
    print(run.where())
    return run.exit_code


if __name__ == "__main__":
    raise SystemExit(run_script(__file__))
