"""Data of the user's own: a function, named by its import path, that gives samples and labels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from optland.config import UserError
from optland.config.imports import given, imported
from optland.train.data.raw_images import RawImages

__all__ = ["own_reader"]


def own_reader(path: str) -> Callable[..., RawImages]:
    """The reader of the data at an import path, such as ``mine:wine``.

    The function gives ``(x, y)``, arrays or tensors: samples ``(n, features)``, ``(n, h, w)`` or ``(n, c, h, w)``, and
    labels 0 to C - 1; or a :class:`RawImages`, with a test split of its own. It has a parameter for every setting of
    the data that it takes, by its name.

    Args:
        path: ``package.module:name``.

    Returns:
        A reader with the parameters of the function, which calls it and checks what it gives: a UserError names what is
        wrong with its samples or labels. Without a test split of its own a fifth, drawn with the classes in proportion,
        is the test.

    Raises:
        ValueError: There is nothing of that name, or nothing that can be called.
    """
    function = imported(path)
    if not callable(function):
        raise ValueError(
            f"{path} is a {type(function).__name__}; name a function that returns samples and labels"
        )

    @functools.wraps(function)
    def read(**settings: Any) -> RawImages:
        found = function(**given(path, function, settings))
        return found if isinstance(found, RawImages) else _raw(path, found)

    return read


def _raw(path: str, found: Any) -> RawImages:
    """Samples and labels as a data set: rows of a table become images of one pixel per column, in one row."""
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise UserError(f"{path} returned a {type(found).__name__}; return (x, y), samples and labels")
    x, y = _samples(path, found[0]), _labels(path, found[1])
    if len(x) != len(y):
        raise UserError(f"{path} returned {len(x)} samples and {len(y)} labels; return one label per sample")
    table = x.ndim == 2
    if table:
        x = x[:, None, None]
    elif x.ndim == 3:
        x = x[:, None]
    return RawImages(x, y, int(y.max()) + 1, num_test=len(y) // 5, table=table)


def _samples(path: str, given_x: Any) -> Tensor:
    """The samples as float32, images of bytes as bytes; what is not finite or of another form is refused."""
    x = _tensor(path, "samples", given_x)
    if x.ndim not in (2, 3, 4) or not x.numel():
        raise UserError(
            f"{path} returned samples of shape {tuple(x.shape)}; use (n, features), (n, h, w) or (n, c, h, w)"
        )
    if x.dtype == torch.uint8 and x.ndim > 2:
        return x
    x = x.to(torch.float32)
    bad = int((~torch.isfinite(x)).sum())
    if bad:
        raise UserError(
            f"{path}: {bad} of {x.numel()} values of the samples are not finite; fill or drop them"
        )
    return x


def _labels(path: str, given_y: Any) -> Tensor:
    """The labels as int64; they have to be 0 to C - 1 without a gap, because C is taken from the largest."""
    y = _tensor(path, "labels", given_y)
    if y.ndim != 1 or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise UserError(
            f"{path} returned labels of shape {tuple(y.shape)} and type {y.dtype}; use (n,) whole numbers 0 to C - 1"
        )
    found = torch.unique(y)
    if len(found) < 2 or not torch.equal(found, torch.arange(len(found))):
        raise UserError(
            f"{path} returned the labels {_shown(found)}; use 0 to C - 1 without a gap and two classes at least, as "
            "numpy.unique(y, return_inverse=True)[1] makes them"
        )
    return y.to(torch.long)


def _tensor(path: str, what: str, values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().cpu()
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise UserError(
            f"{path} returned {what} of type {array.dtype}; use numbers"
            + (", as numpy.unique(y, return_inverse=True)[1] makes them" if what == "labels" else "")
        )
    return torch.tensor(array)


def _shown(labels: Tensor) -> str:
    shown = ", ".join(str(label) for label in labels[:5].tolist())
    return f"{shown} ..." if len(labels) > 5 else shown
