"""Finite differences in float32 and half precision against the float64 Hessian, and the operator's own check."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiers import slow
from torch import Tensor, nn

from optland import vectors
from optland.curvature.operators.hessian import hessian
from optland.objective import Objective
from optland.problems import function_objective


def network(activation: type[nn.Module] = nn.Tanh, steps: int = 0) -> Objective:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 5))
    x, y = torch.randn(100, 20), torch.randint(0, 5, (100,))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return Objective(net, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(x, y)])


def distance(actual: list[Tensor], expected: list[Tensor]) -> float:
    return float(vectors.norm(vectors.subtract([t.double() for t in actual], expected)))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU])
def test_float32_has_four_digits_in_random_steep_and_gradient_directions(activation: type[nn.Module]) -> None:
    objective = network(activation)
    oracle, H = hessian(objective.double()), hessian(objective, method="finite_difference")
    steep = vectors.random_unit(oracle.like, 0)
    for _ in range(30):
        steep = oracle.matvec(steep)
        steep = vectors.scaled(1 / vectors.norm(steep), steep)
    gradient = oracle.objective.gradient()
    directions = [vectors.random_unit(oracle.like, 1), steep, gradient, vectors.random_unit(oracle.like, 2)]
    for v in directions:
        expected, actual = oracle.matvec(v), H.matvec([t.float() for t in v])
        error = distance(actual, expected)
        assert error < 1.5e-4 * float(vectors.norm(expected))
        assert error < 3 * H.product_error * float(vectors.norm(v))


def test_the_error_of_the_first_product_is_that_of_its_step() -> None:
    """At 0 the gradient w + w^3 has the difference 1 + h^2, with no asymmetry: twice the step shows 3 h^2 more."""
    objective = function_objective(lambda w: (w**2 / 2 + w**4 / 4).sum(), torch.zeros(1, dtype=torch.float64))
    H = hessian(objective, method="finite_difference")
    product = float(H.matvec([torch.ones(1, dtype=torch.float64)])[0])
    assert 0.0 < product - 1.0 < 1e-6
    assert H.product_error == pytest.approx(product - 1.0, rel=0.01, abs=0.0)


def test_error_is_honest_where_the_gradient_is_all_rounding() -> None:
    """Near an interpolating minimum float32 has few digits; the operator says how few."""
    objective = network(nn.Tanh, steps=300)
    oracle, H = hessian(objective.double()), hessian(objective, method="finite_difference")
    for seed in range(4):
        v = vectors.random_unit(oracle.like, seed)
        error = distance(H.matvec([t.float() for t in v]), oracle.matvec(v))
        assert error < 5 * H.product_error


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_displaced_in_a_float32_copy(dtype: torch.dtype) -> None:
    objective = network()
    objective.model.to(dtype)
    batches = [(x.to(dtype), y) for x, y in objective.batches]
    half = Objective(objective.model, objective.loss_fn, batches)
    before = vectors.clone(half.params)
    H = hessian(half, method="finite_difference")
    oracle = hessian(half.double())
    for seed in (0, 1):
        v = [t.to(dtype) for t in vectors.random_unit(oracle.like, seed)]
        expected = oracle.matvec([t.double() for t in v])
        product = H.matvec(v)
        assert all(t.dtype == dtype for t in product)
        # What is left is the rounding of the product itself to the type of the weights.
        assert distance(product, expected) < torch.finfo(dtype).eps * float(vectors.norm(expected))
    assert all(torch.equal(a, b) for a, b in zip(half.params, before, strict=True))
    half.params[0].data.mul_(2.0)  # the copy follows the weights
    v = [t.to(dtype) for t in vectors.random_unit(oracle.like, 5)]
    expected = hessian(half.double()).matvec([t.double() for t in v])
    assert distance(H.matvec(v), expected) < torch.finfo(dtype).eps * float(vectors.norm(expected))


@pytest.mark.parametrize(
    "method", ["kept_graph", "double_backward", "forward_over_reverse", "finite_difference"]
)
def test_check_passes_a_symmetric_operator(method: Any) -> None:
    found = hessian(network(), method=method).check(seed=3)
    assert found.passed
    assert found.repeatability.value == 0.0 or method == "finite_difference"  # whose step may still change
    assert found.asymmetry.error > 0


def test_check_finds_an_operator_that_is_not_symmetric() -> None:
    objective = network()
    H = hessian(objective)
    true = H.matvec
    H.matvec = lambda v: [t * (i + 1) for i, t in enumerate(true(v))]  # type: ignore[method-assign]
    assert not H.check().passed


def test_check_refuses_losses_that_wander_or_are_not_finite() -> None:
    generator = torch.Generator().manual_seed(0)
    model, x = nn.Linear(2, 1), torch.ones(3, 2)

    def wandering(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) + torch.randn(3, 1, generator=generator)).square().mean()

    with pytest.raises(ValueError, match=r"not deterministic.*its own generator"):
        hessian(Objective(model, wandering, [x])).check()
    with pytest.raises(ValueError, match="the loss is inf"):
        hessian(Objective(model, lambda m, b: (m(b).square() + 1).mean() * float("inf"), [x])).check()


def test_the_error_of_one_unit_is_the_error_of_any_length() -> None:
    objective = network()
    H = hessian(objective, method="finite_difference")
    v = vectors.random_unit(objective.params, 0)
    once = H.matvec(v)
    hundredfold = H.matvec(vectors.scaled(100.0, v))
    torch.testing.assert_close(vectors.scaled(0.01, hundredfold), once, rtol=1e-2, atol=1e-5)


def piecewise_linear(kind: str, samples: int, steps: int) -> Objective:
    """A ReLU net in float32, trained for some steps on random labels."""
    torch.manual_seed(samples)
    if kind == "mlp":
        x = torch.randn(samples, 12)
        model = nn.Sequential(
            nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.LeakyReLU(), nn.Linear(24, 4)
        )
    else:
        x = torch.randn(samples, 1, 8, 8)
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 4)
        )
    y = torch.randint(4, (samples,))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(x, y)])


@pytest.mark.parametrize(
    ("kind", "samples", "steps"),
    [
        ("mlp", 32, 60),
        ("cnn", 32, 0),
        *slow(*(("mlp", n, k) for n, k in ((32, 0), (400, 0), (400, 60)))),
        *slow(*(("cnn", n, k) for n, k in ((32, 60), (400, 0), (400, 60)))),
    ],
)
def test_errors_cover_on_nets_of_kinks(kind: str, samples: int, steps: int) -> None:
    """Against double backward in float64; a new operator for every direction, so that each states its own error."""
    L = piecewise_linear(kind, samples, steps)
    exact = hessian(L.double())
    errors, inside = [], 0
    for seed in range(60):
        u = vectors.random_unit(L.params, seed)
        H = hessian(L, method="finite_difference")
        product, truth = H.matvec(u), exact.matvec([t.double() for t in u])
        assert "the gradient jumps" in H.reason
        error = float(vectors.norm(vectors.subtract([t.double() for t in product], truth)))
        inside += error <= H.product_error
        errors.append(error / float(vectors.norm(truth)))
    assert inside >= 0.95 * len(errors)
    assert float(np.median(errors)) < 0.25  # 0.002 to 0.11 over 48 nets; what says nothing is off by 1


def test_products_in_a_row_stay_between_the_kinks() -> None:
    """A step once found serves the products after it, and what is computed again stays within the declared cost.

    How many directions meet a kink nearer than that step is the net's affair; the stated error then says it.
    """
    L = piecewise_linear("mlp", 400, 60)
    exact, errors, inside = hessian(L.double()), [], 0
    H = hessian(L, method="finite_difference")
    gradients = count_gradients(L)
    for seed in range(60):
        u = vectors.random_unit(L.params, seed)
        truth = exact.matvec([t.double() for t in u])
        product = [t.double() for t in H.matvec(u)]
        error = float(vectors.norm(vectors.subtract(product, truth)))
        inside += error <= H.product_error
        errors.append(error / float(vectors.norm(truth)))
    assert inside >= 0.95 * len(errors)
    assert float(np.median(errors)) < 0.25
    assert len(gradients) * L.num_samples <= H.cost_ge


def count_gradients(L: Objective) -> list[int]:
    """One entry for every gradient from now on."""
    seen: list[int] = []
    original = L.value_and_gradient

    def counted(point: Any = None) -> Any:
        seen.append(1)
        return original(point)

    L.value_and_gradient = counted  # type: ignore[method-assign]
    return seen


def test_smooth_nets_have_no_kinks() -> None:
    L = Objective(
        nn.Sequential(nn.Linear(3, 3), nn.Tanh()), lambda m, x: m(x).square().mean(), [torch.ones(2, 3)]
    )
    H = hessian(L, method="finite_difference")
    H.matvec(vectors.random_unit(L.params, 0))
    assert H.reason == "asked for"
