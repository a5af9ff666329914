r"""Bits per layer under an average: few where rounding does no harm, many where it does.

.. math:: \min_b \; \tfrac12 \sum_l \operatorname{tr}(H_l)\, \frac{\lVert d_l(b_l) \rVert^2}{n_l}
          \qquad \text{with} \quad \sum_l n_l b_l \le \bar b \sum_l n_l

d_l(b) is what rounding layer l to b bits really changes, n_l its weights. The whole-number problem is solved by
SciPy's HiGHS, in milliseconds for a hundred layers.

**Caveats.** The objective is of second order and adds layers up: what one damaged layer does to the next is not in it.
A trace that is not resolved counts as its error, since a layer of no known curvature must not get the fewest bits for
that; :func:`sensitivities` does so.

Reference: Dong et al. 2020, arXiv:1911.03852.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import nn

from optland.curvature import Trace
from optland.landscape.damages import FEWEST_BITS, rounded
from optland.landscape.filters import matrices

__all__ = ["MOST_BITS", "bits_by_layer", "sensitivities"]

MOST_BITS = 8
"""Beyond it rounding changes next to nothing."""


def sensitivities(found: Trace) -> dict[str, float]:
    """The trace of every layer, never below its error.

    Args:
        found: What :func:`~optland.curvature.trace_per_layer` gave.
    """
    return {name: max(part.value, part.error, 0.0) for name, part in found.per_layer.items()}


def bits_by_layer(model: nn.Module, traces: Mapping[str, float], max_mean_bits: float) -> dict[str, int]:
    """Whole bits for every matrix, so that the predicted rise of the loss is the smallest that the average allows.

    Args:
        model: The net.
        traces: tr(H_l) by parameter name, see :func:`sensitivities`; the number of weights of each for H = I.
        max_mean_bits: Most bits per weight on average over all matrices, from 2 to 8.

    Raises:
        ValueError: An average out of range, or a matrix without a trace.

    Example:
        >>> net = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
        >>> bits_by_layer(net, {"0.weight": 1e4, "1.weight": 1.0}, 4)
        {'0.weight': 6, '1.weight': 2}
    """
    if not FEWEST_BITS <= max_mean_bits <= MOST_BITS:
        raise ValueError(f"max_mean_bits {max_mean_bits}: use an average from {FEWEST_BITS} to {MOST_BITS}")
    found = {name: w for name, (w, _) in matrices(model).items()}
    missing = [name for name in found if name not in traces]
    if missing:
        raise ValueError(f"traces has none for {missing[0]!r}; it has {', '.join(traces) or 'none'}")
    choices = range(FEWEST_BITS, MOST_BITS + 1)
    sizes = np.array([float(w.numel()) for w in found.values()])
    harm = np.empty((len(found), len(choices)))
    for j, b in enumerate(choices):
        for i, (name, v) in enumerate(rounded(model, b).items()):
            change = float((v.double() - found[name].double()).square().mean())
            harm[i, j] = 0.5 * max(float(traces[name]), 0.0) * change
    picked = _cheapest(harm, np.outer(sizes, list(choices)), max_mean_bits * float(sizes.sum()))
    return {name: choices[j] for name, j in zip(found, picked, strict=True)}


def _cheapest(harm: NDArray[np.float64], weight: NDArray[np.float64], most: float) -> list[int]:
    """One column of each row: the smallest sum of ``harm`` whose ``weight`` is within ``most``.

    The solver's tolerances are absolute, and harms span many orders of magnitude. What alone does more harm than a
    whole answer is in no better one: without it the problem is solved again on the scale of that answer.
    """
    rows = np.arange(len(harm))
    picked = weight.argmin(axis=1)
    total = float(harm[rows, picked].sum())
    while total > 0:
        answer = _solved(harm / total, weight / most, harm <= total)
        better = float(harm[rows, answer].sum())
        if better >= total * (1 - 1e-9):
            break
        picked, total = answer, better
    return [int(j) for j in picked]


def _solved(
    harm: NDArray[np.float64], weight: NDArray[np.float64], allowed: NDArray[np.bool_]
) -> NDArray[np.intp]:
    """The columns that the solver chooses where the weights may add up to 1."""
    from scipy import optimize  # most of a second

    rows, columns = harm.shape
    one_each = optimize.LinearConstraint(np.kron(np.eye(rows), np.ones(columns)), 1, 1)
    within = optimize.LinearConstraint(weight.reshape(1, -1), -np.inf, 1.0 + 1e-9)
    cost = np.where(allowed, harm, 0.0) + 1e-12 * weight  # of equal harm the fewer bits
    found = optimize.milp(
        cost.reshape(-1), integrality=np.ones(rows * columns),
        bounds=optimize.Bounds(0, allowed.reshape(-1).astype(float)),
        constraints=[one_each, within], options={"mip_rel_gap": 0.0},
    )  # fmt: skip
    if found.x is None:
        raise RuntimeError(f"no choice of bits was found: {found.message}")
    answer: NDArray[np.intp] = found.x.reshape(rows, columns).argmax(axis=1)
    return answer
