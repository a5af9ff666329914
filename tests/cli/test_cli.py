"""The command line on a tiny recipe: the same through ``optland run`` and ``python recipe.py``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from optland import __version__, cli
from optland.cli import commands, recipes

RECIPE = '''
"""Count to a number.

More about counting.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Literal

from optland.cli import run_script
from optland.config import UserError


class DataMissing(UserError):
    pass


@dataclasses.dataclass(frozen=True)
class Part:
    size: int = 1


@dataclasses.dataclass(frozen=True)
class Config:
    upto: int
    end: Literal["well", "missing", "defect", "wait", "code"] = "well"
    part: Part = dataclasses.field(default_factory=Part)

    def __post_init__(self) -> None:
        if self.upto < 1:
            raise ValueError(f"upto must be at least 1, got {self.upto}")


def main(config: Config, *, resume: bool = False) -> int:
    print("counted", config.upto, config.part.size, "resumed" if resume else "fresh", flush=True)
    if config.end == "missing":
        raise DataMissing("the data set is not in data/. Fetch it first")
    if config.end == "defect":
        raise RuntimeError("a defect")
    if config.end == "wait":
        time.sleep(60)
    return 7 if config.end == "code" else 0


if __name__ == "__main__":
    raise SystemExit(run_script(__file__))
'''


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one recipe, its two configs, and one script that breaks the contract."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "configs" / "counting").mkdir(parents=True)
    (tmp_path / "recipes" / "counting.py").write_text(textwrap.dedent(RECIPE).lstrip())
    (tmp_path / "recipes" / "silent.py").write_text('"""Runs nothing."""\n')
    ten = "# optland run counting ten\n# Count to ten.\nrecipe: counting\nupto: 10\n"
    (tmp_path / "configs" / "counting" / "ten.yaml").write_text(ten)
    (tmp_path / "configs" / "counting" / "other.yaml").write_text("recipe: silent\nupto: 10\n")
    monkeypatch.setenv(recipes.ROOT_VARIABLE, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_ls_lists_recipes_and_configs_with_what_they_say(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("counting: Count to a number.")
    assert lines[start + 1].split() == ["other"]
    assert lines[start + 2].split() == ["ten", "Count", "to", "ten."]
    assert any(line.startswith("landscape_train: ") for line in lines)  # the shipped recipes are still there


def test_ls_says_where_it_looked_when_there_is_nothing(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (commands, recipes):
        monkeypatch.setattr(module, "roots", lambda: [root / "empty"])
    assert cli.main(["ls"]) == 2
    assert str(root / "empty" / "recipes") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "counting", "ten"], "counted 10 1 fresh"),
        (["run", "counting", "ten.yaml"], "counted 10 1 fresh"),
        (["run", "counting", "configs/counting/ten.yaml", "upto=3"], "counted 3 1 fresh"),
        (["run", "counting", "ten", "upto=3", "--resume", "part.size=2"], "counted 3 2 resumed"),
        (["run", "recipes/counting.py", "ten"], "counted 10 1 fresh"),
    ],
)
def test_run_runs(root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    before = list(sys.argv)
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == said + "\n"
    assert sys.argv == before


def test_the_exit_code_is_the_recipe_s(root: Path) -> None:
    assert cli.main(["run", "counting", "ten", "end=code"]) == 7


def test_a_defect_keeps_its_traceback(root: Path) -> None:
    with pytest.raises(RuntimeError, match="a defect"):
        cli.main(["run", "counting", "ten", "end=defect"])


def test_validate_prints_the_full_config_and_runs_nothing(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["validate", "counting", "ten", "part.size=4"]) == 0
    said, _, text = capsys.readouterr().out.partition("\n")
    assert said == "ok"
    assert text == "recipe: counting\nupto: 10\nend: well\npart:\n  size: 4\n"
    (root / "again.yaml").write_text(text)
    assert cli.main(["validate", "counting", "again.yaml"]) == 0


def test_a_dry_run_is_a_validation(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "counting", "ten", "part.size=4", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert cli.main(["validate", "counting", "ten", "part.size=4"]) == 0
    assert said == capsys.readouterr().out
    assert "counted" not in said


def test_a_copy_runs_from_anywhere(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["cp", "counting", "ten", "mine"]) == 0
    assert sorted(path.name for path in (root / "mine").iterdir()) == ["counting.py", "ten.yaml"]
    command = capsys.readouterr().out.splitlines()[-1].split()
    assert command == ["optland", "run", "mine/counting.py", "mine/ten.yaml"]
    assert cli.main(command[1:]) == 0
    assert (root / "mine" / "ten.yaml").read_text().startswith(f"# {' '.join(command)}\n")
    monkeypatch.chdir(root / "mine")
    for config in ("./ten.yaml", "ten"):
        assert cli.main(["run", "./counting.py", config, "upto=4"]) == 0
    assert capsys.readouterr().out == "counted 10 1 fresh\n" + 2 * "counted 4 1 fresh\n"


def test_a_copy_can_have_a_name_of_its_own(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "configs" / "counting" / "other.yaml").unlink()
    assert cli.main(["cp", "counting", "far/away/sums.py"]) == 0
    assert "recipe: sums\n" in (root / "far" / "away" / "ten.yaml").read_text()
    capsys.readouterr()
    assert cli.main(["run", "far/away/sums.py", "ten"]) == 0
    assert capsys.readouterr().out == "counted 10 1 fresh\n"


def test_a_secret_is_not_shown_and_not_left_in_the_command_line(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = root / "recipes" / "counting.py"
    text = recipe.read_text().replace("    upto: int\n", "    upto: int\n    api_key: str = ''\n")
    recipe.write_text(
        text.replace("import time\n", "import sys\nimport time\n").replace('"counted"', "sys.argv[1:]")
    )
    assert cli.main(["validate", "counting", "ten", "api_key=abcdefgh"]) == 0
    assert "api_key: '[redacted]'" in capsys.readouterr().out
    assert cli.main(["run", "counting", "ten", "api_key=abcdefgh"]) == 0
    said = capsys.readouterr().out
    assert "api_key=[redacted]" in said
    assert "abcdefgh" not in said


BAD = {
    "nothing": ([], ["COMMAND", "optland --help"]),
    "unknown command": (["rn"], ["'rn'", "Did you mean 'run'", "optland --help"]),
    "no recipe": (["run"], ["required: RECIPE, CONFIG. See: optland run --help"]),
    "no config": (["validate", "counting"], ["required: CONFIG. See: optland validate --help"]),
    "a flag with a value": (["run", "counting", "ten", "--resume=3"], ["--resume", "optland run --help"]),
    "an abbreviated option": (["run", "counting", "ten", "--seed=3"], ["--seed=3", "without dashes: seed=3"]),
    "too much": (["ls", "counting"], ["'counting'", "optland ls"]),
    "a folder": (["run", "counting", "configs/counting"], ["is a folder", "ten.yaml"]),
    "unknown recipe": (["run", "countin", "ten"], ["no recipe 'countin'", "'counting'", "optland ls"]),
    "no such script": (["run", "my/recipe.py", "ten"], ["my/recipe.py", "optland ls"]),
    "unknown config": (["run", "counting", "tem"], ["no config 'tem'", "'ten'", "other, ten"]),
    "missing file": (["run", "counting", "configs/counting/tem.yaml"], ["no such file", "'ten.yaml'"]),
    "a path to ours": (
        ["run", "counting", "elsewhere/ten.yaml"],
        ["no such file", "optland run counting ten"],
    ),
    "config left out": (["run", "counting", "upto=3"], ["'upto=3'", "optland run counting CONFIG"]),
    "config of another": (["run", "counting", "other"], ["for 'silent'", "optland run silent"]),
    "misspelt key": (["run", "counting", "ten", "uptoo=3"], ["override 'uptoo=3'", "'upto'"]),
    "wrong type": (["validate", "counting", "ten", "upto=many"], ["upto", "whole number", "'many'"]),
    "impossible value": (["validate", "counting", "ten", "upto=0"], ["upto must be at least 1, got 0"]),
    "wrong choice": (["run", "counting", "ten", "end=wel"], ["well, missing", "Did you mean 'well'"]),
    "not key=value": (["run", "counting", "ten", "upto"], ["'upto'", "key=value"]),
    "dashed override": (["run", "counting", "ten", "--upto=3"], ["--upto=3", "without dashes: upto=3"]),
    "misspelt option": (["run", "counting", "ten", "--resum3"], ["--resum3", "Did you mean '--resume'"]),
    "copy of nothing": (["cp", "countin", "there"], ["no recipe 'countin'", "'counting'"]),
    "copy of no config": (["cp", "counting", "tem", "there"], ["no config 'tem'", "'ten'"]),
    "copy and more": (["cp", "counting", "ten", "there", "more"], ["'more'", "optland cp RECIPE"]),
    "copy over": (["cp", "counting", "recipes"], ["recipes/counting.py", "another folder"]),
    "copy nowhere": (["cp", "counting", "recipes/counting.py/x"], ["recipes/counting.py", "another folder"]),
    "missing data": (["run", "counting", "ten", "end=missing"], ["data set is not in data/", "Fetch it"]),
    "broken contract": (["run", "silent", "ten"], ["silent.py", "run_script(__file__)"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_message_with_the_fix(
    root: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    arguments, parts = BAD[case]
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("optland: ")
    assert said.count("optland: ") == 1
    for part in parts:
        assert part in said


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in [(["--version"], __version__), (["--help"], "optland run landscape_train digits")]:
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 0
        assert said in capsys.readouterr().out


def test_a_wheel_finds_what_it_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "optland"
    (package / "_bundled" / "recipes").mkdir(parents=True)
    (package / "_bundled" / "recipes" / "tiny.py").write_text("")
    monkeypatch.setattr(recipes, "_PACKAGE", package)
    monkeypatch.delenv(recipes.ROOT_VARIABLE, raising=False)
    assert list(recipes.all_recipes()) == ["tiny"]


def test_a_script_of_the_user_s_is_named_by_its_path(tmp_path: Path) -> None:
    assert recipes.Recipe(tmp_path / "recipes" / "mine.py").argument == str(tmp_path / "recipes" / "mine.py")


def test_the_real_commands(root: Path) -> None:
    script = [sys.executable, "recipes/counting.py"]
    module = [sys.executable, "-m", "optland.cli"]
    good = subprocess.run([*script, "ten", "upto=3", "--resume"], capture_output=True, text=True)
    assert (good.returncode, good.stdout) == (0, "counted 3 1 resumed\n")
    bad = subprocess.run([*module, "run", "counting", "ten", "upto=x"], capture_output=True, text=True)
    assert bad.returncode == 2
    assert len(bad.stderr.splitlines()) == 1
    assert "Traceback" not in bad.stderr


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Children heed Ctrl-C, also where these tests run in the background of a shell that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted() -> tuple[int, str]:
    """Exit status and errors of a run that has counted and is interrupted while it waits."""
    command = [sys.executable, "-m", "optland.cli", "run", "counting", "ten", "end=wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "counted 10 1 fresh\n"
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=240)
    return run.returncode, said


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupt_prints_how_to_go_on(root: Path) -> None:
    code, said = interrupted()
    assert code == 130
    assert said.splitlines()[-1].strip() == "optland run counting ten end=wait --resume"
    assert "Traceback" not in said


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupt_before_there_is_a_run_promises_no_checkpoint(root: Path) -> None:
    script = (root / "recipes" / "counting.py").read_text()
    script = script.replace("    upto: int\n", '    upto: int\n    out: str = "runs/ten"\n')
    (root / "recipes" / "counting.py").write_text(script)
    code, said = interrupted()
    assert (code, said.strip()) == (130, "Interrupted before the run began; start it again.")


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupt_of_what_has_no_checkpoint_is_one_sentence(root: Path) -> None:
    (root / "recipes" / "counting.py").write_text(
        'import time\nprint("here", flush=True)\ntime.sleep(60)\n# run_script(\n'
    )
    command = [sys.executable, "-m", "optland.cli", "run", "counting", "ten"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "here\n"
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=240)
    assert (run.returncode, said.strip()) == (130, "Interrupted; start it again.")


def test_lines_of_a_list_are_set_in_on_a_terminal_and_whole_in_a_file(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    comment = "Count to ten, " + "and then on, " * 12 + "to the end."
    (root / "configs" / "counting" / "ten.yaml").write_text(f"# {comment}\nrecipe: counting\nupto: 10\n")
    assert commands.main(["ls"]) == 0
    assert comment in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    assert commands.main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    (first,) = [i for i, line in enumerate(lines) if "Count to ten" in line]
    assert lines[first + 1].startswith(" " * 25)


def test_starting_up_imports_nothing_heavy() -> None:
    code = "import sys, optland.cli; print([n for n in ('torch', 'omegaconf', 'rich') if n in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_every_shipped_config_names_its_recipe() -> None:
    shipped = recipes.roots()[-1]
    configs = sorted((shipped / "configs").glob("*/*.yaml"))
    assert configs
    for path in configs:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[0] == f"# optland run {path.parent.name} {os.path.relpath(path, shipped)}"
        assert f"recipe: {path.parent.name}" in lines
        assert (shipped / "recipes" / f"{path.parent.name}.py").exists()
