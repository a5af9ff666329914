"""Closed forms of the problems with known critical points, against second differences of the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from optland import vectors
from optland.objective import Objective
from optland.problems import (
    flat_bowl,
    gradient_flat,
    linear_network,
    monkey_saddle,
    separable_products,
)

D = torch.float64


def differences(L: Objective, h: float = 1e-4) -> Tensor:
    """The Hessian from losses alone."""
    w = vectors.flatten(L.params)
    eye = torch.eye(len(w), dtype=D)

    def value(x: Tensor) -> float:
        return L.value(vectors.unflatten(x, L.params))

    def entry(i: int, j: int) -> float:
        a, b = h * eye[i], h * eye[j]
        return (value(w + a + b) - value(w + a - b) - value(w - a + b) + value(w - a - b)) / (4 * h * h)

    return torch.tensor([[entry(i, j) for j in range(len(w))] for i in range(len(w))], dtype=D)


def spectrum(L: Objective) -> np.ndarray:
    return torch.linalg.eigvalsh(differences(L)).numpy()


def gradient_size(L: Objective) -> float:
    return float(vectors.norm(L.gradient()))


@pytest.mark.parametrize("asleep", [[True, True, True], [True, False, True], [False, False, False]])
def test_separable_products(asleep: list[bool]) -> None:
    s = [2.0, -1.0, 0.5]
    L = separable_products(s, asleep)
    assert gradient_size(L) < 1e-15
    assert L.value() == pytest.approx(sum(x * x / 2 for x, off in zip(s, asleep, strict=True) if off))
    expected = [x for v, off in zip(s, asleep, strict=True) for x in ((v, -v) if off else (0.0, 2 * abs(v)))]
    np.testing.assert_allclose(spectrum(L), sorted(expected), atol=1e-6)


def test_two_matrices_at_the_origin() -> None:
    M = torch.diag(torch.tensor([3.0, 1.0], dtype=D))
    L = linear_network(M, [3])
    assert gradient_size(L) == 0.0
    np.testing.assert_allclose(spectrum(L), sorted([3, 3, 3, -3, -3, -3, 1, 1, 1, -1, -1, -1]), atol=1e-6)
    assert L.value() == pytest.approx(5.0)


def test_two_matrices_that_are_not_square_leave_zeros() -> None:
    L = linear_network(torch.tensor([[2.0, 0.0, 0.0]], dtype=D), [2])  # 2 x 3 and 1 x 2 weights
    np.testing.assert_allclose(spectrum(L), [-2, -2, 0, 0, 0, 0, 2, 2], atol=1e-6)


@pytest.mark.parametrize("L", [linear_network(torch.eye(2, dtype=D), [2, 2]), monkey_saddle(), flat_bowl(4)])
def test_gradient_and_hessian_vanish(L: Objective) -> None:
    assert gradient_size(L) == 0.0
    assert np.abs(spectrum(L)).max() < 1e-6


def test_monkey_saddle_falls_in_three_directions_and_is_a_saddle_beside_the_origin() -> None:
    angles = torch.arange(6) * torch.pi / 3
    rises = [monkey_saddle(float(t.cos()), float(t.sin())).value() for t in angles]
    assert rises == pytest.approx([1, -1, 1, -1, 1, -1])
    np.testing.assert_allclose(spectrum(monkey_saddle(0.3, 0.4)), [-3, 3], atol=1e-6)


def test_gradient_flat() -> None:
    L = gradient_flat()
    g = L.gradient()[0]
    assert torch.equal(g, torch.tensor([1.0, 0.0], dtype=D))
    np.testing.assert_allclose(differences(L) @ g, [0, 0], atol=1e-6)
