"""Stratified splits, draws without replacement and label noise, each a function of its own seed."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["add_label_noise", "random_draw", "stratified_split"]


def stratified_split(labels: Tensor, sizes: tuple[int, ...], seed: int) -> list[Tensor]:
    """Disjoint index sets of the given sizes, each with the classes in their overall proportions.

    Samples are ordered by their random rank within their own class; every stretch of that order holds the classes in
    proportion, to within about one sample, so the sets are consecutive stretches. A smaller first set is part of a
    larger one with the same seed.

    Args:
        labels: Classes ``(n,)``.
        sizes: Samples of each set; what is left over is in none.
        seed: Seed of the draw.

    Returns:
        For each size the indices, int64 in ascending order.

    Raises:
        ValueError: The sizes add up to more than there are samples.

    Example:
        >>> labels = torch.tensor([0] * 8 + [1] * 4)
        >>> train, test = stratified_split(labels, (9, 3), seed=0)
        >>> labels[train].bincount().tolist(), labels[test].bincount().tolist()
        ([6, 3], [2, 1])
    """
    if sum(sizes) > len(labels):
        raise ValueError(f"a split into {sizes} needs {sum(sizes)} samples, but there are {len(labels)}")
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rank = torch.empty(len(labels), dtype=torch.float64)
    for c in torch.unique(labels):
        members = shuffled[labels[shuffled] == c]
        rank[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    order = shuffled[torch.argsort(rank[shuffled], stable=True)]
    return [torch.sort(part).values for part in torch.split(order[: sum(sizes)], list(sizes))]


def add_label_noise(labels: Tensor, share: float, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Replace a share of the labels by uniformly random ones; returns the new labels and the mask of redrawn ones.

    Args:
        labels: Classes ``(n,)``; they are not changed.
        share: Share of them to redraw, in [0, 1].
        num_classes: C; a new label is uniform on 0 to C - 1, so one in C is the old one again.
        seed: Seed of the choice and of the new labels.

    Returns:
        Labels ``(n,)``, and a mask ``(n,)``, true where one was redrawn.

    Example:
        >>> noisy, redrawn = add_label_noise(torch.zeros(10, dtype=torch.long), 0.3, num_classes=5, seed=0)
        >>> int(redrawn.sum()), bool((noisy[~redrawn] == 0).all())
        (3, True)
    """
    generator = torch.Generator().manual_seed(seed)
    redrawn = torch.zeros(len(labels), dtype=torch.bool)
    redrawn[torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]] = True
    random = torch.randint(num_classes, labels.shape, generator=generator)
    return torch.where(redrawn, random, labels), redrawn


def random_draw(size: int, num: int, seed: int) -> Tensor:
    """Indices of ``num`` of ``size`` samples, drawn without replacement and in ascending order; all where no more.

    Args:
        size: How many there are.
        num: How many to draw.
        seed: Seed of the draw.

    Returns:
        Indices, int64. A larger ``num`` with the same seed draws those of a smaller one and more.

    Raises:
        ValueError: ``num`` is below 1.

    Example:
        >>> random_draw(3, 5, seed=0).tolist(), len(set(random_draw(1000, 20, seed=0).tolist()))
        ([0, 1, 2], 20)
    """
    if num < 1:
        raise ValueError(f"{num} samples are too few; draw at least 1")
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return torch.sort(order[:num]).values
