"""The recipe and the command that make a report, as a user runs them: files, numbers that agree, bad input."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import optland

from optland.report import Findings
from optland.train.runs.checkpoint import load_checkpoint, save_checkpoint

SHORT = ["log.wandb=disabled", "samples=48", "survey.max_matvecs=8"]
TINY = ["--samples", "48", "--points", "5", "--max-matvecs", "8", "--no-density", "--curve-steps", "5"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    done = optland("run", "landscape_report", "smoke", "out=run", *SHORT, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
    return folder / "run"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one net and one of another, with the checkpoints of some steps."""
    folder = tmp_path_factory.mktemp("runs")
    for name, width in (("one", 16), ("two", 16), ("wide", 24)):
        done = optland(
            "run", "landscape_train", "smoke", f"out={name}", "log.wandb=disabled", "model.name=mlp",
            f"model.width={width}", "epochs=1", f"seed={ord(name[0])}", cwd=folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder


def test_the_recipe_writes_the_page_its_pictures_and_a_summary_that_agree(whole: Path) -> None:
    found = Findings.load(whole / "findings")
    assert [s.name for s in found.surveys] == ["as given", "seed 1"]
    assert list(found.connections) == ["as given to seed 1"]
    assert found.trajectory is not None
    assert found.trajectory.names[-1] == "end"
    assert len(found.trajectory.names) >= 3
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["curv/lambda_max"] == pytest.approx(found.surveys[0].portrait.spectrum.top.value)
    for name in ("report.html", "sharpness.png", "1_plane.png", "trajectory.png", "connection_1.png"):
        assert (whole / name).stat().st_size > 5000


def test_the_end_of_the_path_has_the_loss_of_the_survey(whole: Path) -> None:
    found = Findings.load(whole / "findings")
    assert found.trajectory is not None
    assert found.trajectory.surface.centre["loss"] == pytest.approx(found.surveys[0].minimum.loss, rel=1e-5)


@pytest.mark.slow
def test_a_run_that_was_stopped_trains_only_what_is_missing(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    kept = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    torch.save({"as given": kept["as given"]}, tmp_path / "run" / "checkpoint.pt")
    done = optland("run", "landscape_report", "smoke", "out=run", *SHORT, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, two = Findings.load(whole / "findings"), Findings.load(tmp_path / "run" / "findings")
    assert str(one.comparison) == str(two.comparison)


@pytest.mark.slow
def test_a_report_on_runs_of_two_architectures_says_where_it_draws_no_path(runs: Path) -> None:
    done = optland("report", "one", "two", "wide", "--out", "out", *TINY, cwd=runs)
    assert done.returncode == 0, done.stderr
    found = Findings.load(runs / "out" / "findings")
    assert [s.name for s in found.surveys] == ["one", "two", "wide"]
    assert list(found.connections) == ["one to two"]
    assert any("no paths to wide" in note for note in found.notes)
    assert "no paths to wide" in (runs / "out" / "report.html").read_text(encoding="utf-8")
    again = optland("report", "one", "two", "wide", "--out", "out", *TINY, cwd=runs)
    assert again.returncode == 0
    assert str(Findings.load(runs / "out" / "findings").comparison) == str(found.comparison)


@pytest.mark.slow
def test_a_path_is_drawn_through_checkpoints_in_their_order(runs: Path) -> None:
    early, saved = runs / "one" / "early.pt", load_checkpoint(runs / "one" / "checkpoint.pt")
    generator = torch.Generator().manual_seed(0)
    names = []
    for i, share in enumerate((0.5, 0.8)):
        moved = {
            k: share * v + 0.01 * torch.randn(v.shape, generator=generator)
            for k, v in saved["parts"]["model"].items()
        }
        names.append(early.with_name(f"early{i}.pt"))
        save_checkpoint(names[-1], {**saved, "parts": {**saved["parts"], "model": moved}})
    paths = [str(p.relative_to(runs)) for p in (*names, runs / "one" / "checkpoint.pt")]
    done = optland("report", *paths, "--trajectory", "--out", "path", *TINY, cwd=runs)
    assert done.returncode == 0, done.stderr
    found = Findings.load(runs / "path" / "findings")
    assert len(found.surveys) == 1
    assert found.trajectory is not None
    assert [n.rpartition("/")[2] for n in found.trajectory.names] == [
        "early0.pt",
        "early1.pt",
        "checkpoint.pt",
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "no such run folder"),
        (["one", "--points", "4"], "points: 4"),
        (["one", "--samples", "1"], "--samples: 1"),
        (["one", "--distance", "-1"], "distance: -1"),
        (["one", "two", "--trajectory"], "at least 3 checkpoints"),
        (["one", "--poinst", "5"], "--points"),
    ],
)
def test_bad_input_is_told_with_the_fix(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = optland("report", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
