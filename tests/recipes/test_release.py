"""A run that is ended three ways, as a user runs it: the file that is given away, equal cost, resume, bad input."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from command_line import optland
from safetensors.torch import load_file
from torch.nn import functional as F

from optland.train import DataConfig, ModelConfig, build_model, load_data
from optland.train.runs.weights import about_weights

SETTINGS = ("out=run", "log.wandb=disabled", "epochs=3", "decay=0.34", "optimizer.momentum=0.8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    done = optland("run", "release", "smoke", *SETTINGS, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "is taken" in done.stdout
    return folder / "run"


def test_the_file_is_the_taken_net_after_the_damage(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    weights = load_file(whole / "released.safetensors")
    assert about_weights(whole / "released.safetensors")["end"] == summary["release/taken"]
    for w in (w for w in weights.values() if w.ndim == 2):
        assert all(len(set(row)) <= 7 for row in w.tolist())
    data = load_data(DataConfig("digits"))
    net = build_model(ModelConfig("mlp", width=16), data.image_shape, 10)
    net.load_state_dict(weights)
    with torch.no_grad():
        loss = float(F.cross_entropy(net(data.normalise(data.test_x)), data.test_y))
    assert summary[f"release/{summary['release/taken']}: test loss after"] == pytest.approx(loss, rel=1e-4)
    gain = summary["release/one long run: test loss after"] - loss
    assert summary["release/gain"] == pytest.approx(gain, abs=1e-5)
    assert summary["release/error"] > 0


def test_the_long_run_costs_what_the_three_ends_cost(whole: Path) -> None:
    nets = torch.load(whole / "checkpoint.pt", weights_only=True)
    stem, zero, sam = nets["stem"]["step"], nets["to zero"]["step"], nets["to zero with SAM"]["step"]
    assert sam == zero == nets["to a tenth"]["step"]
    together = stem + 2 * (zero - stem) + 2 * (sam - stem)  # SAM's steps are two passes
    assert nets["one long run"]["step"] == pytest.approx(together, abs=3)


def test_a_run_that_was_stopped_ends_as_the_whole_one(whole: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(whole, again)
    for name in ("summary.json", "released.safetensors"):
        (again / name).unlink()
    nets = torch.load(again / "checkpoint.pt", weights_only=True)
    torch.save({name: nets[name] for name in ("stem", "to zero")}, again / "checkpoint.pt")
    done = optland("run", "release", "smoke", *SETTINGS, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((folder / "summary.json").read_text()) for folder in (whole, again))
    assert {k: v for k, v in one.items() if k.startswith("release/")} == {
        k: v for k, v in two.items() if k.startswith("release/")
    }
    assert all(v is None or not isinstance(v, float) or math.isfinite(v) for v in one.values())


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("damage=int1", "int2 to int8"),
        ("decay=1.0", "decay: 1.0"),
        ("rho=0", "rho: 0"),
        ("optimizer.name=sam", "takes two passes"),
        ("schedule=cosine", "use none and off"),
    ],
)
def test_bad_settings_are_refused(setting: str, words: str, tmp_path: Path) -> None:
    done = optland("run", "release", "smoke", setting, "--dry-run", cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
