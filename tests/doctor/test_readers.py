"""Logs of other tools are read as what they are: by files that those tools write."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from optland.cli import main
from optland.doctor import Symptom, diagnose
from optland.doctor.readers.read import read_log
from optland.log import JsonlLogger

LOSSES = [2.3 * 0.95**k for k in range(60)]


def hf(folder: Path, losses: list[float]) -> Path:
    """A state as transformers' Trainer saves it."""
    rows = [
        {"epoch": k / 10, "step": 10 * (k + 1), "loss": loss, "grad_norm": 1.0, "learning_rate": 5e-5}
        for k, loss in enumerate(losses)
    ]
    rows.append({"epoch": 6.0, "step": 600, "eval_loss": losses[-1] + 0.01, "eval_accuracy": 0.91})
    state = {"max_steps": 600, "train_batch_size": 8, "log_history": rows, "num_train_epochs": 6}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def test_the_state_of_a_trainer(tmp_path: Path) -> None:
    log = read_log(hf(tmp_path, LOSSES))
    run = log.histories
    assert (log.kind, run.step, run.fact("total_steps")) == ("transformers", 600, 600)
    assert run.values("train/loss") == pytest.approx(LOSSES)
    assert run.values("val/acc") == [91.0]
    assert run.values("lr/applied")[0] == 5e-5
    assert diagnose(run).findings == ()


def test_metrics_of_lightning_have_gaps(tmp_path: Path) -> None:
    lines = ["epoch,lr-SGD,step,train_loss_step,val_acc,val_loss"]
    lines += [f"0,0.1,{9 + 10 * k},{loss},,{'' if k % 10 else 0.5}" for k, loss in enumerate(LOSSES)]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    log = read_log(tmp_path)
    assert log.kind == "lightning"
    assert log.histories.values("train/loss") == pytest.approx(LOSSES)
    assert log.histories.values("val/loss") == [0.5] * 6
    assert log.histories.steps("val/loss")[1] == 109


def test_an_export_of_a_chart(tmp_path: Path) -> None:
    file = tmp_path / "wandb_export.csv"
    file.write_text(
        '"Step","calm-wood-3 - train/loss","calm-wood-3 - train/loss__MIN"\n"0","2.3","2.0"\n"7","NaN",""\n'
    )
    log = read_log(file)
    assert log.kind == "csv"
    assert log.histories.steps("train/loss") == [0, 7]
    assert math.isnan(log.histories.raw("train/loss")[1])


def test_an_offline_run_of_wandb(tmp_path: Path) -> None:
    script = (
        "import wandb\n"
        "run = wandb.init(project='x')\n"
        "for k in range(8):\n"
        "    run.log({'train/loss': 2.0 / (k + 1), 'eval_accuracy': 0.1 * k})\n"
        "run.finish()\n"
    )
    offline = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | offline, cwd=tmp_path)
    log = read_log(tmp_path / "wandb")
    assert log.kind == "wandb"
    assert log.histories.values("train/loss") == pytest.approx([2.0 / (k + 1) for k in range(8)])
    assert log.histories.values("val/acc")[-1] == pytest.approx(70.0)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_event_files_of_tensorboard(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        for k, loss in enumerate(LOSSES):
            writer.add_scalar("Loss/train", loss, k)
    log = read_log(tmp_path)
    assert log.kind == "tensorboard"
    assert log.histories.values("train/loss") == pytest.approx(LOSSES, rel=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_event_files_without_tensorboard_are_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1").write_bytes(b"")
    with pytest.raises(ValueError, match="run: pip install tensorboard"):
        read_log(tmp_path)


def test_a_path_that_is_not_there_comes_with_what_is(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match=r"give a run folder or a log; in .* there is run$"):
        read_log(tmp_path / "rnu" / "digits")
    with pytest.raises(ValueError, match=r"there is nothing$"):
        read_log(tmp_path / "run" / "digits")


def test_the_log_of_a_comparison_names_the_runs_below(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "runs" / "a", tmp_path / "runs" / "b"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"several runs: name one of its 2, such as .*runs.a$"):
        read_log(tmp_path)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        read_log(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no log is in there; what can be read is log\.jsonl"):
        read_log(tmp_path)
    (tmp_path / "metrics.csv").write_text("step,speed\n1,3.0\n")
    with pytest.raises(ValueError, match="nothing in it has a name that is known"):
        read_log(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trainer_state.json", b""), ("trainer_state.json", b"[]"), ("trainer_state.json", b"null"),
        ("trainer_state.json", b'{"log_history": [{"step": 1, "lo'), ("trainer_state.json", b"\xff\xfe\x00"),
        ("trainer_state.json", b'{"log_history": [{"step": 1, "loss": 1' + b"0" * 400 + b"}]}"),
        ("trainer_state.json", b"[" * 100_000), ("metrics.csv", b"step,train_loss,\xb5\n1,0.5,2\n"),
        ("metrics.csv", b'step,train_loss\n1,"' + b"9" * 200_000 + b'"\n'), ("log.jsonl", b"[1, 2]\n3\nnull\n"),
        ("log.jsonl", b'{"kind": "row", "step": "a", "train/loss": 1.0}\n'),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_and_ends_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    assert main(["diagnose", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert name in said.out + said.err


def test_what_is_sound_of_a_log_is_read(tmp_path: Path) -> None:
    """Entries that are no rows, steps that are none, a byte order mark."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    rows: list[object] = [{"step": k, "loss": loss} for k, loss in enumerate(LOSSES)]
    state = {"max_steps": "many", "log_history": [*rows, "no", None, {"step": None, "loss": 9.0}]}
    (tmp_path / "a" / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8-sig")
    assert read_log(tmp_path / "a").histories.values("train/loss") == pytest.approx(LOSSES)
    (tmp_path / "b" / "metrics.csv").write_text(
        "\ufeffstep,train_loss\n7,0.5\nnan,0.4\nx,0.3\n", encoding="utf-8"
    )
    assert read_log(tmp_path / "b").histories.steps("train/loss") == [7, 1, 2]


@pytest.mark.parametrize("config", ["- a\n", "batch_size: [\n", "\0", "batch_size: many\n"])
def test_a_damaged_configuration_beside_a_log_only_says_less(tmp_path: Path, config: str) -> None:
    folder = run_folder(tmp_path / "run", LOSSES)
    (folder / "config.yaml").write_text(config)
    assert read_log(folder).histories.values("train/loss") == pytest.approx(LOSSES)


def run_folder(folder: Path, losses: list[float]) -> Path:
    folder.mkdir()
    log = JsonlLogger(folder / "log.jsonl")
    for step, loss in enumerate(losses, start=1):
        log.log({"step": step, "train/loss": loss, "lr/user": 0.5, "edge/ratio": 1.6})
    (folder / "config.yaml").write_text(
        "recipe: landscape_train\nbatch_size: 32\noptimizer: {lr: 0.5, rho: 0.05}\n"
    )
    return folder


def test_the_command_says_what_is_wrong_and_what_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_folder(tmp_path / "run", [1.0 * 1.2**k for k in range(40)])
    assert main(["diagnose", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "Verdict: Rate above edge: The loss rose to" in said
    assert f"type: optland run landscape_train {folder}/config.yaml optimizer.lr=" in said


def test_the_exit_code_is_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = run_folder(tmp_path / "bad", [1.0 * 1.2**k for k in range(40)])
    good = hf(tmp_path, LOSSES)
    assert main(["diagnose", str(bad), "--json", "--fail-on", "rate_above_edge"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["findings"][0]["symptom"] == Symptom.RATE_ABOVE_EDGE
    assert main(["diagnose", str(bad), "--fail-on", "dead_units"]) == 0
    assert main(["diagnose", str(good / "trainer_state.json"), "--fail-on", "any"]) == 0
    assert main(["diagnose", str(bad), "--fail-on", "no_such_thing"]) == 2
    assert main(["diagnose", str(tmp_path / "nothing")]) == 2
    assert "is no symptom; choose from any, not_finite" in capsys.readouterr().err


def test_several_runs_are_held_against_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends = {"a": [1.0] * 20, "b": [5.0] * 20}
    folders = [str(run_folder(tmp_path / name, losses)) for name, losses in ends.items()]
    assert main(["diagnose", *folders, "--fail-on", "inconsistent_runs"]) == 1
    assert "Over 2 runs" in capsys.readouterr().out


@pytest.mark.slow
def test_a_config_is_looked_at_before_it_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["diagnose", "--preflight", "landscape_train", "digits", "pilot.policies=[]"]
    assert main([*command, "--fail-on", "any"]) == 0
    assert capsys.readouterr().out.startswith("It will train")
    assert main([*command, "optimizer.lr=1e-7", "--fail-on", "rate_below_edge"]) == 1
    assert main(["diagnose", "--preflight", "landscape_train"]) == 2
