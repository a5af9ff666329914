"""Effective dimension of gradients with chosen singular values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from optland.landscape import GradientSketch, effective_dimension


def with_singular_values(s: Tensor, d: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    T = len(s)
    U, _ = torch.linalg.qr(torch.randn(T, T, generator=generator, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(d, T, generator=generator, dtype=torch.float64))
    return U @ torch.diag(s) @ V.T


@pytest.mark.parametrize(("r", "k90"), [(0.5, 4), (0.8, 11), (0.9, 22)])
def test_a_geometric_spectrum(r: float, k90: int) -> None:
    """Squared values r^j: k90 = ceil(ln 0.1 / ln r)."""
    s = torch.sqrt(r ** torch.arange(80, dtype=torch.float64))
    found = effective_dimension(with_singular_values(s, 200))
    assert found.k90 == k90
    values = s**2
    assert found.participation == pytest.approx(float(values.sum() ** 2 / values.square().sum()))
    assert not found.measures_count


def test_a_flat_spectrum_and_a_single_direction() -> None:
    flat = torch.zeros(40, dtype=torch.float64)
    flat[:20] = 1.0
    assert effective_dimension(with_singular_values(flat, 100)).k90 == math.ceil(0.9 * 20)
    one = torch.outer(torch.randn(30).double(), torch.randn(50).double())
    assert effective_dimension(one).k90 == 1


def test_isotropic_noise_measures_the_number_of_gradients_and_says_so() -> None:
    generator = torch.Generator().manual_seed(0)
    found = effective_dimension(torch.randn(50, 5000, generator=generator, dtype=torch.float64))
    assert found.k90 == pytest.approx(45, abs=1)
    assert found.measures_count
    assert "MEASURES T" in str(found)


def test_centring_takes_the_mean_gradient_off() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 8, generator=generator, dtype=torch.float64)
    rows = torch.cat([noise, torch.zeros(200, 1).double()], dim=1) + 50.0 * torch.eye(9).double()[8]
    assert effective_dimension(rows).k90 == 1
    assert effective_dimension(rows, centred=True).k90 in (7, 8)  # 90 % of 8 nearly equal ones


def test_sketches_keep_the_spectrum() -> None:
    s = torch.sqrt(0.7 ** torch.arange(24, dtype=torch.float64))
    rows = with_singular_values(s, 3000)
    sketch = GradientSketch(2048, seed=1)
    for row in rows:
        sketch.add([row[:1000].reshape(10, 100), row[1000:]])
    exact, found = effective_dimension(rows), sketch.dimension()
    assert abs(found.k90 - exact.k90) <= 1
    torch.testing.assert_close(found.values[:5], exact.values[:5], rtol=0.15, atol=0.0)
    assert found.sketch == 2048


def test_misuse_names_the_fix() -> None:
    with pytest.raises(ValueError, match="3 gradients are too few"):
        effective_dimension(torch.eye(3))
    with pytest.raises(ValueError, match="not finite"):
        effective_dimension(torch.full((5, 2), math.nan))
    with pytest.raises(ValueError, match="size 0"):
        GradientSketch(0)
