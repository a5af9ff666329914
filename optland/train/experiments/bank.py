"""A bank of runs: each net is trained once, measured for everything in the same process, and kept as one line of JSON.

**A run** is a :class:`~optland.train.experiments.bank_run.BankRun`: data, net, optimizer and method, seed, rates, and a
budget in gradient evaluations. Its ``key`` is made of all that is not at its default.

**A measure** is a plain function ``measure(model, splits) -> {name: number}`` (numbers, or lists of them). It may do
to the model what it likes: weights, buffers, modes and random state are put back after it, and the global generators
are seeded with the run's seed before it. Measures come in a dict by name; those of ``start`` are taken of the fresh
net.

**A watcher** looks on from inside a run, on the net after each step, and disturbs nothing: see :class:`Watcher`.

**A line** is ``{"key", "run", "dead", "facts", "start", "along", "end", "averages", "seconds"}``: what decided the
run, whether it died, what it took, and by name of the measure what was found on the fresh net, along the run, on the
last weights and on each average of the weights. Numbers that are not finite are null. A run whose loss is not finite
is given up, kept with ``dead`` true, and not measured. Seconds are those of the processor.

::

    bank = Bank("bank.jsonl", {"test": score("test"), "edge": lambda_max}, also=["other.jsonl"])
    sam = OptimizerConfig("sam", lr=0.1, rho=0.05)
    runs = [BankRun(budget=100_000, seed=seed, optimizer=sam) for seed in range(3)]
    if bank.make(runs, minutes=30):            # True once all of them are there
        bank.of(runs[0])["end"]["test"]["acc"]

**Resuming.** ``make`` trains what is missing and starts no run after ``minutes``; killed at any moment it loses the run
in progress alone. **Several processes** each append to a file of their own and read the others' with ``also``. A run
that is there but lacks a measure which is asked for now is trained once more, with all of them.

**Cost.** That of training, and of the measures; it is counted in ``facts["ge"]`` without the measures.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from optland.context.modules import preserve_modes
from optland.context.rng import preserve_rng
from optland.files import for_json
from optland.train.experiments.bank_run import BankRun, Splits, load_splits
from optland.train.experiments.bank_training import MakeOptimizer, train_run
from optland.train.experiments.kept import Kept, kept_lines
from optland.train.loops.evaluate import evaluate
from optland.train.loops.seeding import seed_everything

__all__ = ["Bank", "MakeWatcher", "Measure", "Watcher", "score"]

Measure = Callable[[nn.Module, Splits], Mapping[str, Any]]
"""``measure(model, splits)``: numbers by name, or lists of numbers."""


class Watcher(Protocol):
    """What looks on from inside one run. Random state and modes are put back after every look."""

    def after_step(self, model: nn.Module, step: int) -> None:
        """Look at the net, which still has the gradient of this step; weights and buffers must be left as they are.

        Args:
            model: The net after the step, in whatever mode.
            step: Steps so far, this one included.
        """

    def found(self) -> Mapping[str, Any]:
        """What was seen so far: also of a run that died.

        Returns:
            Numbers, lists and mappings of them by name, as :class:`Bank` writes them under ``along``.
        """


MakeWatcher = Callable[[BankRun, Splits], Watcher]
"""``make(run, splits)``: a fresh watcher for that run."""


class Bank:
    """Finished runs by key, and what makes more of them.

    Args:
        path: The file that new lines are appended to; one process at a time.
        measures: Taken of the trained net, and of its averages, by name.
        start: Taken of the fresh net.
        along: What looks on from inside the runs, by name.
        methods: Optimizers of the caller's own, by the names that ``BankRun.method`` takes.
        also: Files of other processes, which are read again before every run.
        watch: Told of every run that is kept, in a line of text.

    Example:
        >>> import tempfile
        >>> run = BankRun(budget=640)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     bank = Bank(Path(folder) / "bank.jsonl", {"val": score("val")})
        ...     bank.make([run]), sorted(bank.of(run)["end"]["val"]), bank.of(run)["facts"]["steps"]
        (True, ['acc', 'loss'], 10)
    """

    def __init__(
        self,
        path: str | Path,
        measures: Mapping[str, Measure],
        *,
        start: Mapping[str, Measure] | None = None,
        along: Mapping[str, MakeWatcher] | None = None,
        methods: Mapping[str, MakeOptimizer] | None = None,
        also: Sequence[str | Path] = (),
        watch: Callable[[str], None] | None = None,
    ) -> None:
        self.kept = Kept(Path(path))
        self.measures, self.start, self.along = dict(measures), dict(start or {}), dict(along or {})
        self.methods, self.watch = dict(methods or {}), watch
        self.others = [Path(other) for other in also if Path(other).resolve() != self.kept.path.resolve()]
        self._read: dict[Path, tuple[int, dict[str, dict[str, Any]]]] = {}

    def find(self, run: BankRun) -> dict[str, Any] | None:
        """The line of a run that has all measures; None where there is none.

        Args:
            run: What is looked for, by its key.

        Returns:
            The line, as the module says; that of a run that died counts as whole. Of two files this process's own comes
            first.
        """
        for found in (self.kept.done.get(run.key), self._elsewhere(run.key)):
            if found is not None and (found["dead"] or self._is_whole(found)):
                return found
        return None

    def of(self, run: BankRun) -> dict[str, Any]:
        """The line of a run.

        Args:
            run: What is looked for.

        Returns:
            The line, as the module says.

        Raises:
            KeyError: It is not there yet.
        """
        if (found := self.find(run)) is None:
            raise KeyError(f"the bank has no finished run of: {run.describe()}; make() it first")
        return found

    def missing(self, runs: Iterable[BankRun]) -> list[BankRun]:
        """Those that are not there, each once.

        Args:
            runs: The runs that shall be there.

        Returns:
            In the order given.
        """
        return list({run.key: run for run in runs if self.find(run) is None}.values())

    def make(self, runs: Iterable[BankRun], minutes: float = math.inf) -> bool:
        """Train what is missing, in the order given.

        Args:
            runs: The runs that shall be there.
            minutes: After these no run is started.

        Returns:
            Whether all of them are there.

        Raises:
            ValueError: A run whose ``method`` is not in the table, or that did not cost what it declares.
        """
        end = time.monotonic() + 60.0 * minutes
        waiting = self.missing(runs)
        for k, run in enumerate(waiting):
            if time.monotonic() >= end:
                return False
            if self.find(run) is not None:  # another process was quicker
                continue
            found = self._train(run)
            self.kept.add(found)
            if self.watch is not None:
                how = "dead" if found["dead"] else f"loss {found['facts']['train_loss']:.3f}"
                self.watch(f"{k + 1}/{len(waiting)} {run.describe()}: {how}, {found['seconds']:.1f} s")
        return True

    def _elsewhere(self, key: str) -> dict[str, Any] | None:
        """The last line of that key in the files of other processes; one is read again when it has grown."""
        for path in self.others:
            size = path.stat().st_size if path.exists() else 0
            if path not in self._read or self._read[path][0] != size:
                self._read[path] = size, {str(line["key"]): line for line in kept_lines(path)}
        found = [lines[key] for _, lines in self._read.values() if key in lines]
        return found[-1] if found else None

    def _is_whole(self, found: Mapping[str, Any]) -> bool:
        return (
            set(self.measures) <= set(found["end"])
            and set(self.start) <= set(found["start"])
            and set(self.along) <= set(found.get("along", {}))  # lines without watchers had none to tell of
        )

    def _train(self, run: BankRun) -> dict[str, Any]:
        began = time.process_time()
        splits = load_splits(run)
        fresh: dict[str, Any] = {}
        end: dict[str, Any] = {}
        averages: dict[str, Any] = {}

        def at_start(model: nn.Module) -> None:
            fresh.update(_measured(self.start, model, splits, run.seed))

        watchers = {name: make(run, splits) for name, make in self.along.items()}

        def after_step(model: nn.Module, step: int) -> None:
            for watcher in watchers.values():
                with preserve_rng(), preserve_modes(model):
                    watcher.after_step(model, step)

        trained = train_run(run, splits, self.methods, at_start, after_step if watchers else None)
        trained_for = time.process_time() - began
        if not trained.dead:
            end = _measured(self.measures, trained.model, splits, run.seed)
            averages = {
                f"{decay:g}": _measured(self.measures, model, splits, run.seed)
                for decay, model in trained.averages.items()
            }
        seconds = {"train_seconds": round(trained_for, 3), "seconds": round(time.process_time() - began, 3)}
        line = {"key": run.key, "run": run.given(), "dead": trained.dead, "facts": trained.facts}
        along = {name: dict(watcher.found()) for name, watcher in watchers.items()}
        found = {**line, "start": fresh, "along": along, "end": end, "averages": averages, **seconds}
        return dict(for_json(found, digits=7))  # no more than a float32 has


def _measured(measures: Mapping[str, Measure], model: nn.Module, splits: Splits, seed: int) -> dict[str, Any]:
    """Every measure on the model as it is, which it is again after each."""
    kept = copy.deepcopy(model.state_dict())
    found = {}
    for name, measure in measures.items():
        with preserve_rng(), preserve_modes(model):
            seed_everything(seed)
            model.eval()
            found[name] = dict(measure(model, splits))
        model.load_state_dict(kept)
        model.zero_grad(set_to_none=True)
    return found


def score(split: str, num: int | None = None) -> Measure:
    """The measure of loss and accuracy (in per cent) on the first ``num`` samples of a split (all by default).

    Of a text they are those of a token.

    Args:
        split: ``train``, ``val`` or ``test``.
        num: Samples from the split's beginning; None for all.

    Returns:
        A measure of ``loss``, the mean cross-entropy in nats, and ``acc``, in evaluation mode.
    """

    def measure(model: nn.Module, splits: Splits) -> dict[str, float]:
        x, y = getattr(splits, split)
        return evaluate(model, x[:num], y[:num], batch_size=256)

    return measure
