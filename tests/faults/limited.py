"""A small run in a process of its own, which from its third step on may write no large file."""

from __future__ import annotations

import os
import resource
import signal
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from faults.runs import Ended
from processes import exit_code, start
from torch import nn

from optland.train import GracefulStop, LogConfig, RunFolder
from optland.train.loops.evaluate import Records


@dataclass(frozen=True)
class Config:
    seed: int = 0
    checkpoint_every: int | None = 1
    checkpoint_seconds: float = 1e6


class History(Records):
    def rank(self, row: Mapping[str, float]) -> tuple[float, ...]:
        return (-row["val/loss"],)


def limited_run(
    out: Path, limit: int = 0, *, resume: bool = False, stop_at: int = 0, config: int = 0
) -> Ended:
    """Six steps of 8 kB of weights.

    Args:
        out: The run folder.
        limit: Bytes of the largest file that may be written from step 3 on; 0 sets no limit.
        resume: Whether to go on.
        stop_at: Step within which a SIGTERM comes; 0 for none.
        config: As ``limit``, from before the run folder is made.
    """
    printed = out.with_name(f"{out.name}.txt")
    code = exit_code(start(_run, str(out), str(printed), limit, resume, stop_at, config))
    return Ended(code, printed.read_text())


def _run(out: str, printed: str, limit: int, resume: bool, stop_at: int, config: int) -> None:
    file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(file, standard)
    warnings.simplefilter("always")
    torch.set_num_threads(1)
    if config:
        _limit(config)
    sys.exit(_loop(out, limit, resume, stop_at))


def _limit(size: int) -> None:
    signal.signal(
        signal.SIGXFSZ, signal.SIG_IGN
    )  # as Python itself has it, unless it was forked from elsewhere
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _loop(out: str, limit: int, resume: bool, stop_at: int) -> int:
    torch.manual_seed(0)
    model, history, settings = nn.Linear(2000, 1), History(), Config()
    log = LogConfig(wandb="disabled")
    run = RunFolder(out, settings, log, recipe="loop", length=6, resume=resume)
    weights = run.give_away(model, None, history, {}, nn.Linear, 2000, 1)
    checkpoint = run.checkpoints(settings, log=run.log, model=model, history=history)
    done = checkpoint.begin(resume=resume)
    sys.stdout.write(f"begins after step {done}\n")
    with GracefulStop() as stop, run:
        for step in range(done + 1, 7):
            if step == 3 and limit:
                _limit(limit)
            with torch.no_grad():
                model.weight += 1
            row = {"epoch": float(step), "val/loss": 10.0 - step}
            history.add(row)
            run.log.log({"step": step} | row)
            weights.keep()
            checkpoint.after_step(step)
            if step == stop_at:
                signal.raise_signal(signal.SIGTERM)
            if stop.requested:
                stop.leave(checkpoint, step)
        checkpoint.save(6)
        run.finish({"test/acc": 90.0})
        with run.attempt("curves.png") as picture:
            picture.write_bytes(bytes(20_000))
    sys.stdout.write(f"{run.where()}\n")
    return run.exit_code
