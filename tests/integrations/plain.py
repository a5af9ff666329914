"""The plain loop that trainers are held against: gradients of the whole update written out, no trainer in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from optland.optim import TwoPass

__all__ = ["assert_weights", "net_and_data", "plain_updates", "weights"]


def net_and_data(
    num: int, *, dropout: float = 0.0, dtype: torch.dtype = torch.float64
) -> tuple[nn.Module, Tensor, Tensor]:
    """A small net, and samples of a three-class problem."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3)).to(dtype)
    return net, torch.randn(num, 4, dtype=dtype), torch.randint(3, (num,))


def plain_updates(
    optimizer: TwoPass,
    updates: Sequence[Sequence[Any]],
    loss_of: Callable[[Any], Tensor],
    *,
    clip: float | None = None,
    after: Callable[[], object] | None = None,
) -> tuple[list[float], list[float]]:
    """One update per list of micro-batches, whose losses add up to that of the update.

    Returns:
        Losses at the weights before each update, and norms of the gradient before it is clipped.
    """
    losses, norms = [], []
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for parts in updates:
        optimizer.zero_grad()
        total = 0.0
        for k in optimizer.passes():
            for part in parts:
                loss = loss_of(part)
                loss.backward()
                total += float(loss.detach()) if k == 0 else 0.0
        optimizer.restore()
        norms.append(float(nn.utils.clip_grad_norm_(params, torch.inf if clip is None else clip)))
        optimizer.step()
        losses.append(total)
        if after is not None:
            after()
    return losses, norms


def weights(model: nn.Module) -> list[Tensor]:
    """Copies."""
    return [p.detach().clone() for p in model.parameters()]


def assert_weights(found: nn.Module, expected: Sequence[Tensor], atol: float = 1e-10) -> None:
    """Equal weights; with ``atol`` 0 bit for bit."""
    pairs = list(zip(found.parameters(), expected, strict=True))
    if atol == 0:
        assert all(torch.equal(p, q) for p, q in pairs)
    far = max(float((p.detach() - q).abs().max()) for p, q in pairs)
    assert far <= atol, f"weights are {far:.3g} apart"
