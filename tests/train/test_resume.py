"""What a run may be resumed with: settings that do not touch its training, and more epochs where they are named."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from optland.config import UserError, to_yaml
from optland.train import BatchLoader, LogConfig, RunConfig, RunFolder, schedule_by_name
from optland.train.runs.checkpoint import Checkpoint
from optland.train.runs.resume import NOT_OF_TRAINING

LOG = LogConfig(wandb="disabled", console=False)


@dataclass(frozen=True)
class Config:
    can_grow: ClassVar[bool] = True

    seed: int = 0
    epochs: int = 2
    schedule: str = "none"
    threads: int = 1
    device: str = "auto"
    checkpoint_seconds: float = 60.0
    checkpoint_every: int | None = None
    out: str = "run"
    options: dict[str, float] = field(default_factory=dict)
    log: LogConfig = field(default_factory=lambda: LOG)


def opened(path: Path, config: Any, *, resume: bool = True) -> RunFolder:
    return RunFolder(path, config, config.log, recipe="tiny", length=10, resume=resume)


def train(path: Path, config: Config, *, resume: bool = False, stop_after: int | None = None) -> list[Tensor]:
    """A recipe in small; returns the weights after every step of this process."""
    torch.manual_seed(config.seed)
    model, data = nn.Linear(3, 1), torch.randn(12, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = BatchLoader([data], 4, epochs=config.epochs, seed=config.seed)
    scheduler = schedule_by_name(config.schedule, optimizer, loader)
    run = opened(path, config, resume=resume)
    if run.finished:
        return []
    parts = {"log": run.log, "scheduler": scheduler, "optimizer": optimizer, "model": model, "loader": loader}
    checkpoint = Checkpoint(
        run.checkpoint, every=config.checkpoint_every, every_seconds=config.checkpoint_seconds, **parts
    )
    step, seen = checkpoint.begin(resume=resume), []
    with run:
        for (x,) in loader:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            step += 1
            seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
            if step % config.log.every == 0:
                run.log.log({"step": step, "train/loss": loss.item()})
            if step == stop_after:
                checkpoint.save(step)
                return seen
        checkpoint.save(step)
        run.finish({"steps": step})
    return seen


HARMLESS: dict[str, dict[str, Any]] = {
    "rows": {"log": replace(LOG, every=3, tags=["again"], project="other")},
    "checkpoints": {"checkpoint_seconds": 1.0, "checkpoint_every": 2},
    "machine": {"threads": 2, "device": "cpu"},
    "folder": {"out": "elsewhere"},
}


@pytest.mark.parametrize("what", HARMLESS)
def test_what_does_not_touch_training_may_change_and_the_bits_are_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    whole = train(tmp_path / "whole", Config())
    first = train(tmp_path / "run", Config(), stop_after=2)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    capsys.readouterr()
    changed = replace(Config(), **HARMLESS[what])
    rest = train(tmp_path / "moved", changed, resume=True)
    assert len(whole) == 6
    assert all(torch.equal(a, b) for a, b in zip(first + rest, whole, strict=True))
    said = capsys.readouterr().err
    for key in HARMLESS[what]:
        assert f"resuming with '{key}" in said
    assert "(was " in said
    kept = (tmp_path / "moved" / "config.yaml").read_text()
    assert kept == to_yaml(changed, recipe="tiny")
    assert opened(tmp_path / "moved", Config()).finished


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"schedule": "cosine"},
        {"options": {"eta": 0.1}},
        {"seed": 1, "log": replace(LOG, every=3)},
    ],
    ids=str,
)
def test_another_training_is_refused_and_leaves_the_folder_alone(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    train(tmp_path / "run", Config(), stop_after=2)
    before = (tmp_path / "run" / "config.yaml").read_text()
    named = next(iter(changed))
    with pytest.raises(UserError, match=rf"cannot resume .*run with another configuration: '{named}.*\(was "):
        opened(tmp_path / "run", replace(Config(), **changed))
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    assert len(train(tmp_path / "run", Config(), resume=True)) == 4


def test_a_setting_that_is_new_counts_as_training(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Later(Config):
        patience: int | None = None

    train(tmp_path / "run", Config(), stop_after=2)
    with pytest.raises(UserError, match=r"'patience: null' \(was not there\)"):
        opened(tmp_path / "run", Later())
    assert set(NOT_OF_TRAINING) <= {f.name for f in fields(RunConfig)}


@pytest.mark.parametrize("finished", [True, False])
def test_more_epochs_are_the_run_of_that_length_where_no_rate_depends_on_it(
    tmp_path: Path, finished: bool
) -> None:
    longer = replace(Config(), epochs=4)
    whole = train(tmp_path / "whole", longer)
    first = train(tmp_path / "run", Config(), stop_after=None if finished else 4)
    rest = train(tmp_path / "run", longer, resume=True)
    assert len(whole) == 12
    assert all(torch.equal(a, b) for a, b in zip(first + rest, whole, strict=True))
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {"steps": 12}
    assert (tmp_path / "run" / "summary-2-epochs.json").exists() == finished
    assert train(tmp_path / "run", Config(), resume=True) == []  # it has these two, and more
    assert "epochs: 4" in (tmp_path / "run" / "config.yaml").read_text()


def test_what_more_epochs_do_to_a_schedule_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(Config(), schedule="cosine")
    train(tmp_path / "run", config)
    train(tmp_path / "run", replace(config, epochs=4), resume=True)
    said = capsys.readouterr().err
    assert "'epochs: 4' (was 2): the run is made longer" in said
    assert "schedule cosine follows the share of the run that is done" in said


def test_a_run_is_not_made_shorter(tmp_path: Path) -> None:
    train(tmp_path / "run", Config(), stop_after=2)
    with pytest.raises(
        UserError, match=r"epochs=1: it was started with 2, .* longer, not shorter; use epochs=2"
    ):
        opened(tmp_path / "run", replace(Config(), epochs=1))


def test_what_is_not_one_training_is_not_made_longer(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Several(Config):
        can_grow: ClassVar[bool] = False

    train(tmp_path / "run", Several(), stop_after=2)
    with pytest.raises(
        UserError, match=r"'epochs: 4' \(was 2\), and what this recipe trains cannot be made longer"
    ):
        opened(tmp_path / "run", replace(Several(), epochs=4))


def test_on_the_command_line_more_epochs_are_named_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was edited for another run does not make this one longer."""
    train(tmp_path / "run", Config())
    longer = replace(Config(), epochs=4)
    monkeypatch.setattr(sys, "argv", ["recipes/tiny.py", "small", "--resume"])
    with pytest.raises(UserError, match="name it on the command line: epochs=4 --resume"):
        opened(tmp_path / "run", longer)
    monkeypatch.setattr(sys, "argv", ["recipes/tiny.py", "small", "epochs=4", "--resume"])
    assert not opened(tmp_path / "run", longer).finished
