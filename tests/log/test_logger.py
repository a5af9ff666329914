"""Several loggers as one, and what happens when one of them fails."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from optland.log import ConsoleLogger, JsonlLogger, Logger, NullLogger, WandbLogger, read_jsonl
from optland.log.logger import LoggerGroup


class Broken(NullLogger):
    """Fails from its second row on, as on a full disk."""

    def __init__(self) -> None:
        self.calls = 0

    def log(self, row: Mapping[str, Any]) -> None:
        self.calls += 1
        if self.calls > 1:
            raise OSError("No space left on device")

    def state_dict(self) -> dict[str, Any]:
        raise RuntimeError("gone")


def test_every_logger_keeps_the_protocol(tmp_path: Path) -> None:
    loggers = [NullLogger(), JsonlLogger(tmp_path / "x"), WandbLogger(tmp_path), ConsoleLogger(1)]
    assert all(isinstance(logger, Logger) for logger in [*loggers, LoggerGroup(loggers)])


def test_a_failing_logger_is_switched_off_with_one_warning(tmp_path: Path) -> None:
    broken, record = Broken(), JsonlLogger(tmp_path / "log.jsonl")
    group = LoggerGroup([broken, record])
    group.log({"step": 0})
    with pytest.warns(RuntimeWarning, match=r"Broken failed and is switched off.*No space left") as caught:
        group.log({"step": 1})
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group.log({"step": 2})
        group.finish({})
    assert broken.calls == 2
    assert [row["step"] for row in read_jsonl(record.path, kind="row")] == [0, 1, 2]


def test_the_record_itself_may_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    group = LoggerGroup([JsonlLogger(tmp_path / "file" / "log.jsonl")])
    with pytest.warns(RuntimeWarning, match=r"log\.jsonl cannot be written"):
        group.log({"step": 0})
    group.log({"step": 1})
    with pytest.warns(RuntimeWarning, match="JsonlLogger failed"):
        group.finish({})


def test_states_find_their_logger_again(tmp_path: Path) -> None:
    first, second = JsonlLogger(tmp_path / "a.jsonl"), JsonlLogger(tmp_path / "b.jsonl")
    group = LoggerGroup([first, NullLogger(), second])
    group.log({"step": 0})
    second.log({"step": 1})
    state = group.state_dict()
    assert state == {"JsonlLogger": {"lines": 1}, "NullLogger": {}, "JsonlLogger-2": {"lines": 2}}
    group.log({"step": 2})
    LoggerGroup([JsonlLogger(first.path), JsonlLogger(second.path)]).load_state_dict(state)
    assert [len(read_jsonl(log.path)) for log in (first, second)] == [1, 2]


def test_a_failing_state_does_not_stop_the_checkpoint() -> None:
    with pytest.warns(RuntimeWarning, match="gone"):
        assert LoggerGroup([Broken(), NullLogger()]).state_dict() == {"NullLogger": {}}


def test_loggers_are_imported_without_torch_wandb_and_rich() -> None:
    code = (
        "import sys, optland.log, optland.config; print([n for n in ('wandb', 'rich') if n in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
