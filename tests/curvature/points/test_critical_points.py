"""Verdicts on points whose kind is known, and the claims that may never be made."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from known_points import flat_bowl, gradient_flat, separable_products
from torch import Tensor, nn

from optland import vectors
from optland.curvature.points.classify import classify
from optland.curvature.points.verdict import CriticalPoint
from optland.objective import Objective
from optland.problems import (
    function_objective,
    linear_network,
    linear_regression,
    monkey_saddle,
    quadratic,
    saddle,
    with_spectrum,
)
from optland.problems.critical import two_factor

D = torch.float64


def diagonal(eigenvalues: Tensor | list[float], at: float = 0.0) -> Objective:
    """L = sum_i lam_i w_i^2 / 2; a random start does not see that the matrix is diagonal."""
    lam = torch.as_tensor(eigenvalues, dtype=D)
    return function_objective(lambda w: 0.5 * (lam * w * w).sum(), torch.full_like(lam, at))


def numbers(found: CriticalPoint) -> tuple[float, float, float]:
    return found.negative.value, found.zero.value, found.positive.value


# --- critical points in closed form --------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [2, 3])
@pytest.mark.parametrize("values", [[3.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
def test_two_layer_linear_net_at_the_origin(hidden: int, values: list[float]) -> None:
    found = classify(linear_network(torch.diag(torch.tensor(values, dtype=D)), [hidden]))
    rank = sum(value > 0 for value in values)
    assert found.verdict == "strict saddle"
    assert found.exact
    assert found.index_at_least == hidden * rank
    assert numbers(found) == (hidden * rank, 2 * hidden * (2 - rank), hidden * rank)
    assert found.smallest.value == pytest.approx(-max(values), abs=1e-12)
    assert found.largest.value == pytest.approx(max(values), abs=1e-12)
    assert found.grad_norm.value == 0.0


def test_three_layers_at_the_origin_are_degenerate() -> None:
    found = classify(linear_network(torch.eye(2, dtype=D), [2, 2]))
    assert (found.verdict, found.index_at_least, found.escape_direction) == ("degenerate", 0, None)
    assert numbers(found) == (0, 12, 0)
    assert found.tau == 0.0


@pytest.mark.parametrize("bits", range(8))
def test_separable_products_of_every_index(bits: int) -> None:
    asleep = [bool(bits >> i & 1) for i in range(3)]
    found = classify(separable_products([2.0, -1.5, 0.5], asleep))
    index = sum(asleep)
    assert numbers(found) == (index, 3 - index, 3)
    assert found.verdict == ("strict saddle" if index else "degenerate")
    assert found.index_at_least == index
    assert found.index_fraction == pytest.approx(index / 6)


@pytest.mark.parametrize(
    "L", [monkey_saddle(), flat_bowl(4), flat_bowl(8), flat_bowl(3), quadratic(torch.zeros(3, 3, dtype=D))]
)
def test_what_second_derivatives_cannot_see_is_degenerate(L: Objective) -> None:
    found = classify(L)
    assert found.verdict == "degenerate"
    assert found.escape_direction is None


@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("angle", [0.3, 2.0])
def test_near_a_degenerate_point_a_tolerance_does_not_make_it_regular(distance: float, angle: float) -> None:
    """Each Hessian there has full rank, and yet the critical point within tol is degenerate."""
    x, y = distance * math.cos(angle), distance * math.sin(angle)
    monkey = classify(monkey_saddle(x, y), atol=10 * distance**2)
    assert (monkey.critical, monkey.verdict) == (True, "degenerate")
    bowl = classify(flat_bowl(4, at=distance), atol=10 * distance**3)
    assert (bowl.critical, bowl.verdict) == (True, "degenerate")
    assert bowl.tau_parts["shift"] > bowl.smallest.value > 0
    assert classify(monkey_saddle(x, y)).verdict == "not critical"


def test_gradient_flat_is_not_critical() -> None:
    found = classify(gradient_flat())
    assert (found.verdict, found.critical) == ("gradient-flat", False)
    assert found.flatness.value == 0.0
    assert classify(gradient_flat(0.0, 1e-6)).verdict == "gradient-flat"
    assert classify(gradient_flat(0.0, 0.5)).verdict == "not critical"


def test_regular_minimum_and_maximum() -> None:
    A = with_spectrum([5.0, 1.0, 0.2])
    least = classify(quadratic(A, torch.zeros(3, dtype=D)))
    assert least.verdict == "minimum up to tau"
    assert f"tau = {least.tau:.3g}" in str(least)
    assert 0 < least.tau < 1e-12
    most = classify(quadratic(-A, torch.zeros(3, dtype=D)))
    assert (most.verdict, most.index_at_least) == ("local maximum", 3)
    assert most.escape_direction is not None


def test_a_valley_of_minima_is_degenerate_and_never_a_minimum() -> None:
    found = classify(two_factor(4.0, 0.25))
    assert found.verdict == "degenerate"
    assert numbers(found) == (0, 1, 1)


def test_float32_is_judged_by_its_own_rounding() -> None:
    lam = torch.tensor([1.0, 1e-9])
    L = function_objective(lambda w: 0.5 * (lam * w * w).sum(), torch.zeros(2))
    assert classify(L).verdict == "degenerate"
    assert classify(diagonal([1.0, 1e-9])).verdict == "minimum up to tau"


# --- is the gradient zero? ------------------------------------------------------------------------------------------


def test_rounding_of_the_weights_is_no_gradient() -> None:
    A = with_spectrum([50.0, 2.0, -1.0], seed=3)
    b = torch.tensor([1.0, 2.0, 3.0], dtype=D)
    w = torch.linalg.solve(A, b)
    found = classify(function_objective(lambda w: 0.5 * w @ A @ w - b @ w, w))
    assert found.grad_norm.value > 0
    assert (found.verdict, found.floor_kind) == ("strict saddle", "rounding")
    moved = classify(function_objective(lambda w: 0.5 * w @ A @ w - b @ w, w + 1e-6))
    assert moved.verdict == "not critical"
    assert moved.newton_step.value == pytest.approx(1e-6 * math.sqrt(3), rel=1e-6)


def test_a_point_within_rounding_by_the_newton_step() -> None:
    found = classify(saddle(1e-12, 0.0))  # no weight or loss to tell the scale from
    assert found.grad_norm.value > found.floor
    assert found.verdict == "strict saddle"
    assert found.note


def test_tolerance_decides_where_it_is_given() -> None:
    L = saddle(1e-3, 0.0)
    assert classify(L).verdict == "not critical"
    found = classify(L, atol=1e-2)
    assert (found.verdict, found.floor, found.floor_kind) == ("strict saddle", 1e-2, "tolerance")
    assert found.tau_parts["shift"] == 0.0  # the curvature is the same everywhere


def regression(n: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, 3, generator=generator, dtype=D)
    return X, X @ torch.ones(3, 1, dtype=D) + torch.randn(n, 1, generator=generator, dtype=D)


def test_the_gradient_of_a_minibatch_at_the_true_weights_is_within_its_noise() -> None:
    """At the weights that made the data the population's gradient is 0, a minibatch's is not."""
    within = []
    for seed in range(12):
        L = linear_regression(*regression(400, seed))
        truth = [torch.ones(1, 3, dtype=D)]
        assert classify(L, point=truth).verdict == "not critical"
        found = classify(L, point=truth, is_sample=True)
        assert found.floor_kind == "standard error"
        within.append(found.critical)
        away = classify(L, point=[torch.zeros(1, 3, dtype=D)], is_sample=True)
        assert (away.verdict, away.critical) == ("not critical", False)
    assert np.mean(within) >= 0.8


def test_the_standard_error_of_the_gradient_is_that_of_its_samples() -> None:
    X, Y = regression(64)
    floor = classify(linear_regression(X, Y, sizes=[8] * 8), is_sample=True).floor  # single samples as parts
    per_sample = -2 * (Y * X)  # at zero weights
    expected = 2 * float(per_sample.var(dim=0).sum().sqrt()) / 8
    assert floor == pytest.approx(expected, rel=1e-9)


def trained_net() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    X = torch.randn(128, 2, dtype=D)
    Y = torch.tanh(X @ torch.randn(2, 1, dtype=D)) + 0.5 * torch.randn(128, 1, dtype=D)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    params, velocity = list(model.parameters()), [torch.zeros_like(p) for p in model.parameters()]
    for _ in range(600):
        gradient = torch.autograd.grad((model(X) - Y).square().mean(), params)
        with torch.no_grad():
            for p, v, g in zip(params, velocity, gradient, strict=True):
                v.mul_(0.9).sub_(0.05 * g)
                p.add_(v)
    return model, X, Y


def test_trained_net_on_minibatches() -> None:
    model, X, Y = trained_net()

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return (model(batch[0]) - batch[1]).square().mean()

    whole = classify(Objective(model, loss_fn, [(X, Y)]), atol=1e-2)
    assert whole.critical
    assert whole.index_at_least == 0
    batch = Objective(model, loss_fn, [(X[:40], Y[:40])])
    assert not classify(batch).critical
    sampled = classify(batch, is_sample=True)
    assert sampled.critical
    assert sampled.verdict in (
        "unknown",
        "degenerate",
    )  # and no saddle, whose curvature 40 samples cannot show
    assert sampled.tau_parts["data"] > 0
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5)
    assert classify(batch, is_sample=True).verdict == "not critical"


def test_data_in_one_piece_cannot_show_negative_curvature_of_the_population() -> None:
    """Samples whose curvatures differ so much that their mean has no sure sign."""
    lam = torch.tensor([-3.0, 2.0, -2.0, 2.5, -1.0, 1.0, -2.0, 2.0], dtype=D)
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    L = Objective(model, lambda m, x: (0.5 * x * m(torch.ones_like(x)).square()).mean(), [lam[:, None]])
    assert classify(L).verdict == "local maximum"
    sampled = classify(L, is_sample=True)
    assert sampled.verdict == "unknown"
    assert "more data" in sampled.note
    assert sampled.tau_parts["data"] == pytest.approx(2.4 * float(lam.std()) / math.sqrt(8))


# --- what may never be claimed -------------------------------------------------------------------------------------


def random_spectrum(seed: int) -> np.ndarray:
    """Spectra of many shapes and signs, some with zeros, clusters, or a single small eigenvalue of the other sign."""
    rng = np.random.default_rng(seed)
    d = int(rng.integers(20, 501))
    bulk = np.abs(rng.standard_normal(d)) ** rng.choice([1.0, 2.0, 4.0])
    shape = seed % 6
    if shape == 0:
        bulk[0] = -0.01
    elif shape == 1:
        bulk[: d // 3] = 0.0
    elif shape == 2:
        bulk = -1.0 - 0.3 * rng.random(d)
    elif shape == 3:
        bulk[: d // 2] *= -1
    elif shape == 4:
        bulk = 1.0 + 0.2 * rng.random(d)
    else:
        bulk = np.arange(d) + 1.0
        bulk[0] = -1.0
    return bulk


def false_claim(found: CriticalPoint, lam: np.ndarray) -> str:
    """What is wrong with a verdict on a quadratic; empty when nothing is."""
    true_index = int((lam < 0).sum())
    wrong = {
        "minimum": found.verdict == "minimum up to tau" and lam.min() <= 0,
        "maximum": found.verdict == "local maximum" and lam.max() >= 0,
        "saddle": found.verdict == "strict saddle" and lam.min() >= 0,
        "degenerate": found.verdict == "degenerate" and abs(lam.min()) > found.tau + 1e-12,
        "index": found.index_at_least > true_index,
        "gradient": not found.critical,
        "escape": found.escape_direction is not None and lam.min() >= 0,
        "exact count": found.exact and found.negative.value != true_index,
    }
    return ", ".join(claim for claim, is_wrong in wrong.items() if is_wrong)


@pytest.mark.parametrize("budget", [1, 3, 10, 60])
def test_no_false_claims_on_random_quadratics(budget: int) -> None:
    verdicts = []
    for seed in range(24):
        lam = random_spectrum(seed)
        found = classify(diagonal(torch.from_numpy(lam)), max_matvecs=budget, seed=seed)
        assert false_claim(found, lam) == "", (seed, str(found))
        assert found.num_matvecs <= budget
        verdicts.append(found.verdict)
    expected = {"strict saddle", "unknown"}
    if budget == 60:
        expected = {"strict saddle", "minimum up to tau", "local maximum", "degenerate"}
    assert expected <= set(verdicts)


def test_a_small_budget_says_unknown() -> None:
    """Ten products at d = 500 miss the only negative direction (see the Lanczos tests)."""
    lam = torch.arange(500, dtype=D)
    lam[0] = -1.0
    for seed in range(20):
        found = classify(diagonal(lam), max_matvecs=10, seed=seed)
        assert found.verdict == "unknown"
        assert "more products" in found.note
        assert found.tau > 50
    assert classify(diagonal(lam), max_matvecs=150).index_at_least == 1


def test_enough_products_certify_a_minimum_that_is_well_conditioned() -> None:
    lam = 1.0 + 0.5 * torch.rand(3000, generator=torch.Generator().manual_seed(0), dtype=D)
    found = classify(diagonal(lam))
    assert (found.verdict, found.exact) == ("minimum up to tau", False)
    assert found.num_matvecs < 200
    assert 0 < found.tau < float(lam.min())
    assert found.positive.value == pytest.approx(3000, abs=0.1)


def test_a_large_network_at_the_origin() -> None:
    """d = 1200 in two matrices: four distinct eigenvalues, which many starts find again and again."""
    M = torch.diag(torch.tensor([3.0, 2.0] + [0.0] * 13, dtype=D))
    found = classify(linear_network(M, [40]), max_matvecs=30)
    assert (found.verdict, found.exact) == ("strict saddle", False)
    assert 2 < found.index_at_least <= 80
    assert found.negative.value == pytest.approx(80, abs=found.negative.error)
    assert found.zero.value == pytest.approx(1040, abs=found.zero.error)
    assert found.smallest.value == pytest.approx(-3.0)


def test_large_degenerate_points_are_no_minima() -> None:
    valley = separable_products([1.0 + i / 600 for i in range(600)], [False] * 600)
    found = classify(valley, max_matvecs=100)
    assert (found.verdict, found.exact, found.index_at_least) == ("degenerate", False, 0)
    one_asleep = separable_products([0.05] + [1.0] * 599, [True] + [False] * 599)
    assert classify(one_asleep, max_matvecs=100).verdict == "strict saddle"
    flat = classify(linear_network(torch.eye(20, dtype=D), [20, 20]), max_matvecs=5)
    assert (flat.verdict, flat.zero.value) == ("degenerate", pytest.approx(1200, abs=1e-6))


def test_counts_by_quadrature_cover_the_truth() -> None:
    lam = torch.cat([torch.linspace(-1, -0.2, 300, dtype=D), torch.linspace(0.2, 3, 900, dtype=D)])
    covered = 0
    for seed in range(10):
        found = classify(diagonal(lam), max_matvecs=50, seed=seed)
        covered += abs(found.negative.value - 300) <= found.negative.error
        assert found.index_at_least <= 300
        assert found.negative.error < 150
    assert covered >= 9


# --- escape --------------------------------------------------------------------------------------------------------


def test_the_escape_direction_lowers_the_loss_and_never_climbs_the_gradient() -> None:
    problems = [
        saddle(),
        saddle(0.0, 1e-9),
        saddle(0.0, -1e-9),
        separable_products([1.0, 2.0], [True, True]),
        linear_network(torch.eye(2, dtype=D), [2]),
        quadratic(with_spectrum([3.0, 1.0, -0.5])),
    ]
    for L in problems:
        found = classify(L)
        u = found.escape_direction
        assert u is not None
        assert float(vectors.norm(u)) == pytest.approx(1.0)
        assert float(vectors.dot(L.gradient(), u)) <= 0.0
        for t in (1e-3, 1e-1):
            assert L.value(L.displaced(u, t)) < L.value() + 0.5 * t * t * found.smallest.value * 0.9


def test_phase_retrieval_saddle() -> None:
    """Population loss 3/4 (|x|^4 + |z|^4) - |x|^2 |z|^2 / 2 - (x'z)^2: curvature -2 |z|^2 along z where x is across."""
    z = torch.tensor([2.0, 0.0, 0.0], dtype=D)
    x = torch.tensor([0.0, 2.0 / math.sqrt(3.0), 0.0], dtype=D)

    def loss(w: Tensor) -> Tensor:
        ww, zz = w @ w, z @ z
        return 0.75 * (ww**2 + zz**2) - 0.5 * ww * zz - (w @ z) ** 2

    found = classify(function_objective(loss, x))
    assert found.verdict == "strict saddle"
    assert found.smallest.value == pytest.approx(-8.0)
    assert found.escape_direction is not None
    assert abs(float(found.escape_direction[0] @ z)) == pytest.approx(2.0)


# --- cost, traces, input, output ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "kept_graph", "double_backward", "finite_difference"])
@pytest.mark.parametrize("sample", [False, True])
@pytest.mark.parametrize("budget", [None, 4])
def test_cost_is_counted_and_stays_within_what_was_declared(
    method: str, sample: bool, budget: int | None
) -> None:
    X, Y = regression(16)
    L = linear_regression(X, Y)
    declared = classify.cost(L, budget, is_sample=sample, method=method)
    found = classify(L, atol=100.0, is_sample=sample, max_matvecs=budget, method=method)
    assert 0 < found.cost_ge == L.cost_ge <= declared


def test_the_weights_stay_where_they_are() -> None:
    L = saddle(1.0, 2.0)
    before = L.params[0].detach().clone()
    found = classify(L, point=[torch.zeros(2, dtype=D)])
    assert found.verdict == "strict saddle"
    assert torch.equal(L.params[0], before)
    assert L.location == 0


def test_not_finite_is_unknown() -> None:
    for loss in (lambda w: w.log().sum(), lambda w: (w * torch.inf).sum(), lambda w: w.abs().sqrt().sum()):
        found = classify(function_objective(loss, torch.zeros(2, dtype=D)))
        assert (found.verdict, found.escape_direction) == ("unknown", None)
        assert "not finite" in str(found)


def test_wrong_usage_names_the_fix() -> None:
    for options, message in [
        ({"atol": -1.0}, "must not be negative"),
        ({"max_matvecs": 0}, "at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            classify(saddle(), **options)


def test_provenance_and_words() -> None:
    found = classify(saddle())
    assert "Hessian" in found.provenance.method
    assert found.provenance.data == "closed form"
    text = str(classify(diagonal(torch.arange(1, 500, dtype=D)), max_matvecs=10))
    for part in ("unknown", "|g| 0, floor 0 (rounding)", "NOT CONVERGED", "certificate", "more products"):
        assert part in text
