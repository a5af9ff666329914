r"""Scale the learning rate and Adam's betas with a change of the batch from B to k B.

.. math:: \text{SGD: } \frac{\eta'}{\eta} = \frac{1 + B_n / B}{1 + B_n / (k B)}, \qquad
          \text{Adam: } \sqrt{k},\quad 1 - \beta_i' = k (1 - \beta_i)

The gain is 1 for k = 1 or no noise, k while noise dominates, and never above 1 + B_n / B. Adam's averages then cover
the same number of samples as before.

References: gain of AdaScale (Johnson et al. 2020, arXiv:2007.05105) from the noise scale of McCandlish et al. 2018,
arXiv:1812.06162; square root and memory of Malladi et al. 2022, arXiv:2205.10287.
"""

from __future__ import annotations

import math

__all__ = ["adam_betas", "batch_gain"]


def batch_gain(k: float, batch: float, noise_scale: float | None, *, adam: bool) -> float:
    """Factor on the learning rate when the batch grows k-fold.

    Args:
        k: New over old batch.
        batch: Old batch B.
        noise_scale: B_n in samples; None (unknown) leaves the rate of SGD as it is, which is always safe.
        adam: Whether the optimizer divides by the root of a second moment.

    Raises:
        ValueError: ``k`` or ``batch`` is not above 0.

    Example:
        >>> batch_gain(4, 32, 96, adam=False), batch_gain(4, 32, None, adam=True)
        (2.2857142857142856, 2.0)
    """
    if not k > 0 or not batch > 0:
        raise ValueError(f"k {k} and batch {batch} must be above 0")
    if adam:
        return math.sqrt(k)
    if noise_scale is None:
        return 1.0
    return (1 + noise_scale / batch) / (1 + noise_scale / (k * batch))


def adam_betas(betas: tuple[float, float], k: float) -> tuple[float, float]:
    """Adam's betas after the batch grew k-fold; a beta that would fall below 0 becomes 0.

    Args:
        betas: (beta_1, beta_2) at the old batch.
        k: New over old batch; below 1 the betas grow.

    Returns:
        The pair at the new batch.

    Example:
        >>> [round(b, 4) for b in adam_betas((0.9, 0.999), 4)]
        [0.6, 0.996]
    """
    first, second = (max(1 - k * (1 - beta), 0.0) for beta in betas)
    return first, second
