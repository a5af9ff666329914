"""The main job as a user runs it: the command line, a real run, a kill, the wandb file, bad input."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import optland
from safetensors.torch import load_file

from optland.log import read_jsonl
from optland.train import DataConfig, evaluate, load_data
from optland.train.runs.checkpoint import load_checkpoint
from optland.train.runs.weights import about_weights

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["epochs=3", "checkpoint_every=7", "data.label_noise=0.3", "model.name=resnet8", "model.width=4"]
SHORT += ["model.dropout=0.2", "pilot.budget=0.5", "pilot.max_batch=256", "batch_size=32"]
SHORT += ["pilot.policies=[auto_lr,noise_batch,edge_monitor,curvature_monitor]"]


def final(folder: Path) -> dict[str, Any]:
    """What must be equal after a resume: weights, buffers, optimizer, loader, decisions, evaluations."""
    parts = load_checkpoint(folder / "checkpoint.pt")["parts"]
    pilot = {k: v for k, v in parts["pilot"].items() if k not in ("seconds", "looks")}
    pilot["looks"] = {k: v for k, v in parts["pilot"]["looks"].items() if k != "seconds"}
    return {**{k: parts[k] for k in ("model", "optimizer", "loader", "history")}, "pilot": pilot}


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One unbroken run with BatchNorm, dropout, label noise and every controller in play."""
    folder = tmp_path_factory.mktemp("whole")
    done = optland("run", "landscape_train", "digits_noisy", "out=run", *SHORT, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


def test_a_run_leaves_everything_it_promises(whole: tuple[Path, str]) -> None:
    folder, printed = whole
    for name in ("config.yaml", "log.jsonl", "checkpoint.pt", "curves.png", "summary.json"):
        assert (folder / name).stat().st_size > 0, name
    rows = read_jsonl(folder / "log.jsonl", kind="row")
    keys = set().union(*rows)
    assert {
        "train/loss",
        "val/acc",
        "test/acc",
        "edge/ratio",
        "curv/lambda_max",
        "noise/b_simple",
        "sam/rho",
    } <= keys
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["budget/probe_frac"] <= 0.5
    assert len(summary["summary/verdict"]) > 20
    assert "wandb leet" in printed
    assert "\x1b[" not in printed, "no escape codes when the output is not a terminal"
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_under_auto_lr_a_schedule_gives_the_shape_and_no_rate_can_be_asked_for(tmp_path: Path) -> None:
    """At the first update all runs are at one point, so their rates stand to each other as their schedules do."""
    first = {}
    for name in ("constant", "one_cycle"):
        done = optland(
            "run", "landscape_train", "smoke", f"out={name}", f"schedule={name}", "epochs=1", "log.every=1",
            "log.wandb=disabled", "pilot.policies=[auto_lr]", cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (row,) = (r for r in read_jsonl(tmp_path / name / "log.jsonl", kind="row") if r["step"] == 1)
        first[name] = row["lr/applied"]
    middle = 0.5 * 64 / 1200  # of the first of the batches, as a share of the run
    constant = middle / 0.05
    one_cycle = 1 / 25 + (1 - 1 / 25) * 0.5 * (1 - math.cos(math.pi * middle / 0.3))
    assert first["one_cycle"] / first["constant"] == pytest.approx(one_cycle / constant, rel=1e-5)
    for item in (["optimizer.lr=0.5"], ["--grid", "optimizer.lr=0.1,0.5"]):
        done = optland("run", "landscape_train", "smoke", "out=rate", *item, cwd=tmp_path)
        assert done.returncode == 2
        assert "auto_lr, which finds the learning rate" in done.stderr
        assert not list(tmp_path.glob("rate*"))


def test_the_three_lines_that_a_run_prints_load_its_best_weights_anywhere(
    whole: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They give the accuracy that the run reports, on data standardised as the run says."""
    folder, printed = whole
    lines = printed.partition("To load them in any program:\n\n")[2].splitlines()[:3]
    program: dict[str, Any] = {}  # nothing is imported but what the lines import
    monkeypatch.chdir(folder.parent)
    exec("\n".join(lines), program)
    data, model = load_data(DataConfig(name="digits", label_noise=0.3)), program["model"]
    accuracy = evaluate(model, data.test_x, data.test_y)["acc"]
    summary = json.loads((folder / "summary.json").read_text())
    assert accuracy == pytest.approx(summary["test/acc best by validation"], abs=1e-9)
    assert not model.training
    assert about_weights(folder / "best.safetensors")["epoch"] == str(summary["epoch best by validation"])
    last = torch.load(folder / "checkpoint.pt", weights_only=True)["parts"]["model"]
    given = load_file(folder / "model.safetensors")
    assert given.keys() == last.keys()
    assert all(torch.equal(given[name], last[name]) for name in given)


def test_wandbs_own_reader_shows_the_values_that_the_console_printed(whole: tuple[Path, str]) -> None:
    folder, printed = whole
    run_dir = next((folder / "wandb").glob("offline-run-*"))
    command = [
        str(Path(sys.executable).with_name("wandb")),
        "leet",
        "inspect",
        "--summary",
        "--json",
        str(run_dir),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
    seen = _numbers(json.loads(shown))
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("test/acc last epoch", "test/acc best by validation", "budget/probe_frac", "budget/ge"):
        assert seen[key] == pytest.approx(summary[key], rel=1e-6), key
        line = next(line for line in printed.splitlines() if f" {key} " in line)
        assert float(line.split("│")[2]) == pytest.approx(summary[key], rel=1e-3)
    last = read_jsonl(folder / "log.jsonl", kind="row")[-1]
    assert seen["val/acc"] == pytest.approx(last["val/acc"])


def _numbers(tree: Any) -> dict[str, float]:
    """Every key with a number anywhere in leet's JSON."""
    found: dict[str, float] = {}
    if isinstance(tree, dict):
        for key, value in tree.items():
            if isinstance(value, int | float):
                found[key] = float(value)
            found |= _numbers(value)
        if "key" in tree and isinstance(tree.get("value"), int | float):
            found[str(tree["key"])] = float(tree["value"])
    elif isinstance(tree, list):
        for item in tree:
            found |= _numbers(item)
    return found


@pytest.mark.slow  # tests/faults kills smaller runs at every named instant
def test_kill_9_at_a_random_step_and_resume_ends_with_the_same_bits(
    whole: tuple[Path, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = ["run", "landscape_train", "digits_noisy", "out=run", *SHORT, "checkpoint_every=1"]
    last = load_checkpoint(whole[0] / "checkpoint.pt")["step"]
    step = random.randint(5, last * 2 // 3)  # a new instant every time is the point
    with subprocess.Popen(
        [sys.executable, "-m", "optland.cli", *arguments],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        _wait_for_step(out / "log.jsonl", step, process)
        process.send_signal(signal.SIGKILL)
    assert not (out / "summary.json").exists()
    resumed = optland(*arguments, "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming run after step" in resumed.stdout
    assert_equal(final(whole[0]), final(out), f"killed near step {step}")
    rows = read_jsonl(out / "log.jsonl", kind="row")
    wanted = read_jsonl(whole[0] / "log.jsonl", kind="row")
    assert [r["step"] for r in rows] == [r["step"] for r in wanted]
    assert [r.get("train/loss") for r in rows] == [r.get("train/loss") for r in wanted]


def _wait_for_step(log: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(4800):
        assert process.poll() is None, "the run ended before it could be killed"
        if log.exists() and any(int(r.get("step", 0)) >= step for r in read_jsonl(log)):
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached")


@pytest.mark.slow
def test_a_second_run_does_not_write_over_the_first_and_a_finished_one_is_not_resumed(tmp_path: Path) -> None:
    arguments = ["run", "landscape_train", "smoke", "out=run", "epochs=1", "log.wandb=disabled"]
    assert optland(*arguments, cwd=tmp_path).returncode == 0
    assert optland(*arguments, cwd=tmp_path).returncode == 0
    assert (tmp_path / "run" / "summary.json").exists()
    assert (tmp_path / "run-2" / "summary.json").exists()
    again = optland(*arguments, "--resume", cwd=tmp_path)
    assert again.returncode == 0
    assert "is finished" in again.stdout
    changed = optland(*arguments, "--resume", "seed=5", cwd=tmp_path)
    assert changed.returncode == 2
    assert "'seed: 5' (was 0)" in changed.stderr


BAD = [
    (["epochz=3"], "epochs"),
    (["optimizer.moment=0.5"], "optimizer.momentum"),
    (["epochs=many"], "epochs"),
    (["data.name=cifar11"], "cifar11"),
    (["optimizer.name=samm"], "sam"),
    (["pilot.policies=[auto_rl]"], "auto_lr"),
    (["pilot.policies=[noise_batch,plateau]"], "choose one"),
    (["pilot.mode=steer"], "control"),
    (["epochs=0"], "at least 1"),
    (["data.label_noise=1.5"], "from 0 to 1"),
    (["optimizer.rho=-1"], "0 or more"),
    (["pilot.budget=nan"], "budget"),
    (["batch_size"], "="),
]


@pytest.mark.parametrize(("overrides", "fix"), BAD, ids=[b[0][0] for b in BAD])
def test_bad_values_get_one_message_with_the_fix(overrides: list[str], fix: str, capsys: Any) -> None:
    from optland.cli import main

    assert main(["run", "landscape_train", "digits", *overrides]) == 2
    said = capsys.readouterr().err
    assert overrides[0].split("=")[0].split(".")[-1].rstrip("z") in said
    assert fix in said
    assert "Traceback" not in said
    assert said.count("\n") <= 3, said


def test_missing_files_and_foreign_configs_get_one_message(tmp_path: Path, capsys: Any) -> None:
    from optland.cli import main

    foreign = tmp_path / "other.yaml"
    foreign.write_text("recipe: language_model\nepochs: 1\n")
    for arguments, wanted in (
        (["run", "landscape_train", "configs/landscape_train/digit.yaml"], "digits"),
        (["run", "landscape_trian", "digits"], "landscape_train"),
        (["run", "landscape_train", str(foreign)], "optland run language_model"),
        (["run", "landscape_train", "digits", "--resume", f"out={tmp_path / 'nowhere'}"], "without --resume"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert wanted in said, said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    "config", sorted(p.stem for p in (ROOT / "configs" / "landscape_train").glob("*.yaml"))
)
def test_every_shipped_config_is_valid(config: str, capsys: Any) -> None:
    from optland.cli import main

    assert main(["validate", "landscape_train", config]) == 0
    assert "epochs" in capsys.readouterr().out
