"""One look and the escape: closed forms of the point, the check on other data, and what it declares to cost."""

from __future__ import annotations

import pytest
import torch
from known_points import flat_bowl

from optland.objective import Objective
from optland.optim.saddle import leave_saddle
from optland.optim.saddle.leave import declared_cost
from optland.problems import monkey_saddle


def objective_of(loss, start, batches=1) -> Objective:
    """A loss of one vector (and of the batch's number) as an objective."""
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    data = [torch.full((1, 1), float(i)) for i in range(batches)]
    return Objective(model, lambda m, batch: loss(m.w, float(batch)), data)


def double_well(w: torch.Tensor, batch: float = 0.0) -> torch.Tensor:
    """x^2 - 0.32 y^2 + y^4 / 4: a strict saddle at 0, minima at y = +-0.8 of loss -0.1024."""
    return w[0] ** 2 - 0.32 * w[1] ** 2 + 0.25 * w[1] ** 4


def test_a_strict_saddle_is_left_along_its_negative_direction() -> None:
    objective = objective_of(double_well, [0.0, 0.0])
    event = leave_saddle(objective)
    x, y = objective.params[0].tolist()
    assert (event.kind, event.verdict) == ("escape", "strict saddle")
    assert event.curvature == pytest.approx(-0.64, rel=1e-6)
    assert event.tau == pytest.approx(0.64, rel=1e-4)
    assert abs(x) < 1e-6
    assert 0.4 < abs(y) < 1.2  # doubling ends within a factor of two of the minimum of the line
    assert event.loss_after == pytest.approx(float(double_well(objective.params[0].detach())))
    assert event.loss_after < -0.6 * 0.1024
    assert abs(y) == pytest.approx(event.length)


def test_a_minimum_keeps_its_bits() -> None:
    objective = objective_of(lambda w, _: (w - 0.3).square().sum() * 2.0, [0.3, 0.3, 0.3])
    event = leave_saddle(objective)
    assert (event.kind, event.verdict, event.length) == ("probe", "minimum up to tau", 0.0)
    assert 0.0 <= event.tau < 5e-6  # three products see all of three dimensions: rounding of the curvature 4
    assert objective.params[0].tolist() == [0.3, 0.3, 0.3]


def test_a_degenerate_point_is_left_by_a_kick_where_the_loss_falls_and_kept_where_it_does_not() -> None:
    monkey = leave_saddle(monkey_saddle())
    assert (monkey.kind, monkey.verdict) == ("kick", "degenerate")
    assert monkey.loss_after < monkey.loss
    flat = flat_bowl()
    before = flat.cost_ge
    bowl = leave_saddle(flat)
    assert flat.cost_ge - before <= declared_cost(flat)  # no kick lowers the loss, so all are tried
    assert (bowl.kind, bowl.verdict, bowl.loss_after) == ("rejected", "degenerate", bowl.loss)


@pytest.mark.parametrize(("agree", "kind"), [(True, "escape"), (False, "rejected")])
def test_other_data_have_to_agree(agree: bool, kind: str) -> None:
    def other(w: torch.Tensor, batch: float) -> torch.Tensor:
        return double_well(w) if agree else w.square().sum() * (1.0 + 0.1 * batch)

    objective = objective_of(double_well, [0.0, 0.0])
    check = objective_of(other, [0.0, 0.0], batches=4)
    check.model.w = objective.model.w  # one set of weights under two losses
    check = Objective(check.model, check.loss_fn, list(check.batches))
    event = leave_saddle(objective, check=check)
    assert event.kind == kind
    assert (objective.params[0].abs().max() > 0.1) == agree
    assert objective.cost_ge + check.cost_ge <= declared_cost(objective, check)


@pytest.mark.parametrize(
    ("curvature", "batches", "why"),
    [
        (-0.64, 1, "check has one batch, and certifies nothing with fewer than 3"),
        (-0.64, 2, "check has 2 batches, and certifies nothing with fewer than 3"),
        (2.0, 4, "the 4 batches of check do not certify the curvature as negative: 2 along its direction"),
    ],
)
def test_what_stood_against_a_move_is_said(curvature: float, batches: int, why: str) -> None:
    objective = objective_of(double_well, [0.0, 0.0])
    other = [torch.zeros(1, 1) for _ in range(batches)]
    check = Objective(objective.model, lambda m, _: 0.5 * curvature * m.w.square().sum(), other)
    event = leave_saddle(objective, check=check)
    assert (event.kind, event.verdict, event.length) == ("rejected", "strict saddle", 0.0)
    assert why in event.reason
    assert objective.params[0].tolist() == [0.0, 0.0]


def test_a_check_whose_loss_does_not_fall_is_named() -> None:
    objective = objective_of(
        double_well, [0.0, 0.0]
    )  # that of check curves down near it, and rises farther off
    data = [torch.zeros(1, 1) for _ in range(4)]
    check = Objective(objective.model, lambda m, _: -m.w[1].square() + 100.0 * m.w[1] ** 8, data)
    event = leave_saddle(objective, check=check)
    assert event.kind == "rejected"
    assert "the move lowered the loss, and not that of check" in event.reason


def test_what_cannot_be_looked_with_is_refused() -> None:
    for options, says in (({"max_matvecs": 1}, "max_matvecs=1"), ({"radius": 0.0}, "radius 0.0")):
        with pytest.raises(ValueError, match=says):
            leave_saddle(objective_of(double_well, [0.0, 0.0]), **options)


def test_it_leaves_no_trace_but_the_move() -> None:
    objective = objective_of(double_well, [0.0, 0.0])
    objective.params[0].grad = torch.ones(2, dtype=torch.float64)
    state = torch.get_rng_state()
    leave_saddle(objective)
    assert objective.params[0].grad.tolist() == [1.0, 1.0]
    assert torch.equal(torch.get_rng_state(), state)
    assert bool(objective.params[0].isfinite().all())
