r"""Directions in weight space: random, normalised, and those that training and curvature point out.

Filter normalisation gives every filter of a random direction the norm of the filter it moves,

.. math:: d_f \leftarrow \frac{d_f}{\lVert d_f \rVert}\, \lVert w_f \rVert .

The norm of w *multiplies*; a frequent misprint puts both norms under one fraction bar, and then a net with smaller
weights is moved further. A filter is what makes one output unit: a row of a linear layer (packed query, key and value
weights included) or of an embedding, dimension 0 of a convolution, dimension 1 of a transposed one. Biases, gains
and other tensors of fewer than two dimensions do not move. The picture is then invariant to a rescaling of filters
that leaves the function as it is.

References: Li et al. 2018, arXiv:1712.09913 (filter normalisation); Böttcher and Wheeler 2024, arXiv:2208.13219
(what random directions cannot show).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from optland import vectors
from optland.archive import Archived
from optland.curvature.eigen.spectrum import Spectrum
from optland.landscape.filters import filter_axes
from optland.landscape.paths import weights_of
from optland.objective import Objective
from optland.vectors import Vector

__all__ = [
    "Direction",
    "Normalisation",
    "cosine",
    "difference",
    "eigenvector_direction",
    "filter_normalised",
    "layer_normalised",
    "random_direction",
]

Normalisation = Literal["filter", "layer", "unit", "none"]


@dataclass(frozen=True, slots=True)
class Direction(Archived):
    """A vector in the shapes of an objective's parameters, and where it came from.

    Attributes:
        tensors: d, one tensor for each parameter.
        kind: In words: ``gaussian, filter-normalised``, ``gradient``, ``eigenvector 1``.
        seed: Seed of a random direction; None otherwise.
        norm: ||d||.
        weight_norm: ||w|| at the point it was made for, the natural unit of a distance in weight space.

    Example:
        >>> net = torch.nn.Linear(3, 2)
        >>> L = Objective(net, lambda m, x: m(x).square().mean(), [torch.ones(4, 3)])
        >>> d = random_direction(L, normalise="filter", seed=1)
        >>> d.kind, bool(torch.allclose(d.tensors[0].norm(dim=1), net.weight.norm(dim=1)))
        ('gaussian, filter-normalised', True)
    """

    tensors: tuple[Tensor, ...]
    kind: str
    seed: int | None
    norm: float
    weight_norm: float

    def __str__(self) -> str:
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"{self.kind}{seed}, length {self.norm / max(self.weight_norm, 1e-30):.3g} ||w||"


def made(objective: Objective, tensors: Vector, kind: str, seed: int | None = None) -> Direction:
    """A :class:`Direction` for ``objective``, checked.

    Args:
        objective: Gives shapes, names and the norm of the weights.
        tensors: The direction.
        kind: In words, for messages and legends.
        seed: Of a random one; None for others.

    Raises:
        ValueError: The shapes are not those of the parameters, or the direction is zero or not finite.
    """
    tensors = vectors.require_shapes(tensors, objective.params, f"the direction {kind!r}", objective.names)
    norm = float(vectors.norm(tensors))
    if not norm > 0 or not math.isfinite(norm):
        raise ValueError(
            f"the direction {kind!r} has norm {norm}; a slice needs one that is finite and not zero"
        )
    weight_norm = float(vectors.norm([p.detach() for p in objective.params]))
    return Direction(tuple(t.detach() for t in tensors), kind, seed, norm, weight_norm)


def random_direction(
    objective: Objective,
    *,
    normalise: Normalisation = "filter",
    seed: int = 0,
) -> Direction:
    """A Gaussian direction.

    Args:
        objective: The loss whose weights are to be moved.
        normalise: ``filter`` (default: comparable between nets), ``layer`` (each tensor gets the norm of its
            weights), ``unit`` (length 1, for curvature along a ray), or ``none``.
        seed: The direction depends on it and on the shapes alone, not on torch's global generator or the device.

    Raises:
        ValueError: Unknown normalisation, or a model all of whose weights are one-dimensional.
    """
    generator = torch.Generator().manual_seed(seed)
    params = [p.detach() for p in objective.params]
    draws = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in params]
    d = [draw.to(device=p.device, dtype=p.dtype) for draw, p in zip(draws, params, strict=True)]
    d, word = normalised(objective, d, normalise)
    return made(objective, d, f"gaussian{word}", seed)


def normalised(objective: Objective, d: Vector, normalise: Normalisation) -> tuple[list[Tensor], str]:
    """``d`` normalised, and the words that say so.

    Args:
        objective: Gives the weights.
        d: The direction.
        normalise: ``filter``, ``layer``, ``unit`` or ``none``.

    Returns:
        The vector, and the end of a legend.

    Raises:
        ValueError: Another word.
    """
    if normalise == "filter":
        return filter_normalised(objective, d), ", filter-normalised"
    if normalise == "layer":
        return layer_normalised(objective, d), ", layer-normalised"
    if normalise == "unit":
        return vectors.scaled(1.0 / float(vectors.norm(d)), d), ", of unit length"
    if normalise == "none":
        return list(d), ""
    raise ValueError(f"normalise {normalise!r} is not known; choose from filter, layer, unit, none")


def filter_normalised(objective: Objective, direction: Vector) -> list[Tensor]:
    r"""Every filter of ``direction`` with the norm of its weights; zero for gains, biases and filters of zero.

    .. math:: d_f \leftarrow \frac{\|w_f\|}{\|d_f\|} \, d_f

    for each filter f, after Li et al. 2018, arXiv:1712.09913. A filter of d that is zero stays zero.

    Args:
        objective: Gives the weights w, and which of their dimensions numbers the filters.
        direction: In the shapes of the parameters.

    Example:
        >>> from optland.problems import linear_regression
        >>> L = linear_regression(torch.ones(1, 2), torch.ones(1, 2))
        >>> _ = L.params[0].data.copy_(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))  # filters of norm 5 and 2
        >>> filter_normalised(L, [torch.tensor([[1.0, 0.0], [0.0, 4.0]])])[0].tolist()
        [[5.0, 0.0], [0.0, 2.0]]
    """
    axes = filter_axes(objective.model, objective.params)
    return [
        _matched(t, p.detach(), axis) for t, p, axis in zip(direction, objective.params, axes, strict=True)
    ]


def layer_normalised(objective: Objective, direction: Vector) -> list[Tensor]:
    """Every tensor of ``direction`` with the norm of its weights; gains and biases do not move.

    Args:
        objective: Gives the weights.
        direction: In the shapes of the parameters.
    """
    axes = filter_axes(objective.model, objective.params)
    return [
        torch.zeros_like(t) if axis is None else _scaled_to(t, p.detach().norm(), t.norm())
        for t, p, axis in zip(direction, objective.params, axes, strict=True)
    ]


def _matched(d: Tensor, w: Tensor, axis: int | None) -> Tensor:
    if axis is None:
        return torch.zeros_like(d)
    others = [i for i in range(d.ndim) if i != axis]
    length = torch.linalg.vector_norm(d, dim=others, keepdim=True)
    return _scaled_to(d, torch.linalg.vector_norm(w, dim=others, keepdim=True), length)


def _scaled_to(d: Tensor, wanted: Tensor, length: Tensor) -> Tensor:
    """``d`` with the wanted length; where it has none it stays 0, and a weight that is NaN shows as NaN."""
    return d * torch.where(length > 0, wanted / length, torch.zeros_like(length))


def difference(objective: Objective, target: Vector) -> Direction:
    """``target`` minus the present weights: distance 1 along it is the other checkpoint.

    Args:
        objective: The loss at the weights to start from.
        target: The other weights, in the order and shapes of the parameters.

    Returns:
        A direction whose ``norm`` is the distance between the two.
    """
    there = weights_of(objective, target)
    apart = [t - p.detach() for t, p in zip(there, objective.params, strict=True)]
    return made(objective, apart, "checkpoint difference")


def eigenvector_direction(objective: Objective, spectrum: Spectrum, index: int = 0) -> Direction:
    """An eigenvector of the Hessian, of length 1: the direction of largest curvature, unlike a random one.

    Args:
        objective: The loss that the spectrum was taken of.
        spectrum: What :func:`~optland.curvature.eigen.lanczos.lanczos` found.
        index: Of its values, which run from the largest to the smallest; -1 is the lowest that was asked for.

    Raises:
        ValueError: The spectrum holds no vector of that number.

    Example:
        >>> from optland.curvature import hessian, lanczos
        >>> from optland.problems import saddle
        >>> L = saddle()
        >>> with hessian(L) as H:
        ...     d = eigenvector_direction(L, lanczos(H, 1, ends="both"), -1)
        >>> d.kind, [round(abs(x), 6) for x in d.tensors[0].tolist()]
        ('eigenvector of -2', [0.0, 1.0])
    """
    found = len(spectrum.vectors)
    if not -found <= index < found:
        raise ValueError(
            f"index {index}: the spectrum holds {found} vectors, numbered from 0; ask lanczos for more"
        )
    value = spectrum.values[index]
    mark = "" if value.converged else ", not converged"
    return made(objective, spectrum.vectors[index], f"eigenvector of {value.value:.4g}{mark}")


def cosine(a: Direction | Vector, b: Direction | Vector) -> float:
    """Cosine of the angle between two directions.

    Args:
        a: In the shapes of the parameters, of any length.
        b: Likewise.

    Returns:
        From -1 to 1, in float64.

    Raises:
        ValueError: One of them is zero, and has no angle.

    Example:
        >>> cosine([torch.tensor([1.0, 0.0])], [torch.tensor([1.0, 1.0])])
        0.7071067811865475
    """
    x = list(a.tensors) if isinstance(a, Direction) else list(a)
    y = list(b.tensors) if isinstance(b, Direction) else list(b)
    wide: Sequence[Tensor] = [t.double() for t in x]
    other: Sequence[Tensor] = [t.double() for t in y]
    lengths = float(vectors.norm(wide) * vectors.norm(other))
    if lengths == 0.0:
        raise ValueError("a direction of length 0 has no angle; take one that moves the weights")
    return float(vectors.dot(wide, other)) / lengths
