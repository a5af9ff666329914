"""The interface of loggers, and a group of several.

A logger takes *rows* (the scalars of one step, merged into one call), *events* (decisions, each with its
reason), images, tables, and a summary at the end. Training does not depend on any of them: a logger that
fails is switched off with one warning, and the run goes on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from optland.log.guest import Guest
from optland.log.vocabulary import Scalar


@runtime_checkable
class Logger(Protocol):
    """The interface of a logger.

    Rows and events carry their step under the key ``step``: the count of optimizer updates, our own axis.
    """

    def log(self, row: Mapping[str, Scalar]) -> None:
        """Write the scalars of one step, all of them in one call.

        Args:
            row: ``step``, then ``group/name`` keys of :mod:`optland.log.vocabulary`; ``samples`` and
                ``budget/ge`` where known, so that runs compare at equal data and equal cost.
        """
        ...

    def event(self, event: Mapping[str, object]) -> None:
        """Write one decision.

        Args:
            event: ``step``, ``policy``, ``actuator``, ``old``, ``new``, ``reason`` in words, ``taken`` (False
                in shadow mode), and ``signals``, the numbers that it was based on.
        """
        ...

    def image(self, name: str, path: Path) -> None:
        """Show an image file under a ``group/name`` key.

        Args:
            name: The key.
            path: The file, which is there already.
        """
        ...

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Show a table under a ``group/name`` key.

        Args:
            name: The key.
            columns: A name for each column.
            rows: Cells of each row, in the order of the columns.
        """
        ...

    def finish(self, summary: Mapping[str, object], exit_code: int = 0) -> None:
        """Write the ``summary/*`` values and close; ``exit_code`` other than 0 marks a failed run.

        Args:
            summary: Closing values by ``summary/`` key: verdict, action, best and last results, cost.
            exit_code: That of the process; 0 is a run that ended as it should.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs to go on in the same place."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the state was taken; call it before the first row."""
        ...


class NullLogger:
    """A logger that writes nothing."""

    def log(self, row: Mapping[str, Scalar]) -> None:
        """Ignore a row."""

    def event(self, event: Mapping[str, object]) -> None:
        """Ignore a decision."""

    def image(self, name: str, path: Path) -> None:
        """Ignore an image."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Ignore a table."""

    def finish(self, summary: Mapping[str, object], exit_code: int = 0) -> None:
        """Ignore the summary."""

    def state_dict(self) -> dict[str, Any]:
        """An empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Ignore a state."""


class LoggerGroup:
    """Several loggers as one; a failing member is switched off with one warning and never stops training.

    Args:
        loggers: The members, written to in this order.

    Example:
        >>> log = LoggerGroup([NullLogger()])
        >>> log.log({"step": 1, "train/loss": 0.5})
    """

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._members = _named(loggers)

    def only(self, *loggers: Logger | None) -> LoggerGroup:
        """A group of those of its members that still work.

        Args:
            loggers: The same objects, not equal ones; None is passed over.
        """
        kept = (member for member in self._members.values() if any(member is one for one in loggers))
        return LoggerGroup(list(kept))

    def log(self, row: Mapping[str, Scalar]) -> None:
        """Write a row to every member."""
        self._each(lambda _, member: member.log(row))

    def event(self, event: Mapping[str, object]) -> None:
        """Write a decision to every member."""
        self._each(lambda _, member: member.event(event))

    def image(self, name: str, path: Path) -> None:
        """Show an image in every member."""
        self._each(lambda _, member: member.image(name, path))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Show a table in every member."""
        self._each(lambda _, member: member.table(name, columns, rows))

    def finish(self, summary: Mapping[str, object], exit_code: int = 0) -> None:
        """Close every member."""
        self._each(lambda _, member: member.finish(summary, exit_code))

    def close(self) -> None:
        """Have those members that are guests of somebody's run write what they still hold; nothing is finished."""
        self._each(lambda _, member: member.close() if isinstance(member, Guest) else None)

    def state_dict(self) -> dict[str, Any]:
        """The states of the members that work, by class name.

        Returns:
            By ``WandbLogger``, ``WandbLogger-2`` ..., in the order of the members.
        """
        states: dict[str, Any] = {}

        def save(name: str, member: Logger) -> None:
            states[name] = member.state_dict()

        self._each(save)
        return states

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give each member its state; members that the state does not know start fresh."""
        self._each(lambda name, member: member.load_state_dict(state[name]) if name in state else None)

    def _each(self, call: Callable[[str, Logger], None]) -> None:
        for name, member in list(self._members.items()):
            try:
                call(name, member)
            # Any failure at all: a full disk, a lost server, a defect; none is a reason to stop training.
            except Exception as error:
                del self._members[name]
                message = f"{name} failed and is switched off; training goes on without it: {error!r}"
                warnings.warn(message, RuntimeWarning, stacklevel=3)


def _named(loggers: Sequence[Logger]) -> dict[str, Logger]:
    """Members by class name, numbered where a class appears twice, so that states find their owner again."""
    members: dict[str, Logger] = {}
    for logger in loggers:
        base = type(logger).__name__
        count = sum(name.split("-")[0] == base for name in members)
        members[f"{base}-{count + 1}" if count else base] = logger
    return members


def change_in_words(actuator: object, old: object, new: object, *, taken: bool) -> str:
    """The change of a decision in words: from what to what, or the act alone where there is no number.

    Args:
        actuator: What it is about.
        old: The value before, as a number or text; not a number where an act has none.
        new: The value after.
        taken: Whether it was carried out.

    Example:
        >>> change_in_words("batch_size", 64, 128, taken=False), change_in_words("skip", float("nan"), 1.0, taken=True)
        ('would set batch_size 64 -> 128', 'skip')
    """
    if str(old) in (str(new), "nan", "None"):
        return f"{actuator}" if taken or actuator == "alarm" else f"would {actuator}"
    return f"{'' if taken else 'would set '}{actuator} {old} -> {new}"
