"""Compare a run's configuration with that of its resumption, and refuse what must not differ.

A resumed run has to be the run that was started: every setting counts as part of its training, a new one too, unless it
is named here. ``epochs`` alone may also grow, where the configuration says that a run of its kind can be made longer
and the command line names it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optland.config import UserError
from optland.config.scripts import recipe_name

__all__ = ["NOT_OF_TRAINING", "Resumption", "training_changes"]

NOT_OF_TRAINING = ("checkpoint_every", "checkpoint_seconds", "device", "log", "out", "threads")
"""Settings, and sections, that say where and how a run is computed and written down, not what it computes. On another
device, or with another number of threads, a run goes on with the same steps, rounded as that device rounds."""

_LENGTH = "epochs"
_MOST_NAMED = 3
_MISSING = object()


@dataclass(frozen=True)
class Change:
    """A setting that has changed.

    Attributes:
        key: Full key, such as ``pilot.mode``.
        before: The value that the run was started with.
        now: The value it is resumed with. Of a setting that one side lacks, that side has a mark of its own, which is
            not None: null is a value.
    """

    key: str
    before: Any
    now: Any

    @property
    def of_training(self) -> bool:
        """Whether it is part of what makes the run the run that was started."""
        return self.key.partition(".")[0] not in NOT_OF_TRAINING

    def __str__(self) -> str:
        if self.now is _MISSING:
            return f"'{self.key}' is gone (was {_shown(self.before)})"
        before = "not there" if self.before is _MISSING else _shown(self.before)
        return f"'{self.key}: {_shown(self.now)}' (was {before})"


def training_changes(saved: str, text: str) -> list[Change]:
    r"""The training settings that differ between two resolved configurations, by key.

    Args:
        saved: The run's own ``config.yaml``.
        text: The configuration to compare it with, as YAML, resolved: a default that is left out counts as gone.

    Returns:
        The differences in the order of ``text``, those that are gone last. Values of different types differ: ``1`` is
        not ``1.0``.

    Example:
        >>> [str(c) for c in training_changes("seed: 0\nlog: {every: 1}", "seed: 1\nlog: {every: 5}")]
        ["'seed: 1' (was 0)"]
    """
    return [change for change in _changes(saved, text) if change.of_training]


class Resumption:
    """A run's own configuration against the one it is resumed with.

    Args:
        folder: The run folder.
        text: The resolved configuration of now.
        config: The same as an object; its ``can_grow`` says whether the run can be made longer.
        finished: Whether the run has come to its end.
        named: Settings that the command line names; None without a command line, as in a notebook.

    Raises:
        UserError: The training is another one.
    """

    def __init__(
        self, folder: Path, text: str, config: object, *, finished: bool, named: list[str] | None
    ) -> None:
        saved = (folder / "config.yaml").read_text(encoding="utf-8")
        self.folder, self.config = folder, config
        self.changes = _changes(saved, text)
        self.of_training = [change for change in self.changes if change.of_training]
        self.longer = next((change for change in self.of_training if change.key == _LENGTH), None)
        self.ended = False
        """Whether there is nothing left to do: a finished run asked for no more epochs than it has."""
        if (
            self.longer is not None
            and isinstance(self.longer.before, int)
            and isinstance(self.longer.now, int)
        ):
            self.of_training.remove(self.longer)
            self._check_length(self.longer, finished, named)
        if self.of_training:
            what = ", ".join(map(str, self.of_training[:_MOST_NAMED]))
            raise UserError(
                f"cannot resume {folder} with another configuration: {what}; start a new run instead"
            )

    def _check_length(self, longer: Change, finished: bool, named: list[str] | None) -> None:
        before, now = longer.before, longer.now
        if now < before and finished:
            self.ended, self.longer = True, None
        elif now < before:
            raise UserError(
                f"cannot resume {self.folder} with epochs={now}: it was started with {before}, and a run can be made "
                f"longer, not shorter; use epochs={before}"
            )
        elif not getattr(self.config, "can_grow", False):
            raise UserError(
                f"cannot resume {self.folder} with another configuration: {longer}, and what this recipe trains cannot "
                "be made longer; start a new run instead"
            )
        elif named is not None and _LENGTH not in named:
            raise UserError(
                f"cannot resume {self.folder} with another configuration: {longer}; to make the run longer, name it on "
                f"the command line: epochs={now} --resume"
            )

    def lines(self) -> Iterator[str]:
        """The changes, one per line."""
        for change in self.changes:
            if not change.of_training:
                yield f"resuming with {change}"
        if self.longer is None:
            return
        yield f"resuming with {self.longer}: the run is made longer"
        rate = _rate_follows(self.config)
        if rate:
            yield (
                f"the learning rate of {rate} follows the share of the run that is done: from here on it is that of a "
                f"run of {self.longer.now} epochs, above that of the shorter run"
            )


def named_on_the_command_line(recipe: str) -> list[str] | None:
    """Keys of the ``key=value`` items, where this process runs the recipe's script; None elsewhere.

    Args:
        recipe: The recipe's name: a script of another name is not its command line.

    Returns:
        The part before ``=`` of every item, in order; options do not count.
    """
    script, *arguments = sys.argv or [""]
    if not (script.endswith(".py") and recipe_name(script) == recipe):
        return None
    return [item.partition("=")[0].strip() for item in arguments if "=" in item]


def _rate_follows(config: object) -> str:
    if getattr(getattr(config, "pilot", None), "sets_the_rate", False):
        return "the pilot"
    schedule = getattr(config, "schedule", "none")
    return "" if schedule in ("none", "constant") else f"schedule {schedule}"


def _changes(saved: str, text: str) -> list[Change]:
    old, new = _flat(saved), _flat(text)
    keys = [*new, *(key for key in old if key not in new)]
    both = ((key, old.get(key, _MISSING), new.get(key, _MISSING)) for key in keys)
    return [Change(*entry) for entry in both if not _same(entry[1], entry[2])]


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)


def _flat(text: str) -> dict[str, Any]:
    """Values by full key; an empty section is a value."""
    import yaml

    def walk(tree: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            key = f"{above}{name}"
            if isinstance(value, Mapping) and value:
                yield from walk(value, f"{key}.")
            else:
                yield key, value

    content = yaml.safe_load(text)
    return dict(walk(content, "")) if isinstance(content, Mapping) else {}


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
