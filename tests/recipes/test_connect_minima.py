"""Two nets and what lies between them, as a user runs it: files, numbers that agree, resume, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import optland

from optland.landscape import Connection, PathLoss


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    done = optland("run", "connect_minima", "smoke", "out=run", "log.wandb=disabled", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "linear path: ends" in done.stdout
    assert "after alignment" in done.stdout
    return folder / "run"


def test_results_pictures_and_summary_agree(whole: Path) -> None:
    found, aligned = Connection.load(whole / "connection"), PathLoss.load(whole / "aligned")
    summary = json.loads((whole / "summary.json").read_text())
    assert found.curve is not None
    assert summary["landscape/barrier"] == pytest.approx(found.linear.above)
    assert summary["landscape/barrier_curve"] == pytest.approx(found.curve.above)
    assert summary["landscape/barrier_aligned"] == pytest.approx(aligned.above)
    assert aligned.above < found.linear.above
    assert aligned.ends == pytest.approx(found.linear.ends, rel=1e-4)  # renumbering keeps the function
    for name in ("connection.png", "aligned.png"):
        assert (whole / name).stat().st_size > 5000


def test_a_run_that_was_stopped_keeps_the_net_that_was_done(whole: Path, tmp_path: Path) -> None:
    """With one net in the checkpoint only the other is trained, and the outcome is the same."""
    again = tmp_path / "run"
    shutil.copytree(whole, again)
    (again / "connection.npz").unlink()
    (again / "summary.json").unlink()
    nets = torch.load(again / "checkpoint.pt", weights_only=True)
    torch.save({0: nets[0]}, again / "checkpoint.pt")
    resumed = optland(
        "run", "connect_minima", "smoke", "out=run", "log.wandb=disabled", "--resume", cwd=tmp_path
    )
    assert resumed.returncode == 0, resumed.stderr
    one, two = Connection.load(whole / "connection"), Connection.load(again / "connection")
    assert torch.equal(one.linear.loss, two.linear.loss)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("other_seed=0", "other_seed: 0 is the first"),
        ("curve.num_bends=0", "num_bends 0"),
        ("curve.kind=spline", "spline"),
    ],
)
def test_bad_settings_are_refused(setting: str, words: str, tmp_path: Path) -> None:
    done = optland("run", "connect_minima", "smoke", setting, cwd=tmp_path)
    assert done.returncode != 0
    assert words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_nets_that_shared_their_first_epoch_lie_closer_than_strangers(whole: Path, tmp_path: Path) -> None:
    done = optland(
        "run", "connect_minima", "smoke", "out=run", "log.wandb=disabled", "shared_epochs=1", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    shared, strangers = (
        Connection.load(tmp_path / "run" / "connection"),
        Connection.load(whole / "connection"),
    )
    assert 0 < float(shared.linear.length[-1]) < 0.7 * float(strangers.linear.length[-1])
    assert shared.linear.above < strangers.linear.above
    refused = optland("run", "connect_minima", "smoke", "out=no", "shared_epochs=2", cwd=tmp_path)
    assert refused.returncode == 2
    assert "from 0 to 1" in refused.stderr
