"""One bad batch costs one update and leaves no trace; trouble that lasts goes back."""

from __future__ import annotations

import functools
import math
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from drivers import ALL, fitting, wrap
from pilot.runs import Loop, adamw, assert_same, classify, data, mlp, same, sgd
from scripted import WRECK, Asks
from tiers import slow
from torch import Tensor, nn

from optland.optim import SAM
from optland.optim.saddle import NegativeCurvature
from optland.pilot import AutoLR, Pilot, Plateau
from optland.pilot.buffers import BuffersBefore

SAID = "ignore:the gradient of update .* is not finite:RuntimeWarning"

plain = functools.partial(mlp, dropout=0.0)
"""A forward pass of it draws nothing, so that leaving a batch out is the same as never having seen it."""


def sam(params: Any) -> torch.optim.Optimizer:
    return SAM(sgd(params), rho=0.05)


def keeping_statistics(model: nn.Module) -> list[Any]:
    return [SAM(sgd(model.parameters()), rho=0.05, model=model)]


MAKERS: dict[str, dict[str, Any]] = {
    "sgd": {"make": sgd},
    "adamw": {"make": adamw},
    "sam": {"make": keeping_statistics, "several": True},
}


# ---------------------------------------------------------------- one bad batch


@pytest.mark.filterwarnings(SAID)
@pytest.mark.parametrize("call", [1, 4])
@pytest.mark.parametrize("form", ["closure", "phases", "scaler"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_batch_with_a_nan_is_as_if_it_had_not_been_there(name: str, form: str, call: int) -> None:
    """Weights, running statistics, momentum, moments, step counters and schedule, bit for bit, under ``auto_lr``."""
    options = {**MAKERS[name], "model": plain, "form": form, "policies": [AutoLR(tau=0.02)]}
    run = Loop(bad=[call], **options).run(7)
    twin = Loop(without=[call], **options).run(7)
    if form == "scaler":
        twin.scaler.update(run.scaler.get_scale())  # it has backed off, and a power of two changes no bit
    assert_same(run.trained(), twin.trained())
    assert (run.pilot.step, run.pilot.lost) == (6, 1)
    assert (twin.pilot.step, twin.pilot.lost) == (6, 0)
    assert not run.pilot.decisions
    assert run.optimizer.param_groups[0]["lr"] == twin.optimizer.param_groups[0]["lr"]
    assert run.pilot.samples == twin.pilot.samples == 6 * 16
    assert run.pilot.budget.train_ge > twin.pilot.budget.train_ge, "its gradients were paid for"


@pytest.mark.filterwarnings(SAID, "ignore:the second pass has updated")
@pytest.mark.parametrize(
    ("name", "form"),
    [
        *[(name, "closure") for name in ALL],
        *[(name, "phases") for name in ("sam", "msam")],
        *slow(*[(name, "phases") for name in ALL if name not in ("sam", "msam")]),
    ],
)
def test_no_method_keeps_anything_of_a_bad_batch(name: str, form: str) -> None:
    """Also where a method remembers gradients, or counts its updates."""

    def make(model: nn.Module) -> list[Any]:
        base = {"sgd": sgd, "adamw": adamw}[fitting(name)](model.parameters())
        x, y = data()
        network: Any = SimpleNamespace(model=model, x=x, y=y)
        return [wrap(name, base, network, telemetry_every=0)]

    options: dict[str, Any] = {"several": True, "model": plain, "form": form}
    run = Loop(make, bad=[4, 6], **options).run(9)
    twin = Loop(make, without=[4, 6], **options).run(9)
    assert_same(run.trained(), twin.trained())
    assert (run.pilot.step, run.pilot.lost) == (7, 2)


@pytest.mark.filterwarnings(SAID)
@pytest.mark.parametrize("name", MAKERS)
def test_a_loss_that_is_infinite_is_a_gradient_that_is_not_finite(name: str) -> None:
    """Finite inputs, and running statistics that a forward pass has moved: they are as before it, from update 2 on."""

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        loss = classify(model, batch)
        return loss * math.inf if scale["it"] else loss

    scale = {"it": False}
    for form in ("closure", "phases"):
        options = {**MAKERS[name], "model": plain, "form": form, "loss_fn": loss_fn}
        run, twin = Loop(**options).run(3), Loop(without=[4], **options).run(8)
        scale["it"] = True
        run.run(4)
        scale["it"] = False
        run.run(8)
        assert_same(run.trained(), twin.trained())
        assert run.pilot.lost == 1


@pytest.mark.filterwarnings(SAID)
def test_a_second_pass_that_is_not_finite_makes_the_update_none() -> None:
    """A loss that is NaN at w + eps of call 4, and fine at w."""

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        count["evaluations"] += 1
        loss = classify(model, batch)
        return loss * math.nan if count["evaluations"] == count["bad"] else loss

    count = {"evaluations": 0, "bad": 0}
    options = {**MAKERS["sam"], "model": plain, "loss_fn": loss_fn, "policies": [AutoLR(tau=0.02)]}
    twin = Loop(without=[4], **options).run(8)
    # Two per call, and the pilot's own look after the first.
    count |= {"evaluations": 0, "bad": 2 * 4 + 1}
    run = Loop(**options).run(8)
    assert_same(run.trained(), twin.trained())
    assert (run.pilot.step, run.pilot.lost) == (7, 1)


@pytest.mark.parametrize("form", ["closure", "phases", "scaler"])
def test_it_is_said_once(form: str) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run = Loop(bad=[3, 5, 6], form=form).run(10)
    (word,) = [w for w in said if "is not finite" in str(w.message)]
    assert "the gradient of update 3 is not finite: the update is cancelled" in str(word.message)
    assert word.category is RuntimeWarning
    assert run.pilot.lost == 3
    assert "7 (" not in repr(run.pilot)
    assert "3 cancelled" in repr(run.pilot)


@pytest.mark.filterwarnings(SAID)
def test_below_an_escaping_wrapper_too() -> None:
    def make(params: Any) -> Any:
        return NegativeCurvature(sgd(params))

    run, twin = (Loop(make, model=plain, **{k: [4]}).run(8) for k in ("bad", "without"))
    assert_same(run.trained()["model"], twin.trained()["model"])
    assert run.pilot.lost == 1


@pytest.mark.parametrize("mode", ["monitor", "shadow"])
def test_who_only_looks_lets_it_through(mode: Any) -> None:
    off, looking = (Loop(bad=[4], mode=m, policies=["spike_guard"], budget=1.0).run(8) for m in ("off", mode))
    assert_same(off.bits(), looking.bits())
    assert not all(bool(w.isfinite().all()) for w in looking.weights())


def test_buffers_that_were_loaded_before_the_first_step_are_not_taken_back() -> None:
    """Before the first step the copies are those of the pilot's making; only what is broken is mended from them."""
    kept, broken = torch.ones(2), torch.ones(2)
    buffers = BuffersBefore()
    buffers.take({"kept": kept, "broken": broken})
    kept.fill_(7.0)
    broken.fill_(math.nan)
    buffers.restore(broken=True)
    assert (kept.tolist(), broken.tolist()) == ([7.0, 7.0], [1.0, 1.0])
    buffers.restore()
    assert kept.tolist() == [1.0, 1.0]


# ---------------------------------------------------------------- several optimizers


def two(model: nn.Module) -> list[torch.optim.Optimizer]:
    weights = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    return [sgd(weights), adamw(rest)]


@pytest.mark.filterwarnings(SAID)
@pytest.mark.parametrize("form", ["closure", "phases", "scaler"])
def test_an_update_of_several_optimizers_is_none_as_a_whole(form: str) -> None:
    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        loss = classify(model, batch)
        return loss + (model[-1].bias * math.nan).sum() if bad["it"] else loss

    bad = {"it": False}
    options: dict[str, Any] = {"model": plain, "form": form, "loss_fn": loss_fn, "several": True}
    run, twin = Loop(two, **options).run(3), Loop(two, without=[4], **options).run(8)
    bad["it"] = True
    run.run(4)
    assert (run.pilot.step, run.pilot.lost) == (3, 1)
    bad["it"] = False
    run.run(8)
    assert_same(run.trained(), twin.trained())
    assert (run.pilot.step, run.pilot.lost) == (7, 1)


# ---------------------------------------------------------------- trouble that lasts


@pytest.mark.filterwarnings(SAID)
@pytest.mark.parametrize("form", ["closure", "phases"])
def test_ten_bad_batches_in_a_row_are_not_the_batches_fault(form: str) -> None:
    run = Loop(model=plain, form=form, bad=range(6, 16), total_steps=100).run(14)
    assert not run.pilot.decisions
    run.run(15)
    (decision,) = run.decided("rewind")
    assert decision.reason.startswith(
        "the gradient was not finite 10 times in a row; weights and optimizer go back"
    )
    assert (run.pilot.step, run.pilot.lost) == (5, 10)
    assert run.pilot.host.factor == 0.5
    run.run(24)
    assert len(run.decided("rewind")) == 1
    assert all(bool(w.isfinite().all()) for w in run.weights())


@pytest.mark.filterwarnings(SAID)
def test_nine_in_a_row_and_a_good_one_begin_the_count_again() -> None:
    run = Loop(model=plain, bad=[*range(3, 12), *range(13, 22)]).run(24)
    assert not run.pilot.decisions
    assert run.pilot.lost == 18


@pytest.mark.filterwarnings(SAID)
@pytest.mark.parametrize("form", ["closure", "phases"])
@pytest.mark.parametrize("name", MAKERS)
def test_weights_that_are_not_finite_go_back_at_once(name: str, form: str) -> None:
    """From update 26, with snapshots of 20 and 25: to the older one, since damage may be older than it shows."""
    run = Loop(**MAKERS[name], model=plain, form=form, total_steps=40, epochs=5).run(20)
    kept = run.trained()
    run.run(26)
    with torch.no_grad():
        run.model[0].weight[0, 0] = math.nan
    run.run(27)
    (decision,) = run.decided("rewind")
    assert decision.reason.startswith(
        "the weights are not finite; weights and optimizer go back to update 20"
    )
    assert (decision.step, decision.policy, decision.taken) == (26, "guard", True)
    assert_same(run.trained(), kept)
    assert (run.pilot.step, run.pilot.lost) == (26, 1)


# ---------------------------------------------------------------- the guard


@pytest.mark.parametrize("form", ["closure", "phases"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_loss_is_judged_where_the_next_gradient_is_there(name: str, form: str) -> None:
    """The wreck is told with update 28: call 29 goes back to update 20, and is no update; the data go on."""
    options = {**MAKERS[name], "model": plain, "form": form, "total_steps": 40, "epochs": 5}
    run = Loop(**options, told={28: WRECK}).run(20)
    kept = run.trained()
    run.run(28)
    assert not run.pilot.decisions
    assert (run.pilot.step, run.pilot.lost) == (28, 0)
    run.run(29)
    (decision,) = run.decided("rewind")
    assert "the loss 1e+06 is above 10 times the first loss" in decision.reason
    assert "go back to update 20, the data go on" in decision.reason
    assert decision.signals == {"train/loss": WRECK}
    assert (run.pilot.step, run.pilot.lost) == (28, 1)
    assert_same(run.trained(), kept)
    assert run.loader.samples_served == 29 * 16
    run.run(30)
    assert run.pilot.step == 29
    assert not same(run.trained(), kept)


def test_the_rate_is_halved_where_no_policy_answers_for_it_and_else_the_policy_slows_down() -> None:
    policy = AutoLR(tau=0.04)
    for policies, factor in (([], 0.5), ([policy], 1.0)):
        run = Loop(policies=policies, told={5: WRECK}, total_steps=40).run(8)
        (decision,) = run.decided("rewind")
        assert (decision.old, decision.new) == (1.0, factor)
        assert run.pilot.host.factor == factor
    assert (policy.pace, policy.rewinds) == (0.02, 1)


def test_groups_and_schedule_do_not_go_back() -> None:
    def cosine(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)

    run = Loop(schedule=cosine, told={28: WRECK}, total_steps=40).run(31)
    assert run.decided("rewind")
    scheduled = 0.05 * (1 + math.cos(math.pi * 31 / 40)) / 2
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(scheduled)
    assert run.applied[-1] == pytest.approx(0.5 * 0.05 * (1 + math.cos(math.pi * 30 / 40)) / 2)


def test_a_second_wreck_goes_further_back() -> None:
    """Snapshots every 50 of 1000 updates: that of 50 is tried at 75, and where it did not help, the start."""
    run = Loop(told={75: WRECK, 77: WRECK}, total_steps=1000, epochs=10).run(79)
    first, second = run.decided("rewind")
    assert "go back to update 50" in first.reason
    assert "go back to update 0" in second.reason


def test_a_rewind_forgets_losses_of_after_the_snapshot() -> None:
    """The average that a rewind goes back to is the one of then; the loss that called for it is not in it."""
    run = Loop(told={28: WRECK}, total_steps=40, model=plain).run(20)
    mark = run.pilot.trouble.snapshots.recent["mark"]
    run.run(29)
    assert run.pilot.trouble.guard.mark() == mark


def test_the_run_still_trains_after_two_rewinds() -> None:
    clean = Loop(policies=["auto_lr"], epochs=15, model=plain).run()
    run = Loop(policies=["auto_lr"], epochs=15, model=plain, told={40: WRECK, 80: WRECK}).run()
    assert len(run.decided("rewind")) >= 2
    assert sum(run.losses[-8:]) < 0.7 * sum(run.losses[:8])
    assert sum(clean.losses[-8:]) < 0.7 * sum(clean.losses[:8])


def test_shadow_mode_says_where_control_would_go_back() -> None:
    off, shadow = (
        Loop(mode=mode, policies=["auto_lr"], told={20: WRECK}).run() for mode in ("off", "shadow")
    )
    assert_same(off.bits(), shadow.bits())
    (decision,) = shadow.decided("rewind")
    assert not decision.taken
    assert "control mode would have gone back" in decision.reason
    assert (shadow.pilot.lost, shadow.pilot.host.factor) == (0, 1.0)


# ---------------------------------------------------------------- a policy's skip and rewind


@pytest.mark.parametrize("form", ["closure", "phases", "scaler"])
@pytest.mark.parametrize("name", MAKERS)
def test_an_update_that_a_policy_leaves_out_leaves_no_trace(name: str, form: str) -> None:
    """Asked before the update, whose gradient then never reaches the optimizer."""
    options = {**MAKERS[name], "model": plain, "form": form}
    twin = Loop(without=[4, 6], **options).run(9)
    # Update 4 is left out; then the next one is number 4 again, and so on: a script by calls.
    run = Loop(**options, policies=[ByCall({4, 6})])
    run.pilot.controls.policies[0].loop = run  # type: ignore[attr-defined]
    run.run(9)
    assert_same(run.trained(), twin.trained())
    assert (run.pilot.step, run.pilot.lost) == (7, 2)
    assert [(d.step, d.taken) for d in run.decided("skip")] == [(4, True), (5, True)]


class ByCall(Asks):
    """Leaves out these calls of ``step``."""

    def __init__(self, calls: set[int]) -> None:
        super().__init__({}, turns=frozenset({"skip"}))
        self.calls, self.loop = calls, None

    def decide(self, history: Any) -> Any:
        from optland.pilot import Proposal

        assert self.loop is not None
        return [Proposal("skip", 1.0, "as scripted")] if self.loop.calls in self.calls else []


def test_a_skip_needs_no_copy_of_the_weights() -> None:
    run = Loop(policies=["spike_guard"])
    copied: list[int] = []
    run.optimizer.register_step_pre_hook(lambda *_: copied.append(len(run.pilot.host.before.copies)))
    run.run(6)
    assert copied[1:] == [0] * 5, "the first update is looked at"


def test_a_policy_may_ask_to_go_back() -> None:
    run = Loop(policies=[Asks({31: [("rewind", 1.0)]})], total_steps=40, model=plain).run(20)
    kept = run.trained()
    run.run(30)
    run.run(31)
    (decision,) = run.decided("rewind")
    assert (decision.policy, decision.taken) == ("asks", True)
    assert "as scripted; weights and optimizer go back to update 20" in decision.reason
    assert_same(run.trained(), kept)
    assert (run.pilot.step, run.pilot.lost) == (30, 1)


def test_skip_beats_rewind_beats_length() -> None:
    """All in one update: it is cancelled, nothing moves, and no length is set."""
    before = Asks({4: [("skip", 1.0)]})
    run = Loop(policies=[before, AutoLR(tau=0.02)], model=plain, total_steps=40).run(3)
    kept = run.trained()
    run.run(4)
    assert_same(run.trained(), kept)
    assert run.pilot.step == 3


def test_spike_guard_leaves_out_a_batch_whose_gradient_stands_out() -> None:
    """One batch of inputs a thousand times as large, in a net without normalisation."""

    def linear() -> nn.Module:
        return nn.Linear(6, 3)

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        return classify(model, (batch[0] * scale["it"], batch[1]))

    scale = {"it": 1.0}
    run = Loop(policies=["spike_guard"], model=linear, loss_fn=loss_fn, epochs=8).run(30)
    kept = run.trained()
    scale["it"] = 1e3
    run.run(31)
    assert_same(run.trained(), kept)
    (decision,) = run.decided("skip")
    assert "the gradient norm" in decision.reason
    scale["it"] = 1.0
    run.run(40)
    assert (run.pilot.step, run.pilot.lost) == (39, 1)


# ---------------------------------------------------------------- calls that cannot be


def test_after_step_without_an_update_is_an_error() -> None:
    run = Loop().run(3)
    batch = [x[:16] for x in data()]
    with pytest.raises(RuntimeError, match=r"no optimizer of this pilot has stepped .* before zero_grad\(\)"):
        run.pilot.after_step(batch, 1.0)
    assert (run.pilot.step, run.pilot.lost) == (3, 0)
    run.run(5)
    assert run.pilot.step == 5


def test_before_the_first_update_too() -> None:
    with pytest.raises(RuntimeError, match="no optimizer of this pilot has stepped since the last call"):
        Loop().pilot.after_step([x[:16] for x in data()], 1.0)


@pytest.mark.parametrize("form", ["closure", "phases"])
def test_a_forgotten_after_step_is_an_error_at_the_next_step(form: str) -> None:
    run = Loop(form=form).run(3)
    run.pilot.after_step = lambda batch, loss: None  # type: ignore[method-assign]
    run.run(4)
    with pytest.raises(
        RuntimeError, match=r"after_step\(batch, loss\) was not called .* after every SGD.step\(\)"
    ):
        run.run(5)


def test_all_optimizers_of_a_pilot_have_to_step() -> None:
    run = Loop(two, several=True)
    one = run.optimizers[0]
    x, y = (t[:16] for t in data())
    classify(run.model, (x, y)).backward()
    one.step()
    with pytest.raises(RuntimeError, match="after 1 of 2 optimizers; all of them have to step"):
        run.pilot.after_step((x, y), 1.0)


def test_a_closure_that_raises_leaves_the_users_rate_for_the_next_step() -> None:
    run = Loop(policies=["auto_lr"]).run(3)

    def broken() -> Tensor:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        run.optimizer.step(broken)
    run.run(4)
    assert run.optimizer.param_groups[0]["lr"] == 0.05
    assert run.pilot.step == 4


def test_an_interrupt_in_the_second_pass_gives_the_users_rate_back() -> None:
    """A loop that saves its checkpoint then saves that rate."""
    run = Loop(keeping_statistics, several=True, policies=["auto_lr"]).run(3)
    passes = iter(range(2))
    batch = [t[:16] for t in data()]

    def broken() -> Tensor:
        if next(passes) == 1:
            raise KeyboardInterrupt
        run.optimizer.zero_grad()
        loss = classify(run.model, batch)
        loss.backward()
        return loss

    with pytest.raises(KeyboardInterrupt):
        run.optimizer.step(broken)
    assert run.optimizer.param_groups[0]["lr"] == 0.05


def masked(model: nn.Module, batch: Any) -> Tensor:
    """NaN where every label is masked, with a gradient of zeros."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1], ignore_index=-100)


@pytest.mark.filterwarnings("ignore:the loss of update .* is nan, and its gradient is finite:RuntimeWarning")
@pytest.mark.parametrize("policies", [[], ["auto_lr"]])
def test_a_loss_that_is_not_finite_while_its_gradient_is_costs_nothing(policies: list[str]) -> None:
    x, y = data()
    y[32:48] = -100
    run: Any = Loop(loss_fn=masked, tensors=[x, y], policies=policies)
    run.loader = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 128, 16)] * 6
    run.run()
    assert math.isnan(run.losses[2])
    assert not run.pilot.decisions
    assert run.pilot.lost == 0
    assert math.isfinite(run.pilot.trouble.guard.average)


@pytest.mark.filterwarnings("ignore:the loss of update .* is nan, and its gradient is finite:RuntimeWarning")
def test_one_that_lasts_goes_back() -> None:
    run = Loop(told=dict.fromkeys(range(21, 32), math.nan), total_steps=40).run(32)
    (decision,) = run.decided("rewind")
    assert decision.reason.startswith(
        "the loss was not finite 10 times in a row; weights and optimizer go back"
    )


def test_a_dead_net_goes_back_to_before_it_died() -> None:
    """Its loss does not rise above the first; the gradients of its matrices are exactly zero for ten updates."""

    def deep() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))

    run = Loop(model=deep, policies=["auto_lr"], epochs=20)
    run.pilot.trouble.guard.ceiling = run.pilot.trouble.guard.lost = run.pilot.trouble.guard.slack = 1e9
    run.run(100)
    with torch.no_grad():
        run.model[2].bias.fill_(-1e3)
    run.run()
    (decision,) = run.decided("rewind")
    assert "weight matrices has been exactly zero for 10 updates: the net has collapsed" in decision.reason
    assert decision.step <= 100 + 12
    x, y = data()
    with torch.no_grad():
        assert float((run.model(x).argmax(1) == y).float().mean()) > 0.8


def test_plateau_may_be_asked_beside_a_skip() -> None:
    """Policies that act before and after an update, side by side."""
    run = Loop(policies=["spike_guard", Plateau(window=16)], epochs=8).run(40)
    assert run.pilot.step == 40


def test_clipping_by_the_user_is_said_once() -> None:
    torch.manual_seed(0)
    model, batch = plain(), data()
    optimizer = sgd(model.parameters())
    pilot = Pilot(optimizer, model, classify, policies=["spike_guard"], total_steps=40)
    with pilot, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(40):
            optimizer.zero_grad()
            loss = classify(model, batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
            pilot.after_step(batch, loss)
    said = [
        str(warning.message) for warning in caught if "clipped to a norm of 0.001" in str(warning.message)
    ]
    assert len(said) == 1
