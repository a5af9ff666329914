r"""Whether a measure of flatness orders runs as their generalisation gap does: Kendall's rank correlation.

.. math:: \tau_b = \frac{C - D}{\sqrt{(n_0 - n_1)(n_0 - n_2)}}

C and D count the pairs of runs that measure and gap order alike and unlike, n_0 all pairs, n_1 and n_2 those tied in
one of the two. 1 is the same order, -1 the opposite, 0 none. Ranks alone count, so units and scales do not.

The p-value is that of a permutation test, two-sided; the interval comes from resampling the runs. **A few runs prove
little**: of 5 runs, only a perfect order has p below 0.05. And an order over runs that differ in one setting is the
order of that setting: Jiang et al. 2020 (arXiv:1912.02178) vary one at a time; Andriushchenko et al. 2023
(arXiv:2302.07011) find no sharpness whose order holds across settings.

Reference: Kendall 1938 (tau), 1945 (ties).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from optland.archive import Archived

__all__ = ["RankCorrelation", "kendall", "rank_correlations"]

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class RankCorrelation(Archived):
    """Kendall's tau between a measure and the gap.

    Attributes:
        tau: From -1 to 1; NaN where either has no order.
        low: Lower end of the 95 % interval over resampled runs.
        high: Its upper end.
        p_value: Probability of a tau of this size or more without any relation.
        num_runs: n.
    """

    tau: float
    low: float
    high: float
    p_value: float
    num_runs: int

    def __str__(self) -> str:
        return f"tau {self.tau:+.2f} [{self.low:+.2f}, {self.high:+.2f}], p {self.p_value:.2g}, {self.num_runs} runs"


def kendall(x: Sequence[float], y: Sequence[float]) -> float:
    """Kendall's tau-b; NaN where one of the two is constant.

    Example:
        >>> kendall([1, 2, 3], [10, 30, 20])
        0.3333333333333333
    """
    a, b = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    return float(_tau(_signs(a), _signs(b)))


def rank_correlations(
    measures: Mapping[str, Sequence[float]], gaps: Sequence[float], *, seed: int = 0
) -> dict[str, RankCorrelation]:
    """Kendall's tau of every measure with the gap over the same runs.

    Args:
        measures: By name, a value for each run.
        gaps: The generalisation gap of each run, in the same order.
        seed: Of the permutations and resamples.

    Raises:
        ValueError: Fewer than 3 runs, lists of other lengths, or a value that is not a number.

    Example:
        >>> gaps = [0.1, 0.2, 0.3, 0.4, 0.5]
        >>> print(rank_correlations({"trace": [1, 2, 3, 4, 5]}, gaps)["trace"].tau)
        1.0
    """
    if len(gaps) < 3:
        raise ValueError(f"{len(gaps)} runs have no order to speak of; use at least 3, better 10")
    y = _checked("gaps", gaps, len(gaps))
    return {name: _related(_checked(name, values, len(gaps)), y, seed) for name, values in measures.items()}


def _checked(name: str, values: Sequence[float], length: int) -> Tensor:
    found = torch.tensor([float(v) for v in values], dtype=torch.float64)
    if len(found) != length:
        raise ValueError(f"{name!r} has {len(found)} values for {length} runs")
    if bool(found.isnan().any()):
        raise ValueError(f"{name!r} holds NaN; leave out the run that has no value, in every list")
    return found


def _related(x: Tensor, y: Tensor, seed: int) -> RankCorrelation:
    generator = torch.Generator().manual_seed(seed)
    n = len(x)
    signs_x, signs_y = _signs(x), _signs(y)
    tau = float(_tau(signs_x, signs_y))
    if math.isnan(tau):
        return RankCorrelation(math.nan, math.nan, math.nan, 1.0, n)
    shuffles = [torch.randperm(n, generator=generator) for _ in range(RESAMPLES)]
    by_chance = torch.stack([_tau(signs_x[p][:, p], signs_y) for p in shuffles])
    beyond = int((by_chance.abs() >= abs(tau) - 1e-12).sum())
    draws = [torch.randint(n, (n,), generator=generator) for _ in range(RESAMPLES)]
    resampled = torch.stack([_tau(signs_x[d][:, d], signs_y[d][:, d]) for d in draws])
    known = resampled[resampled.isfinite()]
    low, high = torch.quantile(known, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return RankCorrelation(tau, low, high, (beyond + 1) / (RESAMPLES + 1), n)


def _signs(x: Tensor) -> Tensor:
    """The order of every pair: 1, -1, or 0 for a tie."""
    return (x[:, None] - x[None, :]).sign()


def _tau(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt()
