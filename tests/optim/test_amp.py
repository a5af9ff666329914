"""Loss scaling: the phase form equals the unscaled run, everything else is refused."""

import pytest
import torch
from drivers import ALL, PASSES, TRUE_UNITS, assert_identical, assert_same_state, make, run, snapshot
from torch.amp import GradScaler

from optland.optim import SAM, WSAM, Every


def scaled_step(network, optimizer, scaler, clip=None, spoil=None, told=True):
    for number, _ in enumerate(optimizer.passes(loss_scale=scaler.get_scale() if told else None), 1):
        scaler.scale(network.loss()).backward()
        if spoil == number:
            network.model[0].bias.grad[0] = float("inf")
    optimizer.restore()
    if clip is not None:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.model.parameters(), clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def plain_step(network, optimizer, clip=None):
    for _ in optimizer.passes():
        network.loss().backward()
    optimizer.restore()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(network.model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.cell("plain loop", "fp16 scaler")
@pytest.mark.cell("plain loop", "clip")
@pytest.mark.parametrize(("gate", "clip"), [(None, None), (Every(2), 0.1)])
@pytest.mark.parametrize("name", ALL)
def test_scaled_run_equals_the_unscaled_one(make_network, name, clip, gate):
    scaled, plain = make_network(), make_network()
    optimizers = [make(name, network, rho=0.3, gate=gate) for network in (scaled, plain)]
    scaler = GradScaler(
        "cpu", init_scale=1024.0, growth_interval=2
    )  # memory must not be in units of the scale
    for _ in range(5):
        scaled_step(scaled, optimizers[0], scaler, clip)
        plain_step(plain, optimizers[1], clip)
    assert scaler.get_scale() == 4096.0
    for a, b in zip(scaled.weights(), plain.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert optimizers[0].telemetry.read() == pytest.approx(optimizers[1].telemetry.read(), rel=1e-7)
    assert optimizers[0].gradient_norm() == pytest.approx(optimizers[1].gradient_norm(), rel=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_methods_that_need_the_scale_insist_on_it(make_network, name):
    network, other = make_network(), make_network()
    optimizer, scaler = make(name, network, rho=0.3), GradScaler("cpu", init_scale=1024.0)
    before = network.weights()
    assert optimizer.method.true_units == (name in TRUE_UNITS)
    if name in TRUE_UNITS:
        with pytest.raises(RuntimeError, match=r"perturb\(loss_scale=scaler.get_scale\(\)\)"):
            scaled_step(network, optimizer, scaler, told=False)
        assert_identical(network.weights(), before)
        return
    # for the others the scale cancels
    plain = make(name, other, rho=0.3)
    for _ in range(3):
        scaled_step(network, optimizer, scaler, told=False)
        plain_step(other, plain)
    for a, b in zip(network.weights(), other.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_only_decoupled_weighted_sharpness_needs_the_scale(make_network):
    network = make_network()
    coupled = WSAM(torch.optim.SGD(network.model.parameters(), lr=0.1), decoupled=False)
    scaled_step(network, coupled, GradScaler("cpu", init_scale=1024.0), told=False)
    assert not coupled.method.true_units


@pytest.mark.parametrize(("name", "number"), PASSES)
def test_an_overflow_in_any_pass_skips_the_step(make_network, name, number):
    network = make_network()
    optimizer, scaler = make(name, network, rho=0.3), GradScaler("cpu", init_scale=1024.0)
    scaled_step(network, optimizer, scaler)
    scaled_step(network, optimizer, scaler)
    before, state = network.weights(), snapshot(optimizer)
    scaled_step(network, optimizer, scaler, spoil=number)
    assert optimizer.telemetry.read()["sam/skipped"] == 1.0
    assert_identical(network.weights(), before)
    assert_same_state(snapshot(optimizer), state)
    if name == "sam":  # the scaler sees h alone; the others mix g into it
        assert scaler.get_scale() == (512.0 if number == 2 else 1024.0)
    scaled_step(network, optimizer, scaler)
    assert not torch.equal(network.weights()[0], before[0])


@pytest.mark.parametrize("name", ALL)
def test_micro_batches_under_a_scaler_equal_the_unscaled_ones(make_network, name):
    scaled, plain = make_network(), make_network()
    optimizers = [make(name, network, rho=0.3) for network in (scaled, plain)]
    scaler = GradScaler("cpu", init_scale=1024.0)
    for _ in range(3):
        for part in (slice(6), slice(6, 12)):
            for _ in optimizers[0].passes(loss_scale=scaler.get_scale(), share=0.5):
                scaler.scale(scaled.loss(part) / 2).backward()
            optimizers[0].accumulate()
            for _ in optimizers[1].passes(share=0.5):
                (plain.loss(part) / 2).backward()
            optimizers[1].accumulate()
        optimizers[0].restore()
        scaler.step(optimizers[0])
        scaler.update()
        optimizers[1].step()
        for optimizer in optimizers:
            optimizer.zero_grad()
    for a, b in zip(scaled.weights(), plain.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ALL)
def test_misplaced_scaler_steps_are_refused_and_leave_no_trace(make_network, name):
    network = make_network()
    optimizer, scaler = make(name, network, rho=0.3), GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))  # any use of it before, or the scaler itself refuses to step
    before = network.weights()

    def closure():
        optimizer.zero_grad()
        loss = scaler.scale(network.loss())
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match=r"GradScaler.step\(optimizer, closure\)"):
        scaler.step(optimizer, closure)
    closure()
    with pytest.raises(RuntimeError, match="without a second pass"):
        scaler.step(optimizer)
    optimizer.zero_grad()
    for _ in optimizer.passes(loss_scale=1024.0):
        scaler.scale(network.loss()).backward()
    with pytest.raises(RuntimeError, match="while perturbed"):
        scaler.step(optimizer)
    optimizer.accumulate()
    with pytest.raises(RuntimeError, match=r"after accumulate\(\) needs restore\(\)"):
        scaler.step(optimizer)
    optimizer.restore()
    optimizer.zero_grad()
    assert_identical(network.weights(), before)
    run(network, optimizer, 1)  # without the scaler the closure form is fine again


def test_a_disabled_scaler_may_pass_a_closure(make_network):
    network, other = make_network(), make_network()
    for net, scaler in ((network, GradScaler("cpu", enabled=False)), (other, None)):
        optimizer = SAM(torch.optim.SGD(net.model.parameters(), lr=0.1), rho=0.3)
        closure = net.closure(optimizer)
        _ = scaler.step(optimizer, closure) if scaler else optimizer.step(closure)
    assert_identical(network.weights(), other.weights())


@pytest.mark.parametrize("name", sorted(TRUE_UNITS))
def test_a_visit_may_be_told_the_scale_and_forgets_that_of_the_last_step(make_network, name):
    network = make_network()
    optimizer, scaler = make(name, network, rho=0.3), GradScaler("cpu", init_scale=1024.0)
    scaled_step(network, optimizer, scaler)
    places = []
    for scale in (None, 64.0):
        optimizer.zero_grad()
        ((scale or 1.0) * network.loss()).backward()
        with optimizer.perturbed(loss_scale=scale):
            places.append(network.weights())
    for a, b in zip(*places, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    optimizer.zero_grad()
    for _ in optimizer.passes():
        places.append(network.weights())
        network.loss().backward()
    assert_identical(places[0], places[-1])
    optimizer.step()
