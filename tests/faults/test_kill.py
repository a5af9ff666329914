"""Kill -9 anywhere: a readable checkpoint is there, and the resumed run ends with the bits of the unbroken one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults.runs import Run, assert_same_end, run

from optland import failpoints
from optland.train.runs.checkpoint import load_checkpoint

SAVES = [point for point in failpoints.POINTS if point.startswith("checkpoint.")]
KILLS = [f"{point}:{n}" for point in SAVES for n in (1, 2, 17, 50)]
KILLS += [f"optim.between_passes:{n}" for n in (1, 6, 90)]
KILLS += [f"probe.{probe}:{n}" for probe, n in (("edge", 1), ("edge", 9), ("noise", 1), ("noise", 6))]
KILLS += ["probe.curvature:1", "probe.curvature:2", "pilot.batch_size:1"]

# Later kills count from the resume before them.
CHAIN = ["checkpoint.before_write:1", "checkpoint.mid_write:8", "pilot.batch_size:1", "probe.curvature:1"]
CHAIN += ["checkpoint.between_renames:3", "optim.between_passes:5"]


def assert_nothing_lost(folder: Path, before_first_save: bool) -> None:
    """The newest checkpoint reads without a warning (warnings are errors here)."""
    newest = folder / "run" / "checkpoint.pt"
    assert newest.exists() != before_first_save
    if newest.exists():
        load_checkpoint(newest)


def test_the_list_is_long_and_reaches_every_point() -> None:
    assert len(KILLS) == 30
    assert {kill.split(":")[0] for kill in KILLS} == set(failpoints.POINTS)


def test_six_kills_of_one_run_leave_no_trace(whole: Path, tmp_path: Path) -> None:
    for number, kill in enumerate(CHAIN):
        ended = run(tmp_path, *["--resume"] * (number > 0), fail_at=kill)
        assert ended.code == -signal.SIGKILL, f"{kill}: {ended}"
        assert_nothing_lost(tmp_path, before_first_save=number == 0)
    ended = run(tmp_path, "--resume")
    assert ended.code == 0, ended.printed
    assert "resuming run after step" in ended.printed
    assert_same_end(whole, tmp_path, " then ".join(CHAIN))


@pytest.mark.slow
@pytest.mark.parametrize("kill", KILLS)
def test_killed_at_a_named_instant(whole: Path, tmp_path: Path, kill: str) -> None:
    ended = run(tmp_path, fail_at=kill)
    assert ended.code == -signal.SIGKILL, f"{kill}: {ended}"
    first = kill in [f"{point}:1" for point in SAVES[:3]]
    assert_nothing_lost(tmp_path, before_first_save=first)
    ended = run(tmp_path, "--resume")
    assert ended.code == 0, ended.printed
    assert_same_end(whole, tmp_path, kill)


@pytest.mark.slow
@pytest.mark.parametrize("tenth", range(10))
def test_killed_at_a_random_instant(whole: Path, tmp_path: Path, tenth: int) -> None:
    """One instant in each tenth of the run, drawn anew every time."""
    size = (whole / "run" / "log.jsonl").stat().st_size
    at, wait = random.uniform(0.95 * tenth, 0.95 * (tenth + 1)) / 10, random.uniform(0.0, 0.03)
    broken = Run(tmp_path)
    broken.wait_for_log(max(1, int(at * size)))
    time.sleep(wait)
    broken.kill()
    where = f"killed {1000 * wait:.1f} ms after {at:.4f} of the log"
    assert broken.ended().code == -signal.SIGKILL, where
    assert_nothing_lost(tmp_path, before_first_save=False)
    ended = run(tmp_path, "--resume")
    assert ended.code == 0, ended.printed
    assert_same_end(whole, tmp_path, where)


def test_the_environment_variable_kills_at_the_nth_time() -> None:
    code = (
        "from optland.failpoints import reach\nfor k in range(3): print(k, flush=True); reach('probe.edge')"
    )
    for value, printed, ended in (
        ("probe.edge:2", "0 1", -signal.SIGKILL),
        ("probe.edge:1:TERM", "0", -signal.SIGTERM),
        ("probe.noise:1", "0 1 2", 0),
        ("", "0 1 2", 0),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, failpoints.VARIABLE: value}, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert (done.stdout.split(), done.returncode) == (printed.split(), ended), value


@pytest.mark.parametrize(
    "text", ["probe.egde:1", "probe.edge", "probe.edge:0", "probe.edge:x", "probe.edge:1:FOO"]
)
def test_a_point_that_would_never_come_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"OPTLAND_FAIL_AT: .*name:n.*probe\.edge"):
        failpoints.arm(text)
