"""When the second pass is paid for: each gate against its rule, the cost, both forms and a resumed run."""

import io
import math
from types import SimpleNamespace

import pytest
import torch
from drivers import (
    ALL,
    assert_identical,
    assert_same_state,
    make,
    passes_of,
    run,
    run_phases,
    slow_unless,
    snapshot,
)
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from optland.optim import SAM, Bernoulli, Every, LargeGradient, Tail
from optland.optim.gates import gate_state
from optland.optim.keys import key

GATES = {
    "every": lambda: Every(2),
    "bernoulli": lambda: Bernoulli(0.5, seed=4),
    "tail": lambda: Tail(8, 0.5),
    "large gradient": lambda: LargeGradient(8),
    "callable": lambda: lambda optimizer: optimizer.steps % 3 == 1,
}


def decisions(gate, norms):
    """What a gate says over a run in which every step is taken."""
    remembered = {key(name): value for name, value in gate_state(gate).items()}
    optimizer = SimpleNamespace(steps=0, param_groups=[{"lr": 0.1, **remembered}])
    said = []
    for optimizer.steps, norm in enumerate(norms):
        optimizer.gradient_norm = lambda norm=norm: norm
        said.append(gate(optimizer))
    return said


def test_every_and_tail():
    assert decisions(Every(3), range(7)) == [True, False, False, True, False, False, True]
    assert decisions(Every(1), range(3)) == [True] * 3
    assert decisions(Tail(8, 0.25), range(10)) == [False] * 6 + [True] * 4
    assert decisions(Tail(4, 0.0), range(4)) == [False] * 4
    assert decisions(Tail(4, 1.0), range(4)) == [True] * 4


def test_bernoulli_is_a_fair_draw_from_seed_and_step():
    said = decisions(Bernoulli(0.3), range(2000))
    assert abs(sum(said) / 2000 - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 2000)
    assert decisions(Bernoulli(0.3), range(2000)) == said
    other = decisions(Bernoulli(0.3, seed=1), range(2000))
    agree = sum(a == b for a, b in zip(said, other, strict=True)) / 2000
    assert abs(agree - (0.3**2 + 0.7**2)) < 0.05  # as often as independent draws do
    assert decisions(Bernoulli(0.0), range(9)) == [False] * 9
    assert decisions(Bernoulli(1.0), range(9)) == [True] * 9


def test_large_gradient_compares_with_its_running_moments():
    torch.manual_seed(0)
    norms = torch.rand(60).add(0.5).tolist()
    mean, variance, expected = norms[0] ** 2, 0.0, []
    for t, norm in enumerate(norms):
        mean = norm**2 if t == 0 else 0.8 * mean + 0.2 * norm**2
        variance = 0.8 * variance + 0.2 * (norm**2 - mean) ** 2
        expected.append(norm**2 >= mean + (1.0 - 2.0 * t / 60) * math.sqrt(variance))
    assert decisions(LargeGradient(60, decay=0.8), norms) == expected
    assert sum(expected[:30]) < sum(expected[30:])
    assert decisions(LargeGradient(3), [1.0, math.nan, 1.0]) == [True, False, True]  # the NaN does not stay


@pytest.mark.parametrize(
    ("name", "gate"),
    [
        slow_unless(name in ("sam", "msam") or gate == "callable", name, gate)
        for name in ALL
        for gate in GATES
    ],
)
def test_both_forms_agree_and_the_cost_is_what_the_gate_says(name, gate, make_network):
    one, two = make_network(nn.Dropout(0.3)), make_network(nn.Dropout(0.3))
    optimizers = [make(name, network, rho=0.2, gate=GATES[gate]()) for network in (one, two)]
    schedulers = [CosineAnnealingLR(optimizer, 8) for optimizer in optimizers]
    costs, calls = [], []
    handle = one.model.register_forward_pre_hook(lambda *_: calls.append(1))
    for network, optimizer, scheduler, form in zip(
        (one, two), optimizers, schedulers, (run, run_phases), strict=True
    ):
        torch.manual_seed(0)
        for _ in range(8):
            before = len(calls)
            form(network, optimizer, 1)
            if form is run:
                costs.append(optimizer.last_evaluations)
                # the objective of Eigen-SAM runs the model too
                assert name == "eigensam" or len(calls) - before == optimizer.last_evaluations
            scheduler.step()
    handle.remove()
    assert_identical(one.weights(), two.weights())
    assert_same_state(snapshot(optimizers[0]), snapshot(optimizers[1]))
    assert optimizers[0].steps == 8
    if name == "sam":
        assert 8 < sum(costs) < 16  # some open and some closed
    else:
        assert set(costs) <= {1, passes_of(name)}


@pytest.mark.parametrize("gate", GATES)
def test_a_run_resumed_in_the_middle_decides_alike(gate, make_network):
    straight, network = make_network(), make_network()

    def steps(net, optimizer, scheduler, count):
        for _ in range(count):
            run(net, optimizer, 1)
            scheduler.step()

    optimizer = make("sam", straight, gate=GATES[gate]())
    steps(straight, optimizer, CosineAnnealingLR(optimizer, 8), 8)
    optimizer = make("sam", network, gate=GATES[gate]())
    scheduler = CosineAnnealingLR(optimizer, 8)
    steps(network, optimizer, scheduler, 3)
    file = io.BytesIO()
    torch.save((optimizer.state_dict(), scheduler.state_dict()), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    optimizer = make("sam", network, lr=9.0, gate=GATES[gate]())
    scheduler = CosineAnnealingLR(optimizer, 8)
    scheduler.load_state_dict(saved[1])
    optimizer.load_state_dict(saved[0])
    steps(network, optimizer, scheduler, 5)
    assert_identical(straight.weights(), network.weights())


@pytest.mark.parametrize("name", ALL)
def test_a_closed_gate_is_the_plain_base(name, make_network):
    one, two, three = (make_network(nn.Dropout(0.3)) for _ in range(3))
    for network, form in ((one, run), (two, run_phases)):
        torch.manual_seed(0)
        form(network, make(name, network, gate=lambda _: False), 4)
    torch.manual_seed(0)
    run(three, make(name, three, rho=0.0), 4)  # held to the base elsewhere
    assert_identical(one.weights(), three.weights())
    assert_identical(two.weights(), three.weights())


def test_a_sharpness_measured_elsewhere_plugs_in(make_network):
    network, sharpness, costs = make_network(), iter([3.0, 30.0, 12.0, 1.0]), []
    optimizer = make("sam", network, gate=lambda _: next(sharpness) > 10.0)
    for _ in range(4):
        run(network, optimizer, 1)
        costs.append(optimizer.last_evaluations)
    assert costs == [1, 2, 2, 1]


def test_a_gate_may_look_at_the_telemetry_of_this_step(make_network):
    network, seen = make_network(), []
    optimizer = make("sam", network, gate=lambda o: bool(seen.append((o.gradient_norm(), o.steps)) or True))
    run(network, optimizer, 2)
    norms = [optimizer.telemetry.read()["update/grad_norm"]]
    assert seen[-1] == (pytest.approx(norms[0], rel=1e-12), 1)


@pytest.mark.parametrize("action", ["step", "accumulate"])
def test_a_backward_pass_that_a_closed_gate_did_not_ask_for(make_network, action):
    network = make_network()
    optimizer = make("sam", network, gate=Every(2))
    run(network, optimizer, 1)
    weights = network.weights()
    optimizer.zero_grad()
    network.loss().backward()
    assert optimizer.perturb() is False
    assert not optimizer.is_perturbed
    network.loss().backward()
    with pytest.raises(RuntimeError, match=r"Write: if optimizer.perturb\(\): loss.backward\(\)"):
        getattr(optimizer, action)()
    assert_identical(network.weights(), weights)
    run_phases(network, optimizer, 1)
    assert not torch.equal(network.weights()[0], weights[0])


def test_the_rng_is_replayed_after_a_closed_gate_however_gradients_are_zeroed(make_network):
    one, two = make_network(nn.Dropout(0.5)), make_network(nn.Dropout(0.5))
    torch.manual_seed(0)
    run_phases(one, make("sam", one, gate=Every(2)), 4)
    torch.manual_seed(0)
    optimizer = make("sam", two, gate=Every(2))
    for _ in range(4):
        two.model.zero_grad()  # behind the optimizer's back
        for _ in optimizer.passes():
            two.loss().backward()
        optimizer.step()
    assert_identical(one.weights(), two.weights())


def test_momentum_sam_needs_its_pass_also_behind_a_closed_gate(make_network):
    network, other = make_network(), make_network()
    optimizer = make("msam", network, gate=lambda _: False)
    run(network, optimizer, 1)
    weights = network.weights()
    assert optimizer.perturb() is False
    with pytest.raises(RuntimeError, match="no backward pass after"):
        optimizer.step()
    assert_identical(network.weights(), weights)
    assert optimizer.perturb() is False
    optimizer.zero_grad()  # between perturb() and the pass is as good as before it
    network.loss().backward()
    optimizer.step()
    run(other, make("msam", other, rho=0.0), 2)
    assert_identical(network.weights(), other.weights())


def test_the_class_form_asks_its_gate_too(make_network):
    network, calls = make_network(), []
    optimizer = SAM(network.model.parameters(), torch.optim.SGD, lr=0.1, gate=Every(2))

    def closure():
        calls.append(1)
        network.loss().backward()

    for _ in range(4):
        network.loss().backward()
        optimizer.step(closure)
        optimizer.zero_grad()
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Every(0), "k=0"),
        (lambda: Bernoulli(1.5), "p=1.5"),
        (lambda: Tail(0), "total_steps=0"),
        (lambda: Tail(5, -0.1), "share=-0.1"),
        (lambda: LargeGradient(0), "total_steps=0"),
        (lambda: LargeGradient(5, decay=1.1), "decay=1.1"),
    ],
)
def test_impossible_settings(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_gates_show_their_settings():
    assert repr(Every(3)) == "Every(k=3)"
    assert repr(Bernoulli(0.5)) == "Bernoulli(p=0.5, seed=0)"
