"""A gradient that is not finite, in any pass, leaves weights, state, memory and counts untouched."""

import pytest
import torch
from drivers import (
    ALL,
    PASSES,
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

from optland.optim import LargeGradient

EACH_PASS = pytest.mark.parametrize(("name", "number"), PASSES)


def spoiled_phases(network, optimizer, number, value):
    optimizer.zero_grad()
    for i, _ in enumerate(optimizer.passes(), 1):
        loss = network.loss()
        assert loss.isfinite()  # a gradient that is not must not carry the weights away
        loss.backward()
        if i == number:
            network.model[0].bias.grad[0] = value
    optimizer.step()


def spoiled_closure(network, optimizer, number, value):
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = network.loss()
        assert loss.isfinite()
        loss.backward()
        calls.append(1)
        if len(calls) == number:
            network.model[0].bias.grad[0] = value
        return loss

    optimizer.step(closure)
    assert len(calls) >= number


@EACH_PASS
@pytest.mark.parametrize(
    ("base", "value", "spoiled"),
    [
        ("sgd", float("nan"), spoiled_closure),
        ("sgd", float("inf"), spoiled_phases),
        slow_unless(False, "adamw", float("inf"), spoiled_closure),
        slow_unless(False, "adamw", float("nan"), spoiled_phases),
    ],
)
def test_the_step_is_skipped_without_a_trace(name, number, make_network, base, value, spoiled):
    network, other = make_network(), make_network()
    optimizer, undisturbed = (make(name, net, base, rho=0.3) for net in (network, other))
    run(network, optimizer, 2)
    run(other, undisturbed, 2)
    assert optimizer.telemetry.read()["sam/skipped"] == 0.0
    state = snapshot(optimizer)
    spoiled(network, optimizer, number, value)
    assert optimizer.telemetry.read()["sam/skipped"] == 1.0
    assert_same_state(snapshot(optimizer), state)
    run(network, optimizer, 2)
    run(other, undisturbed, 2)
    assert optimizer.telemetry.read()["sam/skipped"] == 0.0
    assert_identical(network.weights(), other.weights())


@pytest.mark.parametrize("name", ALL)
def test_what_a_gate_remembers_is_not_touched_either(name, make_network):
    network = make_network(nn.BatchNorm1d(8))
    optimizer = make(name, network, gate=LargeGradient(10, start=-9.0, end=-9.0))  # always open
    run(network, optimizer, 2)
    state = snapshot(optimizer)
    spoiled_closure(network, optimizer, passes_of(name), float("nan"))
    assert_same_state(snapshot(optimizer), state)
    assert all(b.isfinite().all() for b in network.model.buffers())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("form", ["closure", "phases"])
def test_one_bad_micro_batch_spoils_the_whole_step(name, make_network, form):
    network = make_network()
    optimizer = make(name, network)
    run(network, optimizer, 2)
    weights, state = network.weights(), snapshot(optimizer)
    for i in range(3):

        def backward(i=i):
            optimizer.zero_grad()
            (network.loss(slice(4 * i, 4 * i + 4)) / 3).backward()
            if i == 1:
                network.model[0].bias.grad[0] = float("nan")

        if form == "closure":
            optimizer.accumulate(backward, share=1 / 3)
        else:
            for _ in optimizer.passes(share=1 / 3):
                backward()
            optimizer.accumulate()
    optimizer.step()
    assert optimizer.telemetry.read()["sam/skipped"] == 1.0
    assert_identical(network.weights(), weights)
    assert_same_state(snapshot(optimizer), state)
    run_phases(network, optimizer, 1)
    assert optimizer.telemetry.read()["sam/skipped"] == 0.0


@pytest.mark.parametrize("name", ALL)
def test_without_the_finite_check_the_base_gets_what_there_is(name, make_network):
    network = make_network()
    optimizer = make(name, network, check_finite=False)

    def closure():
        optimizer.zero_grad()
        (network.loss() * float("nan")).backward()

    assert optimizer.step(closure) is None
    assert network.model[0].weight.isnan().all()


@pytest.mark.parametrize("name", ALL)
def test_a_zero_gradient_gives_finite_weights(name, make_network):
    network = make_network()
    with torch.no_grad():
        network.model[-1].weight.zero_()  # no gradient reaches the first layer
    optimizer = make(name, network)
    run(network, optimizer, 3)
    for _ in range(2):
        optimizer.zero_grad()
        for _ in optimizer.passes():
            (0.0 * network.loss()).backward()
        optimizer.restore()
        optimizer.step()
    assert all(w.isfinite().all() for w in network.weights())
