"""optland in a wandb run of the user's: no row of theirs is lost, and ours have their own axis."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from log.guests import history, metrics, records, trained
from tiers import slow

from optland.log import JsonlLogger, Logger, into
from optland.log.logger import LoggerGroup

STEPS = 20


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in {name for name in os.environ if name.startswith("WANDB_")} - {"WANDB_SERVICE"}:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Any]:
    """The user's run; what is still open when a test fails is closed."""
    with wandb.init(mode="offline", dir=tmp_path, project="theirs", name="their run") as run:
        yield run


def by_hand(rows: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(row["n"], row["loss"]) for row in rows if "loss" in row]


def ours(rows: list[dict[str, Any]]) -> list[int]:
    return [row["optland/step"] for row in rows if "optland/step" in row]


# How people log; each takes the run, the number of the update and its loss. The dictionary says which updates they log.
STYLES: dict[str, tuple[Callable[[Any, int, float], object], int]] = {
    "plain": (lambda run, n, loss: run.log({"n": n, "loss": loss}), 1),
    "step= updates": (lambda run, n, loss: run.log({"n": n, "loss": loss}, step=n), 1),
    "step= from 0": (lambda run, n, loss: run.log({"n": n, "loss": loss}, step=n - 1), 1),
    "step= epochs": (lambda run, n, loss: run.log({"n": n, "loss": loss}, step=n // 5), 5),
    "every fifth": (lambda run, n, loss: run.log({"n": n, "loss": loss}), 5),
    "commit=": (lambda run, n, loss: (run.log({"n": n}, commit=False), run.log({"loss": loss})), 1),
    "several per step=": (
        lambda run, n, loss: (run.log({"n": n}, step=n), run.log({"loss": loss}, step=n)),
        1,
    ),
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.cell("plain loop", "own wandb run")
def test_no_row_of_theirs_is_lost(tmp_path: Path, run: Any, style: str) -> None:
    log, every = STYLES[style]
    logged: list[tuple[int, float]] = []

    def after(n: int, loss: float) -> None:
        if n % every == 0:
            logged.append((n, loss))
            log(run, n, loss)

    trained(STEPS, log=run, after=after)
    run.finish()
    rows = history(tmp_path)
    assert by_hand(rows) == logged
    steps = ours(rows)
    assert steps == sorted(steps)
    assert steps[-1] == STEPS
    assert len(steps) >= STEPS // every - 2
    for row in rows:
        if "step=" in style and "loss" in row:
            assert row["_step"] == {"step= epochs": row["n"] // 5, "step= from 0": row["n"] - 1}.get(
                style, row["n"]
            )


def test_a_row_of_ours_that_moved_their_step_would_cost_them_rows(tmp_path: Path, run: Any) -> None:
    """What the other tests stand on: ``commit=True`` with ``step=`` loses theirs, so their loss would be noticed."""
    trained(
        STEPS, log=into(run, commit=True), after=lambda n, loss: run.log({"n": n, "loss": loss}, step=n // 5)
    )
    run.finish()
    assert len(by_hand(history(tmp_path))) < STEPS // 5


def test_of_several_rows_that_wait_the_latest_values_are_kept(tmp_path: Path, run: Any) -> None:
    log = into(run)
    log.log({"step": 1, "train/loss": 3.0, "edge/ratio": 0.5})
    log.log({"step": 2, "train/loss": 2.0})
    run.log({"theirs": 1}, step=1)
    log.log({"step": 3, "train/loss": 1.0})
    log.log({"step": 4, "edge/ratio": 0.75})
    run.log({"theirs": 2}, step=2)
    run.finish()
    first, second = history(tmp_path)
    expected = {
        "optland/step": 4,
        "optland/train/loss": 1.0,
        "optland/edge/ratio": 0.75,
        "theirs": 1,
        "_step": 1,
    }
    assert (
        first == expected
    )  # rows 1 and 2 waited; 3 and 4 found that the user logs, and went to the row still open
    assert second == {"theirs": 2, "_step": 2}


def test_who_logs_nothing_has_every_row(tmp_path: Path, run: Any) -> None:
    trained(STEPS, log=run)
    run.finish()
    assert ours(history(tmp_path)) == list(range(1, STEPS + 1))


def test_so_has_one_among_several_loggers(tmp_path: Path, run: Any) -> None:
    record = JsonlLogger(tmp_path / "log.jsonl")
    trained(STEPS, log=LoggerGroup([record, into(run)]))
    run.finish()
    assert ours(history(tmp_path)) == [row["step"] for row in record.read("row")] == list(range(1, STEPS + 1))


def test_so_has_a_script_that_closes_nothing(tmp_path: Path) -> None:
    script = f"""
        import wandb
        from optland.log import into

        run = wandb.init(mode="offline", dir={str(tmp_path)!r})
        log = into(run)
        for step in range(1, 6):
            log.log({{"step": step, "train/loss": 1 / step}})
        log.event({{"step": 5, "policy": "guard", "actuator": "skip", "reason": "why", "taken": True}})
    """
    alone = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(script)], check=True, env=alone)
    *rows, table = history(tmp_path)
    assert [row["optland/train/loss"] for row in rows] == [1 / step for step in range(1, 6)]
    assert ours(rows) == [1, 2, 3, 4, 5]
    assert (table["optland/ctl/events.nrows"], table["optland/ctl/events.ncols"]) == (1, 8)


def test_commit_writes_at_once(tmp_path: Path, run: Any) -> None:
    log = into(run, commit=True)
    for step in (1, 2):
        log.log({"step": step, "train/loss": 1.0})
    assert run.step == 2
    run.finish()
    assert ours(history(tmp_path)) == [1, 2]


def test_without_commit_no_row_is_made_at_the_end_either(tmp_path: Path, run: Any) -> None:
    trained(STEPS, log=into(run, commit=False))
    run.log({"loss": 1.0}, step=0)
    run.finish()
    (row,) = history(tmp_path)
    assert (row["_step"], row["loss"], row["optland/step"]) == (0, 1.0, STEPS)


def test_more_rows_than_may_wait_are_merged_in_pairs(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optland.log.guest_wandb.MOST_WAITING", 8)
    log = into(run)
    for step in range(1, 24):
        log.log({"step": step, "train/loss": float(step), **({"edge/ratio": 0.5} if step == 3 else {})})
    log.close()
    run.finish()
    rows = history(tmp_path)
    steps = ours(rows)
    assert steps == sorted(steps)
    assert 4 <= len(steps) <= 8
    assert steps[-1] == 23
    assert [row["optland/edge/ratio"] for row in rows if "optland/edge/ratio" in row] == [0.5]


def test_their_run_stays_theirs(tmp_path: Path, run: Any) -> None:
    before = (run.id, run.name, run.project, dict(run.config), run.tags)
    log = into(run)
    assert isinstance(log, Logger)
    log.log({"step": 1, "train/loss": 1.0})
    log.event({"step": 1, "policy": "guard", "actuator": "rewind", "reason": "the loss rose", "taken": True})
    log.log({"step": 2, "train/loss": math.nan})
    log.finish({"summary/advice": "more data"}, exit_code=3)
    assert wandb.run is run
    run.log({"after": 1})
    assert (run.id, run.name, run.project, dict(run.config), run.tags) == before
    assert run.summary["optland/summary/advice"] == "more data"
    run.finish()
    said = records(tmp_path)
    assert [record["exit"].get("exit_code", 0) for record in said if record["type"] == "exit"] == [0]
    assert not [record for record in said if record["type"] == "alert"]
    rows = history(tmp_path)
    assert [row["after"] for row in rows if "after" in row] == [1]
    assert [row["optland/ctl/events.nrows"] for row in rows if "optland/ctl/events.nrows" in row] == [1]


def test_alerts_are_sent_where_asked_for(tmp_path: Path, run: Any) -> None:
    log = into(run, alerts=True)
    for step in (1, 2):
        log.log({"step": step, "train/loss": math.nan})
    log.event({"step": 2, "policy": "guard", "actuator": "rewind", "reason": "the loss rose", "taken": True})
    log.close()
    run.finish()
    alerts = [record["alert"]["title"] for record in records(tmp_path) if record["type"] == "alert"]
    assert alerts == ["the loss is nan at step 1", "guard: rewind at step 2"]


def test_our_keys_have_our_axis_and_few_have_charts(tmp_path: Path, run: Any) -> None:
    run.define_metric("*", step_metric="train/global_step")  # as trainers do
    log = into(run)
    log.log(
        {"step": 3, "train/loss": 1.0, "edge/ratio_error": 0.1, "edge/resolved": 1.0, "probe/age_edge": 2.0}
    )
    run.log({"train/loss": 9.0, "train/global_step": 1})
    log.close()
    run.finish()
    said = metrics(tmp_path)
    assert said["optland/*"]["step_metric"] == "optland/step"
    for name in ("train/loss", "edge/ratio_error", "edge/resolved", "probe/age_edge"):
        assert said[f"optland/{name}"]["step_metric"] == "optland/step"
        assert said[f"optland/{name}"]["options"].get("hidden", False) == (name != "train/loss")
    assert said["*"]["step_metric"] == "train/global_step"


@pytest.mark.cell("plain loop", "pilot monitor")
def test_training_is_the_same_with_it(run: Any) -> None:
    assert torch.equal(trained(STEPS, log=run, after=lambda n, _: run.log({"n": n})), trained(STEPS))


def test_a_run_that_is_finished_costs_one_warning(run: Any) -> None:
    def after(n: int, _: float) -> None:
        if n == 5:
            run.finish()

    plain = trained(STEPS)
    with pytest.warns(RuntimeWarning, match=r"the wandb run takes no more rows.*finished") as caught:
        assert torch.equal(trained(STEPS, log=into(run, commit=True), after=after), plain)
    assert len(caught) == 1


def test_rows_that_a_finished_run_did_not_take_are_named(run: Any) -> None:
    log = into(run)
    log.log({"step": 1, "train/loss": 1.0})
    run.finish()
    with pytest.warns(
        RuntimeWarning, match=r"1 rows that waited .* are lost .*close the pilot before"
    ) as caught:
        log.close()
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("how", "why"), [*slow(("STOP", "has not answered for 5 s")), ("KILL", "takes no more rows")]
)
def test_a_service_that_hangs_or_dies_costs_one_warning_and_little_time(
    tmp_path: Path, how: str, why: str
) -> None:
    """The service is stopped for real; the user's own end of the run would wait for it, so the process just leaves."""
    script = f"""
        import os, pathlib, signal, sys, time, warnings
        import wandb
        from log.guests import trained

        run = wandb.init(mode="offline", dir={str(tmp_path)!r})
        run.step
        (core,) = [
            int(child)
            for task in pathlib.Path("/proc/self/task").iterdir()
            for child in (task / "children").read_text().split()
            if "wandb-core" in pathlib.Path(f"/proc/{{child}}/comm").read_text()
        ]
        stop = lambda n, _: os.kill(core, signal.SIG{how}) if n == 3 else None
        began = time.monotonic()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trained(20, log=run, after=stop)
        print(len(caught), *(w.message for w in caught), time.monotonic() - began, sep="|")
        sys.stdout.flush()
        if {how!r} == "STOP":
            os.kill(core, signal.SIGKILL)
        os._exit(0)
    """
    alone = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    said = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        check=True,
        capture_output=True,
        text=True,
        env={**alone, "PYTHONPATH": path},
    ).stdout
    count, message, seconds = said.strip().splitlines()[-1].split("|")
    assert count == "1"
    assert why in message
    assert float(seconds) < 10


def test_a_disabled_run_takes_everything() -> None:
    run = wandb.init(mode="disabled")
    trained(STEPS, log=run)
    run.finish()


def test_the_module_stands_for_its_run(tmp_path: Path, run: Any) -> None:
    trained(2, log=wandb)
    run.finish()
    assert ours(history(tmp_path)) == [1, 2]
    with pytest.raises(ValueError, match=r"wandb\.init\(\) first"):
        into(wandb)


def test_what_cannot_be_written_into_is_refused_before_anything_has_moved() -> None:
    with pytest.raises(ValueError, match="it is None"):
        into(None)
    with pytest.raises(TypeError, match=r"nothing can be logged into 5"):
        trained(2, log=5)
    with pytest.raises(TypeError, match=r"commit= and alerts= are for wandb runs"):
        into(print, commit=True)
    with pytest.raises(TypeError, match=r"prefix is put before every key"):
        into(print, prefix=None)


def test_a_run_that_forked_writes_once(tmp_path: Path, run: Any) -> None:
    log = into(run, commit=True)
    log.log({"step": 1, "train/loss": 1.0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, on newer interpreters
        child = os.fork()
    if child == 0:
        log.log({"step": 2, "train/loss": 1.0})
        os._exit(0)
    os.waitpid(child, 0)
    log.log({"step": 3, "train/loss": 1.0})
    run.finish()
    assert ours(history(tmp_path)) == [1, 3]
