"""Rows of ours in a wandb run that the user owns.

wandb numbers its rows with a counter that only grows, and drops a row that comes with a smaller ``step=``. Who logs
with ``step=epoch`` would lose every row if one of ours had moved that counter, so ours do not: they are given to wandb
with ``commit=False`` and go out with the next row of the user's. Between two of theirs only the latest value of each
key is kept. ``run.step`` tells whether the user logs at all. Until then rows wait here; at the end those of a run whose
user has logged nothing are written one by one.

``run.step`` asks wandb's service, which takes a millisecond, and half a minute where the service hangs: it is asked in
a thread that is waited for no longer than five seconds, and no more once the user is known to log.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from optland.log.guest import Guest, Row
from optland.log.vocabulary import STEP, is_chart

__all__ = ["WandbGuest"]

MOST_WAITING = 2000
"""Rows that wait; with more, neighbours are merged, so that the whole run stays there at half the resolution."""


PATIENCE = 5.0
"""Seconds for wandb's service to say at which step it is."""


class WandbGuest(Guest):
    """Writes into a wandb run.

    Args:
        find: Gives the run; called at the first row.
        prefix: What is put before every key.
        commit: None: as the module says. True: every row at once, as one of its own. False: only ever with theirs.
        alerts: Whether a rewind and a loss that is not finite are alerts too.
    """

    def __init__(self, find: Callable[[], Any], *, prefix: str, commit: bool | None, alerts: bool) -> None:
        super().__init__("the wandb run", prefix, alerts=alerts)
        self._find, self._commit = find, commit
        self._run: Any = None
        self._seen = 0  # wandb's counter when nobody but us had moved it
        self._theirs = commit is False  # whether the user has logged
        self._waiting: list[Row] = []
        self._defined: set[str] = set()

    def write(self, row: Row, step: int) -> None:
        """Write one row, now or with the user's next."""
        run = self._begin()
        self._define(run, row)
        if self._commit:
            run.log(row, commit=True)
            return
        self._theirs = self._theirs or _step(run) != self._seen
        self._waiting.append(row)
        if self._theirs:
            run.log(_merged(self._waiting), commit=False)
            self._waiting.clear()
        elif len(self._waiting) > MOST_WAITING:
            pairs = (self._waiting[i : i + 2] for i in range(0, len(self._waiting), 2))
            self._waiting = [_merged(pair) for pair in pairs]

    def flush(self) -> None:
        """Write what waits: with theirs where the user has logged by now, else row by row.

        Raises:
            RuntimeError: The run has been finished before.
        """
        if not self._waiting:
            return
        run, rows = self._run, self._waiting
        self._waiting = []
        try:
            run.define_metric(
                f"{self._prefix}{STEP}", hidden=True
            )  # refused at once by a run that is finished
            if self._theirs or _step(run) != self._seen:
                run.log(_merged(rows), commit=False)
                return
            for row in rows:
                run.log(row, commit=True)
            self._seen = _step(run)
        except Exception as error:
            raise RuntimeError(
                f"{len(rows)} rows that waited for a row of yours are lost ({error}); close the pilot before the run "
                "is finished, or give it optland.log.into(run, commit=True)"
            ) from error

    def write_image(self, name: str, path: Path) -> None:
        """Show an image."""
        import wandb

        self.write({f"{self._prefix}{STEP}": self._step, name: wandb.Image(str(path))}, self._step)

    def write_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Show a table."""
        import wandb

        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
        self.write({f"{self._prefix}{STEP}": self._step, name: table}, self._step)

    def write_alert(self, title: str, text: str, level: str) -> None:
        """Send an alert."""
        self._begin().alert(title=title, text=text, level=level)

    def write_summary(self, summary: Row, step: int) -> None:
        """Write the outcome into the run's summary."""
        self._begin().summary.update(summary)

    def _begin(self) -> Any:
        """The user's run, asked for at the first row: a logger of Lightning's makes it when it is asked."""
        if self._run is None:
            run = self._find()
            if run.settings.mode == "shared":  # where several processes write, each row stands for itself
                self._commit = True
            if self._commit is None:
                self._seen = _step(run)
            self._run = run
        return self._run

    def _define(self, run: Any, row: Row) -> None:
        """Give every new key our own axis, and a chart only where it is worth one."""
        axis = f"{self._prefix}{STEP}"
        if not self._defined:
            run.define_metric(axis, hidden=True)
            if self._prefix:
                run.define_metric(f"{self._prefix}*", step_metric=axis)
        for key in row.keys() - self._defined - {axis}:
            # By its own name: of several patterns that fit, such as a trainer's "*", wandb would take any.
            run.define_metric(key, step_metric=axis, hidden=not is_chart(key.removeprefix(self._prefix)))
        self._defined |= row.keys()


def _step(run: Any) -> int:
    """Wandb's own step.

    Raises:
        TimeoutError: wandb's service does not answer.
    """
    answers: list[int] = []
    failures: list[Exception] = []

    def ask() -> None:
        try:
            answers.append(run.step)
        except Exception as error:  # for the thread that waits
            failures.append(error)

    asking = threading.Thread(target=ask, name="step of wandb", daemon=True)
    asking.start()
    asking.join(PATIENCE)
    if failures:
        raise failures[0]
    if not answers:
        raise TimeoutError(f"wandb's service has not answered for {PATIENCE:g} s")
    return answers[0]


def _merged(rows: Sequence[Row]) -> Row:
    """One row with the latest value of each key."""
    merged: Row = {}
    for row in rows:
        merged |= row
    return merged
