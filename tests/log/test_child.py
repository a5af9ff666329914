"""A process that is fed over a pipe: order, back-pressure, and every way in which either side can go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optland.log.child import Child

COUNTING = "log.processes.counting"
PATIENCE = 30.0


@pytest.fixture
def child() -> Iterator[Child]:
    started = Child(COUNTING)
    yield started
    started.end(0.05)
    assert started.gone


def hear(child: Child, count: int) -> list[list[Any]]:
    heard: list[list[Any]] = []
    deadline = time.monotonic() + PATIENCE
    while len(heard) < count:
        assert time.monotonic() < deadline, heard
        child.wait(0.1)
        heard += child.reports()
    return heard


def wait_until(holds: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_orders_arrive_whole_and_in_order(child: Child) -> None:
    for number in range(2000):
        child.send("n", number, "é" * (number % 50))
    assert hear(child, 2000) == [["n", number, "é" * (number % 50)] for number in range(2000)]


def test_an_order_larger_than_the_pipe_arrives(child: Child) -> None:
    text = "x" * 3_000_000
    child.send("big", text)
    assert hear(child, 1) == [["big", text]]


def test_numbers_of_other_libraries_and_values_that_are_not_finite(child: Child) -> None:
    child.send("v", np.float32(0.5), np.arange(3), float("inf"), Path("a"))
    assert hear(child, 1) == [["v", 0.5, [0, 1, 2], float("inf"), "a"]]


def test_the_process_imports_what_it_asks_for_and_no_more(child: Child) -> None:
    child.send("world")
    _, (_, modules, parented) = hear(child, 2)
    assert parented
    assert "optland.log.child" in modules
    assert not {"torch", "wandb", "rich", "pytest"} & set(modules)


def test_sending_never_waits_and_a_process_that_takes_nothing_is_told() -> None:
    child = Child(COUNTING, capacity=200_000)
    os.kill(child.pid, signal.SIGSTOP)
    started = time.perf_counter()
    with pytest.raises(TimeoutError, match="bytes are waiting"):
        send_much(child)
    assert time.perf_counter() - started < 30.0
    started = time.perf_counter()
    child.end(0.1)
    assert child.gone
    assert time.perf_counter() - started < 30.0


def send_much(child: Child) -> None:
    for _ in range(100):
        child.send("x" * 10_000)


def test_the_end_of_a_process_is_told_with_its_exit_code(child: Child) -> None:
    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: child.gone)
    child.send("n")  # goes nowhere, and does not raise: `gone` is what tells
    assert child.obituary() == "its process ended with exit code -9"


def test_signals_to_a_run_leave_its_process_at_work(child: Child) -> None:
    child.send("n", 1)
    hear(child, 1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(child.pid, number)
    child.send("n", 2)
    assert hear(child, 1) == [["n", 2]]
    assert os.getsid(child.pid) == child.pid != os.getsid(0)


PARENT = """
    import os, sys, time
    from optland.log.child import Child

    child = Child("log.processes.counting")
    child.send("note", sys.argv[1])
    while not child.reports():
        time.sleep(0.01)
    if sys.argv[2] == "fork" and os.fork() == 0:
        time.sleep(60)  # holds the pipe by inheritance
        os._exit(0)
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("forks", ["fork", "alone"])
def test_a_killed_parent_does_not_leave_its_process_behind(tmp_path: Path, forks: str) -> None:
    note = tmp_path / "note"
    # No guard in the script: what starts the process must not run the script again.
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(PARENT))
    path = os.pathsep.join(sys.path)
    command = [sys.executable, str(script), str(note), forks]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        wait_until(note.exists)
        wait_until(lambda: not alive(pid))
        if forks == "fork":
            os.killpg(parent.pid, signal.SIGKILL)
    assert note.read_text() == "ended"


def test_a_process_busy_when_its_parent_goes_is_ended_all_the_same() -> None:
    child = Child(COUNTING)
    child.send("sleep", 60)
    child.send("n")
    started = time.monotonic()
    child._orders.close()
    wait_until(lambda: child.gone)
    assert time.monotonic() - started < 20  # half a second after the interpreter is up
    child.end(0.0)


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] not in "ZX"
