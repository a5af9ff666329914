"""Sharpness on quadratics, where every form of it is known in closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.landscape import average_sharpness, random_sharpness, sam_sharpness, worst_sharpness
from optland.objective import Objective
from optland.problems import quadratic
from optland.problems.critical import two_factor

A = torch.diag(torch.tensor([5.0, 2.0, -1.0], dtype=torch.float64))
AT = torch.tensor([0.2, 0.5, -1.0], dtype=torch.float64)  # where the gradient A w is (1, 1, 1)


def test_worst_case_and_sam_at_a_point_with_a_slope() -> None:
    """max over the ball solves (nu I - A) delta = g with ||delta|| = rho: 1.284313 here; SAM's step 1.116025."""
    L = quadratic(A, AT)
    assert worst_sharpness(L, 0.5, num_steps=60, num_restarts=2).rise.value == pytest.approx(
        1.284313, abs=2e-4
    )
    assert sam_sharpness(L, 0.5).rise.value == pytest.approx(1.116025, abs=1e-6)


def test_worst_case_at_a_minimum_is_half_rho_squared_lambda() -> None:
    L = quadratic(torch.diag(torch.tensor([1.0, 7.0, 3.0], dtype=torch.float64)), torch.zeros(3).double())
    assert worst_sharpness(L, 0.2, num_steps=40).rise.value == pytest.approx(0.5 * 0.04 * 7.0, rel=1e-3)
    assert sam_sharpness(L, 0.2).rise.value == 0.0  # no gradient, no ascent


def test_worst_case_in_a_box_of_a_linear_loss() -> None:
    """rho ||g||_1."""
    g = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    class Point(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    L = Objective(Point(), lambda m, b: m.w @ g, [torch.zeros(1)])
    assert worst_sharpness(L, 0.1, p=math.inf).rise.value == pytest.approx(0.35)


@pytest.mark.parametrize("metric", ["identity", "adaptive"])
def test_average_sharpness_is_half_rho_squared_trace(metric: Any) -> None:
    """Exactly rho^2/2 tr(TAT) for Gaussian noise; the reported error covers what is left."""
    L = quadratic(A, AT)
    T = torch.ones(3).double() if metric == "identity" else AT.abs()
    expected = 0.5 * 0.3**2 * float((T * A.diagonal() * T).sum())
    found = average_sharpness(L, 0.3, metric=metric, num_pairs=400).rise
    assert abs(found.value - expected) < 4 * found.error
    u_variance = (
        0.5 * 0.3**4 * float(((T * A.diagonal() * T) ** 2).sum())
    )  # of one pair: rho^4/4 * 2 sum (TAT)^2
    assert found.error == pytest.approx(math.sqrt(u_variance / 400), rel=0.2)


def test_the_adaptive_metric_does_not_see_a_rescaling() -> None:
    """1/2 (ab - 1)^2 on ab = 1: lambda_max grows without bound with a, that of THT is always 2."""
    plain, adaptive = [], []
    for a in (1.0, 2.0, 4.0):
        L = two_factor(a, 1.0 / a)
        plain.append(worst_sharpness(L, 1e-3, num_steps=40).rise.value)
        adaptive.append(worst_sharpness(L, 1e-3, num_steps=40, metric="adaptive").rise.value)
    assert plain == pytest.approx([0.5e-6 * (a * a + 1 / a**2) for a in (1.0, 2.0, 4.0)], rel=0.02)
    assert adaptive == pytest.approx([0.5e-6 * 2.0] * 3, rel=0.02)


def test_the_order_of_the_three() -> None:
    """Random directions and SAM's step are in the ball, so the worst case is above both."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(30, 5).double(), torch.randint(0, 3, (30,))
    L = Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(x, y)])
    worst = worst_sharpness(L, 0.1).rise.value
    assert (
        random_sharpness(L, 0.1, num_draws=50).rise.value < sam_sharpness(L, 0.1).rise.value <= worst + 1e-9
    )


def scalar_squares(n: int = 8) -> tuple[Objective, Tensor]:
    """Mean of 1/2 (x_i w)^2 in one weight at 0: sample i has curvature x_i^2."""
    x = torch.linspace(0.5, 2.0, n, dtype=torch.float64)

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    return Objective(One(), lambda m, b: 0.5 * (b * m.w).square().mean(), [x]), x


def test_m_sharpness_is_the_mean_of_each_batchs_own_and_larger() -> None:
    """Batches of one have their own minimum at 0 and curvature x_i^2; the gradient never cancels between samples."""
    L, x = scalar_squares()
    one = worst_sharpness(L, 0.1, m=1, num_steps=10).rise
    assert one.value == pytest.approx(0.5 * 0.01 * float((x**2).mean()), rel=1e-6)
    assert one.error == pytest.approx(0.5 * 0.01 * float((x**2).std()) / math.sqrt(8), rel=1e-6)
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    data = (torch.randn(16, 4).double(), torch.randint(0, 3, (16,)))
    M = Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [data])
    values = [worst_sharpness(M, 0.1, m=m).rise.value for m in (16, 4, 1)]
    assert values[0] < values[1] < values[2]


def test_the_name_holds_all_that_decides_the_value() -> None:
    L, _ = scalar_squares()
    assert worst_sharpness(L, 0.1, m=2, p=math.inf, metric="adaptive").name == (
        "worst(m=2, radius=0.1, p=inf, T=|w|, eval)"
    )
    assert sam_sharpness(L, 0.05).name == "sam(m=all, radius=0.05, p=2, T=I, eval)"


def test_cost_is_what_was_spent() -> None:
    L, _ = scalar_squares()
    for found in (
        average_sharpness(L, 0.1, num_pairs=3),
        worst_sharpness(L, 0.1, num_steps=3),
        sam_sharpness(L, 0.1, m=2),
    ):
        spent = found.rise.cost_ge
        assert spent > 0
    assert average_sharpness(L, 0.1, num_pairs=3).rise.cost_ge == pytest.approx(7 * 8 / 3)


def test_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Linear(6, 2)).train()
    data = (torch.randn(16, 4), torch.randint(0, 2, (16,)))
    L = Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [data], mode="train")
    state = {k: v.clone() for k, v in model.state_dict().items()}
    rng = torch.get_rng_state()
    for call in (average_sharpness, worst_sharpness, sam_sharpness, random_sharpness):
        call(L, 0.05)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("call", "options", "words"),
    [
        (average_sharpness, {"radius": -0.1}, "radius -0.1"),
        (average_sharpness, {"radius": 0.1, "num_pairs": 1}, "num_pairs 1"),
        (average_sharpness, {"radius": 0.1, "metric": "fisher"}, "metric 'fisher'"),
        (worst_sharpness, {"radius": 0.1, "p": 1.0}, "p=1.0"),
        (worst_sharpness, {"radius": 0.1, "num_steps": 0}, "num_steps 0"),
        (worst_sharpness, {"radius": 0.1, "m": 99}, "m 99 is larger"),
        (sam_sharpness, {"radius": 0.1, "m": 0}, "m 0"),
        (random_sharpness, {"radius": 0.1, "num_draws": 0}, "num_draws 0"),
        (sam_sharpness, {"radius": math.nan}, "radius nan"),
    ],
)
def test_bad_values_are_refused(call: Any, options: dict[str, Any], words: str) -> None:
    L, _ = scalar_squares()
    with pytest.raises(ValueError, match=words):
        call(L, **options)
