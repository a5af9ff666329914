"""The language model as a user runs it: a real run, a kill and resume, other precisions, bad input."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import optland

from optland.log import read_jsonl
from optland.train import TextConfig, load_text
from optland.train.data.text import evaluate_text
from optland.train.runs.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["log.wandb=disabled", "model.dropout=0.1", "pilot.budget=0.2", "checkpoint_every=7"]
SHORT += [
    "data.max_bytes=30000",
    "precision.ema=0.9",
    "precision.clip=1.0",
    "precision.accumulation=2",
    "precision.precision=bf16",
]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::UserWarning:optland"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """One unbroken run with dropout, accumulation, clipping, bf16 and an average of the weights."""
    folder = tmp_path_factory.mktemp("whole")
    done = optland("run", "language_model", "smoke", "out=run", *SHORT, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


def test_a_run_leaves_everything_it_promises_and_learns(whole: tuple[Path, str]) -> None:
    folder, printed = whole
    for name in ("config.yaml", "log.jsonl", "checkpoint.pt", "curves.png", "summary.json"):
        assert (folder / name).stat().st_size > 0, name
    rows = read_jsonl(folder / "log.jsonl", kind="row")
    assert {"train/loss", "val/loss", "val/bpc", "test/perplexity", "edge/ratio"} <= set().union(*rows)
    assert rows[0]["step"] <= 10
    assert rows[0]["train/loss"] == pytest.approx(math.log(256), abs=0.5), (
        "the first losses are near that of guessing"
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test/bpc last"] < 6.5
    assert summary["test/perplexity last"] == pytest.approx(2 ** summary["test/bpc last"])
    assert len(summary["data/fingerprint"]) == 12
    assert summary["budget/probe_frac"] <= 0.2
    assert "test/bpc last" in printed
    assert "\x1b[" not in printed, "no escape codes when the output is not a terminal"


def test_the_three_lines_that_a_run_prints_load_its_average_of_tied_weights(whole: tuple[Path, str]) -> None:
    folder, printed = whole
    lines = printed.partition("To load them in any program:\n\n")[2].splitlines()[:3]
    assert "(an average of the weights)" in printed
    space: dict[str, Any] = {}
    here = os.getcwd()
    os.chdir(folder.parent)
    try:
        exec("\n".join(lines), space)
    finally:
        os.chdir(here)
    model = space["model"]
    assert model.head.weight is model.tokens.weight
    (config,) = [line for line in (folder / "config.yaml").read_text().splitlines() if "context:" in line]
    data = load_text(TextConfig(tokens="bytes", max_bytes=30_000, context=int(config.split()[1])))
    summary = json.loads((folder / "summary.json").read_text())
    found = evaluate_text(model, data.windows("test"))["bpc"]
    assert found == pytest.approx(summary["test/bpc best by validation"], rel=1e-6)


@pytest.mark.slow
def test_kill_9_and_resume_ends_with_the_same_bits(whole: tuple[Path, str], tmp_path: Path) -> None:
    arguments = ["run", "language_model", "smoke", "out=run", *SHORT]
    out = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-m", "optland.cli", *arguments],
        cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        wait_for_step(out / "log.jsonl", 30, process)
        process.send_signal(signal.SIGKILL)
    assert not (out / "summary.json").exists()
    resumed = optland(*arguments, "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    unbroken, broken = (read_jsonl(folder / "log.jsonl", kind="row") for folder in (whole[0], out))
    assert [r.get("train/loss") for r in unbroken] == [r.get("train/loss") for r in broken]
    assert unbroken[-1]["val/loss"] == broken[-1]["val/loss"]
    first, second = (load_checkpoint(folder / "checkpoint.pt")["parts"] for folder in (whole[0], out))
    for a, b in ((first["model"], second["model"]), (first["ema"]["average"], second["ema"]["average"])):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_sigterm_ends_after_a_whole_step_and_the_resume_ends_with_the_same_bits(
    whole: tuple[Path, str], tmp_path: Path
) -> None:
    arguments = ["run", "language_model", "smoke", "out=run", *SHORT]
    out = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-m", "optland.cli", *arguments],
        cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        wait_for_step(out / "log.jsonl", 30, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=240) == 75
    resumed = optland(*arguments, "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert read_jsonl(out / "log.jsonl", kind="row")[-1]["val/loss"] == last_validation(whole[0])


def last_validation(folder: Path) -> float:
    return float(read_jsonl(folder / "log.jsonl", kind="row")[-1]["val/loss"])


def wait_for_step(log: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(4800):
        assert process.poll() is None, "the run ended before it could be killed"
        if log.exists() and any(int(r.get("step", 0)) >= step for r in read_jsonl(log)):
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached")


@pytest.mark.slow
def test_sam_on_adamw_and_fp16_run_through(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for k in range(30):
        (tmp_path / "text" / f"{k}.txt").write_text(
            f"{k}: the quick brown fox jumps over the lazy dog.\n" * 20
        )
    changed = ["data.paths=[text]", "data.tokens=characters", "optimizer.name=sam", "optimizer.base=adamw"]
    changed += ["optimizer.rho=0.02", "precision.precision=fp16", "pilot.budget=0.05", "log.wandb=disabled"]
    done = optland("run", "language_model", "smoke", "out=run", *changed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["budget/ge"] > 2 * 2 * 400, "two gradients per window"
    assert summary["val/bpc last"] < 4.5
    parts = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["parts"]
    assert parts["precision"]["scaler"]["scale"] > 0
    assert all(torch.isfinite(t).all() for t in parts["model"].values())


BAD = [
    (["epochs=0"], "at least 1"),
    (["schedule=cosin", "pilot.mode=off"], "cosine"),
    (["data.context=0"], "at least 1"),
    (["data.tokens=words"], "characters"),
    (["data.paths=[nowhere.txt]"], "no file at nowhere.txt"),
    (["data.max_bytes=100"], "more bytes"),
    (["model.width=30", "model.heads=4"], "use 32"),
    (["precision.clip=0"], "above 0"),
    (["precision.precision=int8"], "bf16"),
    (["precision.acumulation=2"], "accumulation"),
    (["optimizer.name=adamv"], "adamw"),
]


@pytest.mark.parametrize(("overrides", "fix"), BAD, ids=[b[0][0] for b in BAD])
def test_bad_values_get_one_message_with_the_fix(
    overrides: list[str], fix: str, capsys: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    from optland.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["run", "language_model", "smoke", *overrides]) == 2
    said = capsys.readouterr().err
    assert fix in said
    assert overrides[0].split("=")[0].split(".")[0] in said
    assert "Traceback" not in said
    assert said.count("\n") <= 3, said
    assert list(tmp_path.iterdir()) == [], "nothing was written"


@pytest.mark.parametrize(
    "config", sorted(p.stem for p in (ROOT / "configs" / "language_model").glob("*.yaml"))
)
def test_every_shipped_config_is_valid_and_says_how_to_run_it(config: str, capsys: Any) -> None:
    from optland.cli import main

    assert main(["validate", "language_model", config]) == 0
    assert "epochs" in capsys.readouterr().out
    text = (ROOT / "configs" / "language_model" / f"{config}.yaml").read_text().splitlines()
    assert text[0] == f"# optland run language_model configs/language_model/{config}.yaml"
    assert text[1].startswith("# ")
