"""A comparison as a user runs it: the table against the runs' own records, a kill and a resume, bad input."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from command_line import begin, optland
from processes import exit_code
from scipy import stats

from optland.log import read_jsonl

ROOT = Path(__file__).resolve().parents[2]
SHORT = [
    "data.name=teacher",
    "data.num_samples=200",
    "model.width=16",
    "epochs=3",
    "batch_size=8",
    "log.every=5",
]
SHORT += ["compare.seeds=2", "compare.lrs=[0.02,0.05]", "optimizer.weight_decay=1e-3", "log.wandb=disabled"]
SAM = {"sam/loss_gap", "sam/curvature", "sam/cos", "sam/rho", "sam/rho_realised", "sam/stability"}
TRAIN, STEPS = 140, 18  # samples of the training split, and steps an epoch


COMPARE = ["run", "train_sam", "smoke", "out=run", *SHORT]


def compare(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return optland(*COMPARE, *arguments, cwd=cwd)


def comparison(folder: Path) -> dict[str, Any]:
    """What must be equal after a resume: everything but the wall time."""
    found = json.loads((folder / "comparison.json").read_text())
    for side in found["sides"]:
        del side["seconds"]
    return dict(found)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("whole")
    done = compare(cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


def evaluations(run: Path) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(run / "log.jsonl", kind="row") if "test/acc" in row]


def stopped_early(run: Path) -> dict[str, Any]:
    return max(evaluations(run), key=lambda row: (row["val/acc"], -row["val/loss"]))


def test_the_table_is_what_the_runs_logged(whole: tuple[Path, str]) -> None:
    folder, printed = whole
    ours, epochs, ge = comparison(folder)["sides"]
    runs = {side["equal"]: [folder / "runs" / name for name in side["runs"]] for side in (ours, epochs, ge)}
    assert [[int(str(run)[-1]) for run in side] for side in runs.values()] == [[1, 2]] * 3, "fresh seeds"
    for side in (ours, epochs, ge):
        mine = runs[side["equal"]]
        assert side["last"] == [evaluations(run)[-1]["test/acc"] for run in mine]
        assert side["best"] == [stopped_early(run)["test/acc"] for run in mine]
        assert side["ge"] == [evaluations(run)[-1]["budget/ge"] for run in mine]
    assert (ours["ge"], epochs["ge"], ge["ge"]) == (
        [6.0 * TRAIN] * 2,
        [3.0 * TRAIN] * 2,
        [6.0 * TRAIN] * 2,
    )
    for side in (epochs, ge):
        for which in ("last", "best"):
            wanted = stats.ttest_rel(ours[which], side[which]).confidence_interval(0.95)
            gain = side[f"gain {which}"]
            if wanted.low == wanted.low:  # SciPy has no interval where the differences are equal
                assert gain["mean"] - gain["error"] == pytest.approx(wanted.low)
                assert gain["mean"] + gain["error"] == pytest.approx(wanted.high)
    (table,) = read_jsonl(folder / "log.jsonl", kind="table")
    lines = {row.pop(""): list(row.values()) for row in table["rows"]}
    assert lines["epochs"] == ["3", "3", "6"]
    for side, cell in zip((ours, epochs, ge), lines["test, best by validation, %"], strict=True):
        assert cell.startswith(f"{sum(side['best']) / 2:.1f} (")
    assert "sam gains, best" in printed
    assert "\x1b[" not in printed, "no escape codes when the output is not a terminal"


def test_both_are_chosen_by_clean_validation_on_the_first_seed(whole: tuple[Path, str]) -> None:
    folder, _ = whole
    summary = json.loads((folder / "summary.json").read_text())
    rates = {lr: folder / "runs" / f"sgd-lr{lr}-3epochs-seed0" for lr in (0.02, 0.05)}
    lr = max(rates, key=lambda value: stopped_early(rates[value])["val/acc"])
    radii = {rho: folder / "runs" / f"sam-lr{lr}-rho{rho}-3epochs-seed0" for rho in (0.05, 0.1)}
    rho = max(radii, key=lambda value: stopped_early(radii[value])["val/acc"])
    assert (summary["summary/chosen lr"], summary["summary/chosen rho"]) == (lr, rho)
    longer = {lr: folder / "runs" / f"sgd-lr{lr}-6epochs-seed0" for lr in (0.02, 0.05)}
    assert summary["summary/chosen lr, equal GE"] == max(
        longer, key=lambda value: stopped_early(longer[value])["val/acc"]
    )
    assert len(list((folder / "runs").iterdir())) == 2 + 2 + 2 + 2 + 2 + 2


def test_the_telemetry_of_sam_is_logged_at_the_cadence_of_the_log(whole: tuple[Path, str]) -> None:
    folder, _ = whole
    rows = {
        kind: read_jsonl(next((folder / "runs").glob(f"{kind}-*-seed1")) / "log.jsonl", kind="row")
        for kind in ("sam", "sgd")
    }
    training = [row for row in rows["sam"] if "train/loss" in row]
    assert [row["step"] for row in training] == list(range(5, 3 * STEPS + 1, 5))
    for row in training:
        assert row.keys() >= SAM, f"step {row['step']}"
        assert row["sam/rho_realised"] == pytest.approx(row["sam/rho"], rel=1e-4)
        assert math.isfinite(row["sam/curvature"])
    assert not SAM & set().union(*rows["sgd"])


def test_everything_is_there_and_a_member_is_a_run_of_its_own(
    whole: tuple[Path, str], tmp_path: Path, capsys: Any
) -> None:
    from optland.cli import main

    folder, _ = whole
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    member = next((folder / "runs").glob("sgd-*-6epochs-seed2"))
    assert (member / "checkpoint.pt").exists()
    alone = tmp_path / "alone"
    arguments = [str(member / "config.yaml"), f"out={alone}"]
    assert main(["run", "train_sam", *arguments]) == 0
    assert f"run folder   {alone}" in capsys.readouterr().out
    assert [r["test/acc"] for r in evaluations(alone)] == [r["test/acc"] for r in evaluations(member)]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 75), pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.slow)],
)
def test_a_comparison_that_was_ended_goes_on_and_keeps_what_is_finished(
    whole: tuple[Path, str], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "run"
    process = begin(*COMPARE, "checkpoint_every=7", cwd=tmp_path)
    wait_for_a_row(out, "sam-*", process)
    assert process.pid is not None
    os.kill(process.pid, number)
    assert exit_code(process) == code
    assert not (out / "summary.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/summary.json")}
    assert 2 <= len(finished) < 12
    resumed = compare("checkpoint_every=7", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "what is finished is kept"
    assert comparison(out) == comparison(whole[0])
    assert len(read_jsonl(out / "log.jsonl", kind="summary")) == 1

    again = compare("checkpoint_every=7", "--resume", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (0, "run is finished; start a new one without --resume\n")


def wait_for_a_row(out: Path, name: str, process: BaseProcess) -> None:
    for _ in range(6000):
        assert process.is_alive(), "the comparison ended before it could be stopped"
        if any(log.stat().st_size > 0 for log in out.glob(f"runs/{name}/log.jsonl")):
            return
        time.sleep(0.01)
    raise AssertionError("the method was not reached")


BAD = [
    (["optimizer.name=sgd"], "compare: null"),
    (["optimizer.name=samm"], "Did you mean 'sam'"),
    (["optimizer.options={gama: 0.9}"], "has no option 'gama' (given: 0.9)"),
    (["optimizer.options.eta=-1", "optimizer.name=asam"], "use a finite value >= 0"),
    (["compare.lrs=[]"], "at least one"),
    (["compare.rhos=[-0.1]"], "above 0"),
    (["compare.equal=[epoch]"], "epochs"),
    (["compare.rho=[0.1]"], "compare.rhos"),
    (["pilot.mode=control"], "monitor"),
    (["schedule=cosin"], "cosine"),
]


@pytest.mark.parametrize(("overrides", "fix"), BAD, ids=[b[0][0] for b in BAD])
def test_bad_values_get_one_message_with_the_fix(overrides: list[str], fix: str, capsys: Any) -> None:
    from optland.cli import main

    assert main(["run", "train_sam", "smoke", *overrides]) == 2
    said = capsys.readouterr().err
    assert overrides[0].split("=")[0].split(".")[0] in said
    assert fix in said
    assert "Traceback" not in said
    assert said.count("\n") <= 3, said


@pytest.mark.parametrize("config", sorted(p.stem for p in (ROOT / "configs" / "train_sam").glob("*.yaml")))
def test_every_shipped_config_is_valid(config: str, capsys: Any) -> None:
    from optland.cli import main

    assert main(["validate", "train_sam", config]) == 0
    assert "compare" in capsys.readouterr().out


def test_patience_ends_a_single_run_and_is_refused_for_a_comparison(tmp_path: Path, capsys: Any) -> None:
    from optland.cli import main

    arguments = ["run", "train_sam", "smoke", f"out={tmp_path / 'run'}", *SHORT, "epochs=30", "patience=2"]
    assert main(arguments) == 2
    assert "patience: 2 would end some of the compared runs earlier" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    # A rate at which nothing is learnt: the first epoch is the best.
    assert main([*arguments, "compare=null", "optimizer.lr=1e-12", "schedule=none"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["epoch best by validation"], summary["train/epochs"]) == (1, 3)
    said = capsys.readouterr().out
    assert "best.safetensors of epoch 1, the best by validation" in said
    assert "model.safetensors of epoch 3, the last" in said
