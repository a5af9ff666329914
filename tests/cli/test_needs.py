"""Packages that are not installed: said before training, and never at the price of a result.

They are kept away where Python itself looks for modules, in a process of its own.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from command_line import optland

from optland.cli.needs import check_needs, missing_for
from optland.config import UserError
from optland.plots import plot_run
from optland.report import write_report
from optland.train import LogConfig, RunFolder


class Blocker:
    """Keeps packages away where Python looks for modules.

    Args:
        names: Of the packages.
    """

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


DRAWS = '''
"""Draws a picture at its end."""
from dataclasses import dataclass, field
from optland.cli import run_script
from optland.plots import plot_run
from optland.train import LogConfig, RunFolder

@dataclass(frozen=True)
class Config:
    out: str = "run"
    log: LogConfig = field(default_factory=LogConfig)

def main(config, *, resume=False):
    run = RunFolder(config.out, config, config.log, recipe="draws", length=1, resume=resume)
    with run:
        print("training", flush=True)
        run.log.log({"step": 1, "train/loss": 0.5})
        run.finish({"test/acc": 90.0})
        with run.attempt("curves.png") as picture:
            plot_run(run.rows(), run.events(), picture)
    print(run.where())
    return run.exit_code

if __name__ == "__main__":
    raise SystemExit(run_script(__file__))
'''

REPORTS = DRAWS.replace("import plot_run", "import plot_run\nfrom optland.report import write_report")


def run(folder: Path, script: str, *, without: str) -> subprocess.CompletedProcess[str]:
    (folder / "draws.py").write_text(script)
    (folder / "mine.yaml").write_text("recipe: draws\nlog: {wandb: disabled}\n")
    before = functools.partial(take_away, without.split(","))
    return optland("run", "draws.py", "mine.yaml", cwd=folder, before=before)


def take_away(names: list[str]) -> None:
    """As if the packages had never been there: what has been imported of them, or may hold a part of them, goes too."""
    for name in list(sys.modules):
        if name.partition(".")[0] in (*names, "optland"):
            del sys.modules[name]
    sys.meta_path.insert(0, Blocker(names))


def test_a_run_without_its_picture_is_whole(tmp_path: Path) -> None:
    done = run(tmp_path, DRAWS, without="matplotlib")
    advice = "the figure needs matplotlib; run: pip install 'optland[recipes]'"
    assert done.stderr == f"optland: {advice}; the run goes on without\n"
    assert done.returncode == 0
    assert f"left out     curves.png: {advice}" in done.stdout
    assert done.stdout.index("test/acc") < done.stdout.index("left out")
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {"test/acc": 90.0}
    assert not list((tmp_path / "run").glob("*.png"))


def test_what_a_run_is_for_is_asked_for_before_it_begins(tmp_path: Path) -> None:
    done = run(tmp_path, REPORTS, without="matplotlib,plotly")
    assert done.returncode == 2
    assert (
        done.stderr == "optland: the report needs plotly and matplotlib; run: pip install 'optland[report]'\n"
    )
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


def script(**names: Any) -> types.ModuleType:
    module = types.ModuleType("script")
    vars(module).update(names)
    return module


def test_each_need_is_known_by_what_a_script_has_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    check_needs(script(RunFolder=RunFolder, number=3))
    assert capsys.readouterr().err == ""
    check_needs(script(plot=plot_run))
    assert "the figure needs matplotlib" in capsys.readouterr().err
    with pytest.raises(UserError, match="the report needs matplotlib; run: "):
        check_needs(script(write_report=write_report))


def test_where_all_is_there_nothing_is_missing() -> None:
    assert [missing_for(ours) for ours in ("optland.plots", "optland.report")] == ["", ""]


LOG = LogConfig(wandb="disabled")


def finished(out: Path, error: Exception) -> RunFolder:
    run = RunFolder(out, LOG, LOG, recipe="tiny", length=1, resume=False)
    with run:
        run.finish({"test/acc": 90.0})
        with run.attempt("curves.png"):
            raise error
    return run


def test_a_picture_that_fails_in_any_way_costs_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(RuntimeWarning, match=r"curves\.png cannot be written \(a defect\)"):
        run = finished(tmp_path / "run", ZeroDivisionError("a defect"))
    assert "test/acc" in capsys.readouterr().out
    assert run.finished
    assert (run.exit_code, run.where().splitlines()[-1]) == (1, "NOT WRITTEN  curves.png: a defect")
    run = finished(
        tmp_path / "other", UserError("the figure needs a package; run: pip install 'optland[recipes]'")
    )
    assert run.exit_code == 0
    assert run.where().splitlines()[-1].startswith("left out     curves.png: the figure needs a package")


def test_ctrl_c_while_a_picture_is_drawn_leaves_a_finished_run(tmp_path: Path) -> None:
    def interrupted() -> None:
        with RunFolder(tmp_path / "run", LOG, LOG, recipe="tiny", length=1, resume=False) as run:
            run.finish({"test/acc": 90.0})
            with run.attempt("curves.png"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == {"test/acc": 90.0}
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["exit_code"] for line in lines] == [0]


def test_a_result_that_cannot_be_written_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(
        tmp_path / "run",
        LOG,
        LogConfig(wandb="disabled", console=False),
        recipe="tiny",
        length=1,
        resume=False,
    )
    (tmp_path / "run" / "summary.json.writing").mkdir()  # nothing can be written under this name
    with run, pytest.warns(RuntimeWarning, match=r"summary\.json cannot be written"):
        run.finish({"test/acc": 90.0})
    assert run.exit_code == 1
    *_, result, advice = run.where().splitlines()
    assert result == "test/acc: 90.0"
    assert advice.startswith("make room, then write it with: optland run tiny ")
