"""Recipes in two processes: the run of one with the same batches, written once, resumed whole, ended together."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import begin, optland
from distributed.launched import (
    Torchrun,
    as_given,
    begin_two,
    doubled,
    end,
    scripted,
    together,
    wait_for,
)
from faults.runs import SMALL, assert_equal, assert_same_end, final, rows
from processes import exit_code

from optland.train.runs.checkpoint import load_checkpoint

pytestmark = pytest.mark.distributed

RECIPES = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "recipes").glob("*.py"))
WITHOUT_BATCHES = ("escape_saddle", "test_claims")
ALONE = {"sam/loss_gap", "sam/loss_gap at the end"}
"""SAM's own losses are those of the first process's samples."""
CLOCKS = {"train/seconds", "budget/probe_ms"}

# Batches of 11, of which the processes have 6 and 5; at the end of an epoch there is one that the first has alone.
UNEVEN = ["batch_size=11", "epochs=1", "data.subset=200", "model.name=mlp", "model.width=8", "device=cpu"]
UNEVEN += [
    "pilot.policies=[auto_lr,noise_batch,edge_monitor,curvature_monitor]",
    "pilot.budget=1.0",
    "log.every=1",
]
UNEVEN += ["log.wandb=disabled"]


def close(a: Any, b: Any, where: str = "", tolerance: float = 1e-9) -> None:
    """Equal up to the order of sums."""
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance, msg=lambda m: f"{where}: {m}")
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), f"{where}: {a.keys() ^ b.keys()}"
        for key in a.keys() - ALONE - CLOCKS:
            close(a[key], b[key], f"{where}/{key}", tolerance)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for k in range(len(a)):
            close(a[k], b[k], f"{where}[{k}]", tolerance)
    elif isinstance(a, float) and a == a:
        assert abs(a - b) <= tolerance * max(1.0, abs(a)), f"{where}: {a} {b}"
    elif isinstance(a, float):
        assert b != b, f"{where}: {a} {b}"
    elif isinstance(a, str) and any(c.isdigit() for c in a):
        return  # figures in words
    else:
        assert a == b, f"{where}: {a} {b}"


def written(folder: Path) -> set[str]:
    """Names of the files of a run, without what one launcher notes and fingerprints of weights, which see rounding."""
    files = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return {re.sub(r"-[0-9a-f]{8}-", "-*-", name) for name in files if not name.endswith(".launch")}


@pytest.mark.cell("plain loop", "2 processes")
def test_two_processes_are_one_process_with_the_same_batches(tmp_path: Path) -> None:
    """Decisions, probes, evaluations, weights and costs; ragged batches, and one that only the first has part in."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    alone = begin("run", "landscape_train", "digits", "out=run", *UNEVEN, cwd=one, before=doubled)
    first, second = together("run", "landscape_train", "digits", "out=run", *UNEVEN, cwd=two, before=doubled)
    assert (exit_code(alone), first.code, second.code) == (0, 0, 0), first.err + second.err
    assert written(one / "run") == written(two / "run")
    close(rows(one), rows(two), "rows")
    a, b = final(one), final(two)
    for part in ("model", "optimizer", "loader", "history", "step"):
        close(a[part], b[part], part)
    close(a["pilot"]["budget"], b["pilot"]["budget"], "budget")
    assert a["pilot"]["budget"]["spent"].keys() >= {"edge", "noise", "curvature"}
    close(a["pilot"]["decisions"], b["pilot"]["decisions"], "decisions")
    assert second.out == "" == second.err
    assert "run folder   run" in first.out


PART = [
    "run",
    "landscape_train",
    "digits",
    "out=run",
    "batch_size=16",
    "epochs=2",
    "data.subset=96",
    "device=cpu",
]
PART += [
    "optimizer.options.ascent_share=0.25",
    "pilot.policies=[auto_lr]",
    "log.wandb=disabled",
    "log.every=1",
]


@pytest.mark.slow
def test_parts_of_the_samples_of_each_are_the_part_of_the_batch(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    assert exit_code(begin(*PART, cwd=one, before=doubled)) == 0
    ended = together(*PART, cwd=two, before=doubled)
    assert [each.code for each in ended] == [0, 0], ended[0].err + ended[1].err
    close(rows(one), rows(two), "rows")
    close(final(one)["model"], final(two)["model"], "weights")
    assert final(two)["pilot"]["budget"]["train_ge"] == 2 * 96 * 1.25


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_under_torchrun_ends_as_alone(recipe: str, tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    arguments = ["run", recipe, "smoke", "out=run", "log.wandb=disabled"]
    way = as_given if recipe == "test_claims" else doubled  # whose data are in float32
    assert exit_code(begin(*arguments, cwd=one, before=way)) == 0
    ended = Torchrun(*arguments, cwd=tmp_path / "two", way=way.__name__).ended()
    assert ended.code == 0, ended.out[-6000:]
    assert ("runs in the first process alone" in ended.out) == (recipe in WITHOUT_BATCHES)
    summaries = [json.loads((tmp_path / name / "run/summary.json").read_text()) for name in ("one", "two")]
    close(summaries[0], summaries[1], "summary", tolerance=1e-8)
    assert written(one / "run") == written(tmp_path / "two" / "run")


@pytest.mark.slow
def test_wandb_has_one_run_of_the_two_processes(tmp_path: Path) -> None:
    small = [*UNEVEN[:-1], "epochs=1", "log.wandb=offline"]
    ended = together("run", "landscape_train", "digits", "out=run", *small, cwd=tmp_path)
    assert [one.code for one in ended] == [0, 0], ended[0].err + ended[1].err
    assert len(list((tmp_path / "run").rglob("run-*.wandb"))) == 1


# Death and resume ------------------------------------------------------------------------------------

INSTANTS = int(os.environ.get("OPTLAND_KILLS", "20"))
"""At how many random instants one of two processes is killed; each is a run and a half of three seconds."""

BROKEN = ["run", "landscape_train", "digits_noisy", "out=run", *SMALL, "epochs=1"]
SHORT = [*BROKEN, "data.subset=320"]  # with the rewind, and without the growth of the batch


def generators(folder: Path) -> list[dict[str, Any]]:
    """Those of the other processes."""
    held: list[dict[str, Any]] = load_checkpoint(folder / "run/checkpoint.pt")["rng_of_others"]
    return held


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    ended = together(*BROKEN, cwd=folder, before=scripted)
    assert [one.code for one in ended] == [0, 0], ended[0].err + ended[1].err
    decided = {decision["actuator"] for decision in final(folder)["pilot"]["decisions"]}
    assert decided >= {"batch_size", "rewind"}, "the run is to have everything that a resume could get wrong"
    return folder


def assert_same(a: Path, b: Path, where: str) -> None:
    """The same bits, random generators of the second process included."""
    assert_same_end(a, b, where)
    assert_equal(generators(a), generators(b), where)


@pytest.mark.slow
def test_one_of_two_is_killed_and_both_are_started_anew(tmp_path: Path) -> None:
    """As torchrun does it, in forks: the command of before, and word of a restart. An older run is not theirs."""
    whole, tmp_path = tmp_path / "whole", tmp_path / "broken"
    assert [one.code for one in together(*SHORT, cwd=whole, before=scripted)] == [0, 0]
    assert "rewind" in {decision["actuator"] for decision in final(whole)["pilot"]["decisions"]}
    (tmp_path / "run").mkdir(parents=True)
    (tmp_path / "run/config.yaml").write_text("seed: 3\n")  # of somebody else
    log = tmp_path / "run-2/log.jsonl"
    pair = begin_two(*SHORT, cwd=tmp_path, before=scripted)
    size = (whole / "run/log.jsonl").stat().st_size
    wait_for(lambda: log.exists() and log.stat().st_size > 0.4 * size, pair[1].is_alive)
    assert pair[1].pid is not None
    os.kill(pair[1].pid, signal.SIGKILL)
    first, second = end(pair, tmp_path)
    assert (first.code, second.code) == (1, -signal.SIGKILL), first.err
    ended = together(*SHORT, cwd=tmp_path, before=scripted, restarts=1)
    assert [one.code for one in ended] == [0, 0], ended[0].err + ended[1].err
    assert "resuming run-2 after step" in ended[0].out
    (tmp_path / "run").rename(tmp_path / "theirs")
    (tmp_path / "run-2").rename(tmp_path / "run")
    assert_same(whole, tmp_path, "killed, and started anew")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(INSTANTS))
def test_torchrun_restarts_after_kill_9_at_a_random_instant(
    unbroken: Path, tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    share, wait, victim = draw.uniform(0.0, 0.95), draw.uniform(0.0, 0.05), draw.randrange(2)
    where = f"seed {seed}: process {victim}, {1000 * wait:.1f} ms after {share:.4f} of the log"
    launcher = Torchrun(*BROKEN, cwd=tmp_path, way="scripted", restarts=1)
    log, size = tmp_path / "run/log.jsonl", (unbroken / "run/log.jsonl").stat().st_size
    wait_for(
        lambda: log.exists() and log.stat().st_size >= max(1, int(share * size)),
        lambda: launcher.process.poll() is None,
    )
    time.sleep(wait)
    os.kill(launcher.workers()[victim], signal.SIGKILL)
    ended = launcher.ended()
    assert ended.code == 0, f"{where}\n{ended.out[-6000:]}"
    assert "resuming run after step" in ended.out, where
    assert_same(unbroken, tmp_path, where)


@pytest.mark.slow
def test_a_signal_to_one_of_two_stops_both_after_the_same_step(unbroken: Path, tmp_path: Path) -> None:
    each = ({}, {"OPTLAND_FAIL_AT": "optim.between_passes:21:TERM"})
    ended = together(*BROKEN, cwd=tmp_path, before=_scripted_and_armed, each=each)
    assert [one.code for one in ended] == [75, 75], ended[0].err + ended[1].err
    assert "stopped by a signal to another process of the run after a whole step" in ended[0].err
    assert final(tmp_path)["step"] == 21
    for log in tmp_path.glob("err *"):
        log.unlink()
    ended = together(*BROKEN, "--resume", cwd=tmp_path, before=scripted)
    assert [one.code for one in ended] == [0, 0], ended[0].err + ended[1].err
    assert_same(unbroken, tmp_path, "stopped, and resumed")


def _scripted_and_armed() -> None:
    from optland import failpoints

    scripted()
    failpoints.arm(os.environ.get(failpoints.VARIABLE))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_torchrun_saves_whole_and_the_run_can_be_resumed(
    unbroken: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C reaches the processes too, and torchrun hands it on: the second one is no second wish."""
    launcher = Torchrun(*BROKEN, cwd=tmp_path, way="scripted")
    log, size = tmp_path / "run/log.jsonl", (unbroken / "run/log.jsonl").stat().st_size
    wait_for(
        lambda: log.exists() and log.stat().st_size > 0.3 * size, lambda: launcher.process.poll() is None
    )
    if number == signal.SIGINT:
        os.killpg(launcher.process.pid, number)
    else:
        launcher.process.send_signal(number)
    ended = launcher.ended()
    assert ended.code != 0
    assert f"stopped by {number.name} after a whole step; go on with --resume" in ended.out, ended.out[-6000:]
    ended = Torchrun(*BROKEN, "--resume", cwd=tmp_path, way="scripted").ended()
    assert ended.code == 0, ended.out[-6000:]
    assert_same(unbroken, tmp_path, number.name)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 2)])
def test_a_run_goes_on_with_as_many_processes_or_others(tmp_path: Path, before: int, after: int) -> None:
    """Of uneven parts; in the sums that the other number makes. The first half of a run is told by its log."""
    arguments = ["run", "landscape_train", "digits", "out=run", *UNEVEN]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ended = together(*arguments, cwd=whole, before=doubled, size=before)
    assert [one.code for one in ended] == [0] * before, ended[0].err
    stopped = ({"OPTLAND_FAIL_AT": "probe.noise:2:TERM"}, {})
    ended = together(*arguments, cwd=broken, before=_doubled_and_armed, size=before, each=stopped)
    assert [one.code for one in ended] == [75] * before, ended[0].err
    ended = together(*arguments, "--resume", cwd=broken, before=doubled, size=after)
    assert [one.code for one in ended] == [0] * after, ended[0].err
    close(rows(whole), rows(broken), "rows")
    close(final(whole)["model"], final(broken)["model"], "weights")


def _doubled_and_armed() -> None:
    from optland import failpoints

    doubled()
    failpoints.arm(os.environ.get(failpoints.VARIABLE))


# Errors ----------------------------------------------------------------------------------------------


def test_an_error_in_one_process_ends_both(tmp_path: Path) -> None:
    ended = together(*BROKEN, cwd=tmp_path, before=_broken_in_the_second)
    assert [one.code for one in ended] == [1, 1], ended[0].err + ended[1].err
    assert "KeyError: 'the label of sample 7'" in ended[1].err


def _broken_in_the_second() -> None:
    from optland.train import BatchLoader

    served = BatchLoader.__iter__

    def broken(loader: BatchLoader) -> Any:
        for number, batch in enumerate(served(loader)):
            if number == 5 and os.environ["RANK"] == "1":
                raise KeyError("the label of sample 7")
            yield batch

    vars_of: Any = BatchLoader
    vars_of.__iter__ = broken


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "landscape_train", "digits", "--resume", "out=nowhere"], "there is no run to resume in nowhere"),
        (["run", "landscape_train", "digits", "batch_size=1"], "batch_size: 1 samples are too few for 2 processes"),
        (["run", "landscape_train", "digits", "--seeds", "2"], "a grid is started without torchrun"),
    ],
)  # fmt: skip
def test_bad_input_is_said_once_and_ends_both(arguments: list[str], says: str, tmp_path: Path) -> None:
    ended = together(*arguments, "log.wandb=disabled", cwd=tmp_path, before=as_given)
    assert [one.code for one in ended] == [2, 2], ended[0].err + ended[1].err
    assert says in ended[0].err
    assert ended[1].err == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["err 0", "err 1", "out 0", "out 1"]


def test_processes_that_no_launcher_has_started_are_refused(tmp_path: Path) -> None:
    ran = optland("run", "landscape_train", "smoke", cwd=tmp_path, env={"WORLD_SIZE": "2", "RANK": "0"})
    assert ran.returncode == 2, ran.stderr
    assert "start them with torchrun --nproc-per-node=2, or unset WORLD_SIZE" in ran.stderr
    assert list(tmp_path.iterdir()) == []
