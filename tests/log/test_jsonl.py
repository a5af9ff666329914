"""The record: always valid JSON, exact values, and one clean record after a crash and a resume."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optland.log import JsonlLogger, read_jsonl

EVENT = {
    "step": 2,
    "policy": "noise_batch",
    "actuator": "batch_size",
    "old": 64,
    "new": 128,
    "reason": "the noise scale is 300",
    "taken": True,
    "signals": {"noise/b_simple": math.inf, "noise/grad_sq": 0.5},
}


def record(path: Path, steps: range) -> JsonlLogger:
    log = JsonlLogger(path)
    for step in steps:
        log.log({"step": step, "train/loss": 1.0 / (step + 1)})
    return log


def steps_in(path: Path) -> list[int]:
    return [row["step"] for row in read_jsonl(path, kind="row")]


def test_every_kind_is_read_back_as_it_was_logged(tmp_path: Path) -> None:
    log = JsonlLogger(tmp_path / "deep" / "log.jsonl")
    log.log({"step": 2, "train/loss": math.nan, "val/acc": 0.5, "note": "é", "edge/resolved": True})
    log.event(EVENT)
    log.image("landscape/slice", tmp_path / "slice.png")
    log.table("landscape/path", ["t", "loss"], [[0.0, 1.0], [0.5, -math.inf]])
    log.finish({"summary/advice": "none"}, exit_code=1)
    row, event, image, table, summary = read_jsonl(log.path)
    assert math.isnan(row.pop("train/loss"))
    assert row == {"kind": "row", "step": 2, "val/acc": 0.5, "note": "é", "edge/resolved": True}
    assert event == {"kind": "event", **EVENT}
    assert image == {
        "kind": "image", "step": 2, "name": "landscape/slice", "path": str(tmp_path / "slice.png"),
    }  # fmt: skip
    assert table["rows"] == [{"t": 0.0, "loss": 1.0}, {"t": 0.5, "loss": -math.inf}]
    assert summary == {"kind": "summary", "summary/advice": "none", "exit_code": 1}
    assert read_jsonl(log.path, kind="event") == [event]


def test_nonfinite_values_are_null_and_named(tmp_path: Path) -> None:
    log = JsonlLogger(tmp_path / "log.jsonl")
    log.log({"step": 1, "train/loss": math.nan, "edge/eta_c": math.inf, "lr/applied": 0.1})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    (line,) = log.path.read_text().splitlines()
    row = json.loads(line, parse_constant=refuse)
    assert row["train/loss"] is None
    assert row["edge/eta_c"] is None
    assert row["nonfinite"] == {"train/loss": "nan", "edge/eta_c": "inf"}


def test_scalars_of_other_libraries_are_numbers(tmp_path: Path) -> None:
    log = JsonlLogger(tmp_path / "log.jsonl")
    log.log({"step": np.int64(3), "train/loss": torch.tensor(0.5), "val/acc": np.float32("nan")})
    (row,) = read_jsonl(log.path)
    assert (row["step"], row["train/loss"]) == (3, 0.5)
    assert math.isnan(row["val/acc"])


def test_a_row_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    log = record(tmp_path / "log.jsonl", range(2))
    assert steps_in(log.path) == [0, 1]  # not closed, not flushed by hand


@pytest.mark.parametrize(
    "torn", ['{"kind": "row", "st', '{"kind": "row", "st\n', '{"kind": "row", "step": 2\0\0']
)
def test_a_torn_last_line_is_left_out_and_written_over(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "log.jsonl"
    record(path, range(2))
    with path.open("a") as file:
        file.write(torn)
    assert steps_in(path) == [0, 1]
    record(path, range(2, 4))
    assert steps_in(path) == [0, 1, 2, 3]
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    record(path, range(3))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "garbage", lines[2]]) + "\n")
    with pytest.raises(ValueError, match=r"line 2 is not JSON: 'garbage'"):
        read_jsonl(path)


def test_truncating_drops_later_steps_and_the_summary(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = record(path, range(5))
    log.event({**EVENT, "step": 4})
    log.finish({"summary/advice": "stale"})
    log.truncate_after(2)
    log.log({"step": 3, "train/loss": 0.0})
    assert [(item["kind"], item["step"]) for item in read_jsonl(path)] == [("row", step) for step in range(4)]
    assert list(tmp_path.iterdir()) == [path]


def test_a_resumed_record_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = record(tmp_path / "whole.jsonl", range(6))
    log = record(tmp_path / "log.jsonl", range(3))
    state = log.state_dict()
    log.log({"step": 2, "val/acc": 0.1})  # after the checkpoint, of the same step, then the crash
    log.log({"step": 3, "train/loss": 9.0})
    resumed = JsonlLogger(log.path)
    resumed.load_state_dict(state)
    for step in range(3, 6):
        resumed.log({"step": step, "train/loss": 1.0 / (step + 1)})
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    assert resumed.state_dict() == whole.state_dict() == {"lines": 6}


def test_resuming_in_another_folder_starts_a_new_record(tmp_path: Path) -> None:
    log = JsonlLogger(tmp_path / "log.jsonl")
    log.load_state_dict({"lines": 10})
    log.truncate_after(10)
    log.log({"step": 11})
    assert steps_in(log.path) == [11]
    assert read_jsonl(tmp_path / "none.jsonl") == []


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
keys = st.text().filter(lambda key: key not in ("nonfinite", "kind"))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.dictionaries(keys, values | st.dictionaries(keys, values, max_size=3), max_size=5))
def test_any_row_comes_back(tmp_path: Path, row: dict[str, object]) -> None:
    path = tmp_path / "log.jsonl"
    path.unlink(missing_ok=True)
    log = JsonlLogger(path)
    log.event(row)
    (again,) = read_jsonl(path)
    assert repr({"kind": "event", **row}) == repr(again)  # by text, because NaN is not equal to itself


def test_lines_that_the_disk_refuses_are_written_when_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = JsonlLogger(path)
    log.log({"step": 0})
    path.rename(tmp_path / "kept")
    path.mkdir()  # a folder instead of the file: every write is refused
    with pytest.warns(RuntimeWarning, match=r"log\.jsonl cannot be written .*lines are kept"):
        log.log({"step": 1})
    for step in (2, 3):
        log.log({"step": step})  # a second warning would be an error here
    assert log.state_dict() == {"lines": 4}
    path.rmdir()
    (tmp_path / "kept").rename(path)
    log.log({"step": 4})
    assert [row["step"] for row in read_jsonl(path)] == [0, 1, 2, 3, 4]


def test_half_a_line_is_taken_back(tmp_path: Path) -> None:
    """A limit on the size of files cuts a write short, as a disk that fills up does."""
    code = """
import resource, signal, sys, warnings
from optland.log import JsonlLogger, read_jsonl
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = JsonlLogger(sys.argv[1])
log.log({"step": 0})
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 10, hard))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    log.log({"step": 1})
    log.log({"step": 2})
print(len(caught), len(log.path.read_text().splitlines()))
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
log.finish({})
print([line.get("step") for line in read_jsonl(log.path)])
"""
    command = [sys.executable, "-c", code, str(tmp_path / "log.jsonl")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert run.stdout.splitlines() == ["1 1", "[0, 1, 2, None]"], run.stderr
