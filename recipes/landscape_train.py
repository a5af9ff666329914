"""Train an image classifier with the loss landscape in view: no learning rate to choose.

SAM seeks a flat minimum; the pilot probes the landscape inside a budget, sets the learning rate from a relative step,
grows the batch with the gradient noise, rewinds when a step was too long, and logs every decision with its reason.

    optland run landscape_train configs/landscape_train/digits.yaml
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.cli import run_script
from optland.plots import plot_run
from optland.train import (
    BatchLoader,
    Checkpoint,
    DataConfig,
    History,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    Pilot,
    PilotConfig,
    RunFolder,
    build_model,
    cosine_schedule,
    load_data,
    seed_everything,
    summarise,
)


@dataclass(frozen=True)
class Config:
    """One run.

    Attributes:
        seed: Seed of the initial weights and of the order of the data.
        epochs: Passes over the training split.
        batch_size: Samples a batch at the start; noise_batch may grow it.
        schedule: ``cosine`` (5 % warm-up, then to zero) or ``none``; auto_lr brings its own shape.
        device: ``cpu``, ``cuda`` or ``auto`` (cuda where there is one).
        threads: CPU threads; one is fastest for nets this small.
        checkpoint_every: Steps between two checkpoints.
        out: Folder of the run.
    """

    seed: int = 0
    epochs: int = 25
    batch_size: int = 64
    schedule: Literal["none", "cosine"] = "none"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1
    checkpoint_every: int = 100
    out: str = "runs/landscape_train/run"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    pilot: PilotConfig = field(default_factory=PilotConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "threads", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device: cuda is not available here; use auto or cpu")
        if self.schedule != "none" and self.pilot.sets_the_rate:
            raise ValueError(f"schedule: auto_lr brings its own; use none instead of {self.schedule}")


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of a batch."""
    x, y = batch
    return F.cross_entropy(model(x), y)


def main(config: Config, *, resume: bool = False) -> int:
    """Train, log, draw and summarise one run."""
    torch.set_num_threads(config.threads)
    seed_everything(config.seed)
    device = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
    data = load_data(config.data).to(device)
    model = build_model(config.model, data.image_shape, data.num_classes).to(device)
    optimizer = config.optimizer.build(model)
    loader = BatchLoader(
        [data.train_x, data.train_y], config.batch_size, epochs=config.epochs, seed=config.seed
    )
    scheduler = cosine_schedule(optimizer, loader) if config.schedule == "cosine" else None
    total = loader.total_samples
    run = RunFolder(config.out, config, config.log, recipe="landscape_train", length=total, resume=resume)
    if run.finished:
        print(f"the run in {run.path} is finished; start a new one without --resume")
        return 0
    steps = total // config.batch_size
    policies = config.pilot.build_policies(two_pass=hasattr(optimizer, "perturb"), steps=steps)
    pilot = Pilot(
        optimizer, model, loss_fn, policies=policies, mode=config.pilot.mode, budget=config.pilot.budget,
        total_samples=total, log=run.log, log_every=config.log.every, seed=config.seed,
    )  # fmt: skip
    history = History()
    parts = {"log": run.log, "scheduler": scheduler, "optimizer": optimizer, "model": model}
    parts |= {"loader": loader, "pilot": pilot, "history": history}
    checkpoint = Checkpoint(run.checkpoint, every=config.checkpoint_every, **parts)
    if resume:
        print(f"resuming {run.path} after step {checkpoint.load()}")
    else:
        checkpoint.save(0)

    with run:
        for batch in pilot.batches(loader):

            def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
                optimizer.zero_grad()
                loss = loss_fn(model, batch)
                loss.backward()
                return loss

            loss = optimizer.step(closure)
            if scheduler is not None:
                scheduler.step()
            pilot.after_step(batch, loss)
            if loader.at_epoch_end:
                accuracy = history.measure(model, data, loader.epoch)
                run.log.log({"step": pilot.step, "samples": pilot.samples} | accuracy)
            checkpoint.after_step(pilot.step)

        plot_run(run.rows(), run.events(), run.path / "curves.png")
        run.log.image("summary/curves", run.path / "curves.png")
        run.finish(summarise(pilot, history, run.rows(), run.events()))
    print(run.where())
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(__file__))
