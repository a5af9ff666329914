"""The landscape in ``optland diagnose``: curvature at a checkpoint, and over runs sharpness against test error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optland.cli.opened import OpenedRun
from optland.config import UserError
from optland.curvature import hessian, lanczos
from optland.doctor.histories import Histories
from optland.doctor.readers.read import Log
from optland.estimate import Estimate
from optland.landscape import rank_correlations, sam_sharpness
from optland.landscape.correlation import RankCorrelation

__all__ = ["Around", "Order", "look_around", "order_of"]

RADIUS, MAX_MATVECS = 0.05, 60
ERRORS = ("test/acc", "test/loss", "val/acc", "val/loss")
"""What a run was wrong in, the best first: 100 less the accuracy, or the loss."""


@dataclass(frozen=True)
class Around:
    """The loss around a checkpoint.

    Attributes:
        step: Update that the checkpoint was taken after.
        data: The samples, in words.
        largest: Largest eigenvalue of the Hessian.
        smallest: Its smallest.
        sam: Rise of the loss along a SAM step of length 0.05.
        cost_ge: Gradient evaluations spent.
    """

    step: int
    data: str
    largest: Estimate
    smallest: Estimate
    sam: Estimate
    cost_ge: float

    @property
    def ncr(self) -> float:
        r"""The negative-curvature ratio.

        .. math:: -\lambda_{\min} / \lambda_{\max}

        About 0 at a minimum and 1 where curvature goes as far down as up; NaN where the largest eigenvalue is not
        positive.
        """
        return -self.smallest.value / self.largest.value if self.largest.value > 0 else float("nan")

    def row(self) -> dict[str, float]:
        """The values under the keys that the rules read; an eigenvalue that has not converged is a bound alone.

        Returns:
            ``curv/lambda_max``, ``curv/lambda_min``, and, where both have converged, ``curv/ncr``.
        """
        found = {"curv/lambda_max": self.largest.value, "curv/lambda_min": self.smallest.value}
        sure = self.largest.converged and self.smallest.converged
        return found | ({"curv/ncr": self.ncr} if sure and self.ncr == self.ncr else {})

    def __str__(self) -> str:
        kind = (
            "a saddle: there is a way down" if self.ncr > 0.3 else
            "nearly a minimum" if self.ncr < 0.1 else "some negative curvature is left"
        )  # fmt: skip
        return (
            f"Landscape at update {self.step}, on {self.data}: largest eigenvalue {_short(self.largest)}, smallest "
            f"{_short(self.smallest)} (ratio {self.ncr:.2g}: {kind}); a SAM step of {RADIUS:g} raises the loss by "
            f"{_short(self.sam)}. Cost: {self.cost_ge:.0f} gradient evaluations."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON.

        Returns:
            Step, data, ``cost_ge``, and for each estimate its value, error and whether it converged.
        """
        parts = {"largest": self.largest, "smallest": self.smallest, "sam": self.sam}
        estimates = {name: e.to_dict() for name, e in parts.items()}
        return {"step": self.step, "data": self.data, "cost_ge": self.cost_ge, **estimates}


def _short(estimate: Estimate) -> str:
    error = f" ± {estimate.error:.1g}" if estimate.error == estimate.error else ""
    return f"{estimate.value:.3g}{error}{'' if estimate.converged else ' (not converged)'}"


def look_around(log: Log, samples: int, seed: int = 0) -> Around:
    """Measure the loss around a run's checkpoint, and put the curvature where the rules read it.

    Args:
        log: Of a run folder of optland; its checkpoint and configuration lie beside it.
        samples: Training samples to measure on.
        seed: Of the samples and of the estimators.

    Returns:
        Both ends of the spectrum within 60 Hessian products, and the rise of the loss along a SAM step of length 0.05,
        at the weights that the run was evaluated with.

    Raises:
        UserError: The log is that of another tool, or the run cannot be opened.
    """
    if log.kind != "optland":
        raise UserError(
            f"--landscape: {log.path} is a log of {log.kind}, which names no model; it takes a run folder of optland "
            "with its checkpoint (for others: optland.doctor.preflight, or optland.hessian in your own script)"
        )
    opened = OpenedRun(log.path.parent)
    trained = opened.trained
    objective = opened.objective(trained.evaluated, "train", samples=samples, seed=seed, double=False)
    with hessian(objective) as H:
        found = lanczos(H, k=1, ends="both", rtol=0.02, max_matvecs=MAX_MATVECS, seed=seed)
    rise = sam_sharpness(objective, RADIUS).rise
    around = Around(trained.step, objective.data, found.top, found.bottom, rise, objective.cost_ge)
    log.histories.put(trained.step, around.row())
    return around


@dataclass(frozen=True)
class Order:
    """Whether the sharper runs are those that are wrong more often.

    Attributes:
        correlation: Kendall's tau with its interval.
        error: The key that the error was read from.
        measured: Whether sharpness was measured at the checkpoints, or read from the logs.
    """

    correlation: RankCorrelation
    error: str
    measured: bool

    def __str__(self) -> str:
        found = self.correlation
        where = "at their checkpoints" if self.measured else "as logged"
        what = f"error ({self.error})"
        if math.isnan(found.tau):
            return f"Sharpness and {what} have no order over {found.num_runs} runs: one of them is the same in all."
        says = (
            "the sharper runs are the worse ones" if found.low > 0 else
            "the sharper runs are the better ones" if found.high < 0 else "undecided, the interval holds 0"
        )  # fmt: skip
        return f"Sharpness (largest eigenvalue, {where}) and {what}: {found}; {says}."

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON.

        Returns:
            The error's key, whether sharpness was measured, and tau with its interval, p and number of runs.
        """
        return {"error": self.error, "measured": self.measured, **asdict(self.correlation)}


def order_of(runs: Sequence[Histories], *, measured: bool) -> Order | None:
    """The rank correlation of sharpness and error over the runs that have both; None for fewer than three.

    Args:
        runs: Their histories.
        measured: Whether their sharpness was measured at the checkpoints.

    Returns:
        Kendall's tau over the last values of each run, with the best of :data:`ERRORS` that three runs have.
    """
    for key in ERRORS:
        pairs = [(sharp[-1], ends[-1]) for run in runs
                 if (sharp := run.values("curv/lambda_max")) and (ends := run.values(key))]  # fmt: skip
        if len(pairs) >= 3:
            errors = [100 - end if key.endswith("acc") else end for _, end in pairs]
            found = rank_correlations({"sharpness": [sharp for sharp, _ in pairs]}, errors)
            return Order(found["sharpness"], key, measured)
    return None
