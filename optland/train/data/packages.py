"""Real data that come with a Python package and need no download: digits and MNIST-1D."""

from __future__ import annotations

import torch
from torch import Tensor

from optland.config import UserError
from optland.context.rng import preserve_rng
from optland.train.data.raw_images import RawImages

__all__ = ["digits", "mnist1d"]


def digits() -> RawImages:
    """Images ``(1797, 1, 8, 8)`` with pixels in [0, 1], 197 of them for validation and 400 for the test.

    Returns:
        Images, float32, and labels 0 to 9; all splits are carved from them.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "the digits data come with scikit-learn, which is not installed; run: pip install 'optland[recipes]'"
        ) from error
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16.0
    return RawImages(
        images, torch.tensor(bunch.target, dtype=torch.long), num_classes=10, num_val=197, num_test=400
    )


def mnist1d() -> RawImages:
    """Signals ``(n, 1, 1, 40)``, images of height 1: 4000 to train on, 1000 for the test.

    Greydanus and Kobak 2020, arXiv:2011.14439. The package makes the set from templates and its own seed (42), without
    a file or a download. Convolutional models put kernels of height 1 on it, so they are one-dimensional; an MLP
    sees 40 numbers.

    Returns:
        Signals, float32, as the package makes them, and labels 0 to 9, with the package's test split.

    Raises:
        UserError: mnist1d is not installed.
    """
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as error:
        raise UserError(
            "the MNIST-1D data are made by the package mnist1d, which is not installed; run: pip install mnist1d"
        ) from error
    with preserve_rng():  # it seeds the global generators of Python and NumPy
        made = make_dataset(get_dataset_args())

    def split(suffix: str) -> tuple[Tensor, Tensor]:
        signals = torch.tensor(made[f"x{suffix}"], dtype=torch.float32)
        return signals[:, None, None, :], torch.tensor(made[f"y{suffix}"], dtype=torch.long)

    return RawImages(*split(""), num_classes=10, test=split("_test"))
