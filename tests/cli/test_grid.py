"""Grids of a tiny recipe in real processes: everything is run once, failures are counted, kills cost nothing."""

from __future__ import annotations

import csv
import os
import re
import signal
import statistics
import textwrap
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import command_line
import pytest
from processes import exit_code

from optland import cli
from optland.cli import recipes

RECIPE = '''
"""Multiply, in a run folder, slowly if asked to."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import pathlib
import signal
import sys
import time

from optland.cli import run_script
from optland.config import UserError, to_yaml


@dataclasses.dataclass(frozen=True)
class Part:
    factor: float = 1.0
    words: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 1
    out: str = "runs/one"
    steps: int = 1
    end: str = "well"
    part: Part = dataclasses.field(default_factory=Part)


def main(config: Config, *, resume: bool = False) -> int:
    folder = pathlib.Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".lock").open("w")
    fcntl.lockf(lock, fcntl.LOCK_EX)
    (folder / "config.yaml").write_text(to_yaml(config, recipe="product"))
    starts = folder / "starts.txt"
    with starts.open("a") as file:
        file.write("resumed\\\\n" if resume else "fresh\\\\n")
    stopped = []
    signal.signal(signal.SIGINT, lambda *_: stopped.append(1))
    names = os.environ["WANDB_RUN_GROUP"], os.environ["WANDB_NAME"]
    (folder / "console.txt").write_text(f"{config.part.words} {' '.join(names)}")
    if config.end == f"fail{config.seed}" and not (folder / "mended").exists():
        raise RuntimeError("this seed is bad")
    progress = folder / "progress.txt"
    done = int(progress.read_text()) if resume and progress.exists() else 0
    for step in range(done + 1, config.steps + 1):
        progress.write_text(str(step))
        while step == 2 and config.end == f"hold{config.part.factor:g}" and not (stopped or (folder / "go").exists()):
            time.sleep(0.02)
        if stopped:
            return 75
    value = None if config.end == f"nan{config.seed}" else config.seed * config.part.factor
    (folder / "summary.json").write_text(json.dumps({"result": value, "words": "many", "cost": config.seed}))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_script(__file__))
'''


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "configs" / "product").mkdir(parents=True)
    source = textwrap.dedent(RECIPE).lstrip().replace("\\\\n", "\\n")
    (tmp_path / "recipes" / "product.py").write_text(source)
    (tmp_path / "configs" / "product" / "one.yaml").write_text("recipe: product\nseed: 1\n")
    monkeypatch.setenv(recipes.ROOT_VARIABLE, str(tmp_path))
    for name in ("WANDB_RUN_GROUP", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def starts(folder: Path) -> dict[str, list[str]]:
    """How often each member was started, and how."""
    found = sorted(folder.glob("*/*/starts.txt"))
    return {f"{path.parent.parent.name}/{path.parent.name}": path.read_text().split() for path in found}


def results(folder: Path) -> dict[str, str]:
    """The result of every member as the table of the grid has it."""
    with (folder / "grid.csv").open(newline="") as file:
        return {row["folder"].removeprefix(f"{folder.name}/"): row["result"] for row in csv.DictReader(file)}


GRID = [
    "run",
    "product",
    "one",
    "--grid",
    "part.factor=2,0.5",
    "--grid",
    "part.words=[a,b],[c]",
    "--seeds",
    "2",
]


def test_every_combination_runs_with_every_seed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(GRID) == 0
    said = capsys.readouterr().out
    folder = root / "runs" / "one-grid"
    assert len(starts(folder)) == 8
    with (folder / "grid.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["part.factor"], row["part.words"]) for row in rows[::2]] == [
        (factor, words) for factor in ("2", "0.5") for words in ("[a,b]", "[c]")
    ]
    assert [float(row["result"]) for row in rows] == [s * f for f in (2, 2, 0.5, 0.5) for s in (1, 2)]
    assert all(row["failure"] == "" for row in rows)
    for factor in (2, 0.5):
        values = [seed * factor for seed in (1, 2)]
        assert f"{statistics.fmean(values):.4g} ± {statistics.stdev(values):.2g}" in said
    console = folder / "part.factor=2,part.words=[a,b]" / "seed2" / "console.txt"
    assert console.read_text() == "['a', 'b'] one-grid part.factor=2,part.words=[a,b]/seed2"


def test_the_same_command_again_runs_nothing_and_a_larger_one_runs_what_is_new(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["run", "product", "one", "out=here", "--grid", "part.factor=2", "--seeds"]
    for seeds in ("1", "1", "2"):
        assert cli.main([*grid, seeds]) == 0
    assert starts(root / "here") == {f"part.factor=2/seed{seed}": ["fresh"] for seed in (1, 2)}
    assert results(Path("here")) == {"part.factor=2/seed1": "2.0", "part.factor=2/seed2": "4.0"}
    assert f"{3:.4g} ± {2**0.5:.2g}" in capsys.readouterr().out


def test_a_failure_is_told_counted_and_tried_again(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    grid = ["run", "product", "one", "out=here", "end=fail2", "--seeds", "3"]
    assert cli.main(grid) == 1
    said = capfd.readouterr()
    assert "RuntimeError: this seed is bad" in said.err
    assert "base/seed2 failed: exit code 1\n" in said.err
    assert re.search(r"3 +│ +1 +│ +2 ± 1.4", said.out), "3 runs, 1 failed, the mean of 1 and 3"
    assert results(Path("here")) == {"base/seed1": "1.0", "base/seed2": "", "base/seed3": "3.0"}
    (root / "here" / "base" / "seed2" / "mended").touch()
    assert cli.main(grid) == 0
    assert starts(root / "here")["base/seed2"] == ["fresh", "resumed"]
    assert starts(root / "here")["base/seed1"] == ["fresh"]


def test_a_run_that_diverged_is_a_failure(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "product", "one", "out=here", "end=nan2", "--seeds", "2"]) == 1
    assert "base/seed2 failed: result is not finite" in capsys.readouterr().err


def test_a_summary_that_cannot_be_read_is_a_failure(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["run", "product", "one", "out=here", "--seeds", "2"]
    assert cli.main(grid) == 0
    (root / "here" / "base" / "seed2" / "summary.json").write_text("{")
    assert cli.main(grid) == 1
    assert "base/seed2 failed" in capsys.readouterr().err


def held(factor: int) -> list[str]:
    """A grid of two members, one of which waits after its second step for a file ``go``."""
    return ["out=here", "steps=4", f"end=hold{factor}", "--grid", "part.factor=1,3"]


def begin(root: Path, said: str, *arguments: str) -> BaseProcess:
    """A grid whose output goes into the file ``said``."""
    return command_line.begin("run", "product", "one", *arguments, cwd=root, out=root / said, err=root / said)


def member_of(grid: BaseProcess) -> int:
    """The process that runs its only member at work."""
    (child,) = Path(f"/proc/{grid.pid}/task/{grid.pid}/children").read_text().split()
    return int(child)


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def progress(folder: Path) -> int:
    path = folder / "progress.txt"
    return int(path.read_text() or 0) if path.exists() else 0


def test_a_killed_grid_goes_on_where_it_was(root: Path) -> None:
    """Kill -9 of the grid and of its member: the next one resumes that one, and runs nothing twice."""
    second = root / "here" / "part.factor=3" / "seed1"
    grid = begin(root, "first", *held(3))
    wait_for(lambda: progress(second) == 2)
    member = member_of(grid)
    grid.kill()
    os.kill(member, signal.SIGKILL)
    assert exit_code(grid) == -signal.SIGKILL
    (second / "go").touch()
    code = exit_code(begin(root, "again", *held(3)))
    said = (root / "again").read_text()
    assert code == 0, said
    assert said.startswith("2 runs, 1 of them finished before\n")
    assert starts(root / "here") == {
        "part.factor=1/seed1": ["fresh"],
        "part.factor=3/seed1": ["fresh", "resumed"],
    }
    assert list(results(Path("here")).values()) == ["1.0", "3.0"]


@pytest.mark.slow
def test_a_killed_member_is_resumed(root: Path) -> None:
    first = root / "here" / "part.factor=1" / "seed1"
    grid = begin(root, "said", *held(1))
    wait_for(lambda: progress(first) == 2)
    os.kill(member_of(grid), signal.SIGKILL)
    assert exit_code(grid) == 1
    assert "part.factor=1/seed1 failed: ended by SIGKILL" in (root / "said").read_text()
    (first / "go").touch()
    assert cli.main(["run", "product", "one", *held(1)]) == 0
    assert starts(root / "here") == {
        "part.factor=1/seed1": ["fresh", "resumed"],
        "part.factor=3/seed1": ["fresh"],
    }


@pytest.mark.slow
def test_a_signal_lets_the_members_save_and_the_grid_go_on_later(root: Path) -> None:
    first = root / "here" / "part.factor=1" / "seed1"
    grid = begin(root, "said", *held(1))
    wait_for(lambda: progress(first) == 2)
    assert grid.pid is not None
    os.kill(grid.pid, signal.SIGINT)
    code, said = exit_code(grid), (root / "said").read_text()
    assert code == 75, said
    assert "stopped with 2 of 2 runs to go" in said
    (first / "go").touch()
    assert cli.main(["run", "product", "one", *held(1)]) == 0
    assert starts(root / "here") == {
        "part.factor=1/seed1": ["fresh", "resumed"],
        "part.factor=3/seed1": ["fresh"],
    }


def test_a_dry_run_lists_the_members_and_runs_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*GRID, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert lines[0].split()[:2] == ["new", "runs/one-grid/part.factor=2,part.words=[a,b]/seed1"]
    assert not (root / "runs").exists()


BAD = {
    "no value": (["--grid", "part.factor"], ["'part.factor'", "key=a,b,c"]),
    "an empty value": (["--grid", "part.factor=1,,2"], ["'part.factor=1,,2'", "key=a,b,c"]),
    "a key twice": (["--grid", "steps=1", "--grid", "steps=2"], ["'steps'", "one item"]),
    "a value twice": (["--grid", "steps=1,1"], ["'steps=1,1'", "leave one"]),
    "seed as an axis": (["--grid", "seed=1,2"], ["'seed'", "--seeds N"]),
    "out as an axis": (["--grid", "out=a,b"], ["'out'", "out=FOLDER"]),
    "a misspelt key": (["--grid", "part.facto=1,2"], ["part.facto", "part.factor"]),
    "a wrong value": (["--grid", "part.factor=1,two"], ["part.factor", "'two'", "a number"]),
    "a wrong count": (["--seeds", "0"], ["--seeds 0", "at least 1"]),
    "half a seed": (["--seeds", "2.5"], ["--seeds 2.5", "whole number"]),
    "a file in the folder's place": (
        ["--seeds", "2", "out=recipes/product.py"],
        ["product.py", "out=FOLDER"],
    ),
    "a name too long": (["--seeds", "2", f"out={'x' * 300}"], ["xxx", "out=FOLDER"]),
    "seeds of nothing": (["--seeds", ""], ["--seeds", "whole number"]),
    "a grid of nothing": (["--grid", ""], ["--grid ''", "key=a,b,c"]),
    "a single run's folder": (["--seeds", "2", "out=single"], ["single", "out=FOLDER"]),
    "another configuration": (
        ["--seeds", "2", "steps=2", "out=taken"],
        ["taken/base/seed1", "steps: 2", "out=FOLDER"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_run_gets_one_message_and_nothing_starts(
    root: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    if case == "another configuration":
        assert cli.main(["run", "product", "one", "out=taken", "--seeds", "1"]) == 0
    (root / "single").mkdir()
    (root / "single" / "config.yaml").write_text("")
    arguments, parts = BAD[case]
    capsys.readouterr()
    before = starts(root)
    assert cli.main(["run", "product", "one", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("optland: ")
    assert said.count("optland: ") == 1
    assert "Traceback" not in said
    for part in parts:
        assert part in said
    assert starts(root) == before


def test_a_recipe_without_a_seed_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = root / "recipes" / "product.py"
    recipe.write_text(recipe.read_text().replace("    seed: int = 1\n", "    grain: int = 1\n"))
    (root / "configs" / "product" / "one.yaml").write_text("recipe: product\n")
    assert cli.main(["run", "product", "one", "--seeds", "2"]) == 2
    assert "needs the key 'seed'" in capsys.readouterr().err
