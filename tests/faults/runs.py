"""Runs of the command line in processes of their own that can be killed, cheap enough for dozens of kills."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from processes import exit_code, start
from scripted import WRECK, GrowsOnce

from optland import failpoints
from optland.cli import main
from optland.log import read_jsonl
from optland.pilot import NoiseBatch, Pilot, Policy
from optland.train.runs.checkpoint import load_checkpoint
from optland.train.runs.settings import PilotConfig

# A net with BatchNorm and dropout, SAM, every probe, a save every other step; ``scripted`` adds what comes by chance.
SMALL = ["epochs=2", "batch_size=8", "checkpoint_every=2", "data.label_noise=0.3", "data.subset=600"]
SMALL += [
    "model.name=resnet8",
    "model.width=4",
    "model.dropout=0.2",
    "pilot.tau=0.05",
    "pilot.budget=0.5",
    "pilot.policies=[auto_lr,noise_batch,edge_monitor,curvature_monitor]",
    "device=cpu",
]
SMALL += ["log.wandb=disabled", "log.console=false", "log.every=1"]


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code (minus the signal that killed it) and what it printed."""

    code: int
    printed: str


class Run:
    """One process that runs ``optland run landscape_train`` in a folder of its own."""

    def __init__(self, folder: Path, *extra: str, fail_at: str | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        arguments = ["run", "landscape_train", "digits_noisy", "out=run", *SMALL, *extra]
        self.process = start(_run, str(folder), arguments, fail_at)

    def ended(self) -> Ended:
        return Ended(exit_code(self.process), (self.folder / "printed.txt").read_text())

    def wait_for_log(self, size: int, timeout: float = 240.0) -> None:
        """Until the run has logged so many bytes."""
        until = time.monotonic() + timeout
        file = self.folder / "run" / "log.jsonl"
        while not (file.exists() and file.stat().st_size >= size):
            assert self.process.is_alive(), "the run ended too early: " + self.ended().printed
            assert time.monotonic() < until, "the run hangs"
            time.sleep(0.002)

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)


def run(folder: Path, *extra: str, fail_at: str | None = None) -> Ended:
    """A run from its start to its end."""
    return Run(folder, *extra, fail_at=fail_at).ended()


WRECKED, GROWN = 25, 48
"""The update whose loss is a wreck, for which the next one goes back, and that after which the batch grows."""


def scripted() -> None:
    """Make a rewind and a change of the batch happen, in a run and in its resume alike.

    By a scripted loss and a scripted policy: what a run does by itself depends on how its processor rounds.
    """
    after_step, build_policies = Pilot.after_step, PilotConfig.build_policies

    def wrecked(pilot: Pilot, batch: Any, loss: Any) -> None:
        rewound = any(decision.actuator == "rewind" for decision in pilot.decisions)
        after_step(pilot, batch, WRECK if pilot.step == WRECKED and not rewound else loss)

    def growing(config: PilotConfig) -> list[Policy]:
        made = build_policies(config)
        return [GrowsOnce(GROWN) if isinstance(policy, NoiseBatch) else policy for policy in made]

    Pilot.after_step = wrecked  # type: ignore[method-assign, assignment]
    PilotConfig.build_policies = growing  # type: ignore[method-assign, assignment]


def _run(folder: str, arguments: list[str], fail_at: str | None) -> None:
    os.chdir(folder)
    printed = os.open("printed.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    torch.set_num_threads(1)
    failpoints.arm(fail_at)
    scripted()
    sys.exit(main(arguments))


def final(folder: Path) -> dict[str, Any]:
    """What must be equal after a resume: weights, optimizer, loader, decisions, evaluations, random generators."""
    saved = load_checkpoint(folder / "run" / "checkpoint.pt")
    parts = saved["parts"]
    pilot = {k: v for k, v in parts["pilot"].items() if k not in ("seconds", "looks")}
    pilot["looks"] = {k: v for k, v in parts["pilot"]["looks"].items() if k != "seconds"}
    kept = {k: parts[k] for k in ("model", "optimizer", "loader", "history", "log")}
    return {**kept, "pilot": pilot, "step": saved["step"], "rng": saved["rng"]}


def rows(folder: Path) -> list[dict[str, Any]]:
    """The logged rows without the wall times."""
    logged = read_jsonl(folder / "run" / "log.jsonl", kind="row")
    return [{k: v for k, v in row.items() if k != "budget/probe_ms"} for row in logged]


def assert_same_end(a: Path, b: Path, where: str) -> None:
    """Two runs that ended with the same bits, and wrote the same record on the way."""
    assert_equal(final(a), final(b), where)
    assert_equal(rows(a), rows(b), where)


def assert_equal(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for k in range(len(a)):
            assert_equal(a[k], b[k], f"{where}[{k}]")
    else:
        assert a == b or (a != a and b != b), f"{where}: {a} != {b}"
