"""All eigenvalues of a small matrix: they cost one product for each dimension, whatever was spent before."""

from __future__ import annotations

import pytest
import torch

from optland.curvature import hessian
from optland.curvature.eigen.eigenvalues import eigenvalues
from optland.problems import quadratic, with_spectrum


def test_a_small_matrix_is_taken_whole_and_its_own_products_are_counted() -> None:
    H = hessian(quadratic(with_spectrum([3.0, -1.0, 0.5, 2.0]).to(torch.float64)))
    for _ in range(2):
        found = eigenvalues(H)
        assert found.exact
        assert found.num_matvecs == 4
        assert found.values.tolist() == pytest.approx([-1.0, 0.5, 2.0, 3.0])
    assert H.num_matvecs == 8
