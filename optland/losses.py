"""Read what a loss function returns: a mean, a sum with its count, or what holds the loss under that name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from torch import Tensor


def mean_or_pair(loss: Any) -> Tensor | tuple[Tensor, Any]:
    """The mean loss of a batch, or its sum and count.

    Args:
        loss: What ``loss_fn`` returned. Of a mapping or an object, such as the ``ModelOutput`` of transformers, its
            ``loss`` is the mean.

    Returns:
        A scalar tensor, the mean; or the pair of a tensor and a number, the sum over a batch and its count.

    Raises:
        TypeError: It is neither.

    Example:
        >>> import torch
        >>> mean_or_pair({"loss": torch.tensor(2.0), "logits": torch.zeros(4, 3)})
        tensor(2.)
        >>> mean_or_pair((torch.tensor(6.0), 3))
        (tensor(6.), 3)
    """
    if isinstance(loss, Tensor):
        return loss
    if isinstance(loss, Mapping):
        inner = loss.get("loss")
    elif isinstance(loss, Sequence) and not isinstance(loss, str):
        return _pair(loss)
    else:
        inner = getattr(loss, "loss", None)
    if isinstance(inner, Tensor):
        return inner
    raise TypeError(f"loss_fn returned {_in_words(loss)}; {REMEDY}")


REMEDY = "return the mean loss (a scalar tensor), the pair (sum of losses, count), or a mapping with a 'loss'"


def _pair(loss: Sequence[Any]) -> tuple[Tensor, Any]:
    if len(loss) == 2:
        total, count = loss
        one = count.numel() == 1 if isinstance(count, Tensor) else isinstance(count, Real)
        if isinstance(total, Tensor) and one:
            return total, count
    raise TypeError(f"loss_fn returned {_in_words(loss)}, which is no pair of sum and count; {REMEDY}")


def _in_words(loss: Any) -> str:
    name = type(loss).__name__
    if isinstance(loss, Mapping):
        held = ", ".join(repr(key) for key in loss)
        return f"a {name} with a loss of None" if "loss" in loss else f"a {name} of {held or 'nothing'}"
    if isinstance(loss, Sequence) and not isinstance(loss, str):
        return f"a {name} of {', '.join(map(_shape, loss)) or 'nothing'}"
    return f"a {name}"


def _shape(item: Any) -> str:
    shaped = f" of shape {tuple(item.shape)}" if isinstance(item, Tensor) else ""
    return f"{type(item).__name__}{shaped}"


def mean_of(loss: Any) -> Tensor:
    """The mean loss of one batch, whichever way it is returned.

    Args:
        loss: What ``loss_fn`` returned, as for :func:`mean_or_pair`.

    Returns:
        A scalar tensor with its graph.

    Raises:
        TypeError: It is neither a loss, nor a pair, nor does it hold a ``loss``.

    Example:
        >>> import torch
        >>> mean_of((torch.tensor(6.0), 3))
        tensor(2.)
    """
    found = mean_or_pair(loss)
    return found if isinstance(found, Tensor) else found[0] / found[1]
