"""Fine-tuning as a user runs it: every way and scope, a start from a file, the file that is given away, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import optland
from safetensors.torch import load_file

from optland.train import DataConfig, ModelConfig, build_model, evaluate, load_data

SETTINGS = ("log.wandb=disabled", "log.console=false", "out=run")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    done = optland("run", "finetune", "smoke", *SETTINGS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_the_file_has_the_accuracies_that_were_told(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    data = load_data(DataConfig("digits"))
    net = build_model(ModelConfig("mlp", width=16), data.image_shape, 10)
    net.load_state_dict(load_file(whole / "finetuned.safetensors"))
    x = data.normalise(data.test_x)
    assert summary["taken: test/old_acc"] == pytest.approx(evaluate(net, x, data.test_y)["acc"])
    turned = torch.rot90(x, 1, (2, 3))
    assert summary["taken: test/new_acc"] == pytest.approx(evaluate(net, turned, data.test_y)["acc"])
    assert summary["end: test/new_loss"] < summary["start: test/new_loss"]


def test_a_run_that_was_stopped_ends_as_the_whole_one(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    done = optland("run", "finetune", "smoke", *SETTINGS, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((folder / "summary.json").read_text()) for folder in (whole, tmp_path / "run"))
    assert one == two


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "scope", "task"),
    [
        ("plain", "last", "turned"),
        ("replay", "lora", "turned"),
        ("l2", "all", "classes"),
        ("sam", "all", "turned"),
    ],
)
def test_every_way_and_scope_from_a_file(
    whole: Path, tmp_path: Path, way: str, scope: str, task: str
) -> None:
    start = whole / "finetuned.safetensors"
    done = optland(
        "run",
        "finetune",
        "smoke",
        *SETTINGS,
        f"way={way}",
        f"scope={scope}",
        f"task={task}",
        f"start={start}",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    before = load_file(start)
    after = load_file(tmp_path / "run" / "finetuned.safetensors")
    moved = {name for name in after if name in before and not torch.equal(before[name], after[name])}
    assert moved == {
        "last": {n for n in before if n.startswith(max(before).split(".")[0])},
        "lora": set(),
    }.get(scope, set(before))


@pytest.mark.parametrize(
    ("setting", "words"),
    [("way=ewc", "ewc"), ("start=nothing", "there is no such run"), ("rank=0", "rank: 0")],
)
def test_bad_settings_are_refused(setting: str, words: str, tmp_path: Path) -> None:
    done = optland("run", "finetune", "smoke", *SETTINGS, setting, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
