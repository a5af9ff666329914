"""Standard output whose reader has left, that was closed, or that lies on a full disk: no traceback, no work lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = '''
"""Count to a number."""
import dataclasses, pathlib, sys
from optland.cli import run_script

@dataclasses.dataclass(frozen=True)
class Config:
    upto: int = 3

def main(config, *, resume=False):
    from rich.console import Console
    for number in range(config.upto):
        print(number, "x" * 5000)  # more than a buffer holds
        Console().print(number)
        print(number, file=sys.stderr)
    pathlib.Path("done").write_text("done")
    return 5

if __name__ == "__main__":
    raise SystemExit(run_script(__file__))
'''

LOGGED = """
import pathlib
from optland.log import ConsoleLogger
from optland.log.logger import LoggerGroup
log = LoggerGroup([ConsoleLogger(10, every=1)])
for step in range(3):
    log.log({"step": step, "train/loss": 0.5})
log.finish({"test/acc": 1.0})
pathlib.Path("done").write_text("done")
"""

OPTLAND = [sys.executable, "-m", "optland.cli"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "count.py").write_text(RECIPE)
    (tmp_path / "ten.yaml").write_text("recipe: count\nupto: 10\n")
    return tmp_path


def unread(command: list[str], folder: Path, *, both: bool = False) -> tuple[int, str]:
    """Exit code and standard error of a command that nobody reads; with ``both``, nobody reads its errors either."""
    reader, writer = os.pipe()
    os.close(reader)
    error = writer if both else subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, stdout=writer, stderr=error, text=True) as process:
        os.close(writer)
        said = process.communicate(timeout=240)[1]
    return process.returncode, said or ""


@pytest.mark.parametrize("both", [False, True], ids=["stdout", "stderr too"])
@pytest.mark.parametrize(
    "arguments", [["ls"], ["validate", "count.py", "ten"], ["run", "count.py", "ten", "--dry-run"]]
)
def test_a_command_that_prints_ends_as_other_programs_do(
    folder: Path, arguments: list[str], both: bool
) -> None:
    assert unread([*OPTLAND, *arguments], folder, both=both) == (141, "")


@pytest.mark.parametrize("both", [False, True], ids=["stdout", "stderr too"])
@pytest.mark.parametrize("command", [[*OPTLAND, "run", "count.py"], [sys.executable, "count.py"]])
def test_a_run_goes_on_to_its_end_and_keeps_its_exit_code(
    folder: Path, command: list[str], both: bool
) -> None:
    code, said = unread([*command, "ten"], folder, both=both)
    assert (code, said.split()) == (5, [] if both else [str(number) for number in range(10)])
    assert (folder / "done").exists()


def test_a_refusal_keeps_its_exit_code(folder: Path) -> None:
    assert unread([*OPTLAND, "run", "cuont", "ten"], folder, both=True) == (2, "")


def test_a_logger_in_a_script_of_the_user_s_falls_silent(folder: Path) -> None:
    assert unread([sys.executable, "-c", LOGGED], folder) == (0, "")
    assert (folder / "done").exists()


def test_a_closed_output_is_none_at_all(folder: Path) -> None:
    for arguments, code in (["ls"], 0), (["run", "count.py", "ten"], 5):
        shell = f'"$@" >&-{" 2>&-" * (code == 5)}'
        done = subprocess.run(["sh", "-c", shell, "sh", *OPTLAND, *arguments], cwd=folder, timeout=240)
        assert done.returncode == code
    assert (folder / "done").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no disk that is always full")
def test_a_full_disk_behind_the_output_is_said_and_ends_no_run(folder: Path) -> None:
    for arguments, code in (["ls"], 1), (["run", "count.py", "ten"], 5):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*OPTLAND, *arguments], cwd=folder, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
            )
        assert done.returncode == code
        assert done.stderr.splitlines()[-1].startswith("optland: not all of the output could be written")
        assert "Traceback" not in done.stderr
    assert (folder / "done").exists()
