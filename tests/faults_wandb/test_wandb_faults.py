"""Whatever happens to wandb, a run completes, its record is whole, and it loses at most ten seconds.

Every fault is real: processes that are killed or stopped, sockets that say nothing, disks that are full. Each meets a
run in small, whose own time is known, and a few of them also meet the main recipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faults_wandb.servers import Dying, Forgetting, Greeting, serve
from wandb_reader import inspect

from optland.log import read_jsonl

MOST_SECONDS_LOST = 10.0
ROWS, QUICK, PACE = 150, 50, 0.02
SMALL = [sys.executable, str(Path(__file__).with_name("small_run.py"))]
RECIPE = [sys.executable, "-m", "optland.cli", "run", "landscape_train", "smoke", "log.every=1"]


@dataclass
class Outcome:
    """What became of a run.

    Attributes:
        closing: Seconds from the last line of the record, which is written before wandb is closed, to the exit.
    """

    code: int
    said: str
    seconds: float
    closing: float
    rows: list[tuple[int, Any]]
    folder: Path

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.said.splitlines() if "RuntimeWarning" in line]

    def wandb_summary(self) -> dict[str, Any]:
        """What wandb's own reader finds in the only run that is there."""
        (run,) = {file.parent for file in self.folder.glob("wandb/*run-*/*.wandb")}
        shown: dict[str, Any] = json.loads(inspect(run, "--summary"))
        return shown["summary"]


def environment(tmp_path: Path, **variables: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    private = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "no_proxy": "127.0.0.1"}
    return {**clean, **private, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **variables}


def online(port: int) -> dict[str, str]:
    return {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": "0123456789abcdef" * 3}


def run(
    folder: Path,
    command: list[str],
    midway: Callable[[int], object] | None = None,
    **variables: str,
) -> Outcome:
    """Run a command that writes ``folder/log.jsonl``, do something to it on its way, and time it."""
    started = time.monotonic()
    env = environment(folder.parent, **variables)
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        if midway is not None:
            wait_for_rows(folder / "log.jsonl", 10, process)
            midway(process.pid)
        said, _ = process.communicate(timeout=240)
    seconds = time.monotonic() - started
    closing = time.time() - (folder / "log.jsonl").stat().st_mtime
    rows = [(row["step"], row.get("train/loss")) for row in read_jsonl(folder / "log.jsonl", kind="row")]
    return Outcome(process.returncode, said, seconds, closing, rows, folder)


def small(
    tmp_path: Path, mode: str = "offline", *, before: list[str] | None = None, rows: int = ROWS, **more: Any
) -> Outcome:
    """A run in small, begun by ``before``, and checked for what must hold whatever happens."""
    folder = tmp_path / "run"
    outcome = run(folder, [*(before or []), *SMALL, str(folder), mode, str(rows)], **more)
    lost = outcome.seconds - rows * PACE
    sys.stdout.write(f"seconds lost: {lost:.1f}, of them in closing {outcome.closing:.1f}\n{outcome.said}\n")
    assert outcome.code == 0, outcome.said
    assert "Traceback" not in outcome.said, outcome.said
    assert outcome.rows == [(step, 1 / step) for step in range(1, rows + 1)]
    assert read_jsonl(folder / "log.jsonl")[-1]["kind"] == "summary"
    assert outcome.closing <= MOST_SECONDS_LOST
    assert lost <= MOST_SECONDS_LOST
    return outcome


def warned_once(outcome: Outcome, *said: str) -> None:
    assert len(outcome.warnings) == 1, outcome.said
    for part in said:
        assert part in outcome.warnings[0]


def wait_for_rows(log: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run wrote nothing"
        time.sleep(0.01)


def below(pid: int) -> Iterator[int]:
    """The processes that a process has started, and those that they have."""
    with contextlib.suppress(FileNotFoundError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from below(child)


def service_of(pid: int) -> int:
    """wandb's service process below a run, as soon as there is one."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for child in below(pid):
            if "wandb-core" in Path(f"/proc/{child}/comm").read_text():
                return child
        time.sleep(0.01)
    raise AssertionError("wandb has started no service")


def wait_for_the_file(folder: Path) -> None:
    """Until wandb has begun to write."""
    deadline = time.monotonic() + 30
    while not list(folder.glob("wandb/*run-*/*.wandb")):
        assert time.monotonic() < deadline, "wandb has written nothing"
        time.sleep(0.01)


def ended(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX"


def wait_for_the_end(pid: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ended(pid):
        assert time.monotonic() < deadline, f"process {pid} was left behind"
        time.sleep(0.02)


def test_all_is_well(tmp_path: Path) -> None:
    outcome = small(tmp_path, rows=QUICK)
    assert outcome.warnings == []
    values = outcome.wandb_summary()
    assert (values["step"], values["train/loss"], values["summary/advice"]) == (QUICK, 1 / QUICK, "none")


def test_a_killed_service(tmp_path: Path) -> None:
    def kill(pid: int) -> None:
        wait_for_the_file(tmp_path / "run")
        os.kill(service_of(pid), signal.SIGKILL)

    outcome = small(tmp_path, midway=kill)
    warned_once(outcome, "WandbLogger failed and is switched off")


@pytest.mark.slow
def test_a_service_that_is_killed_as_it_starts(tmp_path: Path) -> None:
    """wandb waits for it for as long as it may."""
    outcome = small(tmp_path, rows=QUICK, midway=lambda pid: os.kill(service_of(pid), signal.SIGKILL))
    warned_once(outcome, "WandbLogger failed and is switched off")


@pytest.mark.slow
def test_a_service_that_stops_answering(tmp_path: Path) -> None:
    stopped: list[int] = []

    def stop(pid: int) -> None:
        wait_for_the_file(tmp_path / "run")
        stopped.append(service_of(pid))
        os.kill(stopped[0], signal.SIGSTOP)

    warned_once(small(tmp_path, midway=stop), "did not answer for 5 s")
    assert ended(stopped[0]), "the stopped service was left behind"


UNLISTED = """
import sys, time
from optland.log.logger import LoggerGroup
from optland.log import WandbLogger, wandb_run

wandb_run._service_processes = set  # as where a system does not list processes
log = LoggerGroup([WandbLogger(sys.argv[1], timeout=1.0)])
for step in range(400):
    log.log({"step": step})
    time.sleep(0.02)
log.finish({})
"""


@pytest.mark.slow
def test_a_service_that_stops_answering_and_cannot_be_found_does_not_hold_up_the_exit(tmp_path: Path) -> None:
    command = [sys.executable, "-c", UNLISTED, str(tmp_path)]
    quiet = subprocess.DEVNULL  # the service that is left behind holds on to what it has inherited
    with subprocess.Popen(command, env=environment(tmp_path), stdout=quiet, stderr=quiet) as process:
        wait_for_the_file(tmp_path)
        service = service_of(process.pid)
        os.kill(service, signal.SIGSTOP)
        try:
            assert process.wait(400 * PACE + MOST_SECONDS_LOST) == 0
        finally:
            os.kill(service, signal.SIGKILL)


def test_a_killed_run_leaves_nothing_behind_and_can_be_read(tmp_path: Path) -> None:
    """The run itself is killed, with no chance to say anything: wandb's service writes down what it has, and ends."""
    folder = tmp_path / "run"
    env = environment(tmp_path)
    with subprocess.Popen([*SMALL, str(folder), "offline", "3000"], env=env, text=True) as process:
        wait_for_rows(folder / "log.jsonl", 10, process)
        service = service_of(process.pid)
        wait_for_the_file(folder)
        begun = len(read_jsonl(folder / "log.jsonl", kind="row"))
        wait_for_rows(folder / "log.jsonl", begun + 100, process)
        process.kill()
    rows = [row["step"] for row in read_jsonl(folder / "log.jsonl", kind="row")]
    wait_for_the_end(service, 10)
    (run,) = {file.parent for file in folder.glob("wandb/*run-*/*.wandb")}
    shown = json.loads(inspect(run, "--summary"))
    assert rows[-1] - 0.3 / PACE <= shown["summary"]["step"] <= rows[-1]


@contextlib.contextmanager
def listener() -> Iterator[int]:
    """A server that takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(100)
        yield server.getsockname()[1]


def test_no_server(tmp_path: Path) -> None:
    with listener() as port:
        variables = online(port)
    outcome = small(tmp_path, "online", rows=QUICK, **variables)
    warned_once(outcome, "server did not answer", "refused", "written offline")
    assert outcome.wandb_summary()["step"] == QUICK


@pytest.mark.slow
def test_a_silent_server(tmp_path: Path) -> None:
    with listener() as port:
        outcome = small(tmp_path, "online", **online(port))
    # On a slow machine the wait for the service ends before the service's own for the server.
    warned_once(outcome, "did not answer")
    assert outcome.wandb_summary()["step"] == ROWS


@pytest.mark.slow
def test_a_server_that_hangs_after_the_greeting(tmp_path: Path) -> None:
    with serve(Greeting) as port:
        outcome = small(tmp_path, "online", rows=300, **online(port))
    warned_once(outcome, "did not answer", "written offline")
    files = list(outcome.folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 1
    assert files[0].stat().st_size > 300 * len("train/loss")


@pytest.mark.slow
def test_a_server_that_dies_during_the_run(tmp_path: Path) -> None:
    with serve(Dying) as port:
        outcome = small(tmp_path, "online", **online(port))
    warned_once(outcome, "did not answer for 5 s", "wandb sync")
    assert outcome.wandb_summary()["step"] == ROWS


@pytest.mark.slow
def test_a_server_that_no_longer_knows_the_user(tmp_path: Path) -> None:
    """wandb says so politely, and its service still tries to send what it has, for as long as it may."""
    with serve(Forgetting) as port:
        outcome = small(tmp_path, "online", **online(port))
    warned_once(outcome, "WandbLogger failed", "invalid credentials")


def in_its_own_mounts(command: str) -> list[str]:
    """Run what follows where ``command`` has mounted something that nobody else sees."""
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f'{command} && exec "$@"', "sh"]


def can_mount() -> bool:
    tried = [*in_its_own_mounts("mount -t tmpfs tmpfs /mnt"), "true"]
    return shutil.which("unshare") is not None and subprocess.run(tried, capture_output=True).returncode == 0


FULL = ("is its disk full?", "No space left")  # by the file that met it: the service's, or one of ours for it
MOUNTS = {"size=16k": FULL, "ro": ("cannot be written to",)} if can_mount() else {}


@pytest.mark.slow
@pytest.mark.parametrize("options", MOUNTS)
def test_a_disk_that_is_full_or_read_only(tmp_path: Path, options: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = in_its_own_mounts(f"mount -t tmpfs -o {options} tmpfs '{disk}'")
    outcome = small(tmp_path, before=mount, WANDB_DIR=str(disk))
    warned_once(outcome, "WandbLogger failed")
    assert any(said in outcome.warnings[0] for said in MOUNTS[options]), outcome.said


@pytest.mark.slow
def test_a_service_that_may_write_no_more(tmp_path: Path) -> None:
    """A limit on the size of its files is a full disk to the service alone, and needs no rights to make."""

    def fill(pid: int) -> None:
        resource.prlimit(service_of(pid), resource.RLIMIT_FSIZE, (100, 100))

    warned_once(small(tmp_path, midway=fill), "WandbLogger failed", "is its disk full?")


@pytest.mark.parametrize("place", ["disk", pytest.param("disk/wandb", marks=pytest.mark.slow)])
def test_a_file_in_the_place_of_the_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("")
    outcome = small(tmp_path, rows=QUICK, WANDB_DIR=str(tmp_path / "disk"))
    warned_once(outcome, "WandbLogger failed")


def recipe(folder: Path, *options: str, **more: Any) -> Outcome:
    outcome = run(folder, [*RECIPE, f"out={folder}", *options], **more)
    assert outcome.code == 0, outcome.said
    assert (folder / "summary.json").exists()
    return outcome


@pytest.mark.slow
def test_the_main_recipe_survives_its_service_and_a_silent_server(tmp_path: Path) -> None:
    plain = recipe(tmp_path / "plain", "log.wandb=disabled")
    killed = recipe(tmp_path / "killed", midway=lambda pid: os.kill(service_of(pid), signal.SIGKILL))
    with listener() as port:
        silent = recipe(tmp_path / "silent", "log.wandb=online", **online(port))
    assert plain.warnings == []
    warned_once(killed, "WandbLogger failed and is switched off")
    warned_once(silent, "did not answer")
    assert killed.rows == silent.rows == plain.rows
    assert max(killed.closing, silent.closing) <= MOST_SECONDS_LOST
    assert silent.wandb_summary()["train/loss"] == plain.rows[-1][1] or plain.rows[-1][1] is None
