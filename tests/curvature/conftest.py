"""Small networks and snapshots that several curvature tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optland.objective import Objective


def mean_cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def classification_batches(sizes: list[int], features: int = 4, classes: int = 3, seed: int = 0) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(n, features, generator=generator, dtype=torch.float64),
            torch.randint(0, classes, (n,), generator=generator),
        )
        for n in sizes
    ]


@pytest.fixture
def mlp() -> Objective:
    """A tanh network in float64 with 4 features, 3 classes and two ragged batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return Objective(model, mean_cross_entropy, classification_batches([7, 4]))


@pytest.fixture
def dense_hessian() -> Callable[[Objective], Tensor]:
    """The Hessian of a classifier by PyTorch's own function, row by row."""

    def compute(objective: Objective) -> Tensor:
        names, params = objective.names, objective.params
        sizes = [p.numel() for p in params]

        def loss(flat: Tensor) -> Tensor:
            pieces = [x.view_as(p) for x, p in zip(flat.split(sizes), params, strict=True)]
            total, count = torch.zeros((), dtype=flat.dtype), 0
            for x, y in objective.batches:
                out = torch.func.functional_call(objective.model, dict(zip(names, pieces, strict=True)), (x,))
                total = total + F.cross_entropy(out, y, reduction="sum")
                count += len(x)
            return total / count

        flat = torch.cat([p.detach().reshape(-1) for p in params])
        return torch.autograd.functional.hessian(loss, flat)

    return compute
