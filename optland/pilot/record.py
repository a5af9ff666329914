"""The record of a run: decisions, the rows of the log, and the run in words."""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Iterable
from typing import Any

from optland.doctor import Finding
from optland.failpoints import reach
from optland.log import Logger, NullLogger
from optland.log.guest import Guest
from optland.log.logger import LoggerGroup
from optland.pilot.decision import Decision
from optland.pilot.notices import say_off
from optland.pilot.signal import Signal

__all__ = ["Record"]

KEPT = 10_000
"""Decisions kept; the log has them all."""


class Record:
    """Keeps decisions and writes them and rows to a logger; a logger that fails is off, and training goes on.

    Args:
        log: The logger; None writes nothing.
        every: Updates between two rows; one with a probe or a decision is always written.
        writes: Whether this process is the one of several that does. All of them make the rows: what a row says of the
            batch is said of that of all.

    Attributes:
        decisions: The last ten thousand.
    """

    def __init__(self, log: Logger | None, every: int, *, writes: bool = True) -> None:
        self.log: Logger = log if log is not None and writes else NullLogger()
        self._every = (
            0 if log is None or type(log) is NullLogger else every
        )  # a subclass may well write something
        self._gone = False  # whether the log has failed
        self.decisions: deque[Decision] = deque(maxlen=KEPT)
        self.fingerprint = 0.0
        """Of all decisions so far; equal on ranks that have decided the same."""
        self._unsaid: list[Decision] = []
        self._found: list[dict[str, object]] = []
        self._fresh: dict[str, float] = {}

    def decided(self, decision: Decision | None) -> None:
        """Take in a decision."""
        if decision is None:
            return
        if decision.actuator == "batch_size" and decision.taken:
            reach("pilot.batch_size")
        self.decisions.append(decision)
        what = (
            decision.step,
            decision.policy,
            decision.actuator,
            decision.new,
            decision.taken,
            self.fingerprint,
        )
        self.fingerprint = float(zlib.crc32(repr(what).encode()))
        self._unsaid.append(decision)

    def go_on(self, decisions: Iterable[dict[str, Any]], fingerprint: float) -> None:
        """Go on after these decisions."""
        self.decisions.clear()
        self.decisions.extend(Decision(**d) for d in decisions)
        self.fingerprint = fingerprint

    def found(self, step: int, findings: Iterable[Finding]) -> None:
        """Take in what the doctor finds; it decides nothing, and ranks need not find the same.

        Args:
            step: The update.
            findings: Each goes into the log as an alarm of ``doctor`` that was not taken.
        """
        for finding in findings:
            alarm = Decision(step, "doctor", "alarm", math.nan, math.nan, str(finding), False, {})
            self._found.append(alarm.to_dict())

    def measured(self, signals: Iterable[Signal]) -> None:
        """Take in what probes measured, for the row of this update."""
        for signal in signals:
            self._fresh |= dict(signal.row())

    @property
    def signs(self) -> list[float]:
        """What rank 0 tells the others: how often it writes a row, and the fingerprint."""
        return [0.0 if self._gone else float(self._every), self.fingerprint]

    def told(self, every: float, fingerprint: float) -> bool:
        """Take over how often rank 0 writes a row; returns whether it has decided as this one has.

        Args:
            every: Its updates between two rows; 0 for none at all.
            fingerprint: That of its decisions.
        """
        self._every = int(every)
        return fingerprint == self.fingerprint

    def is_due(self, step: int) -> bool:
        """Whether a row is to be made; that waits for the device, and for the other ranks."""
        return bool(self._every and (self._fresh or self._unsaid or step % self._every == 0))

    def write(self, step: int, row: dict[str, float] | None) -> None:
        """Write what was decided, and the row.

        Args:
            step: The update.
            row: What :func:`~optland.pilot.report.row_of` gave; None writes decisions alone. NaN is left out of the
                log, and ``curv/eta_lambda``, the applied rate times the largest eigenvalue, is added where that was
                measured.
        """
        said, self._unsaid = self._unsaid, []
        found, self._found = self._found, []
        fresh, self._fresh = self._fresh, {}
        try:
            for event in found:
                self.log.event(event)
            for decision in said:
                self.log.event(decision.to_dict())
            if row is not None:
                row |= fresh
                if "curv/lambda_max" in row:
                    row["curv/eta_lambda"] = row["lr/applied"] * row["curv/lambda_max"]
                self.log.log({key: value for key, value in row.items() if not _is_nan(value)})
        except Exception as error:
            self.log = NullLogger()
            self._gone = True
            say_off("the log", step, f"{type(error).__name__}: {error}")

    def close(self) -> None:
        """Write what a logger in somebody else's run still holds; other loggers are finished by whoever made them."""
        if isinstance(self.log, (Guest, LoggerGroup)):
            self.log.close()

    def last(self) -> str:
        """The last decision in words."""
        if not self.decisions:
            return "none"
        last = self.decisions[-1]
        done = "" if last.taken or last.actuator == "alarm" else " (not taken)"
        return f"update {last.step}, {last.policy}, {last.actuator}{done}: {last.reason}"


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
