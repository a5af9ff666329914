"""A claim, and what decides it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optland.train.experiments.bank import Bank
from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.measures import LOOKS, Look
from optland.train.experiments.claims.trials import Trial, Trials
from optland.train.experiments.claims.verdicts import Band

__all__ = ["Claim", "Evidence", "Found"]


@dataclass(frozen=True)
class Found:
    """What the experiment of a claim gave.

    Attributes:
        values: The effect for each seed, by data set; NaN where a seed cannot tell, and ``note`` says why.
        beside: Means of what the effect has to be read with: its parts, and what else differs between the cells.
        series: Points for the figure by name, (x, y).
        axes: Names of x and y.
        note: One sentence where something needs saying.
    """

    values: Mapping[str, Sequence[float]]
    beside: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    axes: tuple[str, str] = ("", "")
    note: str = ""


class Evidence:
    """What has been measured so far: banks of runs, by how closely they were looked at, and the trials beside them.

    Args:
        banks: Runs by the look that they were measured with; a closer look has all that the others have.
        trials: The experiments that are no runs.
    """

    def __init__(self, banks: Mapping[Look, Bank], trials: Trials) -> None:
        self.banks, self.trials = banks, trials

    def line(self, run: BankRun) -> Mapping[str, Any]:
        """The line of a run, the one that says most; empty where it is not there yet.

        Args:
            run: What is looked for.

        Returns:
            The line as :class:`~optland.train.experiments.bank.Bank` keeps it, of the closest look that there is.
        """
        lines = (self.banks[look].find(run) for look in LOOKS[::-1] if look in self.banks)
        return next((line for line in lines if line is not None), {})

    def number(self, run: BankRun, *path: str) -> float:
        """A number of a run's line, such as ``"start", "point", "lambda_max"``; NaN where there is none.

        Args:
            run: What is looked for.
            path: Names in the line from the outside in.
        """
        return _number(self.line(run), path)

    def watched(self, run: BankRun, *path: str) -> float:
        """A number that :class:`~optland.train.experiments.claims.watch.Watch` took while the run was trained.

        Args:
            run: What is looked for.
            path: Names in what it found, such as ``"early", "lambda_max"``.
        """
        return self.number(run, "along", "watch", *path)

    def at_level(self, run: BankRun, name: str) -> float:
        """What was measured when the run's training loss reached the level of the dial.

        Args:
            run: What is looked for.
            name: A name of :func:`~optland.train.experiments.claims.measures.at_level`, or ``epochs``.

        Returns:
            NaN also for a run that never came to the level: what is compared at equal loss has no value there.
        """
        return self.watched(run, "level", name)

    def at_end(self, run: BankRun, name: str) -> float:
        """What was measured at the end of training.

        Args:
            run: What is looked for.
            name: A name of :func:`~optland.train.experiments.claims.measures.at_end`.

        Returns:
            NaN where there is none, as of a run that died.
        """
        return self.number(run, "end", "point", name)

    def trial(self, trial: Trial, name: str) -> float:
        """A number of a trial; NaN where it is not there yet.

        Args:
            trial: What is looked for.
            name: A name of what its ``make`` gives.
        """
        return _number(self.trials.find(trial) or {}, (name,))

    def listed(self, trial: Trial, name: str) -> list[Any]:
        """A list of a trial, NaN for what was not finite; empty where it is not there yet.

        Args:
            trial: What is looked for.
            name: A name of what its ``make`` gives.
        """
        return [math.nan if v is None else v for v in (self.trials.find(trial) or {}).get(name, [])]


@dataclass(frozen=True)
class Claim:
    """One row of the table.

    Attributes:
        name: Its short name.
        text: What is claimed, in one line.
        source: Where it is claimed.
        measured: What the effect is, in words.
        band: What is predicted of it, and what it would be if nothing were true of it.
        effect: From the evidence to the effect.
        runs: The runs that it rests on.
        trials: The experiments that are no runs of the bank.
        look: How closely its runs have to be looked at.
        published: Where a published experiment is repeated, what was found there; else empty.
    """

    name: str
    text: str
    source: str
    measured: str
    band: Band
    effect: Callable[[Evidence, Dial], Found]
    runs: Callable[[Dial], list[BankRun]] = lambda dial: []
    trials: Callable[[Dial], list[Trial]] = lambda dial: []
    look: Look = "all"
    published: str = ""


def _number(found: Any, path: Sequence[str]) -> float:
    for name in path:
        if not isinstance(found, Mapping) or found.get(name) is None:
            return math.nan
        found = found[name]
    return float(found)
