"""SIGTERM and SIGINT end a run after a whole step, with a checkpoint and exit code 75; a second one acts at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from faults.runs import assert_same_end, final, run
from processes import exit_code, start
from tiers import slow
from torch.utils.data import TensorDataset

from optland.train.loops.dataset_loader import DatasetLoader
from optland.train.runs.checkpoint import Checkpoint
from optland.train.runs.interrupt import RESUMABLE, GracefulStop


def test_the_exit_code_is_the_one_of_sysexits() -> None:
    assert RESUMABLE == os.EX_TEMPFAIL == 75


def test_both_signals_in_mid_step_finish_it_save_and_leave_a_resume_that_ends_with_the_same_bits(
    whole: Path, tmp_path: Path
) -> None:
    """In the middle of step 21, which no interval saves; then, in the resumed run, of step 36."""
    for flags, name, steps in (([], "TERM", 21), (["--resume"], "INT", 36)):
        passes = 21 if name == "TERM" else 15
        ended = run(tmp_path, *flags, fail_at=f"optim.between_passes:{passes}:{name}")
        assert ended.code == RESUMABLE, ended.printed
        assert f"stopped by SIG{name} after a whole step; go on with --resume" in ended.printed
        assert "Traceback" not in ended.printed
        assert final(tmp_path)["step"] == steps
    ended = run(tmp_path, "--resume")
    assert ended.code == 0, ended.printed
    assert_same_end(whole, tmp_path, "SIGTERM, then SIGINT")


def _signalled_twice(number: signal.Signals) -> None:
    with GracefulStop() as stop:
        os.kill(os.getpid(), number)
        assert stop.requested
        os.kill(os.getpid(), number)
        time.sleep(60)


def test_a_second_sigterm_ends_the_process_at_once() -> None:
    assert exit_code(start(_signalled_twice, signal.SIGTERM)) == -signal.SIGTERM


def test_a_second_ctrl_c_is_a_keyboard_interrupt_and_the_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with GracefulStop() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert (stop.requested, stop.by) == (True, "SIGTERM")
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_without_a_signal_nothing_is_asked_and_the_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with GracefulStop() as stop:
        assert not stop.requested
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_in_another_thread_it_says_that_signals_do_not_reach_it_and_can_be_asked_by_hand() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def train() -> None:
        with pytest.warns(RuntimeWarning, match=r"signals reach the main thread only.*request\(\)"):
            stop = GracefulStop().__enter__()
        seen.append(signal.getsignal(signal.SIGTERM) is before)
        stop.request("the owner")
        try:
            stop.leave()
        except SystemExit as left:
            seen.append((stop.requested, stop.by, left.code))
        stop.__exit__(None, None, None)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [True, (True, "the owner", RESUMABLE)]


def _loop(printed: str) -> None:
    """A loop with workers, in a process group of its own, which is in its fifth step until the signal comes."""
    os.setsid()
    file = os.open(printed, os.O_WRONLY | os.O_CREAT)
    for standard in (1, 2):
        os.dup2(file, standard)
    loader = DatasetLoader(TensorDataset(torch.arange(4000)), 4, epochs=1, num_workers=2)
    checkpoint = Checkpoint(Path(printed).with_name("c.pt"), every=10_000, loader=loader)
    with GracefulStop() as stop:
        for step, _ in enumerate(loader, 1):
            os.write(1, f"{step}\n".encode())
            while step == 5 and not stop.requested:
                time.sleep(0.01)
            if stop.requested:
                time.sleep(0.2)  # in which a worker that dies of the signal is noticed, and breaks the step
                checkpoint.save(step)
                os.write(1, f"saved {step} {loader.samples_served}\n".encode())
                stop.leave()


@pytest.mark.parametrize("number", [signal.SIGINT, *slow(signal.SIGTERM)])
def test_a_signal_to_the_whole_process_group_leaves_the_loaders_workers_alive_until_the_save(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C in a terminal and cluster schedulers signal workers too; one that dies would break the step."""
    printed = tmp_path / "printed.txt"
    process = start(_loop, str(printed))
    while not (printed.exists() and printed.read_text().endswith("\n5\n")):
        assert process.is_alive(), printed.read_text()
        time.sleep(0.01)
    assert process.pid is not None
    os.killpg(process.pid, number)
    assert exit_code(process) == RESUMABLE, printed.read_text()
    said = f"stopped by {number.name} after a whole step; go on with --resume\n"
    assert printed.read_text() == f"1\n2\n3\n4\n5\nsaved 5 20\n{said}"
