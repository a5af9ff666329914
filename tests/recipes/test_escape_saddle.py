"""Optimizers at a saddle, as a user runs them: who leaves, what they say, files, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import optland

from optland.log import read_jsonl


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("whole")
    done = optland("run", "escape_saddle", "smoke", "out=run", "log.wandb=disabled", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


def test_from_the_exact_saddle_gradients_stay_and_curvature_leaves_to_the_minimum(
    whole: tuple[Path, str],
) -> None:
    table = {row["optimizer"]: row for row in json.loads((whole[0] / "escapes.json").read_text())}
    for name in ("sgd", "momentum", "adam"):
        assert table[name]["loss"] == 0.0  # the gradient is exactly zero there
        assert table[name]["verdict"] == "says nothing"
    for name in ("negative_curvature", "saddle_free_newton", "cubic_newton", "trust_region_newton"):
        assert table[name]["loss"] == pytest.approx(-0.25, abs=1e-6)
        assert table[name]["curvature"] == pytest.approx(-1.0, rel=0.01)
        assert table[name]["verdict"] == "minimum up to tau"
        assert table[name]["moves"] == 1
    for name in ("perturbed_gradient", "noisy_gradient"):  # they know no curvature, and claim nothing
        assert table[name]["loss"] < 0.0
        assert table[name]["verdict"] == "unknown"


def test_every_move_is_an_event_with_its_reason_and_looks_are_only_counted(whole: tuple[Path, str]) -> None:
    folder, printed = whole
    events = read_jsonl(folder / "log.jsonl", kind="event")
    moves = [e for e in events if e["policy"] == "negative_curvature"]
    assert [e["actuator"] for e in moves] == ["escape"]
    assert moves[0]["taken"]
    assert moves[0]["new"] < moves[0]["old"]
    assert moves[0]["reason"]
    table = {row["optimizer"]: row for row in json.loads((folder / "escapes.json").read_text())}
    assert table["trust_region_newton"]["looks"] > 3
    assert "probe" not in printed
    assert len(printed.splitlines()) < 60
    assert "6 of 9 ended below the saddle." in printed
    assert (folder / "escapes.png").stat().st_size > 5000


@pytest.mark.slow
def test_at_the_monkey_saddle_none_calls_it_a_minimum(tmp_path: Path) -> None:
    done = optland("run", "escape_saddle", "monkey", "out=run", "log.wandb=disabled", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = {row["optimizer"]: row for row in json.loads((tmp_path / "run" / "escapes.json").read_text())}
    for name, row in table.items():
        assert row["verdict"] != "minimum up to tau" or row["loss"] < -100, name
    assert table["negative_curvature"]["loss"] < -100


@pytest.mark.slow
def test_the_autoencoder_falls(tmp_path: Path) -> None:
    done = optland(
        "run", "escape_saddle", "autoencoder", "out=run", "log.wandb=disabled", "calls=60", "samples=40",
        "widths=[8,4]", "optimizers=[adam,saddle_free_newton]", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "run" / "escapes.json").read_text())
    assert [row["optimizer"] for row in rows] == ["adam", "saddle_free_newton"]
    assert all(row["loss"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("problem=sadle", "Did you mean 'saddle'"),
        ("optimizers=[sgdd]", "Did you mean 'sgd'"),
        ("calls=0", "calls: 0"),
        ("optimizers=[]", "number of optimizers"),
    ],
)
def test_bad_input_is_told_with_the_fix(tmp_path: Path, change: str, says: str) -> None:
    done = optland("validate", "escape_saddle", "smoke", change, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
