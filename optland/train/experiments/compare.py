"""Compare a method with its tuned base: the runs that this takes, the choices made, and the table.

1. The base alone, at every learning rate of a list, on the tuning seeds; the best by clean validation is kept.
2. The method over that base at that rate, at every radius of a list, on the same seeds, chosen by the same rule.
3. Both as chosen, on fresh seeds: equal epochs.
4. The base once more, tuned anew, with as many epochs as make its gradient evaluations no fewer than the method's:
   equal cost.

The score of a setting is the mean validation accuracy of the epoch at which early stopping would have ended; validation
labels are always clean. Every run has a folder of its own inside that of the comparison, so what is finished is not
run again. Wall times are those of this machine, and of one run after another.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

from optland import processes
from optland.config import UserError
from optland.files import write_whole
from optland.train.experiments.comparison_table import BEST, LAST, SCORE, ComparisonTable, Side, summary_of
from optland.train.experiments.seed_differences import best_setting
from optland.train.runs.run import RunFolder
from optland.train.runs.settings import OptimizerConfig, ValidatedRunConfig

__all__ = ["CompareConfig", "ComparedRunConfig", "Comparison"]

_TIMES_THE_DEFAULT = (1, 2, 4)


@dataclass(frozen=True)
class CompareConfig:
    """Settings of a comparison: what is tuned, on how many seeds, and what is equal on both sides.

    Attributes:
        lrs: Learning rates of the base; the method takes the best.
        rhos: Radii of the method. Null takes ``optimizer.rho`` where that is given, else 1, 2 and 4 times the method's
            own default; a method without a radius has nothing to be tuned.
        tune_seeds: Seeds that settings are chosen on, from the config's seed on.
        seeds: Fresh seeds after those, which are reported.
        equal: ``epochs``, ``ge`` (gradient evaluations), or both.

    Raises:
        ValueError: An empty list, a value twice, or one that cannot be.
    """

    lrs: list[float] = field(default_factory=lambda: [0.02, 0.05, 0.1, 0.2])
    rhos: list[float] | None = None
    tune_seeds: int = 1
    seeds: int = 3
    equal: list[Literal["epochs", "ge"]] = field(default_factory=lambda: ["epochs", "ge"])

    def __post_init__(self) -> None:
        for key in ("tune_seeds", "seeds"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}: {getattr(self, key)} must be at least 1")
        if not self.lrs:
            raise ValueError(
                "lrs: the list is empty; give at least one learning rate, for example [0.05, 0.1]"
            )
        if self.rhos == []:
            raise ValueError("rhos: the list is empty; use null for the radii that suit the method")
        if not self.equal:
            raise ValueError("equal: the list is empty; use [epochs], [ge] or [epochs, ge]")
        for key in ("lrs", "rhos", "equal"):
            values = getattr(self, key) or []
            if len(set(values)) < len(values):
                raise ValueError(f"{key}: {values} names one twice; leave the second out")
        for key, values in (("lrs", self.lrs), ("rhos", self.rhos or [])):
            if any(not value > 0 for value in values):
                raise ValueError(f"{key}: {values} must all be above 0, for example 0.1")


@dataclass(frozen=True)
class ComparedRunConfig(ValidatedRunConfig):
    """A run, or with ``compare`` a method against its tuned base.

    Attributes:
        compare: What is tuned and compared; null trains the one run that the other keys say.

    Raises:
        ValueError: As :class:`ValidatedRunConfig`; a pilot that steers, early stopping, a base alone, or radii for a
            method without one, in a comparison.
    """

    compare: CompareConfig | None = field(default_factory=CompareConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pilot.mode not in ("off", "monitor"):
            raise ValueError(
                f"pilot.mode: {self.pilot.mode} would set what is compared here; use off, or monitor to probe"
            )
        if self.compare is None:
            return
        if self.patience:
            raise ValueError(
                f"patience: {self.patience} would end some of the compared runs earlier than others, which are to have "
                "equal epochs or equal cost; use null, or compare: null for a single run"
            )
        name = self.optimizer.name
        if not self.optimizer.is_method:
            raise ValueError(
                f"optimizer.name: {name} is a base alone and there is nothing to compare it with; name a method, or "
                "use compare: null for a single run"
            )
        if self.compare.rhos is not None and self.optimizer.own_rho is None:
            raise ValueError(
                f"compare.rhos: {self.compare.rhos} mean nothing for {name}, which has no radius; use null"
            )

    @property
    def can_grow(self) -> bool:  # type: ignore[override]
        """A single run can; a comparison's members were chosen at their length."""
        return self.compare is None


Config = TypeVar("Config", bound=ComparedRunConfig)


@dataclass(frozen=True)
class Arm:
    """One side of the comparison: an optimizer with its settings, and for how long it trains.

    Attributes:
        optimizer: The method, or its base alone.
        epochs: Passes over the training data.
    """

    optimizer: OptimizerConfig
    epochs: int

    @property
    def name(self) -> str:
        """Short, unique within a comparison, and fit for a folder."""
        o = self.optimizer
        rho = f"-rho{o.rho}" if o.rho is not None else ""
        return f"{o.name}-lr{o.lr}{rho}-{self.epochs}epochs"

    @property
    def label(self) -> str:
        """As the table has it."""
        o = self.optimizer
        over = f" over {o.base}" if o.is_method else ""
        rho = f", rho {o.rho:g}" if o.rho is not None else ""
        return f"{o.name}{over}, lr {o.lr:g}{rho}"


def _exist(files: Sequence[Path]) -> list[bool]:
    return [file.exists() for file in files]


class Comparison(Generic[Config]):
    """The runs of a comparison, one after another, and their result.

    In a recipe::

        with GracefulStop() as stop, Comparison(config, recipe=__file__, resume=resume) as comparison:
            for member, run, begun in comparison.runs():
                train(member, run, stop, resume=begun)
                print(comparison.describe(run))
            curves = comparison.finish()
            with comparison.folder.attempt("curves.png") as picture:
                plot_comparison({"digits": curves}, picture)

    With ``compare: null`` there is one run, in the folder itself, and nothing to report.

    Args:
        config: The whole configuration.
        recipe: The recipe's script, ``__file__``.
        resume: Go on in the newest folder of this name.

    Raises:
        UserError: As :class:`RunFolder` does.
    """

    def __init__(self, config: Config, *, recipe: str, resume: bool) -> None:
        self.config, self.recipe, self.resume = config, recipe, resume
        self.compare = config.compare or CompareConfig()
        # wandb shows the members and the table together; on the console a run is one line.
        self._log = replace(config.log, group=config.log.group or Path(config.out).name)
        quiet = self._log if config.compare is not None else replace(self._log, console=False)
        self.folder = RunFolder(config.out, config, quiet, recipe=recipe, length=1, resume=resume)
        self._shown: list[tuple[str, Arm]] = []  # the method first
        self._summary: dict[str, Any] = {}
        self._unwritten: list[str] = []  # of the members

    def __enter__(self) -> Comparison[Config]:
        self.folder.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.folder.__exit__(kind, error, trace)

    @property
    def finished(self) -> bool:
        """Whether the table is there already."""
        return self.folder.finished

    @property
    def exit_code(self) -> int:
        """0; or 1 where something could not be written."""
        return 1 if self._unwritten else self.folder.exit_code

    def where(self) -> str:
        """Where to look now, and what is not there."""
        return "\n".join([self.folder.where(), *self._unwritten])

    # The runs ---------------------------------------------------------------------------------------

    def runs(self) -> Iterator[tuple[Config, RunFolder, bool]]:
        """The runs still to be trained: configuration, open folder, and whether it was begun before.

        The next run is chosen by the results of those before, so each has to be trained before the next is taken.

        Returns:
            An iterator of triples. The folder is closed when the next one is asked for.

        Raises:
            UserError: A run has ended without a result: the disk took no summary.
        """
        if self.config.compare is None:
            yield self.config, self.folder, self.resume
            return
        for arm, seed in self._plan():
            out = self._out(arm, seed)
            there = [out / "summary.json", out / "config.yaml"]
            finished, resumed = processes.from_first(partial(_exist, there))
            if finished:
                continue
            member = replace(
                self.config, seed=seed, epochs=arm.epochs, optimizer=arm.optimizer, compare=None, out=str(out)
            )
            log = replace(self._log, console=False)
            with RunFolder(
                out, member, log, recipe=self.recipe, length=1, resume=resumed, member=True
            ) as run:
                yield member, run, resumed
            if not run.finished:  # what comes next is chosen by it
                raise UserError(f"the comparison cannot go on without the result of a run\n{run.where()}")
            self._unwritten += [f"{out.name}: {line}" for line in run.unwritten.lines()]

    def describe(self, run: RunFolder) -> str:
        """One line about a run that has ended.

        Args:
            run: The folder of a run that has its summary.
        """
        found = run.summary or summary_of(run.path)
        return (
            f"{run.path.name:<34} val {found[SCORE]:5.1f} %  test {found[BEST]:5.1f} %  last {found[LAST]:5.1f} %  "
            f"{found['budget/ge']:>10,.0f} GE  {found['train/seconds']:6.1f} s"
        )

    def _plan(self) -> Generator[tuple[Arm, int], None, None]:
        """Every run, in an order in which each depends on earlier ones alone.

        It reads the summaries of the runs that it has given out, so each has to end before the next is asked for.
        """
        method, base, epochs = self.config.optimizer, self.config.optimizer.alone(), self.config.epochs
        rates = [replace(base, lr=lr) for lr in self.compare.lrs]
        chosen = yield from self._tuned([Arm(rate, epochs) for rate in rates])
        radii = [replace(method, rho=rho, lr=chosen.optimizer.lr) for rho in self._radii]
        ours = yield from self._tuned([Arm(radius, epochs) for radius in radii])
        yield from self._reported(ours)
        self._shown = [("", ours)]
        if "epochs" in self.compare.equal:
            yield from self._reported(chosen)
            self._shown.append(("epochs", chosen))
        if "ge" in self.compare.equal:
            more = yield from self._longer(ours, chosen)
            chosen = yield from self._tuned([Arm(rate, more) for rate in rates])
            yield from self._reported(chosen)
            self._shown.append(("GE", chosen))

    @property
    def _radii(self) -> Sequence[float | None]:
        given, own = self.config.optimizer.rho, self.config.optimizer.own_rho
        if self.compare.rhos is not None:
            return self.compare.rhos
        return (
            [given] if given is not None or own is None else [factor * own for factor in _TIMES_THE_DEFAULT]
        )

    def _tuned(self, arms: Sequence[Arm]) -> Generator[tuple[Arm, int], None, Arm]:
        """Run every arm on the tuning seeds; returns the best. A single one has nothing to be chosen from."""
        if len(arms) == 1:
            return arms[0]
        seeds = range(self.config.seed, self.config.seed + self.compare.tune_seeds)
        for arm in arms:
            yield from ((arm, seed) for seed in seeds)
        best = best_setting({k: [self._found(arm, s)[SCORE] for s in seeds] for k, arm in enumerate(arms)})
        return arms[best]

    def _reported(self, arm: Arm) -> Generator[tuple[Arm, int], None, None]:
        yield from ((arm, seed) for seed in self._seeds)

    def _longer(self, ours: Arm, base: Arm) -> Generator[tuple[Arm, int], None, int]:
        """Epochs that make the base's gradient evaluations no fewer than the method's."""
        yield base, self._seeds[0]  # there already, where equal epochs are asked for too
        cost = statistics.fmean(self._found(ours, seed)["budget/ge"] for seed in self._seeds)
        price = cost / float(self._found(base, self._seeds[0])["budget/ge"])
        return math.ceil(base.epochs * price - 1e-9)  # a sum of floats may be a hair above the whole number

    @property
    def _seeds(self) -> range:
        first = self.config.seed + self.compare.tune_seeds
        return range(first, first + self.compare.seeds)

    def _out(self, arm: Arm, seed: int) -> Path:
        return self.folder.path / "runs" / f"{arm.name}-seed{seed}"

    def _found(self, arm: Arm, seed: int) -> dict[str, Any]:
        return processes.from_first(lambda: summary_of(self._out(arm, seed)))

    # What comes out ---------------------------------------------------------------------------------

    def report(self) -> dict[str, list[list[tuple[float, float]]]]:
        """Write the table and ``comparison.json``; call it after the last run, which is the end of other processes.

        Returns:
            By method, for every seed: pairs (gradient evaluations, test accuracy in percent).
        """
        processes.dismiss()
        sides = [
            Side(arm.label, equal, arm.epochs, [self._out(arm, seed) for seed in self._seeds])
            for equal, arm in self._shown
        ]
        table = ComparisonTable(self.config.optimizer.name, sides)
        self.folder.jsonl.truncate_after(-1)  # of an earlier attempt that broke off
        self.folder.log.table("summary/comparison", table.columns, table.cells())
        self._summary = table.summary() | self._choices()
        found = {"seeds": list(self._seeds), "chosen": self._choices(), "sides": table.numbers()}
        with self.folder.unwritten.attempt("comparison.json"):
            write_whole(self.folder.path / "comparison.json", json.dumps(found, indent=1, default=str) + "\n")
        return table.curves()

    def finish(self) -> dict[str, list[list[tuple[float, float]]]]:
        """:meth:`report`, then keep the summary, which marks the comparison as done, and show it.

        Returns:
            The curves of :meth:`report`, to be drawn.
        """
        curves = self.report()
        self.folder.finish(self._summary)
        return curves

    def _choices(self) -> dict[str, Any]:
        """The choices made by validation."""
        ours = self._shown[0][1].optimizer
        chosen: dict[str, Any] = {"summary/chosen lr": ours.lr, "summary/chosen rho": ours.rho}
        for equal, arm in self._shown[1:]:
            chosen[f"summary/chosen lr, equal {equal}"] = arm.optimizer.lr
        return {key: value for key, value in chosen.items() if value is not None}
