"""The run folder: one process at a time, no run written over, and an ending that says what it was."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from processes import exit_code, start

from optland.cli.recipes import find_recipe
from optland.config import UserError
from optland.log import read_jsonl
from optland.train import LogConfig, RunFolder
from optland.train.runs.lock import lock_folder
from optland.train.runs.run import _resume_command

LOG = LogConfig(wandb="disabled", console=False)


@dataclass(frozen=True)
class Config:
    seed: int = 0
    log: LogConfig = field(default_factory=lambda: LOG)


def folder(out: Path | str, *, resume: bool = False, config: Any = Config()) -> RunFolder:
    return RunFolder(out, config, LOG, recipe="tiny", length=10, resume=resume)


GO_ON = "go on with: optland run mine/tiny.py 'small config' seed=3 --resume"

CTRL_C = {"summary/stopped": f"by Ctrl-C within a step; its last checkpoint is there; {GO_ON}"}


def _lock(out: Path, locked: Path) -> None:
    lock = lock_folder(out)
    assert lock is not None
    locked.touch()
    time.sleep(240)


@contextmanager
def another_process_in(out: Path) -> Iterator[None]:
    """A process that holds the folder, and is killed in the end."""
    locked = out.with_name("locked")
    process = start(_lock, out, locked)
    while not locked.exists():
        assert process.is_alive(), "it could not lock the folder"
        time.sleep(0.01)
    yield
    process.kill()
    assert exit_code(process) == -signal.SIGKILL


def test_a_folder_belongs_to_one_process_and_is_free_when_that_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with folder(out) as first:
        assert first.path == out
    with another_process_in(out):
        with pytest.raises(UserError, match=r"another process is still running in .*run; wait"):
            folder(out, resume=True)
        assert folder(out).path == tmp_path / "run-2"
    assert folder(tmp_path / "run-2", resume=True).path == tmp_path / "run-2"
    (tmp_path / "run-2" / "config.yaml").unlink()
    assert folder(out, resume=True).path == out


def test_a_fresh_run_leaves_a_folder_that_another_process_is_about_to_use(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with another_process_in(tmp_path / "run"):
        assert folder(tmp_path / "run").path == tmp_path / "run-2"


def test_a_recipe_of_ours_goes_on_by_its_name_unless_one_of_the_users_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = find_recipe("landscape_train").script
    monkeypatch.setattr(sys, "argv", [str(script), "digits"])
    assert _resume_command("landscape_train", tmp_path) == "optland run landscape_train digits --resume"
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / script.name).write_text("run_script(")
    assert _resume_command("landscape_train", tmp_path) == f"optland run {script} digits --resume"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RuntimeError("the loss is gone"), 1, {"summary/error": "RuntimeError: the loss is gone"}),
        (SystemExit(75), 75, {"summary/stopped": f"after a whole step, with a checkpoint; {GO_ON}"}),
        (
            KeyboardInterrupt(),
            130,
            {"summary/stopped": f"by Ctrl-C within a step; its last checkpoint is there; {GO_ON}"},
        ),
        (SystemExit(3), 3, {"summary/stopped": "exit code 3"}),
    ],
)
def test_a_run_that_broke_off_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: dict[str, str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mine/tiny.py", "small config", "seed=3", "--resume"])

    def broken() -> None:
        with folder(tmp_path / "run"):
            raise error

    with pytest.raises(type(error)):
        broken()
    (summary,) = read_jsonl(tmp_path / "run" / "log.jsonl", kind="summary")
    assert summary == {"kind": "summary", **said, "exit_code": code}
    assert not folder(tmp_path / "run", resume=True).finished


def test_a_stopped_run_of_another_program_is_resumed_by_its_own_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["notebook"])
    with pytest.raises(SystemExit), folder(tmp_path / "run"):
        raise SystemExit(75)
    (summary,) = read_jsonl(tmp_path / "run" / "log.jsonl", kind="summary")
    assert summary["summary/stopped"].endswith(f"optland run tiny {tmp_path}/run/config.yaml --resume")


def test_a_run_whose_checkpoint_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    with folder(tmp_path / "run") as run:
        run.log.log({"step": 1, "train/loss": 2.0})
    for _ in range(2):  # and the refusal gives the folder free
        with pytest.raises(UserError, match=r"its log has rows, but checkpoint.pt is not there; put it back"):
            folder(tmp_path / "run", resume=True)
    (tmp_path / "run" / "checkpoint.pt.previous").write_bytes(b"")
    assert folder(tmp_path / "run", resume=True).rows()
    (tmp_path / "run" / "checkpoint.pt.previous").unlink()
    (tmp_path / "run" / "summary.json").write_text("{}")
    assert folder(tmp_path / "run", resume=True).finished


def test_a_run_that_died_before_its_first_step_is_begun(tmp_path: Path) -> None:
    with folder(tmp_path / "run"):
        pass
    assert not folder(tmp_path / "run", resume=True).rows()


def test_a_secret_in_an_error_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "0123456789abcdef")

    def broken() -> None:
        with folder(tmp_path / "run"):
            raise ConnectionError("refused: 0123456789abcdef")

    with pytest.raises(ConnectionError):
        broken()
    assert "refused: [redacted]" in (tmp_path / "run" / "log.jsonl").read_text()


def test_a_summary_that_is_not_finite_is_valid_json(tmp_path: Path) -> None:
    with folder(tmp_path / "run") as run:
        run.finish({"test/acc": math.nan, "steps": 3})
    text = (tmp_path / "run" / "summary.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == {"test/acc": None, "steps": 3}
    assert run.finished


@pytest.mark.parametrize("out", ["", ".", "/", "file", "file/run", "nul\0run", "x" * 300])
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_cannot_be_made_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, resume: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^out: |no run to resume"):
        folder(out, resume=resume)
