"""Train a causal transformer on text files with the loss landscape in view: no learning rate to choose.

AdamW makes the steps; the pilot sets their length from a relative step, watches the critical step, the sharpness and
the gradient noise inside a budget, and logs every decision with its reason. The default text is the source of the
Python standard library.

    optland run language_model configs/language_model/stdlib.yaml
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
    GracefulStop,
    OptimizerConfig,
    PilotConfig,
    RunFolder,
    TextConfig,
    TextData,
    TextHistory,
    TransformerConfig,
    ValidatedRunConfig,
    choose_device,
    load_text,
    schedule_by_name,
    seed_everything,
    summarise_text,
)


@dataclass(frozen=True)
class Config(ValidatedRunConfig):
    """One run: every key of ValidatedRunConfig, and these.

    Attributes:
        data: The text, and how it is cut into tokens and windows; a batch is of windows.
        model: The transformer.
    """

    batch_size: int = 16
    data: TextConfig = field(default_factory=TextConfig)
    model: TransformerConfig = field(default_factory=TransformerConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(name="adamw", lr=1e-3))
    pilot: PilotConfig = field(default_factory=lambda: PilotConfig(policies=["auto_lr"]))


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of the next token."""
    x, y = batch
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def build(config: Config, device: str) -> tuple[nn.Module, TextData]:
    """The model, freshly initialised, and its text: for ``main``, and for ``optland probe`` after it."""
    data = load_text(config.data).to(device)
    return config.model.build(data.vocabulary, data.context).to(device), data


def main(config: Config, *, resume: bool = False) -> int:
    """Train, log, draw and summarise one run."""
    torch.set_num_threads(config.threads)
    seed_everything(config.seed)
    device = choose_device(config.device)
    model, data = build(config, device)
    net = config.precision.prepare(model)
    loader = BatchLoader(data.windows("train"), config.batch_size, epochs=config.epochs, seed=config.seed)
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
    history = TextHistory()
    parts: dict[str, Any] = {"log": run.log, "scheduler": scheduler, "optimizer": optimizer, "model": model}
    parts |= {"ema": ema, "precision": precision, "loader": loader, "pilot": pilot, "history": history}
    checkpoint = run.checkpoints(config, **parts)
    weights = run.give_away(
        model, ema, history, data.inputs, config.model.build, data.vocabulary, data.context
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
                found = history.measure(weights.model, data, loader.epoch)
                run.log.log({"step": pilot.step, "samples": pilot.samples, **found})
                weights.keep()
            checkpoint.after_step(pilot.step)
            if stop.requested:
                stop.leave(checkpoint, pilot.step)

        checkpoint.save(pilot.step)
        run.finish(summarise_text(pilot, history, data, run.rows(), run.events()))
        with run.attempt("curves.png") as picture:
            plot_run(run.rows(), run.events(), picture)
            run.log.image("summary/curves", picture)
    print(run.where())
    return run.exit_code


if __name__ == "__main__":
    raise SystemExit(run_script(__file__))
