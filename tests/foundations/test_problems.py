"""Closed forms of the problems with known critical points, against second differences of the loss."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from known_points import flat_bowl, gradient_flat, separable_products
from torch import Tensor

from optland import vectors
from optland.objective import Objective
from optland.problems import (
    SURFACES,
    Octopus,
    deep_autoencoder,
    function_objective,
    linear_network,
    monkey_saddle,
)
from optland.problems.networks import matrix_factorisation

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


@pytest.mark.parametrize("name", SURFACES)
def test_surfaces_have_the_critical_points_they_list(name: str) -> None:
    surface = SURFACES[name]
    for point in surface.points:
        L = surface.objective(*point.at)
        assert gradient_size(L) < 1e-12
        H = torch.autograd.functional.hessian(surface.function, torch.tensor(point.at, dtype=D))
        np.testing.assert_allclose(torch.linalg.eigvalsh(H), point.eigenvalues, atol=1e-9)
        if name == "W":  # autograd cannot see |x| bend at 0, so losses have to agree
            np.testing.assert_allclose(spectrum(L), point.eigenvalues, atol=1e-3)
        low, high = surface.window
        assert all(low <= x <= high for x in point.at)


def test_w_shape_is_smooth_where_its_pieces_meet() -> None:
    f = SURFACES["W"].function
    for meeting in (0.1, 0.5):
        left, right = (
            torch.autograd.functional.hessian(f, torch.tensor([meeting + off, 0.0], dtype=D))
            for off in (-1e-9, 1e-9)
        )
        torch.testing.assert_close(left, right, atol=1e-7, rtol=0)


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_octopus_has_a_strict_saddle_at_each_stop_and_a_minimum_at_the_end(k: int) -> None:
    f = Octopus(3, stable=1.5, unstable=0.4, tau=2.0)
    L = function_objective(f, f.saddle(k))
    assert gradient_size(L) == 0.0
    assert L.value() == pytest.approx(-k * f.drop)
    expected = [3.0, 3.0, 3.0] if k == 3 else [-0.8, 3.0, 3.0]
    np.testing.assert_allclose(spectrum(L), expected, atol=1e-5)
    H = torch.autograd.functional.hessian(f, f.saddle(k))
    np.testing.assert_allclose(torch.linalg.eigvalsh(H), expected, atol=1e-12)
    assert f.minimum == pytest.approx(-3 * f.drop)


def test_octopus_is_twice_differentiable_along_its_arm_and_falls_all_the_way() -> None:
    f = Octopus(2)
    for meeting in (1.0, 2.0):
        left, right = (
            torch.autograd.functional.hessian(f, torch.tensor([meeting + off, 0.3], dtype=D))
            for off in (-1e-9, 1e-9)
        )
        torch.testing.assert_close(left, right, atol=1e-6, rtol=0)
    along = torch.linspace(0.05, 3.95, 200, dtype=D)
    values = torch.stack([f(torch.stack([x, torch.zeros((), dtype=D)])) for x in along])
    assert bool((values.diff() < 0).all())


def test_gradient_descent_on_the_octopus_takes_exponentially_long() -> None:
    f = Octopus(4, stable=1.0, unstable=0.5)
    w, arrived, lr = torch.full((4,), 1e-3, dtype=D), [], 0.1
    for step in range(20_000):
        x = w.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(f(x), x)
        w = w - lr * g
        if len(arrived) < 4 and bool(w[len(arrived)] > 2.0):
            arrived.append(step)
        if len(arrived) == 4:
            break
    waits = np.diff([0, *arrived])
    assert len(arrived) == 4
    assert all(b > 1.8 * a for a, b in pairwise(waits))


def test_matrix_factorisation_has_the_error_of_the_best_rank_as_its_minimum() -> None:
    M = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=D))
    L = matrix_factorisation(M, 2)
    assert float(spectrum(L)[0]) == pytest.approx(-3.0, abs=1e-6)
    V, U = (p.data for p in L.params)
    V.copy_(torch.diag(torch.tensor([3.0, 2.0], dtype=D).sqrt()) @ torch.eye(2, 3, dtype=D))
    U.copy_(V.T)
    assert gradient_size(L) < 1e-12
    assert L.value() == pytest.approx(0.5)


def test_deep_autoencoder_starts_on_a_plateau_at_the_variance_of_the_images() -> None:
    images = torch.rand(40, 3, 4, dtype=D, generator=torch.Generator().manual_seed(1))
    before = torch.get_rng_state()
    L = deep_autoencoder(images, widths=(16, 8, 8, 4), batch=16)
    torch.testing.assert_close(torch.get_rng_state(), before)
    flat = images.flatten(1)
    variance = 0.5 * float((flat - flat.mean(0)).square().sum(1).mean())
    assert L.value() == pytest.approx(variance, rel=0.2)
    assert L.value() == pytest.approx(deep_autoencoder(images, widths=(16, 8, 8, 4)).value(), rel=1e-12)
    first = L.gradient()[0]
    assert float(first.norm()) < 1e-2 * variance


@pytest.mark.parametrize(
    "make",
    [
        lambda: Octopus(0),
        lambda: matrix_factorisation(torch.eye(2), 0),
        lambda: deep_autoencoder(torch.zeros(0, 4)),
    ],
)
def test_impossible_problems_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\d"):
        make()
