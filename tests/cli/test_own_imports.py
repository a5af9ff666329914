"""A model and data of one's own by import path: found from any folder, resumed to the same bits, refused in words."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from command_line import optland

from optland import failpoints
from optland.config.imports import importing_from
from optland.train import DataConfig, ModelConfig, build_model, load_data
from optland.train.runs.checkpoint import load_checkpoint

OWN = """
import torch
from torch import nn


def load(seed):
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(seed)) * torch.tensor([1., 10., 100., 1., 1.])
    x[:, 4] = 3.0
    return x.numpy(), (x[:, 0] > 0).long().numpy()


def net(num_classes, width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(5, width), nn.ReLU(), nn.Linear(width, num_classes))


def wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 2))


def three():
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 3))


def gap(): return torch.randn(30, 2), torch.tensor([0, 2] * 15)


def words(): return torch.randn(4, 2), ["a", "b", "a", "b"]


needed = 3
"""


def folder_with(tmp_path: Path, name: str) -> Path:
    """A project; every test names its module otherwise, since a process imports a name once."""
    (tmp_path / f"{name}.py").write_text(OWN)
    return tmp_path


def test_columns_are_standardised_each_by_the_training_part(tmp_path: Path) -> None:
    with importing_from([folder_with(tmp_path, "own_columns")]):
        data = load_data(DataConfig("own_columns:load", seed=3))
    assert data.image_shape == (1, 1, 5)
    assert [len(y) for y in (data.train_y, data.val_y, data.test_y)] == [140, 20, 40]
    columns = data.train_x.flatten(1)
    torch.testing.assert_close(columns.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(columns.std(0)[:4], torch.ones(4))
    assert not columns[:, 4].any()


def test_a_setting_reaches_the_parameter_of_its_name(tmp_path: Path) -> None:
    with importing_from([folder_with(tmp_path, "own_width")]):
        model = build_model(ModelConfig("own_width:net", width=6), (1, 1, 5), 2)
    assert [tuple(p.shape) for p in model.parameters()] == [(6, 5), (6,), (2, 6), (2,)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["model.name=own_bad:nowhere"], "own_bad has no nowhere"),
        (["model.name=own_missing:net"], "own_missing cannot be imported"),
        (["model.name=own_bad:needed"], "name a function or class"),
        (["model.name=own_bad:net", "model.depth=3"], "has no parameter depth"),
        (["model.name=own_bad:net", "model.skips=false"], "has no parameter skips"),
        (["model.name=own_bad:wide"], "cannot take samples of 1 x 1 x 5"),
        (["model.name=own_bad:three"], "the data have 2 classes"),
        (["data.name=own_bad:gap"], "without a gap"),
        (["data.name=own_bad:words"], "numpy.unique"),
        (["data.name=own_bad:net"], "'num_classes' that gets no value"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_folder_is_made(
    tmp_path: Path, settings: list[str], said: str
) -> None:
    project = folder_with(tmp_path, "own_bad")
    given = ["data.name=own_bad:load", "model.name=own_bad:net", "model.width=null", "out=run", *settings]
    done = optland("run", "landscape_train", "digits", *given, cwd=project)
    assert done.returncode == 2, done.stderr
    assert said in " ".join(done.stderr.split())
    assert not (project / "run").exists()


@pytest.mark.slow
def test_run_resume_probe_and_report_find_the_module_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "else").mkdir()
    project, elsewhere = folder_with(tmp_path / "project", "own_anywhere"), tmp_path / "else"
    (project / "own.yaml").write_text(
        "recipe: landscape_train\nepochs: 3\ncheckpoint_every: 1\ndata: {name: 'own_anywhere:load'}\n"
        "model: {name: 'own_anywhere:net'}\nlog: {wandb: disabled, console: false}\n"
    )

    def run(out: str, *more: str, fail_at: str | None = None) -> int:
        words = ["run", "landscape_train", str(project / "own.yaml"), f"out={tmp_path / out}", *more]
        return optland(*words, cwd=elsewhere, before=functools.partial(failpoints.arm, fail_at)).returncode

    assert run("whole") == 0
    assert run("broken", fail_at="checkpoint.after:2") < 0
    assert run("broken", "--resume") == 0
    whole, broken = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("whole", "broken"))
    for name, value in whole["parts"]["model"].items():
        assert torch.equal(value, broken["parts"]["model"][name])
    for words in (["probe", "--max-matvecs", "4", "--no-density"], ["report", "--points", "3"]):
        done = optland(words[0], str(tmp_path / "whole"), *words[1:], "--samples", "32", cwd=elsewhere)
        assert done.returncode == 0, done.stderr
