"""A thread that obeys orders: what arrives, what an order may raise, and that nobody waits for one that hangs."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optland.log.worker import Worker

PATIENCE = 30.0


class Receiver:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.go_on = threading.Event()

    def note(self, *what: Any) -> None:
        self.heard.append(list(what))

    def hang(self) -> None:
        self.go_on.wait(PATIENCE)

    def fail(self) -> None:
        raise PermissionError("not yours")

    def leave(self) -> None:
        sys.exit(3)

    def end(self) -> None:
        """The last order."""


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


def test_orders_are_obeyed_whole_and_in_order(receiver: Receiver) -> None:
    worker = Worker(receiver, last="end")
    for number in range(2000):
        worker.send("note", number, "é" * (number % 50))
    worker.send("end")
    assert worker.ended(PATIENCE)
    assert receiver.heard == [[number, "é" * (number % 50)] for number in range(2000)]
    assert worker.failure is None


def test_a_value_is_written_as_it_was_when_it_was_given(receiver: Receiver) -> None:
    worker = Worker(receiver, last="end")
    worker.send("hang")
    row, tensor = {"step": 1}, torch.tensor([1.0, 2.0])
    worker.send("note", row, tensor, np.float32(0.5), float("inf"), Path("a"))
    row["step"] = 2
    tensor.zero_()
    receiver.go_on.set()
    worker.send("end")
    assert worker.ended(PATIENCE)
    assert receiver.heard == [[{"step": 1}, [1.0, 2.0], 0.5, float("inf"), "a"]]


@pytest.mark.parametrize(("order", "error"), [("fail", PermissionError), ("leave", SystemExit)])
def test_a_failure_ends_the_thread_and_is_kept(
    receiver: Receiver, order: str, error: type[Exception]
) -> None:
    worker = Worker(receiver, last="end")
    worker.send(order)
    worker.send("note", 1)
    assert worker.ended(PATIENCE)
    assert isinstance(worker.failure, error)
    assert receiver.heard == []


def test_giving_an_order_never_waits_and_too_many_are_told(receiver: Receiver) -> None:
    worker = Worker(receiver, last="end", capacity=200_000)
    worker.send("hang")
    started = time.perf_counter()
    with pytest.raises(TimeoutError, match="characters are waiting"):
        give_much(worker)
    assert not worker.ended(0.01)
    assert time.perf_counter() - started < PATIENCE / 2
    receiver.go_on.set()


def give_much(worker: Worker) -> None:
    for _ in range(100):
        worker.send("note", "x" * 10_000)


def test_work_that_hangs_does_not_hold_up_the_end_of_the_process() -> None:
    code = "import threading; from optland.log.worker import Worker; Worker(threading.Event(), last='set').send('wait')"
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
    assert time.monotonic() - started < PATIENCE / 2
