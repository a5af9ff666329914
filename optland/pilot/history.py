"""The history that policies read: the last value of each signal with error and age, and the present settings.

Each policy has a reader of its own, so that it gets each signal once, whatever became of the update between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from optland.pilot.signal import Signal

__all__ = ["History", "Reader"]


class History:
    """The last measurement under each name; as many entries as there are names, however long the run.

    Args:
        setting: Reads a present setting of the host: ``lr``, ``shape``, ``lr_factor``, ``batch_size``, ``rho`` ...

    Attributes:
        step: Updates made.
        progress: Share of the run that is done; None when its length is unknown.

    Example:
        >>> history = History()
        >>> history.put([Signal("train/loss", 2.3, step=4)])
        >>> history.step = 5
        >>> reader = history.reader()
        >>> reader.new("train/loss").value, reader.age("train/loss"), reader.new("train/loss")
        (2.3, 1, None)
    """

    def __init__(self, setting: Callable[[str], float | None] | None = None) -> None:
        self.step = 0
        self.progress: float | None = None
        self.setting = setting or (lambda name: None)
        self._last: dict[str, tuple[int, Signal]] = {}
        self._count = 0

    def put(self, signals: Iterable[Signal]) -> None:
        """Take in measurements.

        Args:
            signals: In the order in which they were measured; of one name the last one stays.
        """
        for signal in signals:
            self._count += 1
            self._last[signal.name] = (self._count, signal)

    def last(self, name: str) -> Signal | None:
        """The newest measurement, valid or not; None before the first."""
        found = self._last.get(name)
        return None if found is None else found[1]

    def reader(self) -> Reader:
        """A view for one policy."""
        return Reader(self)

    def forget(self, names: Iterable[str]) -> None:
        """Let go of measurements that say nothing of the present weights.

        Args:
            names: Names of signals; those that are not there are no error.
        """
        for name in names:
            self._last.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""
        last = {name: [count, asdict(signal)] for name, (count, signal) in self._last.items()}
        return {"count": self._count, "last": last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self._count = state["count"]
        self._last = {name: (count, Signal(**kept)) for name, (count, kept) in state["last"].items()}


class Reader:
    """The history as one policy sees it.

    Args:
        history: Shared with the other policies; only what was seen is this reader's own.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self._seen: dict[str, int] = {}

    @property
    def step(self) -> int:
        """Updates made, the present one included once it is."""
        return self._history.step

    @property
    def progress(self) -> float | None:
        """Share of the run that is done; None when its length is unknown."""
        return self._history.progress

    def setting(self, name: str) -> float | None:
        """A present setting, such as ``lr``, ``shape``, ``lr_factor`` or ``batch_size``; None where it is unset.

        Args:
            name: As :meth:`~optland.pilot.host.Host.read` has it.
        """
        return self._history.setting(name)

    def last(self, name: str) -> Signal | None:
        """The newest measurement, whether it was seen before or not; None before the first."""
        return self._history.last(name)

    def new(self, name: str) -> Signal | None:
        """The newest measurement where this policy has not been given it yet; else None."""
        found = self._history._last.get(name)
        if found is None or found[0] <= self._seen.get(name, 0):
            return None
        self._seen[name] = found[0]
        return found[1]

    def age(self, name: str) -> int | None:
        """Updates since the newest measurement; None before the first."""
        signal = self._history.last(name)
        return None if signal is None else signal.age(self._history.step)

    def state_dict(self) -> dict[str, int]:
        """The updates whose signals have been seen, for the checkpoint."""
        return dict(self._seen)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self._seen = dict(state)
