"""A logger in a run that is somebody else's: the part that every kind of run shares.

A guest starts, finishes and renames nothing, and it never raises: a run that does not take its rows any more costs one
warning, after which it writes nothing and training goes on.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optland.log.decisions import EVENT_COLUMNS, EVENTS, Alert, event_alert, event_row, loss_alert
from optland.log.vocabulary import STEP, Scalar

__all__ = ["Guest", "numbers"]

Row = dict[str, Any]


class Guest:
    """A :class:`~optland.log.Logger` that writes into a run it does not own.

    A subclass says how one row is written; :func:`optland.log.into` picks it.

    Args:
        whose: The run in words, for warnings.
        prefix: What is put before every key.
        alerts: Whether a rewind, a finding of the doctor's and a loss that is not finite are alerts too.

    Raises:
        TypeError: The prefix is no text.
    """

    def __init__(self, whose: str, prefix: str, *, alerts: bool = False) -> None:
        if not isinstance(prefix, str):
            raise TypeError(
                f"prefix is put before every key, so it is a string such as 'optland/'; got {prefix!r}"
            )
        self._whose, self._prefix, self._alerts = whose, prefix, alerts
        self._events: list[list[object]] = []
        self._told = 0  # decisions in the last table
        self._step = 0
        self._owner = os.getpid()
        self._off = self._leaving = False
        self._lost = False  # the loss was not finite

    # ------------------------------------------------------------------ what a subclass writes

    def write(self, row: Row, step: int) -> None:
        """Write one row, whose keys have their prefix.

        Args:
            row: Numbers, texts and truths by key.
            step: The update, for runs that want it beside the row.
        """
        raise NotImplementedError

    def write_image(self, name: str, path: Path) -> None:
        """Show an image under a name with its prefix; a run that cannot show one leaves it out."""

    def write_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Show a table under a name with its prefix; a run that cannot show one leaves it out."""

    def write_alert(self, title: str, text: str, level: str) -> None:
        """Send an alert of the level ``WARN`` or ``ERROR``; a run that has none leaves it out."""

    def write_summary(self, summary: Row, step: int) -> None:
        """Write the outcome, whose keys have their prefix: a row like any other, where a run has no place for it."""
        self.write(summary, step)

    def flush(self) -> None:
        """Write what still waits."""

    # ------------------------------------------------------------------ the interface of loggers

    def log(self, row: Mapping[str, Scalar]) -> None:
        """Write the scalars of one step.

        Args:
            row: As :meth:`optland.log.Logger.log` has it; without ``step`` it counts as of the step before.
        """
        self._step = int(row.get(STEP, self._step))
        self._safely(lambda: self.write(self._prefixed(row), self._step))
        alert = loss_alert(row, self._step)
        if alert is not None and not self._lost:
            self._lost = True
            self._alert(alert)

    def event(self, event: Mapping[str, object]) -> None:
        """Keep a decision for the table that :meth:`close` writes."""
        self._step = int(str(event.get(STEP, self._step)))
        self._events.append(event_row(event))
        self._alert(event_alert(event, self._step))

    def image(self, name: str, path: Path) -> None:
        """Show an image file, where the run can."""
        self._safely(lambda: self.write_image(f"{self._prefix}{name}", Path(path)))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Show a table, where the run can."""
        self._safely(lambda: self.write_table(f"{self._prefix}{name}", columns, rows))

    def close(self) -> None:
        """Write the table of decisions and what still waits; the run itself goes on."""
        if len(self._events) > self._told:
            self._told = len(self._events)
            self.table(EVENTS, EVENT_COLUMNS, self._events)
        self._safely(self.flush)
        atexit.unregister(self.close)
        self._leaving = False

    def finish(self, summary: Mapping[str, object], exit_code: int = 0) -> None:
        """Write the outcome and close; whoever owns the run finishes it, and says how it ended."""
        if summary:
            self._safely(lambda: self.write_summary(self._prefixed(summary), self._step))
        self.close()

    def state_dict(self) -> dict[str, Any]:
        """The decisions so far."""
        return {"events": [list(event) for event in self._events]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the decisions of the run before.

        Args:
            state: From :meth:`state_dict`; the table of :meth:`close` has these decisions too.
        """
        self._events = [list(event) for event in state["events"]]

    def _prefixed(self, row: Mapping[str, object]) -> Row:
        return {f"{self._prefix}{key}": value for key, value in row.items()}

    def _alert(self, alert: Alert | None) -> None:
        """Send it where alerts are asked for; without one the end of the run is seen to all the same."""
        self._safely(lambda: self.write_alert(*alert) if self._alerts and alert is not None else None)

    def _safely(self, write: Callable[[], object]) -> None:
        """Write, unless the run has failed before or belongs to the process that this one was forked from."""
        if self._off or os.getpid() != self._owner:
            return
        if not self._leaving:
            # A script that ends without closing anything; run before the hooks of whoever was there first.
            self._leaving = True
            atexit.register(self.close)
        try:
            write()
        # Any failure at all: a finished run, a dead service, a defect; none is a reason to stop training.
        except Exception as error:
            self._off = True
            message = (
                f"{self._whose} takes no more rows of optland's, and training goes on without them: {error!r}"
            )
            warnings.warn(message, RuntimeWarning, stacklevel=4)


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """What of a row is a number; truth counts as 1 and 0.

    Args:
        row: Values by key.

    Example:
        >>> numbers({"edge/ratio": 0.5, "edge/resolved": True, "summary/advice": "none"})
        {'edge/ratio': 0.5, 'edge/resolved': 1.0}
    """
    return {key: float(value) for key, value in row.items() if isinstance(value, (bool, int, float))}
