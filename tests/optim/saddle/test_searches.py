"""Other ways to look: NEON, a ratio that somebody else measures, and the stochastic cubic step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiers import slow
from torch import Tensor, nn

from optland.objective import Objective
from optland.optim.saddle import CubicNewton, NegativeCurvature, Trigger
from optland.optim.saddle.evaluations import Evaluations
from optland.optim.saddle.moves import forward_search
from optland.optim.saddle.neon import neon

D = torch.float64


def closure_of(loss: Any, w: nn.Parameter) -> Any:
    def closure() -> Tensor:
        w.grad = None
        value = loss(w)
        value.backward()
        return value

    return closure


def double_well(w: Tensor) -> Tensor:
    return (w[:-1] ** 2).sum() / 2 - w[-1] ** 2 / 2 + w[-1] ** 4 / 4


def test_neon_finds_the_lowest_eigenvector_by_one_call_a_product() -> None:
    A = torch.diag(torch.tensor([2.0, 1.0, 0.5, -1.0], dtype=D))
    w = nn.Parameter(torch.tensor([0.3, -0.2, 0.1, 0.4], dtype=D))  # the slope does not matter
    seen = Evaluations(closure_of(lambda v: 0.5 * v @ A @ v, w), [w])
    _, g = seen.at([w.detach().clone()])
    calls = seen.calls
    found = neon(
        lambda v: seen.forward_product(v, g), g, steps=200, generator=torch.Generator().manual_seed(0)
    )
    assert seen.calls - calls == found.num_matvecs < 60
    assert found.lowest == pytest.approx(-1.0, abs=0.05)
    assert abs(float(found.lowest_vector[0][-1])) > 0.98
    assert found.tau(4, 1e-6) is None  # nothing is ruled out


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_search_doubles_its_step_until_the_loss_rises(sign: float) -> None:
    """|w - 5 s| from 0 along the axis: 1, 2 and 4 fall, 8 does not; and the way to 4 is 4 long."""
    w = nn.Parameter(torch.zeros(1, dtype=D))
    seen = Evaluations(closure_of(lambda v: (v - 5.0 * sign).abs().sum(), w), [w])
    move = forward_search(seen, [torch.ones(1, dtype=D)], 5.0, start=1.0)
    assert move is not None
    assert (move.point[0].item(), move.loss, move.length) == (4.0 * sign, 1.0, 4.0)


def test_a_search_shortens_a_step_that_is_too_long() -> None:
    """From 0 with the minimum at 0.1: 1 and 1/4 rise, 1/16 falls and 1/8 more so, at a loss of 0.025."""
    w = nn.Parameter(torch.zeros(1, dtype=D))
    seen = Evaluations(closure_of(lambda v: (v - 0.1).abs().sum(), w), [w])
    move = forward_search(seen, [torch.ones(1, dtype=D)], 0.1, start=1.0)
    assert move is not None
    assert (move.point[0].item(), move.length) == (0.125, 0.125)
    assert forward_search(seen, [torch.zeros(1, dtype=D)], 0.1, start=1.0) is None


def test_neon_leaves_a_saddle_and_never_claims_a_minimum() -> None:
    for start, kind in (([0.0] * 5, "escape"), ([0.0, 0.0, 0.0, 0.0, 1.0], "probe")):
        w = nn.Parameter(torch.tensor(start, dtype=D))
        optimizer = NegativeCurvature(torch.optim.SGD([w], lr=0.1), search="neon")
        for _ in range(4):
            optimizer.step(closure_of(double_well, w))
        assert kind in {e.kind for e in optimizer.events}
        assert "minimum up to tau" not in {e.verdict for e in optimizer.events}


@pytest.mark.parametrize(("ratio", "looks"), [(None, 0), (0.1, 0), (0.8, 1)])
def test_a_ratio_that_somebody_else_measures_is_a_sign(ratio: float | None, looks: int) -> None:
    w = nn.Parameter(torch.tensor([1.0, 0.0, 0.0], dtype=D))
    trigger = Trigger(("ncr",), ncr=lambda: ratio)
    trigger.steady = True
    optimizer = NegativeCurvature(torch.optim.SGD([w], lr=0.01), trigger=trigger)
    for _ in range(30):
        optimizer.step(closure_of(double_well, w))
    assert min(len(optimizer.events), 1) == looks
    if looks:
        assert "the negative curvature is 0.80 of the largest" in optimizer.events[0].reason
    with pytest.raises(ValueError, match="give the trigger 'ncr' together with"):
        Trigger(("ncr",))


class Noisy(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(d, dtype=D))


def noisy_well(model: nn.Module, batch: Tensor) -> Tensor:
    """The double well, with noise in the gradient and in the curvature of every sample."""
    w: Any = model.w
    return double_well(w) + (batch @ w).mean() + 0.5 * (batch[:, 0].mean()) * (w**2).sum()


@pytest.mark.parametrize("seed", [0, *slow(1, 2, 3, 4)])
def test_the_stochastic_cubic_step_leaves_a_saddle_on_minibatches(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    model = Noisy(6)
    optimizer = CubicNewton(
        model.parameters(),
        sigma=1.5,
        max_matvecs=6,
        lr=0.5,
        curvature=lambda: Objective(model, noisy_well, [0.3 * torch.randn(32, 6, generator=draw, dtype=D)]),
        seed=seed,
    )
    for _ in range(40):
        batch = 0.3 * torch.randn(32, 6, generator=draw, dtype=D)

        def closure(batch: Tensor = batch) -> Tensor:
            optimizer.zero_grad()
            loss = noisy_well(model, batch)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert float(double_well(model.w.detach())) < -0.2  # the minima are at -1/4
    assert optimizer.verdict == "unknown"
    assert optimizer.last_evaluations == 1  # products are on the other minibatch


def test_its_step_from_rest_has_the_length_of_the_theory() -> None:
    """At zero gradient and curvature -a: a / sigma along the direction, exactly, in either sign."""
    model = Noisy(3)
    clean = torch.zeros(4, 3, dtype=D)
    optimizer = CubicNewton(
        model.parameters(), sigma=2.0, curvature=lambda: Objective(model, noisy_well, [clean])
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = noisy_well(model, clean)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert model.w.detach().abs().tolist() == pytest.approx([0.0, 0.0, 0.5], abs=1e-6)


def test_what_does_not_go_together_is_refused() -> None:
    model, other = Noisy(2), Noisy(2)
    batch = torch.zeros(2, 2, dtype=D)
    cubic = CubicNewton(model.parameters(), curvature=lambda: Objective(other, noisy_well, [batch]))
    with pytest.raises(ValueError, match="the very parameters that the optimizer holds"):
        cubic.step(closure_of(lambda w: noisy_well(model, batch), model.w))
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="search='power' is not known"):
        NegativeCurvature(base, search="power")
    with pytest.raises(ValueError, match="leave probe out"):
        NegativeCurvature(
            base, search="neon", probe=Objective(model, noisy_well, [torch.zeros(2, 2, dtype=D)])
        )
