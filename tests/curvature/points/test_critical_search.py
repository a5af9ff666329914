"""Searches on problems whose critical points are all known."""

from __future__ import annotations

import pytest
import torch
from known_points import flat_bowl, gradient_flat, separable_products
from torch import Tensor, nn

from optland import vectors
from optland.curvature.points.search import find_critical_points, starts_around
from optland.objective import Objective
from optland.problems import function_objective, monkey_saddle, quadratic, saddle, with_spectrum
from optland.problems.critical import two_factor

D = torch.float64


def point(*x: float) -> list[Tensor]:
    return [torch.tensor(x, dtype=D)]


def test_every_index_of_the_separable_problem_is_recovered() -> None:
    """From beside each of its 2^3 kinds of critical point the search ends on it; loss and index are known."""
    s = [2.0, 1.5, 0.5]
    starts, expected = [], []
    for bits in range(8):
        asleep = [bool(bits >> i & 1) for i in range(3)]
        starts += starts_around([separable_products(s, asleep).params], radii=(0.05,), seed=bits)
        expected.append((sum(asleep), sum(x * x / 2 for x, off in zip(s, asleep, strict=True) if off)))
    L = separable_products(s)
    found = find_critical_points(L, starts)
    assert [f.converged for f in found] == [True] * 8
    assert [(f.critical_point.negative.value, round(f.loss, 9)) for f in found] == expected
    assert [f.critical_point.verdict for f in found] == ["degenerate"] + ["strict saddle"] * 7


def test_newton_reaches_the_saddle_of_a_quadratic_whatever_its_index() -> None:
    for index in (0, 2, 5):
        A = with_spectrum([-1.0 - i for i in range(index)] + [1.0 + i for i in range(5 - index)], seed=index)
        b = torch.arange(5, dtype=D)
        L = function_objective(lambda w, A=A, b=b: 0.5 * w @ A @ w - b @ w, torch.zeros(5, dtype=D))
        (found,) = find_critical_points(L, [L.params])
        torch.testing.assert_close(found.point[0], torch.linalg.solve(A, b), atol=1e-9, rtol=0)
        assert found.critical_point.index_at_least == index


def test_a_gradient_flat_point_is_flagged_and_left_out() -> None:
    found = find_critical_points(gradient_flat(), [point(0.0, 1.0), point(2.0, -0.3)])
    for f in found:
        assert not f.converged
        assert (f.critical_point.verdict, f.critical_point.critical) == ("gradient-flat", False)
        assert f.reason == "no damping lowers |g|"
        assert "NOT CONVERGED" in str(f)


def test_a_local_minimum_of_the_gradient_norm_beside_a_real_minimum() -> None:
    """x^3 - 3x + 4 has one root, x = -2.196, and at x = 1, where it is 2, a local minimum of its size."""
    L = function_objective(
        lambda w: 0.25 * w[0] ** 4 - 1.5 * w[0] ** 2 + 4 * w[0] + w[1] ** 2, torch.zeros(2, dtype=D)
    )
    stuck, free = find_critical_points(L, [point(1.3, 0.2), point(-1.5, 0.2)])
    assert stuck.critical_point.verdict == "gradient-flat"
    assert stuck.critical_point.grad_norm.value == pytest.approx(2.0)
    torch.testing.assert_close(stuck.point[0], torch.tensor([1.0, 0.0], dtype=D), atol=1e-3, rtol=0)
    assert free.critical_point.verdict == "minimum up to tau"
    assert free.point[0][0].item() == pytest.approx(-2.1958233, abs=1e-6)


def test_degenerate_points_are_found_and_called_so() -> None:
    monkey, bowl = find_critical_points(monkey_saddle(), [point(0.5, 0.3)]) + find_critical_points(
        flat_bowl(4), [point(0.4, -0.2)]
    )
    for f in (monkey, bowl):
        assert f.converged
        assert f.critical_point.verdict == "degenerate"
        assert float(vectors.norm(f.point)) < 1e-3


def test_points_along_a_run_past_a_saddle() -> None:
    """Gradient descent that starts beside the saddle of (ab - 1)^2 / 2 lingers there and ends in the valley."""
    L = two_factor(0.0, 0.0)
    w = torch.tensor([1e-3, 2e-3], dtype=D)
    checkpoints = []
    for step in range(121):
        if step % 40 == 0:
            checkpoints.append([w.clone()])
        w = w - 0.1 * L.gradient([w])[0]
    found = find_critical_points(L, starts_around(checkpoints, radii=(0.0,)))
    assert [f.critical_point.verdict for f in (found[0], found[-1])] == ["strict saddle", "degenerate"]
    assert found[0].loss == pytest.approx(0.5)
    assert found[-1].loss == pytest.approx(0.0, abs=1e-12)


def test_many_weights_go_through_krylov_spaces() -> None:
    d = 300
    lam = torch.linspace(1.0, 4.0, d, dtype=D)
    lam[:7] = -lam[:7] - 0.5
    L = function_objective(lambda w: (0.5 * lam * w * w).sum() + (w**3).sum() / 100, torch.zeros(d, dtype=D))
    start = [0.1 * vectors.random_unit(L.params, 0)[0]]
    (found,) = find_critical_points(L, [start])
    assert found.converged
    assert found.critical_point.exact
    assert found.critical_point.negative.value == 7
    assert float(vectors.norm(found.point)) < 1e-9


def test_a_network_comes_out_with_its_index_counted() -> None:
    torch.manual_seed(0)
    X = torch.randn(30, 2, dtype=D)
    Y = torch.sin(X.sum(dim=1, keepdim=True))
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    L = Objective(model, lambda m, b: 0.5 * (m(b[0]) - b[1]).square().mean(), [(X, Y)])
    before = vectors.clone(L.params)
    starts = starts_around([L.params], radii=(0.0, 0.3), num_starts=1, seed=1)
    found = find_critical_points(L, starts, max_steps=30)
    assert all(torch.equal(a, b) for a, b in zip(before, L.params, strict=True))
    converged = [f for f in found if f.converged]
    assert converged
    for f in converged:  # eigenvalues by PyTorch's own function
        assert float(vectors.norm(L.gradient(f.point))) <= 1e-8
        flat = vectors.flatten(f.point)

        def loss(w: Tensor) -> Tensor:
            pieces = [
                p.view_as(q) for p, q in zip(w.split([q.numel() for q in L.params]), L.params, strict=True)
            ]
            out = torch.func.functional_call(model, dict(zip(L.names, pieces, strict=True)), (X,))
            return 0.5 * (out - Y).square().mean()

        lam = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
        tau = f.critical_point.tau
        assert f.critical_point.negative.value == int((lam < -tau).sum())
    assert all(b < a for f in found for a, b in zip(f.grad_norms, f.grad_norms[1:], strict=False))


def test_cost_is_counted_and_stays_within_what_was_declared() -> None:
    L = separable_products([1.0, 2.0])
    declared = find_critical_points.cost(L, 2, max_steps=5)
    found = find_critical_points(L, starts_around([point(1.0, 0.2, 0.3, 2.0)], radii=(0.0, 0.5)), max_steps=5)
    assert L.cost_ge == pytest.approx(sum(f.cost_ge for f in found))
    assert L.cost_ge <= declared


def test_not_finite_ends_the_search() -> None:
    L = function_objective(lambda w: w.clamp(min=-2.0).log().sum(), torch.ones(1, dtype=D))
    for start, reason in [(-1.0, "the Hessian is not finite"), (0.0, "the gradient is not finite")]:
        (found,) = find_critical_points(L, [point(start)])
        assert (found.converged, found.reason) == (False, reason)
        assert found.critical_point.verdict == "unknown"


def test_wrong_usage_names_the_fix() -> None:
    L = saddle()
    for options, message in [
        ({"atol": 0.0}, "positive"),
        ({"max_steps": 0}, "at least 1"),
        ({"max_matvecs": 0}, "at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            find_critical_points(L, [point(0.0, 0.0)], **options)
    with pytest.raises(ValueError, match="start 0 has other shapes"):
        find_critical_points(L, [point(0.0)])
    with pytest.raises(ValueError, match="num_starts=0"):
        starts_around([point(0.0)], num_starts=0)
    with pytest.raises(ValueError, match="negative"):
        starts_around([point(0.0)], radii=(-1.0,))


def test_starts_around_a_point_at_the_origin_are_absolute() -> None:
    (start,) = starts_around([point(0.0, 0.0)], radii=(0.5,))
    assert float(vectors.norm(start)) == pytest.approx(0.5)
    assert find_critical_points(quadratic(torch.eye(2, dtype=D)), [start])[0].converged
