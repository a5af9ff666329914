"""Loss and accuracy on held-out data, and the history from which the best epoch is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.context import preserve_modes, set_modes
from optland.train.data import ImageData

__all__ = ["History", "Records", "evaluate"]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    batch_size: int = 1024,
    *,
    normalise: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """Mean cross-entropy and accuracy (in percent) in evaluation mode; the module's modes are restored.

    Args:
        model: Maps a batch of inputs to logits.
        x: Inputs as they are kept in memory.
        y: Labels.
        batch_size: Samples in one forward pass; memory alone depends on it.
        normalise: Makes a batch of ``x`` what the model takes, such as :meth:`ImageData.normalise`; by default
            ``x`` is that already.
    """
    loss, correct = 0.0, 0
    with preserve_modes(model):
        set_modes(model, training=False)
        for xs, ys in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
            logits = model(xs if normalise is None else normalise(xs))
            loss += float(F.cross_entropy(logits, ys, reduction="sum"))
            correct += int((logits.argmax(dim=1) == ys).sum())
    return {"loss": loss / len(y), "acc": 100.0 * correct / len(y)}


class Records:
    """Evaluations in order: what the histories of images and of text have in common."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    @property
    def last(self) -> dict[str, float]:
        """The latest evaluation."""
        return self.records[-1]

    def state_dict(self) -> dict[str, Any]:
        """The records."""
        return {"records": [dict(r) for r in self.records]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.records = [dict(r) for r in state["records"]]


class History(Records):
    """Evaluations in order; the best is the one of highest validation accuracy, ties going to the lower loss."""

    def measure(self, model: nn.Module, data: ImageData, epoch: int) -> dict[str, float]:
        """Evaluate on the validation and test splits; returns a row of the metric vocabulary."""
        val = evaluate(model, data.val_x, data.val_y, normalise=data.normalise)
        test = evaluate(model, data.test_x, data.test_y, normalise=data.normalise)
        row = {"epoch": float(epoch)}
        row |= {f"val/{k}": v for k, v in val.items()} | {f"test/{k}": v for k, v in test.items()}
        self.records.append(row)
        return row

    @property
    def best(self) -> dict[str, float]:
        """The evaluation that early stopping on the validation split would have kept."""
        return max(self.records, key=lambda r: (r["val/acc"], -r["val/loss"]))
