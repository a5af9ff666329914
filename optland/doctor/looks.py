"""Looks at model, gradients, batch and loader: each a few tensor operations, none a pass through the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = [
    "Dead", "Labels", "facts_of_inputs", "facts_of_weights", "gradient_matrices", "is_sequential", "norms_of",
    "replicas_apart", "symmetric",
]  # fmt: skip

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
DEAD_SAMPLES = 256
"""Samples over which a unit had no gradient before it counts as dead."""


def facts_of_weights(model: nn.Module, held: Sequence[Tensor]) -> dict[str, Any]:
    """Which weights train, and which an optimizer holds.

    Args:
        model: The module that is trained.
        held: All tensors in the groups of its optimizers.

    Returns:
        ``weights``, how many numbers are trained; ``not_held``, names of trained tensors in no optimizer, and
        ``not_held_share``, their share of those numbers; ``held`` and ``stale``, how many tensors the optimizers hold,
        and how many of these are not in the model; ``frozen``, names.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> found = facts_of_weights(layer, [layer.weight])
        >>> found["weights"], found["not_held"], found["not_held_share"]
        (9, ['bias'], 0.3333333333333333)
    """
    named = dict(model.named_parameters())
    mine, theirs = {id(p) for p in named.values()}, {id(p) for p in held}
    trained = {name: p for name, p in named.items() if p.requires_grad}
    loose = [name for name, p in trained.items() if id(p) not in theirs]
    count = sum(p.numel() for p in trained.values())
    return {
        "weights": count,
        "not_held": loose,
        "not_held_share": sum(trained[n].numel() for n in loose) / max(1, count),
        "stale": sum(id(p) not in mine for p in held),
        "held": len(held),
        "frozen": [name for name, p in named.items() if not p.requires_grad],
    }


def gradient_matrices(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Weights of linear and convolutional layers that have a gradient, in the model's order.

    Args:
        model: In its order, the first layer is the one nearest to the inputs where modules were added in that order.

    Returns:
        Pairs of a name and the weight itself; without embeddings, normalisation and biases.
    """
    found = [(f"{name}.weight", m.weight) for name, m in model.named_modules() if isinstance(m, _LAYERS)]
    return [(name, w) for name, w in found if isinstance(w.grad, Tensor) and w.grad.layout is torch.strided]


def norms_of(matrices: Sequence[tuple[str, Tensor]]) -> dict[str, float]:
    """Root-mean-square gradient of the first layer over that of the last, and the least over the largest.

    A gradient that shrinks by the same factor in every layer on its way back makes the first one small; one that
    explodes makes it large.

    Args:
        matrices: What :func:`gradient_matrices` gave.

    Returns:
        ``layer/depth``, how many they are; ``layer/first_over_last``, without unit; ``layer/rel_grad``, the largest
        norm of a gradient over that of its weight. Empty for fewer than two.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> net[0].weight.data.fill_(2.0), net[1].weight.data.fill_(1.0)  # of w2 w1: gradients 1 and 2
        (tensor([[2.]]), tensor([[1.]]))
        >>> net(torch.ones(1)).backward()
        >>> norms_of(gradient_matrices(net))
        {'layer/depth': 2.0, 'layer/first_over_last': 0.5, 'layer/rel_grad': 2.0}
    """
    gradients = [w.grad for _, w in matrices if w.grad is not None]
    if len(gradients) < 2:
        return {}
    sizes = torch.stack(torch._foreach_norm(gradients)).double()
    rms = (sizes / torch.tensor([math.sqrt(g.numel()) for g in gradients], device=sizes.device)).tolist()
    weights = torch.stack(torch._foreach_norm([w.detach() for _, w in matrices])).double().tolist()
    relative = [s / w for s, w in zip(sizes.tolist(), weights, strict=True) if w > 0]
    found = {"layer/depth": float(len(rms))}
    if rms[-1] > 0:
        found["layer/first_over_last"] = rms[0] / rms[-1]
    if relative:
        found["layer/rel_grad"] = max(relative)
    return found


class Dead:
    """Units whose weights had no gradient at all for a number of samples: they never fire.

    The rows of a layer's weight are its units. The last layer has no activation, and is left out.
    """

    def __init__(self) -> None:
        self._seen: dict[int, Tensor] = {}

    def look(self, matrices: Sequence[tuple[str, Tensor]], samples: int) -> dict[str, float]:
        """The largest and the total share of dead units over the layers.

        Args:
            matrices: What :func:`gradient_matrices` gave, after a backward pass.
            samples: How many that pass was over.

        Returns:
            ``layer/dead_max`` and ``layer/dead``; a unit counts once 256 samples in a row have left it without a
            gradient. Empty without hidden layers.
        """
        shares, units, dead = [], 0, 0
        for _, w in matrices[:-1]:
            if w.grad is None:
                continue
            silent = w.grad.flatten(1).abs().amax(1) == 0
            before = self._seen.get(id(w))
            count = torch.zeros(len(silent), device=w.device) if before is None else before
            count = torch.where(silent, count + samples, torch.zeros_like(count))
            self._seen[id(w)] = count
            gone = int((count >= DEAD_SAMPLES).sum())
            shares.append(gone / len(silent))
            units, dead = units + len(silent), dead + gone
        if not shares:
            return {}
        return {"layer/dead_max": max(shares), "layer/dead": dead / max(1, units)}


def symmetric(matrices: Sequence[tuple[str, Tensor]]) -> list[str]:
    """Hidden layers whose units are all equal in weights and in gradient, so that they will stay equal.

    Args:
        matrices: What :func:`gradient_matrices` gave; the last is the output and is left out.

    Returns:
        Names of weights; rows that differ by less than 1e-6 of the largest entry are equal.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False))
        >>> for layer in net:
        ...     _ = nn.init.constant_(layer.weight, 0.5)
        >>> net(torch.ones(2)).backward()
        >>> symmetric(gradient_matrices(net))
        ['0.weight']
    """
    return [
        name for name, w in matrices[:-1] if len(w) > 1 and _equal_rows(w.detach()) and _equal_rows(w.grad)
    ]


def _equal_rows(x: Tensor | None) -> bool:
    if x is None:
        return False
    rows = x.flatten(1)
    return float((rows - rows[:1]).abs().max()) <= 1e-6 * float(rows.abs().max())


def facts_of_inputs(x: Any) -> dict[str, float]:
    """Size of the inputs, and how far their features are apart; nothing where they are no numbers.

    Args:
        x: The first input of a forward pass, samples first.

    Returns:
        ``input_rms`` and ``input_mean`` over all numbers; ``input_spread``, the ratio of the 90 % to the 10 % quantile
        of the features' standard deviations. Of each sample the first 4096 numbers.

    Example:
        >>> facts_of_inputs(torch.tensor([[3.0, 0.0], [-3.0, 0.0]]))["input_rms"] == 4.5**0.5
        True
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or len(x) < 2:
        return {}
    rows = x.detach().flatten(1)[:, :4096].double()
    if not bool(torch.isfinite(rows).all()):
        return {}
    spread = rows.std(0)
    spread = spread[spread > 1e-6 * spread.max()]
    found = {"input_rms": float(rows.square().mean().sqrt()), "input_mean": float(rows.mean())}
    if len(spread) > 1:
        # Of images the borders are nearly constant, so the quantiles say more than the ends.
        ends = torch.quantile(spread, torch.tensor([0.1, 0.9], dtype=spread.dtype, device=spread.device))
        found["input_spread"] = float(ends[1] / ends[0])
    return found


class Labels:
    """Whether the batches mix the labels as a shuffled loader would."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._distinct: list[tuple[int, int]] = []

    def look(self, batch: Any) -> None:
        """Count the labels of a batch: its last one-dimensional integer tensor."""
        y = _labels_of(batch)
        if y is None or len(y) < 8 or len(y) > 100_000:
            return
        values, counts = torch.unique(y, return_counts=True)
        if len(values) > max(64, len(y) // 2):
            return
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            self._counts[value] = self._counts.get(value, 0) + count
        self._distinct.append((len(y), len(values)))

    def facts(self) -> dict[str, float]:
        """Labels in a batch on average, and how many a random batch of that size would have.

        Returns:
            Empty before five batches with labels, or where there is a single label.
        """
        total = sum(self._counts.values())
        if len(self._distinct) < 5 or len(self._counts) < 2:
            return {}
        shares = [count / total for count in self._counts.values()]
        expected = [sum(1 - (1 - share) ** size for share in shares) for size, _ in self._distinct]
        return {
            "labels_in_batch": sum(n for _, n in self._distinct) / len(self._distinct),
            "labels_expected": sum(expected) / len(expected),
            "batches_seen": float(len(self._distinct)),
        }


def _labels_of(batch: Any) -> Tensor | None:
    if isinstance(batch, dict):
        batch = list(batch.values())
    if not isinstance(batch, (list, tuple)):
        return None
    if batch and isinstance(batch[0], (list, tuple, dict)):  # micro-batches
        parts = [y for y in (_labels_of(part) for part in batch) if y is not None]
        return torch.cat(parts) if parts else None
    whole = [t for t in batch if isinstance(t, Tensor) and t.ndim == 1 and not t.is_floating_point()]
    return whole[-1] if whole else None


def replicas_apart(model: nn.Module) -> float:
    """How far the norms of the weights are apart between processes, relative to them; a collective call of all.

    Args:
        model: The same on every process; of its weights the first 32 tensors are compared.

    Returns:
        Largest difference of a norm over the largest of that norm, the same on every process; 0 where all agree.
        Weights that differ and have one norm are not seen.
    """
    weights = [p.detach() for p in model.parameters() if p.requires_grad and type(p) is nn.Parameter][:32]
    mine = torch.stack(torch._foreach_norm(weights)).double()
    everyones = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyones, mine)
    norms = torch.stack(everyones)
    spread = norms.amax(0) - norms.amin(0)
    return float((spread / norms.amax(0).clamp_min(1e-30)).max())


def is_sequential(loader: Any) -> bool:
    """Whether a PyTorch loader reads a data set of several batches in its own order.

    Example:
        >>> is_sequential(torch.utils.data.DataLoader([1, 2])), is_sequential([1, 2])
        (True, False)
    """
    sampler = getattr(loader, "sampler", None)
    return isinstance(sampler, torch.utils.data.SequentialSampler)
