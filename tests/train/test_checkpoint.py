"""Checkpoints that are whole or not there."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from optland.train import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint


def test_round_trip_keeps_bits_and_types(tmp_path: Path) -> None:
    state = {
        "a": torch.randn(3, dtype=torch.float64),
        "b": {"c": [1, 2.5, "x", None, True]},
        "nan": float("nan"),
    }
    save_checkpoint(tmp_path / "c.pt", state)
    read = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(read["a"], state["a"])
    assert read["b"] == state["b"]
    assert read["nan"] != read["nan"]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "header", "foreign"])
def test_a_damaged_file_is_named_and_the_previous_one_used(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"step": 1})
    save_checkpoint(path, {"step": 2})
    raw = bytearray(path.read_bytes())
    if damage == "flip":
        raw[len(raw) // 2] ^= 1
    elif damage == "cut":
        raw = raw[: len(raw) // 2]
    elif damage == "empty":
        raw = bytearray()
    elif damage == "header":
        raw[3] ^= 1
    else:
        raw = bytearray(pickle.dumps({"step": 3}))
    path.write_bytes(raw)
    with pytest.warns(UserWarning, match=r"checkpoint c\.pt: .*; using c\.pt\.previous"):
        assert load_checkpoint(path) == {"step": 1}


def test_nothing_readable_is_an_error_that_names_both(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"c\.pt: there is no such file; c\.pt\.previous: there is no such file"
    ):
        load_checkpoint(tmp_path / "c.pt")


class Hostile:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


def test_a_hostile_pickle_with_a_right_checksum_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"step": Hostile()}, "evil.pt")
    payload = Path("evil.pt").read_bytes()
    sum_ = hashlib.sha256(payload).hexdigest().encode()
    Path("c.pt").write_bytes(b"optland-checkpoint-1 " + sum_ + b"\n" + payload)
    with pytest.raises(CheckpointError, match="holds more than tensors and plain values"):
        load_checkpoint(Path("c.pt"))
    assert not Path("executed").exists()


def test_killed_between_the_two_moves_the_previous_file_serves(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"step": 1})
    path.rename(tmp_path / "c.pt.previous")
    assert load_checkpoint(path) == {"step": 1}


def test_parts_come_back_and_foreign_sets_are_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    keeper = Checkpoint(tmp_path / "c.pt", every=3, model=model, scheduler=None)
    for step in range(1, 6):
        keeper.after_step(step)
    weight = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.zero_()
    assert keeper.load() == 3
    assert torch.equal(model.weight, weight)
    other = Checkpoint(tmp_path / "c.pt", every=3, net=model)
    with pytest.raises(CheckpointError, match=r"holds \['model'\], this run has \['net'\]"):
        other.load()
    with pytest.raises(ValueError, match="interval 0"):
        Checkpoint(tmp_path / "c.pt", every=0)


def test_random_state_comes_back(tmp_path: Path) -> None:
    keeper = Checkpoint(tmp_path / "c.pt", every=1)
    keeper.save(1)
    drawn = torch.rand(3)
    keeper.load()
    assert torch.equal(torch.rand(3), drawn)
