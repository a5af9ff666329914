"""``suggest_lr`` where the critical rate is known: 2 / lambda on a parabola of curvature lambda, none on a line."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from optland.optim import SAM
from optland.pilot import suggest_lr

BATCHES = [torch.ones(8, 1)]


def one_weight() -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    return model


def parabola(curvature: float) -> Any:
    """L = curvature w^2 / 2."""

    def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
        loss: Tensor = 0.5 * curvature * model(batch).square().mean()
        return loss

    return loss_fn


@pytest.mark.parametrize("curvature", [0.5, 50.0])
def test_on_a_parabola_it_is_the_fraction_of_the_critical_rate(curvature: float) -> None:
    model = one_weight()
    found = suggest_lr(model, parabola(curvature), BATCHES, torch.optim.SGD(model.parameters(), lr=1.0))
    assert found.value == pytest.approx(0.35 * 2.0 / curvature, rel=1e-2)
    assert found.error < 0.01 * found.value
    assert found.converged
    assert found.note == ""


def test_a_first_pass_over_a_part_of_the_batch_is_one() -> None:
    model = one_weight()
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=1.0), rho=1e-6, ascent_share=0.25, model=model)
    found = suggest_lr(model, parabola(0.5), BATCHES, optimizer)
    assert found.value == pytest.approx(0.35 * 2.0 / 0.5, rel=1e-2)
    assert set(seen) >= {2, 8}


def test_where_no_update_is_too_long_it_is_a_bound_that_has_not_converged() -> None:
    """Softplus falls without end. The rate is that of the end of the ramp: a move of 0.03 of the weight, lr sigmoid(w).

    The 48 relative lengths rise to 0.03 by a factor of 300 in all, and the weight falls by that much at each.
    """
    model = one_weight()
    found = suggest_lr(
        model,
        lambda m, batch: softplus(m(batch)).mean(),
        BATCHES,
        torch.optim.SGD(model.parameters(), lr=1.0),
    )
    assert not found.converged
    assert math.isnan(found.error)
    assert "bound from below" in found.note
    w = 2.0 * math.exp(-0.03 / (1.0 - 300 ** (-1 / 48)))
    assert found.value == pytest.approx(0.03 * w * (1.0 + math.exp(-w)), rel=0.1)


def test_everything_is_put_back() -> None:
    model = one_weight()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    loss_fn = parabola(1.0)
    loss_fn(model, BATCHES[0]).backward()
    optimizer.step()
    kept = model.weight.clone(), model.weight.grad.clone(), copy.deepcopy(optimizer.state_dict())
    random = torch.get_rng_state()
    suggest_lr(model, loss_fn, BATCHES, optimizer)
    assert torch.equal(model.weight, kept[0])
    assert torch.equal(model.weight.grad, kept[1])
    state = optimizer.state_dict()
    assert state["param_groups"] == kept[2]["param_groups"]
    assert torch.equal(state["state"][0]["momentum_buffer"], kept[2]["state"][0]["momentum_buffer"])
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("batches", "steps", "words"), [(BATCHES, 11, "steps 11 are too few"), ([], 12, "the loader is empty")]
)
def test_what_gives_no_ramp_is_refused(batches: list[Tensor], steps: int, words: str) -> None:
    model = one_weight()
    with pytest.raises(ValueError, match=words):
        suggest_lr(
            model, parabola(1.0), batches, torch.optim.SGD(model.parameters(), lr=1.0), num_steps=steps
        )
