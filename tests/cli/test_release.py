"""``optland release`` on real runs: its numbers from scratch, and weights that a net of another program loads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from optland import cli
from optland.landscape import DamageSpec
from optland.train import DataConfig, ModelConfig, build_model, load_data
from optland.train.runs.checkpoint import load_checkpoint
from optland.train.runs.weights import about_weights

RUN = [
    "log.wandb=disabled",
    "log.console=false",
    "model.name=mlp",
    "model.width=8",
    "model.depth=2",
    "epochs=4",
]
CHEAP = ["--samples", "100"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release") / "run"
    assert cli.main(["run", "landscape_train", "smoke", f"out={folder}", *RUN, "pilot.mode=off"]) == 0
    return folder


def released(run: Path, out: Path, damage: str) -> dict[str, Any]:
    assert cli.main(["release", str(run), "--for", damage, "--out", str(out), *CHEAP]) == 0
    found: dict[str, Any] = json.loads((out / f"release-{damage.replace('=', '-')}.json").read_text())
    return found


def loss_of(state: dict[str, torch.Tensor]) -> float:
    """Cross-entropy of the test samples that the command draws, by a net built here."""
    data = load_data(DataConfig("digits"))
    net = build_model(ModelConfig("mlp", width=8, depth=2), data.image_shape, 10)
    net.load_state_dict(state)
    x, y = data.sample("test", 100, 0)
    with torch.no_grad():
        return float(F.cross_entropy(net(x), y))


def test_rounded_weights_have_their_bits_and_the_rise_that_was_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {f.name: hashlib.sha256(f.read_bytes()).digest() for f in run.iterdir()}
    found = released(run, tmp_path, "int3")
    assert {f.name: hashlib.sha256(f.read_bytes()).digest() for f in run.iterdir()} == before
    weights = load_file(tmp_path / "release-int3.safetensors")
    own = load_checkpoint(run / "checkpoint.pt")["parts"]["model"]
    assert found["test_rise"] == pytest.approx(loss_of(weights) - loss_of(own), abs=1e-5)
    assert json.loads(about_weights(tmp_path / "release-int3.safetensors")["bits"]) == found["bits"]
    sizes = {name: weights[name].numel() for name in found["bits"]}
    assert sum(b * sizes[n] for n, b in found["bits"].items()) <= 3 * sum(sizes.values())
    for name, b in found["bits"].items():
        assert all(len(set(row)) <= 2**b - 1 for row in weights[name].flatten(1).tolist())
    assert all(torch.equal(weights[n], own[n]) for n in weights if n not in found["bits"])
    rises = {name: way["measured"][0] for name, way in found["ways"].items()}
    assert len(rises) == 2
    assert found["taken"] == min(rises, key=lambda name: rises[name])
    assert f"taken: {found['taken']}" in capsys.readouterr().out


def test_bits_that_would_take_too_many_products_are_not_dealt_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["release", str(run), "--for", "int3", "--out", str(tmp_path), *CHEAP, "--max-matvecs", "11"]
    assert cli.main(arguments) == 0
    found = json.loads((tmp_path / "release-int3.json").read_text())
    assert list(found["ways"]) == ["3 bits everywhere"]
    assert set(found["bits"].values()) == {3}
    assert "dealing them out takes 12 products; --max-matvecs is 11" in capsys.readouterr().out


def test_pruned_weights_are_zero_and_noise_is_not_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    released(run, tmp_path, "prune=0.8")
    weights = load_file(tmp_path / "release-prune-0.8.safetensors")
    matrices = [w for w in weights.values() if w.ndim == 2]
    gone, size = sum(int((w == 0).sum()) for w in matrices), sum(w.numel() for w in matrices)
    assert gone == round(0.8 * size)
    found = released(run, tmp_path, "noise=0.2")
    assert not list(tmp_path.glob("release-noise*.safetensors"))
    assert found["ways"]["noise=0.2"]["measured"][1] > 0  # four draws have a standard error
    assert "nothing to be written" in capsys.readouterr().out


@pytest.mark.parametrize(
    "damage", ["int1", "int9", "int", "prune=1.0", "prune=x", "noise=-1", "int4.5", "noise=inf", "x"]
)
def test_a_damage_that_cannot_be_is_refused_before_anything_is_read(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["release", str(tmp_path / "nothing"), "--for", damage]) == 2
    assert damage in capsys.readouterr().err
    with pytest.raises(ValueError, match="use int2 to int8"):
        DamageSpec.parse(damage)


def test_a_run_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["release", str(tmp_path / "nothing"), "--for", "int4"]) == 2
    assert "there is no such run folder" in capsys.readouterr().err
