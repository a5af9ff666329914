"""Loss and accuracy on held-out data, and the history from which the best epoch is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland import processes
from optland.context.modules import preserve_modes, set_modes
from optland.train.data import ImageData

__all__ = ["History", "Records", "accuracy_error", "evaluate"]

Batch = TypeVar("Batch")


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
        model: Maps a batch of inputs to logits; where they are those of tokens, so are loss and accuracy.
        x: Inputs as they are kept in memory.
        y: Labels.
        batch_size: Samples in one forward pass; memory alone depends on it.
        normalise: Makes a batch of ``x`` what the model takes, such as :meth:`ImageData.normalise`; by default
            ``x`` is that already.

    Returns:
        ``loss``, the mean cross-entropy in nats, and ``acc`` in percent; both over all labels, so that the last smaller
        batch weighs less.

    Example:
        >>> x, y = torch.tensor([[4.0, 0.0], [0.0, 4.0]]), torch.tensor([0, 0])
        >>> found = evaluate(nn.Identity(), x, y)
        >>> found["acc"], round(found["loss"], 3)  # the mean of log(1 + e^-4) and log(1 + e^4)
        (50.0, 2.018)
    """
    loss, correct = 0.0, 0
    with preserve_modes(model):
        set_modes(model, training=False)
        for xs, ys in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
            logits = model(xs if normalise is None else normalise(xs)).flatten(0, -2)
            loss += float(F.cross_entropy(logits, ys.flatten(), reduction="sum"))
            correct += int((logits.argmax(dim=1) == ys.flatten()).sum())
    return {"loss": loss / y.numel(), "acc": 100.0 * correct / y.numel()}


def accuracy_error(accuracy: float, num_samples: int) -> float:
    """Binomial standard error of an accuracy, in points, from the number of samples that it was measured on.

    One right and one wrong answer are added, so that it is not 0 where all are right: Agresti and Caffo 2000, whose
    interval of a difference of two is the root of the sum of both squares.

    Args:
        accuracy: In percent.
        num_samples: At least 1.

    Example:
        >>> round(accuracy_error(90.0, 98), 2), round(accuracy_error(100.0, 48), 2)
        (3.1, 1.98)
    """
    share = (0.01 * accuracy * num_samples + 1) / (num_samples + 2)
    return 100.0 * math.sqrt(share * (1 - share) / (num_samples + 2))


class Records:
    """The latest and the best of a run's evaluations: what the histories of images and of text have in common.

    The others are in the log: a run of many short epochs would otherwise grow with every one of them.

    Example:
        >>> history = History()
        >>> for epoch, acc in enumerate([90.0, 92.0, 91.0]):
        ...     history.add({"epoch": float(epoch), "val/acc": acc, "val/loss": 0.1})
        >>> history.best["val/acc"], history.last["val/acc"], history.stalled(patience=1)
        (92.0, 91.0, True)
    """

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, float]] = {}

    @property
    def last(self) -> dict[str, float]:
        """The latest evaluation; KeyError before the first."""
        return self._kept["last"]

    @property
    def best(self) -> dict[str, float]:
        """The evaluation that early stopping on the validation split would have kept; KeyError before the first."""
        return self._kept["best"]

    def scores(self, model: nn.Module, data: Any) -> dict[str, float]:
        """What is measured at an epoch's end, by names of the metric vocabulary.

        Args:
            model: What the run evaluates: the net, or its average.
            data: Its data.
        """
        raise NotImplementedError

    def measure(self, model: nn.Module, data: Any, epoch: int) -> dict[str, float]:
        """Take the :meth:`scores` of an epoch in.

        Of several processes of a run the first measures, with the statistics that its normalisation layers have.

        Args:
            model: What the run evaluates: the net, or its average.
            data: Its data.
            epoch: Epochs made.

        Returns:
            The scores, and the ``epoch``.
        """
        row = {"epoch": float(epoch), **processes.from_first(lambda: self.scores(model, data))}
        self.add(row)
        return row

    def rank(self, row: Mapping[str, float]) -> tuple[float, ...]:
        """The key by which the best evaluation is the highest; of equal ones the first is the best.

        Args:
            row: An evaluation, as :meth:`add` takes it.
        """
        raise NotImplementedError

    def add(self, row: dict[str, float]) -> None:
        """Take an evaluation in.

        Args:
            row: Its numbers by name, with the number of the ``epoch``.
        """
        if not self._kept or self.rank(row) > self.rank(self.best):
            self._kept["best"] = row
        self._kept["last"] = row

    def until_stalled(self, batches: Iterable[Batch], patience: int | None) -> Iterator[Batch]:
        """The batches, until the best evaluation is ``patience`` epochs old: early stopping.

        Whether to go on is asked before a batch is taken, so that a run that is resumed after its last epoch stops
        where it had stopped.

        Args:
            batches: Batches of the run, evaluated into this history at every epoch's end.
            patience: Epochs without a better evaluation; None or 0 goes through all batches.
        """
        taken = iter(batches)
        while not self.stalled(patience):
            try:
                yield next(taken)
            except StopIteration:
                return

    def stalled(self, patience: int | None) -> bool:
        """Whether the best evaluation is ``patience`` epochs old or older; never with None or 0.

        Args:
            patience: Epochs without a better evaluation that are borne.
        """
        return bool(patience and self._kept) and self.last["epoch"] - self.best["epoch"] >= (patience or 0)

    def state_dict(self) -> dict[str, Any]:
        """The latest and the best.

        Returns:
            Rows under ``last`` and ``best``; empty before the first evaluation.
        """
        return {name: dict(row) for name, row in self._kept.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self._kept = {name: dict(row) for name, row in state.items()}


class History(Records):
    """Evaluations of a classifier; the best has the highest validation accuracy, ties going to the lower loss."""

    def scores(self, model: nn.Module, data: ImageData) -> dict[str, float]:
        """Evaluate on the validation and test splits; an accuracy comes with its binomial error.

        Args:
            model: What the run evaluates: the net, or its average.
            data: Its data.

        Returns:
            ``loss``, ``acc`` (in percent) and ``acc_error`` under ``val/`` and ``test/``.
        """
        row: dict[str, float] = {}
        for split, x, y in (("val", data.val_x, data.val_y), ("test", data.test_x, data.test_y)):
            found = evaluate(model, x, y, normalise=data.normalise)
            found["acc_error"] = accuracy_error(found["acc"], y.numel())
            row |= {f"{split}/{key}": value for key, value in found.items()}
        return row

    def rank(self, row: Mapping[str, float]) -> tuple[float, ...]:
        """Validation accuracy, then the lower loss."""
        return row["val/acc"], -row["val/loss"]
