r"""Permutation alignment: renumber the units of one net so that its weights come as near as they can to another's.

.. math:: \max_{P_1, \dots, P_L} \sum_l \langle W^A_l,\; P_l W^B_l P_{l-1}^\top \rangle

Two nets that differ in nothing but the order of their hidden units are the same function with a barrier between them;
independently trained nets are often separated by little else (Entezari et al. 2022, arXiv:2110.06296). *Weight
matching* (Ainsworth et al. 2023, arXiv:2209.04836) solves for one permutation at a time, the others held, as a linear
assignment problem, until none improves. It looks at weights alone: no data, no gradient.

**Caveats.** The problem for all permutations together is hard, so the result depends on the order; the best of a few
random orders is kept. Where narrow nets or nets trained at a high rate differ by more than order, a barrier remains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optland.archive import Archived
from optland.landscape.permutations import Axis, Symmetry, find_symmetries

__all__ = ["Alignment", "align"]


@dataclass(frozen=True, slots=True)
class Alignment(Archived):
    """A net renumbered to match another.

    Attributes:
        state: State dict of the second net in its new numbering: the same function.
        distance_before: Distance of the weights from the first net's.
        distance_after: The same after renumbering, never larger.
        moved: Share of the units whose number changed.
        sweeps: Rounds over all permutations until none improved.
    """

    state: dict[str, Tensor]
    distance_before: float
    distance_after: float
    moved: float
    sweeps: int

    def __str__(self) -> str:
        distances = f"{self.distance_before:.4g} -> {self.distance_after:.4g}"
        return f"aligned: distance {distances}, {self.moved:.0%} of units moved"


def align(
    model: nn.Module,
    other: nn.Module | Mapping[str, Tensor],
    example: Tensor,
    *,
    num_tries: int = 3,
    seed: int = 0,
) -> Alignment:
    """Renumber the units of ``other`` to be near those of ``model``.

    Args:
        model: The net that stays.
        other: The net (or its state dict) that is renumbered; it is not changed itself.
        example: An input, to see shapes with.
        num_tries: Random orders of the permutations, of which the best is kept.
        seed: Of the orders.

    Raises:
        TypeError: The architecture cannot be matched (attention, grouped convolutions).
        ValueError: The two do not have the same architecture.

    Example:
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> a, b = (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(2))
        >>> with torch.no_grad():
        ...     _ = b.load_state_dict(a.state_dict())
        ...     order = torch.tensor([2, 0, 3, 1])
        ...     b[0].weight.copy_(b[0].weight[order]), b[0].bias.copy_(b[0].bias[order])
        ...     b[2].weight.copy_(b[2].weight[:, order])  # doctest: +ELLIPSIS
        (...
        >>> align(a, b, torch.ones(1, 3)).distance_after
        0.0
    """
    mine = {k: v.detach() for k, v in model.state_dict().items()}
    theirs = {
        k: v.detach() for k, v in (other.state_dict() if isinstance(other, nn.Module) else other).items()
    }
    for name, tensor in mine.items():
        if name not in theirs or theirs[name].shape != tensor.shape:
            raise ValueError(f"the two nets differ in {name!r}; alignment needs the same architecture")
    symmetries = find_symmetries(model, example)
    generator = torch.Generator().manual_seed(seed)
    trained = {name for name, _ in model.named_parameters()}
    tries = [_match(mine, theirs, symmetries, trained, generator) for _ in range(max(1, num_tries))]
    _, permutations, sweeps = max(tries, key=lambda match: match[0])
    state = _renumbered(theirs, symmetries, permutations)
    units = sum(s.size for s in symmetries)
    moved = sum(int((p != torch.arange(len(p))).sum()) for p in permutations)
    return Alignment(
        {k: v.clone() for k, v in state.items()}, _distance(mine, theirs, trained), _distance(mine, state, trained),
        moved / max(units, 1), sweeps,
    )  # fmt: skip


def _match(
    mine: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    symmetries: list[Symmetry],
    trained: set[str],
    generator: torch.Generator,
) -> tuple[float, list[Tensor], int]:
    """Coordinate ascent, one permutation at a time by linear assignment, in random order.

    Returns:
        How far both agree then, the permutations, and in how many sweeps.
    """
    from scipy.optimize import linear_sum_assignment  # a third of a second

    permutations = [torch.arange(s.size) for s in symmetries]
    agreed = _agreement(mine, theirs, trained)
    for sweep in range(1, 100):
        improved = False
        for i in torch.randperm(len(symmetries), generator=generator).tolist():
            rest = [p if j != i else torch.arange(len(p)) for j, p in enumerate(permutations)]
            state = _renumbered(theirs, symmetries, rest)
            gain = torch.zeros(symmetries[i].size, symmetries[i].size, dtype=torch.float64)
            for axis in symmetries[i].axes:
                if axis.name in trained:
                    gain += _unfold(mine[axis.name], axis) @ _unfold(state[axis.name], axis).T
            _, columns = linear_sum_assignment(gain.numpy(), maximize=True)
            trial = [p if j != i else torch.as_tensor(columns) for j, p in enumerate(permutations)]
            # Measured, since a tensor with both axes in one group is not linear in its permutation.
            gained = _agreement(mine, _renumbered(theirs, symmetries, trial), trained)
            if gained > agreed + 1e-9 * abs(agreed):
                permutations, agreed, improved = trial, gained, True
        if not improved:
            return agreed, permutations, sweep
    return agreed, permutations, sweep


def _unfold(t: Tensor, axis: Axis) -> Tensor:
    """A row for each unit."""
    moved = t.double().cpu().movedim(axis.axis, 0)
    return moved.reshape(moved.shape[0] // axis.block, -1)


def _renumbered(
    state: Mapping[str, Tensor], symmetries: list[Symmetry], permutations: list[Tensor]
) -> dict[str, Tensor]:
    """The state with every axis in the order of its permutation: new unit i is the old unit P[i]."""
    found = dict(state)
    for symmetry, permutation in zip(symmetries, permutations, strict=True):
        for axis in symmetry.axes:
            blocks = permutation[:, None] * axis.block + torch.arange(axis.block)
            t = found[axis.name]
            found[axis.name] = t.index_select(axis.axis, blocks.flatten().to(t.device))
    return found


def _agreement(a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: set[str]) -> float:
    return math.fsum(float((a[n].double() * b[n].double()).sum()) for n in names)


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: set[str]) -> float:
    return math.sqrt(math.fsum(float((a[n].double() - b[n].double()).square().sum()) for n in names))
