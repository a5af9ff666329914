"""A copied recipe is a recipe of its own: for run, ls, validate, grids, probe and report, from any folder."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from command_line import optland

from optland import cli
from optland.cli import recipes
from optland.config.scripts import ScriptRecord, recipe_name

SCRIPT = '''
"""Write a run folder."""

import dataclasses

from optland.cli import run_script
from optland.config import RUN_FOLDER
from optland.train import LogConfig, RunFolder


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 0
    out: str = RUN_FOLDER


def main(config: Config, *, resume: bool = False) -> int:
    quiet = LogConfig(wandb="disabled", console=False)
    with RunFolder(config.out, config, quiet, recipe=__file__, length=1, resume=resume) as run:
        run.finish({"seed": config.seed})
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(__file__))
'''

CHEAP = ["--samples", "32", "--max-matvecs", "4", "--k", "1", "--no-density"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, and known recipes elsewhere: one, with two configs."""
    known = tmp_path / "known"
    (known / "recipes").mkdir(parents=True)
    (known / "recipes" / "tiny.py").write_text(SCRIPT.lstrip())
    (known / "configs" / "tiny").mkdir(parents=True)
    (known / "configs" / "tiny" / "one.yaml").write_text("# optland run tiny one\nrecipe: tiny\nseed: 1\n")
    (known / "configs" / "tiny" / "two.yaml").write_text("recipe: tiny\nseed: 2\nout: runs/tiny/two\n")
    monkeypatch.setenv(recipes.ROOT_VARIABLE, str(known))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def made_by(folder: Path) -> str:
    text = (folder / "config.yaml").read_text()
    named = re.match(r"recipe: (\S+)\n", text)
    assert named is not None
    assert json.loads((folder / "recipe.json").read_text())["recipe"] == named.group(1)
    assert (folder / "summary.json").exists()
    return named.group(1)


def test_the_folder_of_a_run_is_named_after_recipe_and_config(project: Path) -> None:
    for config in ("one", "two"):
        assert cli.main(["run", "tiny", config]) == 0
        assert made_by(project / "runs" / "tiny" / config) == "tiny"
    assert cli.main(["run", "tiny", "one", "out=there"]) == 0
    assert made_by(project / "there") == "tiny"


@pytest.mark.parametrize("destination", ["mine", "deep/mine", "mine.py", "deep/mine.py"])
def test_a_copy_by_cp_runs_by_its_name_and_into_its_own_folder(
    project: Path, capsys: pytest.CaptureFixture[str], destination: str
) -> None:
    assert cli.main(["cp", "tiny", destination]) == 0
    said = capsys.readouterr().out.splitlines()
    assert cli.main(said[-1].split()[1:]) == 0
    assert made_by(project / "runs" / "mine" / "one") == "mine"
    by_name = "deep/mine" if destination == "deep/mine" else "mine"
    if destination == "deep/mine.py":  # two levels below
        by_name = "deep"
    for config in ("one", "two"):
        assert cli.main(["run", by_name, config, "seed=3"]) == 0
    assert made_by(project / "runs" / "mine" / "two") == "mine"
    assert made_by(project / "runs" / "mine" / "one-2") == "mine"
    assert not (project / "runs" / "tiny").exists()
    capsys.readouterr()
    assert cli.main(["run", by_name, "two", "seed=3", "--seeds", "2", "--dry-run"]) == 0
    assert "runs/mine/two-grid/base/seed4" in capsys.readouterr().out
    assert cli.main(["validate", by_name, "two"]) == 0
    assert capsys.readouterr().out == "ok\nrecipe: mine\nseed: 2\nout: runs/mine/two\n"
    if not destination.startswith("deep"):
        assert cli.main(["ls"]) == 0
        assert "\nmine: Write a run folder.\n    one" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "configs", "named"),
    [
        ("mine/tiny.py", "mine", "mine"),
        ("mine/tiny.py", "mine/configs", "mine"),
        ("mine/mine.py", "mine", "mine"),
        ("mine.py", ".", "mine"),
        ("recipes/mine.py", "configs/mine", "mine"),
    ],
)
def test_a_copy_by_hand_runs_with_the_configs_that_lie_with_it(
    project: Path, script: str, configs: str, named: str
) -> None:
    known = project.parent / "known"
    for folder in (Path(script).parent, Path(configs)):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(known / "recipes" / "tiny.py", script)
    shutil.copy(known / "configs" / "tiny" / "one.yaml", configs)
    for argument in (named, script):
        assert cli.main(["run", argument, "one"]) == 0
    assert cli.main(["run", script, f"{configs}/one.yaml"]) == 0
    for run in ("one", "one-2", "one-3"):
        assert made_by(project / "runs" / "mine" / run) == "mine"


def test_a_config_of_a_neighbour_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("first", "second"):
        assert cli.main(["cp", "tiny", "one", f"both/{name}.py"]) == 0
        Path("both/one.yaml").rename(f"both/{name}.yaml")
    assert cli.main(["run", "both/first.py", "both/second.yaml"]) == 2
    assert "for 'second', not 'first'" in capsys.readouterr().err
    assert cli.main(["run", "both", "first"]) == 2
    assert (
        "several recipes in both; name one of them: both/first.py, both/second.py" in capsys.readouterr().err
    )


def test_other_scripts_are_no_recipes(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "notes").mkdir()
    (project / "notes" / "plot.py").write_text("print(1)")
    assert cli.main(["ls"]) == 0
    assert "plot" not in capsys.readouterr().out
    assert cli.main(["run", "notes", "one"]) == 2
    assert "no recipe 'notes'" in capsys.readouterr().err


def test_a_script_is_found_again_where_run_or_project_was_moved(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["cp", "tiny", "mine"]) == 0
    assert cli.main(["run", "mine", "one"]) == 0
    run, script = project / "runs" / "mine" / "one", project / "mine" / "tiny.py"
    record = ScriptRecord.read(run)
    assert record is not None
    assert record.find(run) == run / "../../../mine/tiny.py"
    shutil.move(run, project / "deep" / "er" / "run")
    found = record.find(project / "deep" / "er" / "run")
    assert found is not None
    assert found.resolve() == script
    moved = project.parent / "elsewhere"
    shutil.move(project, moved)
    moved.joinpath("runs", "mine").mkdir(parents=True, exist_ok=True)
    shutil.move(moved / "deep" / "er" / "run", moved / "runs" / "mine" / "one")
    monkeypatch.chdir("/")
    found = record.find(moved / "runs" / "mine" / "one")
    assert found is not None
    assert found.resolve() == moved / "mine" / "tiny.py"
    assert record.is_text_of(found)
    found.unlink()
    assert record.find(moved / "runs" / "mine" / "one") is None


def test_a_script_edited_since_is_told_on_resume(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cp", "tiny", "mine"]) == 0
    assert cli.main(["run", "mine", "one"]) == 0
    (project / "runs" / "mine" / "one" / "summary.json").unlink()
    (project / "mine" / "tiny.py").write_text(SCRIPT.lstrip() + "# edited\n")
    assert cli.main(["run", "mine", "one", "--resume"]) == 0
    assert "mine/tiny.py, which has been edited since the run was started" in capsys.readouterr().err


def test_a_script_in_recipes_comes_before_a_shipped_one_of_its_name(project: Path) -> None:
    (project / "recipes").mkdir()
    (project / "recipes" / "landscape_train.py").write_text(SCRIPT.lstrip())
    assert recipes.find_recipe("landscape_train").script == project / "recipes" / "landscape_train.py"
    (project / "recipes" / "landscape_train.py").write_text("print(1)")
    assert recipes.find_recipe("landscape_train").script.parent != project / "recipes"


def test_names() -> None:
    assert recipe_name("recipes/landscape_train.py") == "landscape_train"
    assert recipe_name("anywhere/new.py") == "new"
    assert recipe_name("anywhere/landscape_train.py") == "anywhere"


def trained_by_a_copy(folder: Path) -> Path:
    """The copy trains another model, whose weights do not fit the shipped recipe's; returns its script."""
    assert optland("cp", "landscape_train", "smoke", "mine", cwd=folder).returncode == 0
    script = folder / "mine" / "landscape_train.py"
    text = script.read_text()
    built = "build_model(config.model, data.image_shape, data.num_classes).to(device), data"
    assert built in text
    script.write_text(text.replace(built, f"nn.Sequential({built.replace(').to', ')).to')}"))
    settings = ["epochs=1", "log.wandb=disabled", "log.console=false", "data.name=teacher", "model.name=mlp"]
    settings += ["data.num_samples=500"]
    done = optland("run", "mine", "smoke", *settings, cwd=folder)
    assert done.returncode == 0, done.stderr
    return script


def test_a_probe_opens_the_copy_and_not_the_recipe_it_was_copied_from(tmp_path: Path) -> None:
    script, run = trained_by_a_copy(tmp_path), tmp_path / "runs" / "mine" / "smoke"
    script.write_text(script.read_text() + "# edited\n")
    (tmp_path / "below").mkdir()
    done = optland("probe", str(run), *CHEAP, cwd=tmp_path / "below")
    assert done.returncode == 0, done.stderr
    assert "has been edited since it made" in done.stderr
    assert json.loads((run / "probe.json").read_text())["recipe"] == "mine"
    script.unlink()
    for command in ("probe", "report"):
        done = optland(command, str(run), cwd=tmp_path)
        assert done.returncode == 2
        assert "made by mine/landscape_train.py, which is not there; name its script with" in done.stderr


@pytest.mark.slow
def test_a_report_opens_the_copy(tmp_path: Path) -> None:
    trained_by_a_copy(tmp_path)
    done = optland("report", "runs/mine/smoke", "--samples", "32", "--points", "3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
