r"""What is measured of every net: losses, curvature in three senses, conditioning, and how it bears an input shift.

Curvature is taken on the first training samples, in eval mode:

.. math:: \lambda_{\max}(H), \qquad \lambda_{\max}(H)\,\lVert w \rVert^2, \qquad
          \lambda_{\max}(|w|\,H\,|w|), \qquad
          \kappa = \frac{\lambda_{\max}(G)}{\mathrm{tr}(G) / d} .

The first is raw sharpness, which a rescaling of the layers changes at will. The second is relative to the weights, and
the third adaptive: it does not change under any rescaling that leaves the function as it is (Kwon et al. 2021,
arXiv:2102.11600). :math:`\kappa` is the conditioning: the largest eigenvalue of the Gauss-Newton matrix over the mean
of all d. The usual ratio to the smallest eigenvalue has no meaning for a net, whose smallest is 0 up to rounding;
:math:`\kappa` lies between 1 and d, and its error comes from those of both parts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from optland import vectors
from optland.curvature import ggn, hessian, in_metric, lanczos, trace
from optland.landscape import worst_sharpness
from optland.objective import Objective
from optland.train.experiments.bank import Measure, score
from optland.train.experiments.bank_run import Splits, cross_entropy

__all__ = ["LOOKS", "Look", "at_end", "at_level", "at_start", "shift", "spectrum"]

Look = Literal["scores", "spectra", "all"]
LOOKS: tuple[Look, ...] = get_args(Look)
"""How closely the runs of a claim are looked at: losses alone; also extreme eigenvalues at the start and early; all."""

PRODUCTS = 20
TRACE_PRODUCTS = 12
BOX = 5e-4
"""Half the side of the box of Keskar et al. 2017, without their factor 1 + |w|, which is near 1 for all but a few."""


def objective_of(model: nn.Module, splits: Splits, num: int) -> Objective:
    """The loss on the first training samples.

    Args:
        model: The net, in eval mode; the objective keeps it so.
        splits: Its data.
        num: Samples from the beginning: the same ones for every net, so that nets are compared on them.
    """
    return Objective(model, cross_entropy, list(splits.batches("train", num=num)), data="training")


def spectrum(
    model: nn.Module, splits: Splits, num: int, *, ends: Literal["top", "both"] = "top"
) -> dict[str, float]:
    """The largest eigenvalue of the Hessian; with both ends the smallest too, to a tenth of its size.

    Args:
        model: The net.
        splits: Its data.
        num: Training samples that curvature is measured on.
        ends: ``both`` costs up to three times as many products.

    Returns:
        ``lambda_max`` and ``lambda_error``, its error; with both ends also ``lambda_min``, NaN where it did not
        converge within its products, and ``lambda_min_error``.
    """
    with hessian(objective_of(model, splits, num)) as H:
        top = lanczos(H, k=1, ends="top", rtol=0.02, max_matvecs=PRODUCTS).top
        found = {"lambda_max": top.value, "lambda_error": top.error}
        if ends == "both":
            low = lanczos(H, k=1, ends="bottom", rtol=0.1, max_matvecs=2 * PRODUCTS).bottom
            found |= {"lambda_min": low.value if low.converged else math.nan, "lambda_min_error": low.error}
    return found


def sharpness(model: nn.Module, splits: Splits, num: int) -> dict[str, float]:
    """Sharpness in three senses.

    Returns:
        Those of :func:`spectrum`; ``relative``, times the squared norm of the weights; ``adaptive`` with its error;
        ``norm`` of the weights and their number ``dim``.
    """
    objective = objective_of(model, splits, num)
    params = [p.detach() for p in objective.params]
    norm = float(vectors.norm(params))
    found = spectrum(model, splits, num)
    with hessian(objective) as H:
        adaptive = lanczos(in_metric(H, "weights"), k=1, ends="top", rtol=0.02, max_matvecs=PRODUCTS).top
    return {
        **found,
        "relative": found["lambda_max"] * norm**2,
        "adaptive": adaptive.value,
        "adaptive_error": adaptive.error,
        "norm": norm,
        "dim": float(vectors.numel(params)),
    }


def conditioning(model: nn.Module, splits: Splits, num: int) -> dict[str, float]:
    r"""The conditioning kappa with its error; NaN where the trace is not positive.

    Returns:
        ``kappa``, the module's :math:`\kappa`, and ``kappa_error``, from the relative errors of eigenvalue and trace
        added in quadrature.
    """
    objective = objective_of(model, splits, num)
    with ggn(objective) as G:
        top = lanczos(G, k=1, ends="top", rtol=0.02, max_matvecs=PRODUCTS).top
        total = trace(G, method="hutchinson", max_matvecs=TRACE_PRODUCTS)
    if not (top.value > 0 and total.value > 0):
        return {"kappa": math.nan, "kappa_error": math.nan}
    kappa = top.value * vectors.numel(objective.params) / total.value
    relative = math.hypot(top.error / top.value, total.error / total.value)
    return {"kappa": kappa, "kappa_error": kappa * relative}


def scores(model: nn.Module, splits: Splits) -> dict[str, float]:
    """Losses and accuracies on the training and the test data."""
    return {
        f"{name}_{what}": value
        for name, part in (("train", TRAIN), ("test", TEST))
        for what, value in part(model, splits).items()
    }


TRAIN, TEST = score("train"), score("test")


def at_start(look: Look, num: int) -> dict[str, Measure]:
    """Measures of the fresh net.

    Args:
        look: How closely; ``scores`` leaves the spectrum out.
        num: Training samples that curvature is measured on.

    Returns:
        One measure, ``point``.
    """

    def measure(model: nn.Module, splits: Splits) -> dict[str, float]:
        found = scores(model, splits)
        return found if look == "scores" else found | spectrum(model, splits, num)

    return {"point": measure}


def at_level(look: Look, num: int) -> Measure:
    """The measure of a net that has just reached the level of the loss.

    Args:
        look: How closely; anything but ``all`` measures losses and accuracies alone.
        num: Training samples that curvature is measured on.
    """

    def measure(model: nn.Module, splits: Splits) -> dict[str, float]:
        found = scores(model, splits)
        if look != "all":
            return found
        return found | sharpness(model, splits, num) | conditioning(model, splits, num)

    return measure


def at_end(look: Look, num: int) -> dict[str, Measure]:
    """Measures of the trained net.

    Args:
        look: How closely.
        num: Training samples that curvature is measured on.

    Returns:
        ``point``; with ``all`` also ``shift``, the accuracy under changed inputs, and ``box``, the sharpness of Keskar
        et al.
    """

    def measure(model: nn.Module, splits: Splits) -> dict[str, float]:
        found = scores(model, splits)
        return found | sharpness(model, splits, num) if look == "all" else found

    return {"point": measure} | ({"shift": shift, "box": box(num)} if look == "all" else {})


@torch.no_grad()
def shift(model: nn.Module, splits: Splits) -> Mapping[str, float]:
    """Test accuracy under noise, a move by one pixel, and half the contrast.

    Args:
        model: The net, in eval mode.
        splits: Its data; standardised, so that noise of deviation 0.5 is half of a pixel's.

    Returns:
        Accuracies in percent: ``noise``, ``moved``, ``contrast``, ``clean``; and ``drop``, the points lost in the mean
        of the three.
    """
    x, y = splits.test
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    changed = {"noise": x + 0.5 * noise, "moved": x.roll(1, dims=-1), "contrast": 0.5 * x}
    clean = _accuracy(model, x, y)
    found = {name: _accuracy(model, z, y) for name, z in changed.items()}
    return found | {"clean": clean, "drop": clean - sum(found.values()) / len(found)}


def box(num: int) -> Measure:
    """The sharpness of Keskar et al. 2017 (arXiv:1609.04836): 100 (max - L) / (1 + L) over a box around the weights.

    The maximum is sought by 10 steps from the weights without restarts, so it is a lower bound.
    """

    def measure(model: nn.Module, splits: Splits) -> dict[str, float]:
        objective = objective_of(model, splits, num)
        base = objective.value()
        rise = worst_sharpness(objective, BOX, p=math.inf, num_steps=10, num_restarts=0).rise.value
        return {"sharpness": 100.0 * rise / (1.0 + base)}

    return measure


def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return 100.0 * float((model(x).argmax(1) == y).float().mean())
