"""wandb's environment variables before training: an empty one is as unset, a wrong one is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiers import slow

from optland.config import UserError
from optland.log import WandbLogger
from optland.log.wandb_environment import check_environment, labels, without_empty
from optland.train import LogConfig, RunFolder


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in {name for name in os.environ if name.startswith("WANDB_")}:
        monkeypatch.delenv(variable)


WRONG = [
    ("MODE", "ofline", "is no mode; choose from online, offline, disabled. Did you mean 'offline'?"),
    ("PROJECT", "a/b", "holds /, which no name may"),
    ("RUN_ID", "x" * 200, "is longer than 128 characters"),
    ("NAME", "x" * 129, "is longer than 128 characters"),
    ("RUN_GROUP", "x" * 129, "is longer than 128 characters"),
    ("TAGS", f"good,{'x' * 65}", "is longer than 64 characters"),
]


@pytest.mark.parametrize(("name", "value", "says"), WRONG, ids=[name for name, _, _ in WRONG])
def test_a_wrong_one_is_refused_before_there_is_a_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(f"WANDB_{name}", value)
    for make in (
        lambda: RunFolder(tmp_path / "run", LogConfig(), LogConfig(), recipe="tiny", length=1, resume=False),
        lambda: WandbLogger(tmp_path),
    ):
        with pytest.raises(UserError) as refused:
            make()
        assert str(refused.value).startswith(f"WANDB_{name}: ")
        assert says in str(refused.value)
        assert f"unset WANDB_{name}" in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_where_wandb_is_not_asked_for_its_variables_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    log = LogConfig(wandb="disabled", console=False)
    with RunFolder(tmp_path / "run", log, log, recipe="tiny", length=1, resume=False) as run:
        assert run.wandb is None
    WandbLogger(tmp_path, mode="disabled")


def test_wandb_itself_is_asked_about_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_SOMETHING_NEW", "unknown to wandb")
    check_environment()
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "soon")
    with pytest.raises(UserError, match=r"WANDB_INIT_TIMEOUT: wandb refuses 'soon': .*number"):
        check_environment()


@pytest.mark.parametrize("empty", ["", *slow(" ")])
def test_an_empty_one_is_as_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: str) -> None:
    names = [
        "MODE",
        "PROJECT",
        "ENTITY",
        "NAME",
        "TAGS",
        "RUN_GROUP",
        "JOB_TYPE",
        "RUN_ID",
        "DIR",
        "INIT_TIMEOUT",
    ]
    for name in names:
        monkeypatch.setenv(f"WANDB_{name}", empty)
    check_environment()
    logger = WandbLogger(tmp_path, project="mine", tags=["a"], run_id="seven")
    assert logger.state_dict()["run_id"] == "seven"
    logger.log({"step": 1, "train/loss": 0.5})
    logger.finish({})
    assert logger.run_dir is not None
    assert logger.run_dir.parent.parent == tmp_path


def test_tags_are_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_TAGS", " a, ,b,a,")
    assert labels() == ["a", "b"]


def test_other_variables_keep_their_emptiness() -> None:
    given = {"WANDB_MODE": " ", "WANDB_NAME": "x", "CUDA_VISIBLE_DEVICES": ""}
    assert without_empty(given) == {"WANDB_NAME": "x", "CUDA_VISIBLE_DEVICES": ""}
