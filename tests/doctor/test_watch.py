"""Watching changes nothing, ends nothing, and reads the loss behind the outputs exactly."""

from __future__ import annotations

import contextlib
import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.doctor import watch
from optland.doctor.outputs import behind_classes, behind_numbers

REDUCTIONS = {"mean": 1.0, "sum": 24.0}


def gradient_of(loss: Any, scores: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, scores)
    return gradient


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_scale_of_a_cross_entropy_is_read_off_its_gradient(reduction: str) -> None:
    torch.manual_seed(0)
    scores, y = torch.randn(24, 5, requires_grad=True), torch.randint(5, (24,))
    found = behind_classes(scores, gradient_of(F.cross_entropy(scores, y, reduction=reduction), scores))
    assert found is not None
    assert found.share == pytest.approx(REDUCTIONS[reduction], rel=1e-5)
    assert not found.twice


def test_tokens_that_are_left_out_do_not_count() -> None:
    torch.manual_seed(0)
    scores, y = torch.randn(4, 6, 5, requires_grad=True), torch.randint(5, (4, 6))
    y[:, -2:] = -100
    found = behind_classes(scores, gradient_of(F.cross_entropy(scores.flatten(0, 1), y.flatten()), scores))
    assert found is not None
    assert found.rows == 16
    assert found.share == pytest.approx(1.0, rel=1e-5)


def test_a_softmax_taken_twice_is_seen_from_either_side_of_the_first_one() -> None:
    torch.manual_seed(0)
    scores, y = torch.randn(24, 5, requires_grad=True), torch.randint(5, (24,))
    inside = behind_classes(scores, gradient_of(F.cross_entropy(scores.softmax(1), y), scores))
    p = scores.detach().softmax(1).requires_grad_()
    outside = behind_classes(p, gradient_of(F.cross_entropy(p, y), p))
    assert inside is not None
    assert outside is not None
    assert (inside.twice, outside.twice) == (True, True)
    assert inside.share == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("twice", [False, True])
def test_a_binary_cross_entropy(twice: bool) -> None:
    torch.manual_seed(0)
    scores, y = torch.randn(24, requires_grad=True), torch.randint(2, (24,)).float()
    given = scores.sigmoid() if twice else scores
    found = behind_classes(scores, gradient_of(F.binary_cross_entropy_with_logits(given, y), scores))
    assert found is not None
    assert found.twice == twice
    assert found.share == pytest.approx(1.0, rel=1e-4)


def test_another_loss_is_left_alone() -> None:
    torch.manual_seed(0)
    scores, y = torch.randn(24, 5, requires_grad=True), torch.randint(5, (24,))
    for loss in (
        F.multi_margin_loss(scores, y),
        F.nll_loss(scores, y),
        F.cross_entropy(scores, y, weight=torch.tensor([1.0, 5.0, 1.0, 9.0, 1.0])),
        F.nll_loss(scores.softmax(1).log(), y) + scores.square().mean(),
    ):
        found = behind_classes(scores, gradient_of(loss, scores))
        assert found is None or not found.twice


@pytest.mark.parametrize(("reduction", "share"), [("mean", 1.0), ("sum", 48.0)])
def test_the_scale_of_a_squared_error(reduction: str, share: float) -> None:
    torch.manual_seed(0)
    outputs, y = torch.randn(24, 2, requires_grad=True), torch.randn(24, 2)
    found = behind_numbers(outputs, gradient_of(F.mse_loss(outputs, y, reduction=reduction), outputs), y)
    assert found is not None
    assert found.share == pytest.approx(share, rel=1e-5)


def trained(watched: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    doctor = watch(model, optimizer) if watched else None
    for _ in range(30):
        x = torch.randn(16, 8)
        loss = F.cross_entropy(model(x), torch.randint(3, (16,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if doctor is not None:
            doctor.after_step((x,), loss)
    moments = {f"{i}.{k}": v for i, s in enumerate(optimizer.state.values()) for k, v in s.items()}
    gradients = {f"grad {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {**model.state_dict(), **moments, **gradients, "rng": torch.get_rng_state()}


def test_watching_changes_no_bit() -> None:
    plain, watched = trained(watched=False), trained(watched=True)
    assert plain.keys() == watched.keys()
    assert [name for name in plain if not torch.equal(plain[name], watched[name])] == []


def test_a_look_that_fails_is_one_warning_and_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise ZeroDivisionError("in a look")

    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    with watch(model, optimizer) as doctor:
        monkeypatch.setattr("optland.doctor.watching.norms_of", fails)
        for k in range(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            said = "is off; training goes on: ZeroDivisionError"
            with pytest.warns(RuntimeWarning, match=said) if k == 0 else contextlib.nullcontext():
                optimizer.step()
            doctor.after_step((x, y), loss)
    assert not doctor.on


def test_passes_inside_paused_are_not_seen() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, optimizer) as doctor:
        with doctor.paused(), torch.no_grad():
            model(torch.randn(2, 4))
        doctor.after_step(None, 1.0)
        assert doctor.histories.fact("tested") == 0


def test_closing_takes_every_hook_off() -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, optimizer):
        assert len(model._forward_hooks) == 1
    assert len(model._forward_hooks) == 0
    assert len(optimizer._optimizer_step_post_hooks) == 0


def test_a_model_that_is_copied_or_saved_takes_no_watch_along() -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, optimizer) as doctor:
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        with torch.no_grad():
            for other in copies:
                other(torch.zeros(2, 4))
        assert [torch.equal(other.weight, model.weight) for other in copies] == [True, True]
        doctor.after_step(None, 1.0)
        assert doctor.histories.fact("tested") == 0
