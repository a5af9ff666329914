"""The pilot in its loop: looking changes nothing, and lengths, caps and batches are what the formulas say."""

from __future__ import annotations

import gc
import math
import weakref
from typing import Any

import pytest
import torch
from pilot.runs import Loop, Recorder, adamw, assert_same, classify, data, relative_length, sgd
from scripted import WRECK, Asks, GrowsOnce
from tiers import slow
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from optland.optim import SAM
from optland.optim.saddle import NegativeCurvature
from optland.pilot import AutoLR, NoiseBatch, Pilot, Probe, Proposal, SafeLR, Signal
from optland.train import evaluate, load_data
from optland.train.data import DataConfig
from optland.train.models import ModelConfig, build_model


def sam(params: Any) -> torch.optim.Optimizer:
    return SAM(sgd(params), rho=0.05)


def resnet() -> nn.Module:
    return build_model(ModelConfig(name="resnet8", width=4, dropout=0.3), (1, 8, 8), 4)


def images(n: int = 128) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(n, 1, 8, 8, generator=draw)
    return [x, (x.flatten(1) @ torch.randn(64, 4, generator=draw)).argmax(1)]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


# ---------------------------------------------------------------- looking changes nothing

FORMS = {"closure": sam, "phases": sam, "scaler": sgd}


@pytest.mark.filterwarnings("ignore:the second pass has updated")
@pytest.mark.parametrize(
    ("form", "mode"),
    [
        ("closure", "monitor"),
        ("scaler", "shadow"),
        *slow(("closure", "shadow"), ("phases", "monitor"), ("phases", "shadow"), ("scaler", "monitor")),
    ],
)
def test_looking_is_bit_identical_to_no_pilot(form: str, mode: Any) -> None:
    """A net with BatchNorm and dropout, every probe as often as the whole cost of training pays for, a told wreck."""
    options: dict[str, Any] = {
        "form": form,
        "epochs": 16,
        "policies": ["auto_lr", GrowsOnce(20)],
        "told": {50: WRECK},
    }
    off = Loop(FORMS[form], mode="off", **options).run()
    looking = Loop(FORMS[form], mode=mode, budget=1.0, **options).run()
    assert_same(off.bits(), looking.bits())
    assert min(looking.pilot.budget.spent[name] for name in ("edge", "noise", "curvature")) > 0
    assert not any(event["taken"] for event in looking.log.events)
    decided = {event["actuator"] for event in looking.log.events}
    assert decided >= {"batch_size", "rewind"} if mode == "shadow" else not decided
    assert any("ctl/lr_would_be" in row for row in looking.log.rows) is (mode == "shadow")


@pytest.mark.parametrize(("make", "steps"), [(sam, 32), *slow((sam, 160), (sgd, 160))])
def test_on_a_convolutional_net_too(make: Any, steps: int) -> None:
    options: dict[str, Any] = {"model": resnet, "tensors": images(), "epochs": 20}
    off = Loop(lambda m: [own(make, m)], several=True, mode="off", **options).run(steps)
    looking = Loop(lambda m: [own(make, m)], several=True, mode="monitor", budget=1.0, **options).run(steps)
    assert_same(off.bits(), looking.bits())
    assert looking.pilot.budget.spent["edge"] > 0


def own(make: Any, model: nn.Module) -> Any:
    """SAM that keeps statistics to the first pass, or the base alone."""
    return SAM(sgd(model.parameters()), rho=0.05, model=model) if make is sam else make(model.parameters())


def test_off_touches_nothing_and_logs_loss_and_rate() -> None:
    """No hook, no look at ``loss_fn``."""

    def broken(model: nn.Module, batch: Any) -> Tensor:
        raise AssertionError("nobody asks for it")

    run = Loop(mode="off")
    run.pilot.host.loss_fn = broken
    hooks = len(run.optimizer._optimizer_step_pre_hooks)
    run.run(3)
    assert hooks == 0
    assert [row["train/loss"] for row in run.log.rows] == pytest.approx(run.losses)
    assert {row["lr/user"] for row in run.log.rows} == {0.05}


# ---------------------------------------------------------------- auto_lr


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4),
        adamw,
        lambda p: torch.optim.Adam(p, lr=0.01),
        sam,
        lambda p: SAM(adamw(p), rho=0.05),
        lambda p: NegativeCurvature(sgd(p)),
    ],
)
@pytest.mark.parametrize("form", ["closure", "phases"])
def test_auto_lr_makes_every_update_the_scheduled_relative_length(make: Any, form: str) -> None:
    """Root-sum-square of |dw_l| / |w_l| over the matrices is s_k tau, measured from outside."""
    run = Loop(make, model=mlp, policies=[AutoLR(tau=0.03)], form=form, epochs=5)
    if form == "phases" and isinstance(run.optimizer, NegativeCurvature):
        return  # it evaluates the loss by itself
    for k in range(1, 31):
        before = run.weights()
        run.run(k)
        progress = (k - 0.5) / 40
        shape = progress / 0.05 if progress < 0.05 else (1 - progress) / 0.95
        assert relative_length(before, run.weights()) == pytest.approx(0.03 * shape, rel=1e-3), k


def test_a_factor_and_its_cap_shorten_the_update_that_auto_lr_asks_for() -> None:
    """Set after update 5, capped after 10; the cap ends after 15. What is set acts on the update that it was set at."""
    script = {
        5: [("lr_factor", 0.5)], 10: [Proposal("lr_factor", 0.25, "as scripted", cap=True)],
        15: [Proposal("lr_factor", math.inf, "as scripted", cap=True)],
    }  # fmt: skip
    run = Loop(model=mlp, policies=[AutoLR(tau=0.03), Asks(script)])
    for k in range(1, 21):
        before = run.weights()
        run.run(k)
        progress = (k - 0.5) / 40
        shape = progress / 0.05 if progress < 0.05 else (1 - progress) / 0.95
        factor = 1.0 if k < 5 else 0.25 if 10 <= k < 15 else 0.5
        assert relative_length(before, run.weights()) == pytest.approx(0.03 * factor * shape, rel=1e-3), k


def test_the_applied_rate_is_the_one_that_makes_that_length() -> None:
    """Plain SGD: w - applied x gradient, to the digits that float32 leaves of a step of 3 %."""
    run = Loop(lambda p: torch.optim.SGD(p, lr=7.0), model=mlp, policies=[AutoLR(tau=0.03)])
    for k in range(1, 12):
        before = run.weights()
        run.run(k)
        rate = run.log.rows[-1]["lr/applied"]
        for w, p in zip(before, run.model.parameters(), strict=True):
            assert p.grad is not None
            torch.testing.assert_close(p.detach(), w - rate * p.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lr", [1e-5, 1e3])
def test_auto_lr_does_not_depend_on_the_users_rate(lr: float) -> None:
    def run(rate: float) -> Loop:
        return Loop(
            lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9), model=mlp, policies=["auto_lr"]
        ).run()

    reference, other = run(0.1), run(lr)
    assert other.losses == pytest.approx(reference.losses, rel=1e-3)
    assert other.losses[-1] < other.losses[0] - 0.05


def test_auto_lr_keeps_the_ratio_between_groups() -> None:
    def make(params: Any) -> Any:
        first, b1, second, b2 = params
        return torch.optim.SGD([{"params": [first, b1], "lr": 0.4}, {"params": [second, b2], "lr": 0.1}])

    run = Loop(make, model=mlp, policies=["auto_lr"])
    before = run.weights()
    run.run(1)
    rates = [
        float(((w - p.detach()) * p.grad).sum() / p.grad.square().sum())
        for p, w in zip(run.model.parameters(), before, strict=True)
        if p.grad is not None
    ]
    assert rates[0] / rates[2] == pytest.approx(4.0, rel=1e-2)
    assert [g["lr"] for g in run.optimizer.param_groups] == [0.4, 0.1]


@pytest.mark.parametrize("policy", ["auto_lr", "safe_lr"])
def test_the_users_scheduler_never_sees_the_pilots_rate(policy: str) -> None:
    def cosine(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)

    run = Loop(policies=[policy], schedule=cosine, budget=1.0)
    for k in range(1, 41):
        run.run(k)
        scheduled = 0.05 * (1 + math.cos(math.pi * k / 40)) / 2
        assert run.optimizer.param_groups[0]["lr"] == pytest.approx(scheduled, abs=1e-12)
    assert any(row["lr/applied"] != row["lr/user"] for row in run.log.rows)


def test_auto_lr_takes_the_shape_of_the_users_schedule() -> None:
    def steps(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, 20, gamma=0.1)

    run = Loop(model=mlp, policies=[AutoLR(tau=0.02)], schedule=steps)
    for k in range(1, 41):
        before = run.weights()
        run.run(k)
        rise = min((k - 0.5) / 40 / 0.05, 1.0)
        shape = rise * (1.0 if k <= 20 else 0.1)
        assert relative_length(before, run.weights()) == pytest.approx(0.02 * shape, rel=1e-3), k


def test_a_ceiling_caps_the_rate_at_the_critical_step() -> None:
    """A probe that says 0.01 from update 3 on: never above half of it, and below it the length is as asked for."""
    free = Loop(model=mlp, policies=[AutoLR(tau=0.05)]).run()
    edge = Says({"edge/eta_c": 0.01}, name="edge", start=3)
    run = Loop(model=mlp, policies=[AutoLR(tau=0.05, ceiling=0.5)], budget=1.0, probes=[edge])
    run.pilot.looks.probes = [edge]
    run.run()
    rates, plain = ([row["lr/applied"] for row in one.log.rows] for one in (run, free))
    assert rates[:3] == pytest.approx(plain[:3], rel=1e-6)
    assert max(plain[4:20]) > 0.02
    assert max(rates[4:]) == pytest.approx(0.005, rel=1e-6)


def test_a_run_on_digits_trains_and_is_put_right_twice() -> None:
    """The losses that are told call for a rewind each time; the rate of the user's choice would be far too high."""
    found = load_data(DataConfig())

    def model() -> nn.Module:
        return build_model(ModelConfig(), found.image_shape, 10)

    run = Loop(
        lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9), model=model, tensors=[found.train_x, found.train_y],
        batch=64, epochs=6, policies=["auto_lr"], told={30: WRECK, 70: WRECK},
    ).run()  # fmt: skip
    rewinds = {d.step: d for d in run.decided("rewind")}
    assert rewinds.keys() >= {30, 69}
    assert all(d.taken for d in rewinds.values())
    assert evaluate(run.model, found.test_x, found.test_y)["acc"] > 75


def test_coherence_is_that_of_the_gradients_that_the_steps_left() -> None:
    """The mean of the cosines, taken from ``.grad`` outside the pilot, is what is logged; the first counts for two."""
    run = Loop(model=mlp, policies=["auto_lr"], epochs=2)
    cosines, last = [], None
    for k in range(1, 16):
        run.run(k)
        now = torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None]).clone()
        if last is not None:
            cosines.append(float(F.cosine_similarity(now, last, dim=0)))
        last = now
    seen = [cosines[0], *cosines[:-1]]  # the policy sees it one update later
    assert run.log.rows[-1]["noise/coherence"] == pytest.approx(sum(seen) / len(seen), rel=1e-4)
    policy: Any = run.pilot.controls.policies[0]
    assert run.log.rows[-1]["ctl/pace"] == policy.pace


# ---------------------------------------------------------------- safe_lr


def test_safe_lr_on_a_quadratic_settles_below_the_edge() -> None:
    """User rate 1e3 on eigenvalues 0.1 to 10: the cap is 0.35 of 2 g'g / g'Hg, between 0.07 and 7."""
    curvature = torch.logspace(-1, 1, 20, dtype=torch.float64)
    model = nn.ParameterList([nn.Parameter(torch.ones(20, dtype=torch.float64))])

    def loss_fn(m: nn.Module, batch: Tensor) -> Tensor:
        return 0.5 * (curvature * m[0] ** 2).sum()

    optimizer = torch.optim.SGD(model.parameters(), lr=1e3)
    log = Recorder()
    pilot = Pilot(optimizer, model, loss_fn, policies=[SafeLR(initial_lr=1e-4)], budget=1.0, log=log)
    losses, batch = [], torch.zeros(1)
    for _ in range(300):
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        pilot.after_step(batch, loss)
        losses.append(float(loss.detach()))
    caps = [row["lr/ceiling"] for row in log.rows]
    # One step may overshoot where the edge falls between two probes. Its loss is seen with the next batch, and judged
    # with the gradient after that: then the guard takes it back.
    high = [loss > 3 * losses[0] for loss in losses]
    assert not any(high[k] and high[k + 1] and high[k + 2] for k in range(298))
    assert losses[-1] < 1e-2 * losses[0]
    assert 0.07 <= caps[-1] <= 7.0
    assert optimizer.param_groups[0]["lr"] == 1e3


# ---------------------------------------------------------------- a run of unknown length


def open_ended(
    steps: int, decay_at: int, *, resume_at: int | None = None
) -> tuple[list[float], list[Tensor]]:
    """Relative length of every update, and the last weights, on a quadratic whose end is called at an update."""

    def quadratic(m: nn.Module, batch: Any) -> Tensor:
        return (m[0] ** 2).sum()

    def model() -> nn.Module:
        return nn.ParameterList([nn.Parameter(torch.ones(4, 4, dtype=torch.float64))])

    def fresh() -> Loop:
        return Loop(
            lambda p: torch.optim.SGD(p, lr=0.1), model=model, loss_fn=quadratic, tensors=[torch.zeros(8, 1)], batch=8,
            epochs=steps, policies=[AutoLR(tau=0.01)], open_ended=True,
        )  # fmt: skip

    run, lengths = fresh(), []
    for k in range(steps):
        if k == resume_at:
            run = fresh().load(run.state())
        if k == decay_at:
            run.pilot.decay(steps - decay_at)
        before = run.weights()
        run.run(k + 1)
        lengths.append(relative_length(before, run.weights()))
    return lengths, run.weights()


def test_without_a_length_the_height_is_held_until_the_end_is_called() -> None:
    lengths, weights = open_ended(200, 150)
    assert lengths[10] == pytest.approx(0.01 * 0.11, rel=1e-6)  # a warm-up of 100 updates
    assert lengths[100:150] == pytest.approx([0.01] * 50, rel=1e-6)
    assert lengths[150:] == pytest.approx([0.01 * (1 - (k + 0.5) / 50) for k in range(50)], rel=1e-6)
    for resume_at in (170, 120):
        again, end = open_ended(200, 150, resume_at=resume_at)
        assert again == lengths
        assert_same(end, weights)


def test_an_end_that_cannot_be_called_says_why() -> None:
    with pytest.raises(RuntimeError, match="open_ended=True"):
        Loop().pilot.decay(10)
    with pytest.raises(ValueError, match="num_steps 0"):
        Loop(open_ended=True).pilot.decay(0)


# ---------------------------------------------------------------- the batch, and what is known of the data


class Says(Probe):
    """A probe that costs nothing and says the same from an update on."""

    every = 1
    whole_batches = False

    def __init__(self, values: dict[str, float], *, name: str = "says", start: int = 0) -> None:
        self.name = name
        self.values, self.start = values, start
        self.yields = frozenset(values)

    def cost(self, host: Any) -> float:
        return 0.0 if host.step >= self.start - 1 else math.inf

    def measure(self, host: Any) -> list[Signal]:
        return [Signal(name, value, host.step) for name, value in self.values.items()]


def test_noise_batch_grows_the_loaders_batch_and_says_why() -> None:
    """With a probe that always reads a noise scale of 100: it is above the batch, up to the largest allowed."""
    policy = NoiseBatch(margin=1.0, patience=1, interval=1, max_batch=64)
    says = Says({"noise/b_simple": 100.0})
    run = Loop(policies=["auto_lr", policy], batch=8, epochs=4, budget=1.0, probes=[says])
    run.pilot.looks.probes = [says]
    run.run()
    changes = run.decided("batch_size")
    assert [(d.old, d.new) for d in changes] == [(8, 16), (16, 32), (32, 64)]
    assert all(d.taken and "noise scale 100" in d.reason for d in changes)
    assert run.loader.batch_size == 64
    assert run.loader.samples_served == run.pilot.samples == run.loader.total_samples


@pytest.mark.parametrize("kind", ["a DataLoader", "a list"])
def test_the_passes_over_the_data_are_known_where_the_loader_says_its_size(kind: str) -> None:
    x, y = data(64)
    loader: Any = (
        DataLoader(TensorDataset(x, y), batch_size=8) if kind == "a DataLoader" else [(x[:8], y[:8])] * 8
    )
    model = mlp()
    optimizer = SAM(sgd(model.parameters()), rho=0.05)
    policy = AutoLR()
    pilot = Pilot(optimizer, model, classify, policies=[policy], budget=0.0)
    for batch in pilot.batches(loader, epochs=5):

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            loss = classify(model, batch)
            loss.backward()
            return loss

        pilot.after_step(batch, optimizer.step(closure))
    assert (policy.steps, pilot.step) == (40, 40)
    assert policy.passes == (5 if kind == "a DataLoader" else None)


@pytest.mark.parametrize(
    "length",
    [{"total_steps": 40}, {"total_samples": 640}, {}],
    ids=["in updates", "in samples", "from the loader"],
)
def test_the_length_is_the_same_however_it_is_told(length: dict[str, int]) -> None:
    """The length of each update and the end at zero."""
    run = Loop(model=mlp, policies=[AutoLR(tau=0.02)], **length)
    found = []
    for k in range(1, 41):
        before = run.weights()
        run.run(k)
        found.append(relative_length(before, run.weights()))
    middles = [(k - 0.5) / 40 for k in range(1, 41)]
    assert found == pytest.approx([0.02 * min(p / 0.05, (1 - p) / 0.95) for p in middles], rel=2e-3)


def test_a_loop_of_ones_own_knows_the_length_by_total_samples_from_the_first_batch_on() -> None:
    """Without ``pilot.batches`` the first batch says how many updates there are, before its length is set."""
    model = mlp()
    optimizer, policy = sgd(model.parameters()), AutoLR(tau=0.02)
    pilot = Pilot(optimizer, model, classify, policies=[policy], budget=0.0, total_samples=160)
    x, y = data(160)
    lengths = []
    for k in range(10):
        batch = (x[16 * k : 16 * k + 16], y[16 * k : 16 * k + 16])
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        loss = classify(model, batch)
        loss.backward()
        optimizer.step()
        pilot.after_step(batch, loss)
        lengths.append(relative_length(before, [p.detach() for p in model.parameters()]))
    assert policy.steps == 10
    middles = [(k + 0.5) / 10 for k in range(10)]
    assert lengths == pytest.approx([0.02 * min(p / 0.05, (1 - p) / 0.95) for p in middles], rel=2e-3)


def test_accumulated_micro_batches_are_one_update() -> None:
    """Two halves of a batch, given as a list: the same run as with whole batches, to rounding."""

    def train(parts: int) -> tuple[list[Tensor], Pilot]:
        torch.manual_seed(0)
        model = mlp().double()
        optimizer = sgd(model.parameters())
        pilot = Pilot(
            optimizer, model, classify, policies=["auto_lr", "edge_monitor"], budget=1.0, total_steps=20
        )
        x, y = data(320)
        for k in range(20):
            at = slice(16 * k, 16 * k + 16)
            pieces = list(zip(x[at].double().chunk(parts), y[at].chunk(parts), strict=True))
            optimizer.zero_grad()
            total = 0.0
            for piece in pieces:
                loss = classify(model, piece) / parts
                loss.backward()
                total += float(loss.detach())
            optimizer.step()
            pilot.after_step(pieces if parts > 1 else pieces[0], total)
        return [p.detach().clone() for p in model.parameters()], pilot

    (whole, one), (parts, two) = train(1), train(2)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    assert (
        (one.step, one.samples, one.budget.train_ge)
        == (two.step, two.samples, two.budget.train_ge)
        == (20, 320, 320)
    )
    edges = [p.history.last("edge/eta_c") for p in (one, two)]
    assert edges[0] is not None
    assert edges[1] is not None
    assert edges[0].value == pytest.approx(edges[1].value, rel=1e-6)


def test_noise_batch_refuses_a_loader_that_cannot_change() -> None:
    run = Loop(policies=["noise_batch"])
    loader = DataLoader(TensorDataset(*data(8)), batch_size=4)
    with pytest.raises(
        TypeError, match=r"noise_batch cannot change the batch size of a DataLoader.*GroupedLoader"
    ):
        next(run.pilot.batches(loader))


# ---------------------------------------------------------------- probes


def counted(cost: dict[str, float]) -> Any:
    """A loss that counts what it is evaluated for: a forward pass a third, with a gradient one more two thirds."""

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        cost["forwards"] += len(batch[0])
        return classify(model, batch)

    return loss_fn


@pytest.mark.parametrize(("budget", "epochs"), [(0.0, 4), (0.3, 12), *slow((0.02, 40))])
@pytest.mark.parametrize("make", [sgd, sam])
def test_probes_stay_within_the_budget_by_what_is_counted_here(make: Any, budget: float, epochs: int) -> None:
    """Forward passes outside the loop's own, at a third each, against budget x trained + advance at every update."""
    cost = {"forwards": 0.0}
    policies = ["auto_lr", "noise_monitor", "edge_monitor"]
    run = Loop(make, model=mlp, loss_fn=counted(cost), epochs=epochs, budget=budget, policies=policies)
    own, passes = 0.0, 2 if make is sam else 1
    for k in range(1, 8 * epochs + 1):
        run.run(k)
        own += 16 * passes
        outside = cost["forwards"] - own - 16  # the pilot's one look at loss_fn
        # Edge: five forward passes of a batch; noise: a forward and backward pass of it. Four of each ahead.
        advance = 4 * (5 * 16 / 3 + 16)
        assert outside / 3 <= budget * own + advance
    assert run.pilot.budget.train_ge == own
    if budget == 0.0:
        assert outside == 0
    else:
        assert outside > 0
        assert run.pilot.budget.used <= budget + 16 / 3 / own


def test_curvature_probes_are_warm_and_audited_and_cost_no_more_than_declared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every eighth probe has two runs, and the budget waits until it can pay for both."""
    run = Loop(model=mlp, batch=32, epochs=150, budget=1.0, policies=["auto_lr", "curvature_monitor"])
    (probe,) = run.pilot.looks.probes
    seen: list[tuple[str, bool, float]] = []
    tracker: Any = probe.tracker  # type: ignore[attr-defined]
    look = tracker.probe

    def watched(H: Any) -> Any:
        declared = probe.cost(run.pilot.host)
        assert run.pilot.budget.affords("curvature", declared)
        found = look(H)
        assert found.cost_ge <= declared
        seen.append((found.why, found.spectrum.cold, declared))
        return found

    monkeypatch.setattr(tracker, "probe", watched)
    run.run()
    whys = [why for why, _, _ in seen]
    assert whys[0] == "first"
    # A jump is audited with the probe after it, and puts off the audit that would have been due.
    assert {"due", "jump"} & set(whys)
    assert set(whys) <= {"first", "", "due", "jump"}
    assert all(why or not cold for why, cold, _ in seen)
    cheapest = min(declared for _, _, declared in seen)
    assert all(declared > 1.5 * cheapest for why, _, declared in seen if why in ("due", "jump"))


def test_only_what_is_read_is_measured_in_control() -> None:
    for policies, expected in (
        ([AutoLR(tau=0.05)], set()), (["auto_lr"], set()), (["safe_lr"], {"edge"}), (["noise_batch"], {"noise"}),
        (["curvature_monitor"], {"curvature"}), ([NoiseBatch(scale="curvature")], {"curvature_noise"}),
        (["auto_lr", "edge_monitor", "noise_monitor"], {"edge", "noise"}),
    ):  # fmt: skip
        looks = Loop(policies=policies, budget=0.5).pilot.looks
        assert {p.name for p in looks.probes} == expected
    assert not Loop(policies=["safe_lr"], budget=0.0).pilot.looks.probes
    for mode in ("monitor", "shadow"):
        looks = Loop(policies=[AutoLR(tau=0.05)], mode=mode, budget=0.5).pilot.looks
        assert {p.name for p in looks.probes} == {"edge", "noise", "curvature"}


def test_a_probe_of_ones_own_is_run_and_logged() -> None:
    run = Loop(mode="monitor", budget=0.5, probes=[Says({"edge/mine": 3.0}, name="mine")]).run(3)
    assert [row.get("edge/mine") for row in run.log.rows] == [3.0] * 3
    assert run.log.rows[-1]["probe/age_mine"] == 0.0


@pytest.mark.parametrize("mode", ["monitor", "control"])
def test_a_probe_or_a_logger_that_fails_is_off_and_training_goes_on(mode: Any) -> None:
    class Breaks(Says):
        def measure(self, host: Any) -> list[Signal]:
            raise IndexError("no such sample")

    class Full(Recorder):
        def log(self, row: Any) -> None:
            raise OSError("disk full")

    options: dict[str, Any] = {
        "mode": mode,
        "budget": 0.5,
        "policies": [Asks({}, reads=frozenset({"edge/mine"}))],
    }
    fine = Loop(**options).run(8)
    run = Loop(probes=[Breaks({"edge/mine": 1.0}, name="mine")], **options)
    with pytest.warns(
        RuntimeWarning, match=r"the mine probe failed at update 1 .* training goes on \(IndexError"
    ) as said:
        run.run(8)
    assert len(said) == 1
    assert_same(run.trained(), fine.trained())
    quiet = Loop(**(options | {"log": Full()}))
    with pytest.warns(RuntimeWarning, match=r"the log failed at update 1 .*\(OSError: disk full\)") as said:
        quiet.run(8)
    assert len(said) == 1
    assert_same(quiet.trained(), fine.trained())


def test_every_probe_carries_its_error_and_its_age() -> None:
    run = Loop(lambda m: [own(sam, m)], several=True, mode="monitor", budget=1.0, epochs=16).run()
    keys = set().union(*run.log.rows)
    assert keys >= {
        "edge/eta_c_error", "noise/trace_cov_error", "curv/lambda_max_error", "curv/lambda_max_converged",
        "probe/age_edge", "probe/age_noise", "probe/age_curvature",
    }  # fmt: skip
    for name, key in (("edge", "edge/resolved"), ("noise", "noise/resolved"), ("curvature", "curv/products")):
        measured = [row["step"] for row in run.log.rows if key in row]
        ages = {row["step"]: row[f"probe/age_{name}"] for row in run.log.rows if f"probe/age_{name}" in row}
        assert ages == {step: step - max(m for m in measured if m <= step) for step in ages}
        assert min(ages) == measured[0]


# ---------------------------------------------------------------- a place of its own


def test_a_second_pilot_on_an_optimizer_is_refused_until_the_first_is_closed() -> None:
    run = Loop(policies=["auto_lr"]).run(3)
    with pytest.raises(RuntimeError, match=r"this SGD has a pilot already.*close\(\)"):
        Pilot(run.optimizer, run.model, classify, total_steps=10)
    with pytest.warns(RuntimeWarning, match="the run ended after 8% of total_steps=40"):
        run.pilot.close()
    assert run.optimizer.param_groups[0]["lr"] == 0.05
    Pilot(run.optimizer, run.model, classify, total_steps=10)


def test_closed_it_leaves_the_optimizer_as_without_it() -> None:
    plain, run = Loop(mode="off").run(40), Loop(policies=[]).run(4)
    with pytest.warns(RuntimeWarning, match="ended after 25% of"), run.pilot:
        run.run(10)
    assert not run.optimizer._optimizer_step_pre_hooks
    assert not run.optimizer._optimizer_step_post_hooks
    step = run._step
    for batch in run._batches or ():
        step(batch)
    assert_same(plain.trained(), run.trained())


def test_a_pilot_goes_with_its_optimizer() -> None:
    """Nothing else holds it."""
    run = Loop(policies=["auto_lr"]).run(2)
    gone = weakref.ref(run.pilot)
    del run
    gc.collect()
    assert gone() is None


# ---------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "steer"}, "mode 'steer' is not known"),
        ({"policies": ["auto_rl"]}, "policy 'auto_rl' is not known"),
        ({"policies": "auto_lr"}, r"use a list: \['auto_lr'\]"),
        ({"policies": ["auto_lr", AutoLR()]}, "auto_lr and auto_lr both set step_length"),
        ({"budget": -0.1}, "budget -0.1 is not a share"),
        ({"budget": 5}, "budget 5 is not a share of the training cost; .* 0.05 for 5 %"),
        ({"total_samples": 0}, "total_samples=0"),
        ({"total_steps": 10, "total_samples": 80}, "two lengths of one run"),
    ],
)
def test_misuse_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loop(**options)


def test_auto_lr_without_a_length_is_refused_at_the_first_step() -> None:
    model = mlp()
    optimizer = sgd(model.parameters())
    Pilot(optimizer, model, classify, policies=["auto_lr"])
    with pytest.raises(ValueError, match="auto_lr needs to know the length of the run"):
        optimizer.step()


def test_an_optimizer_of_another_model_is_refused() -> None:
    with pytest.raises(
        ValueError, match="holds no parameter of the model: it is another model's, or model= is"
    ):
        Pilot(sgd(mlp().parameters()), mlp(), classify)


def first_call(**wrong: Any) -> None:
    """One update, and ``after_step`` with something wrong in it."""
    model = mlp()
    optimizer = sgd(model.parameters())
    pilot = Pilot(optimizer, model, wrong.get("loss_fn", classify), policies=[], total_steps=10)
    batch = [t[:16] for t in data()]
    loss = classify(model, batch)
    loss.backward()
    optimizer.step()
    given = {"batch": batch, "loss": loss / wrong.get("share", 1)} | wrong
    pilot.after_step(given["batch"], given["loss"])


def test_what_is_wrong_with_the_first_call_is_said() -> None:
    first_call()
    batch = [t[:16] for t in data()]
    with pytest.raises(
        TypeError, match=r"takes the loss as one number and was given a list; are the two the other way"
    ):
        first_call(batch=torch.tensor(1.0), loss=batch)
    with pytest.raises(TypeError, match=r"given a Tensor of shape \(16,\)"):
        first_call(loss=torch.ones(16))
    with pytest.raises(
        TypeError, match=r"loss_fn cannot be evaluated as loss_fn\(model, batch\) .* \(AttributeError"
    ):
        first_call(loss_fn=lambda model, batch: batch.nothing)
    with pytest.raises(
        ValueError, match=r"the loss given to after_step is .* give the mean loss of all micro-batches"
    ):
        first_call(share=4)
    first_call(share=1.4)


def test_the_length_of_one_epoch_given_as_that_of_the_run_is_refused() -> None:
    run = Loop(policies=["auto_lr"], total_steps=8)
    with pytest.raises(ValueError, match="total_steps=8 is the length of one epoch, and the run has 5"):
        run.run(1)


def test_updates_given_as_samples_are_noticed_at_the_first_batch() -> None:
    model = mlp()
    optimizer = sgd(model.parameters())
    pilot = Pilot(optimizer, model, classify, policies=["auto_lr"], total_samples=40)
    batch = [t[:16] for t in data()]
    loss = classify(model, batch)
    loss.backward()
    optimizer.step()
    with pytest.raises(ValueError, match=r"total_samples=40 are fewer than 4 batches of 16.*total_steps=40"):
        pilot.after_step(batch, loss)


def test_state_dict_between_a_step_and_after_step_is_refused() -> None:
    run = Loop()
    run.pilot.after_step = lambda batch, loss: None  # type: ignore[method-assign]
    run.run(1)
    with pytest.raises(RuntimeError, match=r"state_dict\(\) between a step and after_step\(\)"):
        run.pilot.state_dict()


def test_a_run_that_is_longer_than_it_was_told_is_told_so() -> None:
    with pytest.warns(RuntimeWarning, match="the run has passed its length: 112% of total_steps=25"):
        Loop(policies=["auto_lr"], total_steps=25).run(30)
