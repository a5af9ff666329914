"""A portrait against the dense matrix of a small net."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from optland.curvature.points.portrait import portrait
from optland.objective import Objective
from optland.problems import quadratic, with_spectrum

Dense = Callable[[Objective], Tensor]


def test_every_number_is_that_of_the_dense_matrix(mlp: Objective, dense_hessian: Dense) -> None:
    exact = torch.linalg.eigvalsh(dense_hessian(mlp))
    before = [p.detach().clone() for p in mlp.params]
    found = portrait(mlp, k=2, max_matvecs=60)
    values = [v.value for v in found.spectrum.values]
    assert values == pytest.approx([float(exact[i]) for i in (-1, -2, 1, 0)], abs=2e-2 * float(exact[-1]))
    trace = found.trace.total
    assert abs(trace.value - float(exact.sum())) <= 4 * trace.error
    assert found.density is not None
    mean = found.density.moment(1)
    assert abs(mean.value - float(exact.mean())) <= 4 * mean.error
    assert found.point.exact, "60 products form the whole matrix of 43 weights"
    assert found.point.negative.value == int((exact < -1e-12).sum())
    assert found.point.grad_norm.value == pytest.approx(
        float(torch.cat([g.flatten() for g in mlp.gradient()]).norm())
    )
    assert all(torch.equal(a, b) for a, b in zip(before, mlp.params, strict=True))
    assert found.num_matvecs * 2 <= found.cost_ge <= portrait.cost(mlp, max_matvecs=60)


def test_parts_are_announced_and_the_density_can_be_left_out(mlp: Objective) -> None:
    begun: list[str] = []
    found = portrait(mlp, k=1, max_matvecs=10, with_density=False, watch=begun.append)
    assert begun == ["spectrum", "trace", "kind of point"]
    assert found.density is None
    assert mlp.cost_ge <= portrait.cost(mlp, max_matvecs=10, with_density=False)
    assert not any("share" in name for name, _ in found.estimates())


def test_too_few_products_are_said_not_hidden() -> None:
    d = 400
    spectrum = [100.0 / (i + 1) for i in range(d)]
    found = portrait(quadratic(with_spectrum(spectrum)), k=3, max_matvecs=4, with_density=False)
    unknown = {name for name, estimate in found.estimates() if not estimate.converged}
    assert {"largest eigenvalue 3", "smallest eigenvalue 1"} <= unknown


@pytest.mark.parametrize("wrong", [{"k": 0}, {"max_matvecs": 0}])
def test_no_products_and_no_values_are_refused(mlp: Objective, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        portrait(mlp, **wrong)
