"""Checkpoints that are whole or not there."""

from __future__ import annotations

import hashlib
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from optland.train.runs import checkpoint
from optland.train.runs.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint


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
    with pytest.warns(RuntimeWarning, match=r"checkpoint c\.pt: .*; using c\.pt\.previous"):
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


class Killed(Exception):
    pass


POINTS = ["before_write", "mid_write", "before_rename", "between_renames", "after"]


@pytest.mark.parametrize("linked", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("point", POINTS)
def test_wherever_a_save_is_cut_off_the_last_whole_state_reads_and_the_next_save_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, linked: bool
) -> None:
    """Every save but the first is cut off at the same point, again and again."""
    path = tmp_path / "c.pt"

    def cut_off(name: str) -> None:
        if name == f"checkpoint.{point}":
            raise Killed

    def no_links(*_: object) -> None:
        raise PermissionError("this file system has no links")

    if not linked:
        monkeypatch.setattr(os, "link", no_links)
    save_checkpoint(path, {"step": 0})
    in_place = POINTS.index(point) >= POINTS.index("between_renames")
    for step in (1, 2, 3):
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint, "reach", cut_off)
            with pytest.raises(Killed):
                save_checkpoint(path, {"step": step})
        assert load_checkpoint(path) == {"step": step if in_place else 0}
    save_checkpoint(path, {"step": 4})
    assert load_checkpoint(path) == {"step": 4}
    assert load_checkpoint(tmp_path / "c.pt.previous") == {"step": 3 if in_place else 0}


def test_the_newest_and_the_one_before_it_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    for step in range(6):
        save_checkpoint(path, {"step": step})
    names = ["c.pt", "c.pt.previous"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert [load_checkpoint(tmp_path / name)["step"] for name in names] == [5, 4]


def test_a_damaged_newest_one_never_pushes_the_last_good_one_out(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    keeper = Checkpoint(tmp_path / "c.pt", every=1, model=model)
    keeper.save(1)
    keeper.save(2)
    (tmp_path / "c.pt").write_bytes(b"damaged")
    with pytest.warns(RuntimeWarning, match=r"using c\.pt\.previous"):
        assert keeper.load() == 1
    assert (tmp_path / "c.pt.unusable").read_bytes() == b"damaged"
    assert keeper.load() == 1, "before the next save"
    keeper.save(2)
    assert load_checkpoint(tmp_path / "c.pt.previous")["step"] == 1


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
    with pytest.raises(ValueError, match=r"interval 0\.0 s"):
        Checkpoint(tmp_path / "c.pt", every_seconds=0.0)
    with pytest.raises(ValueError, match="interval is missing; give every"):
        Checkpoint(tmp_path / "c.pt")


def test_random_state_comes_back(tmp_path: Path) -> None:
    keeper = Checkpoint(tmp_path / "c.pt", every=1)
    keeper.save(1)
    drawn = torch.rand(3)
    keeper.load()
    assert torch.equal(torch.rand(3), drawn)


def net(width: int = 3, *, bias: bool = True, deeper: bool = False) -> nn.Module:
    layers = [nn.Linear(2, width, bias=bias), nn.BatchNorm1d(width), *[nn.Linear(width, 1)] * deeper]
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (net(4), r"'0\.weight' has shape \(3, 2\) in it and \(4, 2\) in this run"),
        (net(deeper=True), r"'2\.weight' of this run's model is missing in it"),
        (net(bias=False), r"its '0\.bias' is unknown to this run's model"),
    ],
    ids=["wider", "deeper", "without bias"],
)
def test_weights_of_another_model_are_refused_before_anything_is_changed(
    tmp_path: Path, other: nn.Module, says: str
) -> None:
    Checkpoint(tmp_path / "c.pt", every=1, counter=torch.optim.SGD(net().parameters()), model=net()).save(5)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    optimizer = torch.optim.SGD(other.parameters(), lr=0.7)
    generator = torch.get_rng_state()
    keeper = Checkpoint(tmp_path / "c.pt", every=1, counter=optimizer, model=other)
    with pytest.raises(
        CheckpointError, match=rf"another model: {says}; resume with the model config.* new run"
    ):
        keeper.load()
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
    assert optimizer.param_groups[0]["lr"] == 0.7
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_good_file_that_is_no_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {"weights": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"not the checkpoint of a run: step, rng or parts are missing"):
        Checkpoint(tmp_path / "c.pt", every=1).load()
    torch.save([1, 2], tmp_path / "list.pt")
    payload = (tmp_path / "list.pt").read_bytes()
    sum_ = hashlib.sha256(payload).hexdigest().encode()
    (tmp_path / "d.pt").write_bytes(b"optland-checkpoint-1 " + sum_ + b"\n" + payload)
    with pytest.raises(CheckpointError, match=r"not what save_checkpoint writes"):
        load_checkpoint(tmp_path / "d.pt")


def test_saves_come_by_step_by_time_or_by_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def saved(**interval: Any) -> list[int]:
        keeper = Checkpoint(tmp_path / "c.pt", **interval)
        steps = []
        for step in range(1, 13):
            clock[0] += 1.0
            keeper.after_step(step)
            if (tmp_path / "c.pt").exists():
                steps.append(load_checkpoint(tmp_path / "c.pt")["step"])
                (tmp_path / "c.pt").unlink()
        return steps

    assert saved(every=5) == [5, 10]
    assert saved(every_seconds=4.0) == [4, 8, 12]
    assert saved(every=5, every_seconds=3.0) == [3, 5, 8, 10]


def test_a_run_that_died_before_its_first_save_begins_anew_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    assert Checkpoint(path, every=1).begin(resume=True) == 0
    assert load_checkpoint(path)["step"] == 0
    Checkpoint(path, every=1).save(7)
    assert Checkpoint(path, every=1).begin(resume=True) == 7
    for file in tmp_path.iterdir():
        file.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"no usable checkpoint in .*: c\.pt: .*; c\.pt\.previous: "):
        Checkpoint(path, every=1).begin(resume=True)


def test_every_kind_of_part_comes_back(tmp_path: Path) -> None:
    """Model, optimizer, scheduler, gradient scaler, as torch itself keeps them."""

    def parts() -> dict[str, Any]:
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
        return {"scheduler": scheduler, "optimizer": optimizer, "model": model, "scaler": scaler}

    def train(parts: dict[str, Any], steps: int) -> None:
        for _ in range(steps):
            parts["optimizer"].zero_grad()
            parts["scaler"].scale(parts["model"](torch.randn(5, 2)).square().mean()).backward()
            parts["scaler"].step(parts["optimizer"])
            parts["scaler"].update()
            parts["scheduler"].step()

    first, second = parts(), parts()
    train(first, 3)
    Checkpoint(tmp_path / "c.pt", every=1, **first).save(3)
    train(first, 4)
    assert Checkpoint(tmp_path / "c.pt", every=1, **second).load() == 3
    train(second, 4)
    for name, value in first["model"].state_dict().items():
        assert torch.equal(value, second["model"].state_dict()[name]), name
    assert first["scaler"].state_dict() == second["scaler"].state_dict()
    assert first["scaler"].get_scale() == 8.0 * 2**7
    assert first["scheduler"].get_last_lr() == second["scheduler"].get_last_lr()
