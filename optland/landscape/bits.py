r"""Bits per layer under an average: few where rounding does no harm, many where it does.

.. math:: \min_b \; \sum_l g_l^\top d_l(b_l) + \tfrac12 \sum_{l,m} d_l(b_l)^\top H_{lm}\, d_m(b_m)
          \qquad \text{with} \quad \sum_l n_l b_l \le \bar b \sum_l n_l

d_l(b) is what rounding layer l to b bits really changes, n_l its weights: the rise of the loss to second order of every
choice there is. Bits from one below the average to two above it are dealt out. Two layers at a time change theirs, in
the way that lowers the predicted rise most, until none does. So two choices are found, with and without what layers do
to each other (the terms of l and m), and the same bits everywhere is the third: **the rise of the three is measured,
and the least is taken**.

**Cost.** A gradient, a Hessian product for each layer and number of bits (40 for ten layers), and three forwards.

**When.** Before a net is rounded to 4 bits or fewer. A net in which one matrix has most of the weights has nothing to
deal out.

**Caveats.** A layer at 2 bits is often beyond second order, in nets with BatchNorm above all, and the choice fits the
samples given: hundreds of them, which training has not seen. By prediction alone, and by the trace of each layer, bits
went where they did harm in some nets (benchmarks/results/bits.json); hence the measuring.

Reference: Dong et al. 2020, arXiv:1911.03852 (bits by the trace of each layer); the whole quadratic form is as in
Deng et al. 2023, arXiv:2307.05657.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from optland.curvature import hessian
from optland.curvature.cost import costs
from optland.curvature.operators.hessian import Method, declared_product_cost
from optland.landscape.damages import FEWEST_BITS, damaged, rounded
from optland.landscape.filters import matrices
from optland.objective import FORWARD_GE, Objective

__all__ = ["MOST_BITS", "bits_by_layer", "num_products"]

MOST_BITS = 8
"""Beyond it rounding changes next to nothing."""


def _cost(objective: Objective, max_mean_bits: float, *, method: Method = "auto") -> float:
    """The most that :func:`bits_by_layer` can cost, in gradient evaluations."""
    products = num_products(objective.model, max_mean_bits)
    passes = (1.0 + 3 * FORWARD_GE) * objective.num_samples
    return passes + declared_product_cost(objective, products, method=method)


def num_products(model: nn.Module, max_mean_bits: float) -> int:
    """Hessian products that :func:`bits_by_layer` takes: one for each matrix and number of bits.

    Args:
        model: The net.
        max_mean_bits: As for :func:`bits_by_layer`.
    """
    return len(matrices(model)) * len(_choices(max_mean_bits))


@costs(_cost)
def bits_by_layer(objective: Objective, max_mean_bits: float, *, method: Method = "auto") -> dict[str, int]:
    """Whole bits for every matrix within an average: of three ways to deal them out the one of the least measured rise.

    Args:
        objective: The loss of the net as it is; on validation data, as for a damage.
        max_mean_bits: Most bits per weight on average over all matrices, from 2 to 8.
        method: How products are computed.

    Returns:
        Bits by parameter name, for :func:`~optland.landscape.damages.rounded`; the loss with them is never
        above that with ``int(max_mean_bits)`` bits for all.

    Raises:
        ValueError: An average out of range, or a matrix of the net that is no trainable parameter of the objective.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
        >>> loss_fn = lambda m, x: m[0](x).square().mean() + 1e-6 * m[1](x).square().mean()
        >>> L = Objective(net, loss_fn, [torch.randn(9, 64)])
        >>> bits_by_layer(L, 4)
        {'0.weight': 5, '1.weight': 3}
    """
    choices = _choices(max_mean_bits)
    sizes = {name: w.numel() for name, (w, _) in matrices(objective.model).items()}
    missing = sorted(set(sizes) - set(objective.names))
    if missing:
        raise ValueError(
            f"{missing[0]!r} is a matrix of the net and no trainable parameter of the objective; unfreeze it with "
            "requires_grad_() before the objective is made"
        )
    slope, bend = _second_order(objective, list(sizes), choices, method)
    weight = np.outer(list(sizes.values()), choices).astype(float)
    most = max_mean_bits * sum(sizes.values()) * (1 + 1e-9)
    own = np.kron(np.eye(len(sizes)), np.ones((len(choices), len(choices))))
    picks = [_least(slope, bend, weight, most), _least(slope, bend * own, weight, most)]
    dealt = [{name: choices[k] for name, k in zip(sizes, picked, strict=True)} for picked in picks]
    return min([dict.fromkeys(sizes, int(max_mean_bits)), *dealt], key=lambda bits: _loss(objective, bits))


def _loss(objective: Objective, bits: Mapping[str, int]) -> float:
    """The loss of the rounded net; infinite where it is not a number."""
    with damaged(objective.model, rounded(objective.model, bits)):
        loss = objective.value()
    return loss if math.isfinite(loss) else math.inf


def _choices(max_mean_bits: float) -> list[int]:
    if not FEWEST_BITS <= max_mean_bits <= MOST_BITS:
        raise ValueError(f"max_mean_bits {max_mean_bits}: use an average from {FEWEST_BITS} to {MOST_BITS}")
    near = range(int(max_mean_bits) - 1, int(max_mean_bits) + 3)
    return [b for b in near if FEWEST_BITS <= b <= MOST_BITS]


def _second_order(
    objective: Objective, names: Sequence[str], choices: Sequence[int], method: Method
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Slopes g'd of every layer and number of bits, (layers x choices), and d'Hd of every two of them, flat in both."""
    places = [objective.names.index(name) for name in names]
    own = [objective.params[i].detach() for i in places]
    after = [rounded(objective.model, b) for b in choices]
    moves = [
        [after[k][name].to(w) - w for k in range(len(choices))] for name, w in zip(names, own, strict=True)
    ]
    g = objective.gradient()
    slope = [[_dot(g[i], d) for d in layer] for i, layer in zip(places, moves, strict=True)]
    rows = []
    with hessian(objective, method=method) as H:
        for i, layer in zip(places, moves, strict=True):
            for d in layer:
                v = [torch.zeros_like(p) for p in objective.params]
                v[i] = d
                Hd = H.matvec(v)
                rows.append([_dot(Hd[j], e) for j, others in zip(places, moves, strict=True) for e in others])
    bend = np.array(rows)
    return np.array(slope), 0.5 * (bend + bend.T)


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())


def _least(
    slope: NDArray[np.float64], bend: NDArray[np.float64], weight: NDArray[np.float64], most: float
) -> list[int]:
    """One choice for each layer: the lowest predicted rise whose weights are within ``most``, by exchanges of two.

    From the most bits that all layers can have, and from the fewest; the better end is taken.
    """
    layers, count = slope.shape
    fits = [k for k in range(count) if weight[:, k].sum() <= most]
    ends = []
    for k in {fits[0], fits[-1]}:
        picked = np.full(layers, k)
        while (better := _exchanged(picked, slope.reshape(-1), bend, weight.reshape(-1), most)) is not None:
            picked = better
        at = np.arange(layers) * count + picked
        ends.append((slope.reshape(-1)[at].sum() + 0.5 * bend[np.ix_(at, at)].sum(), picked))
    return [int(k) for k in min(ends, key=lambda end: end[0])[1]]


def _exchanged(
    picked: NDArray[np.int_], slope: NDArray[np.float64], bend: NDArray[np.float64], weight: NDArray[np.float64],
    most: float,
) -> NDArray[np.int_] | None:  # fmt: skip
    """The choices after the best change of one or two layers; None where none lowers the rise.

    A flat index f is a layer with a choice; now(f) is its layer's present one.
    """
    layers, count = len(picked), len(slope) // len(picked)
    layer = np.repeat(np.arange(layers), count)
    at = np.arange(layers) * count + picked
    now = at[layer]
    force = slope + bend[:, at].sum(axis=1)  # slope of the quadratic at the present choices, along each d
    curve = np.diag(bend) - 2 * bend[np.arange(len(now)), now] + np.diag(bend)[now]
    one = force - force[now] + 0.5 * curve
    two = one[:, None] + one[None, :] + bend - bend[:, now] - bend[now, :] + bend[np.ix_(now, now)]
    more = weight - weight[now]
    both = more[:, None] + more[None, :]
    same = layer[:, None] == layer[None, :]
    two[same], both[same] = np.inf, np.inf
    np.fill_diagonal(two, one)
    np.fill_diagonal(both, more)
    two[weight[at].sum() + both > most] = np.inf
    f, g = np.unravel_index(int(two.argmin()), two.shape)
    scale = np.abs(slope).sum() + np.abs(bend).sum()
    if not two[f, g] < -1e-12 * scale:
        return None
    better = picked.copy()
    for place in (f, g):
        better[layer[place]] = place % count
    return better
