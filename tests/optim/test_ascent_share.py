"""The ascent on a part of the batch: SAM's numbers with another g, in every form, at the cost that it says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland import SAM, NegativeCurvature, Pilot
from optland.batches import num_samples, portion
from optland.conformance import Claim, run
from optland.conformance.subject import Drive, Subject
from optland.integrations.replay import finish_passes
from optland.optim import available, create

SHARE, RHO = 0.25, 0.1


def task(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    return model, (torch.randn(16, 4, dtype=dtype), torch.randint(3, (16,)))


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.02)


def by_closure(optimizer: Any, model: nn.Module, batch: Any) -> None:
    def closure(share: float = 1.0) -> Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model, portion(batch, share))
        loss.backward()
        return loss

    optimizer.step(closure)


def by_phases(optimizer: Any, model: nn.Module, batch: Any) -> None:
    optimizer.zero_grad()
    loss_fn(model, portion(batch, SHARE)).backward()
    optimizer.perturb()
    loss_fn(model, batch).backward()
    optimizer.step()


def by_passes(optimizer: Any, model: nn.Module, batch: Any) -> None:
    optimizer.zero_grad()
    for _ in optimizer.passes():
        loss_fn(model, portion(batch, optimizer.pass_share)).backward()
    optimizer.step()


FORMS = [by_closure, by_phases, by_passes]


def oracle(make: Callable[[nn.Module], torch.optim.Optimizer], steps: int) -> Tensor:
    """Literally: g of every fourth sample, w + rho g / |g| in float64, the whole batch there, the base's step at w."""
    model, batch = task()
    base, params = make(model), list(model.parameters())
    part = batch[0][::4], batch[1][::4]
    for _ in range(steps):
        g = torch.autograd.grad(loss_fn(model, part), params)
        length = torch.sqrt(sum(x.square().sum() for x in g))
        away = copy.deepcopy(model)
        with torch.no_grad():
            for p, x in zip(away.parameters(), g, strict=True):
                p += RHO * x / length
        h = torch.autograd.grad(loss_fn(away, batch), list(away.parameters()))
        for p, x in zip(params, h, strict=True):
            p.grad = x
        base.step()
    return flat(model)


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("form", FORMS)
def test_fifty_steps_are_those_of_the_literal_rule(form: Any, make: Any) -> None:
    model, batch = task()
    optimizer = SAM(make(model), rho=RHO, ascent_share=SHARE, model=model)
    for _ in range(50):
        form(optimizer, model, batch)
    torch.testing.assert_close(flat(model), oracle(make, 50), rtol=0, atol=1e-11)
    assert optimizer.last_evaluations == optimizer.evaluations == 1.25


@pytest.mark.parametrize("form", [by_phases, by_passes])
def test_the_forms_are_equal_bit_for_bit(form: Any) -> None:
    ends = []
    for each in (by_closure, form):
        model, batch = task(torch.float32)
        optimizer = SAM(sgd(model), rho=RHO, ascent_share=SHARE, model=model)
        for _ in range(10):
            each(optimizer, model, batch)
        ends.append(flat(model))
    assert torch.equal(*ends)


@pytest.mark.parametrize("form", [by_closure, by_passes])
def test_the_samples_of_each_pass_are_what_the_step_says_it_costs(form: Any) -> None:
    model, batch = task()
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    optimizer = SAM(sgd(model), rho=RHO, ascent_share=SHARE, model=model)
    form(optimizer, model, batch)
    assert seen == [4, 16]
    assert sum(seen) == optimizer.last_evaluations * 16


def test_without_a_radius_the_only_pass_is_over_all_of_the_batch() -> None:
    """As while rho warms up from 0: the plain step of the base, not one on a part."""
    model, batch = task()
    plain, _ = task()
    optimizer = SAM(sgd(model), rho=0.0, ascent_share=SHARE, model=model)
    by_closure(optimizer, model, batch)
    base = sgd(plain)
    loss_fn(plain, batch).backward()
    base.step()
    assert torch.equal(flat(model), flat(plain))
    assert optimizer.last_evaluations == 1
    assert optimizer.pass_share == 1.0


def test_micro_batches_with_an_eps_each_take_their_part_of_themselves() -> None:
    model, (x, y) = task()
    by_hand, _ = task()
    optimizer = SAM(sgd(model), rho=RHO, ascent_share=SHARE, model=model)
    parts = [(x[:8], y[:8]), (x[8:], y[8:])]
    for part in parts:

        def closure(share: float = 1.0, part: Any = part) -> Tensor:
            optimizer.zero_grad()
            loss = loss_fn(model, portion(part, share)) / 2
            loss.backward()
            return loss

        optimizer.accumulate(closure, share=0.5)
    optimizer.step()
    base, params = sgd(by_hand), list(by_hand.parameters())
    total = [torch.zeros_like(p) for p in params]
    for part in parts:
        g = torch.autograd.grad(loss_fn(by_hand, (part[0][::4], part[1][::4])), params)
        length = torch.cat([t.flatten() for t in g]).norm()
        away = copy.deepcopy(by_hand)
        with torch.no_grad():
            for p, t in zip(away.parameters(), g, strict=True):
                p += RHO * t / length
        for s, t in zip(
            total, torch.autograd.grad(loss_fn(away, part) / 2, list(away.parameters())), strict=True
        ):
            s += t
    for p, s in zip(params, total, strict=True):
        p.grad = s
    base.step()
    torch.testing.assert_close(flat(model), flat(by_hand), rtol=0, atol=1e-13)


def test_what_compares_both_passes_is_left_out_of_the_telemetry() -> None:
    model, batch = task()
    optimizer = SAM(sgd(model), rho=RHO, ascent_share=SHARE, model=model, telemetry_every=1)
    by_closure(optimizer, model, batch)
    told = optimizer.telemetry.read()
    assert told.keys() == {"sam/rho", "sam/rho_realised", "sam/grad_norm", "sam/skipped", "probe/age_sam"}
    assert told["sam/rho_realised"] == pytest.approx(RHO, rel=1e-9)


def test_a_pilot_counts_what_it_costs() -> None:
    model, batch = task()
    optimizer = SAM(sgd(model), rho=RHO, ascent_share=SHARE, model=model)
    with Pilot(optimizer, model, loss_fn, policies=["auto_lr"], total_steps=20) as pilot:
        for _ in range(20):
            by_closure(optimizer, model, batch)
            pilot.after_step(batch, loss_fn(model, batch).detach())
        assert pilot.budget.train_ge == 20 * 16 * 1.25


def test_it_is_made_by_name_and_by_name_refused() -> None:
    model, _ = task()
    made: Any = create("sam", model.parameters(), base="sgd", lr=0.1, ascent_share=0.5)
    assert made.evaluations == 1.5
    for name in set(available("*sam*")) - {"sam"}:
        with pytest.raises((TypeError, ValueError), match="ascent_share"):
            create(name, model.parameters(), base="adamw", lr=0.1, ascent_share=0.5)


# ---------------------------------------------------------------- refused


def test_a_closure_that_takes_no_share_is_refused_before_anything_moves() -> None:
    model, batch = task()
    optimizer = SAM(sgd(model), rho=RHO, ascent_share=SHARE, model=model)
    before = flat(model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        return loss

    with pytest.raises(TypeError, match=r"this one takes none; write def closure\(share=1\.0\)"):
        optimizer.step(closure)
    with pytest.raises(TypeError, match=r"write def closure\(share=1\.0\)"):
        optimizer.accumulate(closure)
    assert torch.equal(flat(model), before)
    with (
        Pilot(optimizer, model, loss_fn, policies=[], total_steps=3),
        pytest.raises(TypeError, match=r"write def closure\(share=1\.0\)"),
    ):
        optimizer.step(closure)
    by_closure(optimizer, model, batch)  # and goes on as if nothing had been


@pytest.mark.parametrize("share", [0.0, -0.25, 1.5, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    model, batch = task()
    with pytest.raises(ValueError, match=f"ascent_share={share} is not a share of the batch; use 0.25"):
        SAM(sgd(model), ascent_share=share)
    with pytest.raises(ValueError, match=f"share={share} is not a share of the batch"):
        portion(batch, share)


class ReadsTheLoss(torch.optim.SGD):
    def step(self, closure: Callable[[], Any]) -> Any:
        loss = closure()
        super().step()
        return loss


def test_what_would_train_on_a_part_is_refused() -> None:
    model, _ = task()
    params = list(model.parameters())
    with pytest.raises(ValueError, match="with a gate: a step without a second pass"):
        SAM(sgd(model), ascent_share=SHARE, gate="every(2)")
    with pytest.raises(ValueError, match="in the class form"):
        SAM(params, torch.optim.SGD, ascent_share=SHARE, lr=0.1)
    with pytest.raises(ValueError, match="ReadsTheLoss reads the loss"):
        SAM(ReadsTheLoss(params, lr=0.1), ascent_share=SHARE)
    optimizer = SAM(sgd(model), ascent_share=SHARE)
    with pytest.raises(
        ValueError, match="NegativeCurvature, which looks for saddles in the loss of all of it"
    ):
        NegativeCurvature(optimizer)
    with pytest.raises(ValueError, match="the trainer makes pass one over all of the batch"):
        finish_passes(optimizer, lambda: None)


# ---------------------------------------------------------------- the part


def test_a_portion_is_evenly_spaced_and_not_empty() -> None:
    batch = {"x": torch.arange(10), "name": "a"}
    assert portion(batch, 0.25)["x"].tolist() == [0, 5]
    assert portion(batch, 0.4)["x"].tolist() == [0, 2, 5, 7]
    assert portion(batch, 0.01)["x"].tolist() == [0]
    assert portion(batch, 1.0) is batch
    assert num_samples(portion(torch.zeros(256, 2), 0.25)) == 64


# ---------------------------------------------------------------- conformance


class Sharing(Drive):
    """Closures that are told the share, and run over all of the batch: then every number is that of SAM."""

    def closure(self, optimizer: Any, problem: Any) -> Any:
        def closure(share: float = 1.0) -> Tensor:
            optimizer.zero_grad()
            return problem.backward()

        return closure


@pytest.mark.slow
def test_the_suite_finds_nothing_where_the_part_is_the_whole() -> None:
    def make(params: Any, base: Any, model: Any, options: Any) -> Any:
        return SAM(base(params), rho=options["rho"], model=model, ascent_share=SHARE)

    report = run(Subject("part", make, Claim("sam"), drive=Sharing(), halves=("perturb", "step")))
    failed = [f for f in report.findings if str(f.status) == "failed"]
    assert [f"{f.check}: {f}" for f in failed] == []
    assert sum(str(f.status) == "passed" for f in report.findings) > 20
