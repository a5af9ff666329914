"""Experiments that are no runs of the bank: pairs of nets, pruned nets, made landscapes; each is kept as one line."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optland.files import for_json
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.kept import Kept

__all__ = ["Trial", "Trials"]


@dataclass(frozen=True)
class Trial:
    """One experiment.

    Attributes:
        name: What it is.
        data: The data set, or what stands for one.
        seed: Its seed.
        dial: Sizes.
        make: ``make(trial)``, the experiment itself; it gives numbers and lists by name.
        uses: Names of the settings of the dial that decide its result.
        width: A width, of those that compare widths.
    """

    name: str
    data: str
    seed: int
    dial: Dial
    make: Callable[[Trial], Mapping[str, Any]]
    uses: tuple[str, ...] = ()
    width: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the result."""
        given = {"name": self.name, "data": self.data, "seed": self.seed, "width": self.width}
        return given | {name: getattr(self.dial, name) for name in self.uses}

    @property
    def key(self) -> str:
        """By which the result is found again.

        Only the settings of the dial in ``uses`` count, so that turning another one leaves the result where it is.
        """
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]


class Trials:
    """Results of trials in a file of JSON lines.

    Args:
        path: The file; one process at a time.
        watch: Told of every trial in a line of text.
    """

    def __init__(self, path: str | Path, watch: Callable[[str], None] | None = None) -> None:
        self.kept, self.watch = Kept(Path(path)), watch

    def find(self, trial: Trial) -> dict[str, Any] | None:
        """What a trial found; None where it was not made.

        Args:
            trial: What is looked for, by its key.

        Returns:
            What its ``make`` gave, with ``trial`` and ``seconds`` of the processor; null for what was not finite.
        """
        return self.kept.done.get(trial.key)

    def make(self, trial: Trial) -> None:
        """Make one, and keep it.

        Args:
            trial: What is made, whether it is there or not.
        """
        began = time.process_time()
        found = dict(trial.make(trial))
        seconds = round(time.process_time() - began, 3)
        self.kept.add({"key": trial.key, "trial": trial.settings, "seconds": seconds, **for_json(found)})
        if self.watch is not None:
            self.watch(f"{trial.name}, {trial.data}, seed {trial.seed}: {seconds:.1f} s")
