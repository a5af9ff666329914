"""Loss scaling: the phase form equals the unscaled run, everything else is refused."""

import pytest
import torch
from torch.amp import GradScaler

from optland.optim import SAM
from optland.optim.registry import METHODS


def scaled_step(network, optimizer, scaler, clip=None, spoil=None):
    for number in (1, 2):
        scaler.scale(network.loss()).backward()
        if spoil == number:
            network.model[0].bias.grad[0] = float("inf")
        if number == 1:
            optimizer.perturb(loss_scale=scaler.get_scale())
            optimizer.zero_grad()
    optimizer.restore()
    if clip is not None:
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.model.parameters(), clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def plain_step(network, optimizer, clip=None):
    network.loss().backward()
    optimizer.perturb()
    network.loss().backward()
    optimizer.restore()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(network.model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("name", METHODS)
def test_scaled_run_equals_the_unscaled_one(make_network, name, clip):
    scaled, plain = make_network(), make_network()
    optimizers = []
    for network in (scaled, plain):
        base = torch.optim.SGD(network.model.parameters(), lr=0.1, momentum=0.9)
        optimizers.append(METHODS[name](base, rho=0.3))
    scaler = GradScaler("cpu", init_scale=1024.0)
    for _ in range(5):
        scaled_step(scaled, optimizers[0], scaler, clip)
        plain_step(plain, optimizers[1], clip)
    for a, b in zip(scaled.weights(), plain.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert optimizers[0].telemetry.read() == pytest.approx(optimizers[1].telemetry.read(), rel=1e-9)


@pytest.mark.parametrize("spoil", [1, 2])
def test_an_overflow_in_either_pass_skips_the_step(make_network, spoil):
    network = make_network()
    optimizer = SAM(torch.optim.SGD(network.model.parameters(), lr=0.1, momentum=0.9), rho=0.3)
    scaler = GradScaler("cpu", init_scale=1024.0)
    scaled_step(network, optimizer, scaler)
    before, momentum = network.weights(), [s["momentum_buffer"].clone() for s in optimizer.state.values()]
    scaled_step(network, optimizer, scaler, spoil=spoil)
    assert optimizer.telemetry.read()["sam/skipped"] == 1.0
    assert all(torch.equal(a, b) for a, b in zip(network.weights(), before, strict=True))
    assert all(
        torch.equal(s["momentum_buffer"], m) for s, m in zip(optimizer.state.values(), momentum, strict=True)
    )
    assert scaler.get_scale() == (512.0 if spoil == 2 else 1024.0)
    scaled_step(network, optimizer, scaler)
    assert not torch.equal(network.weights()[0], before[0])


def test_misplaced_scaler_steps_are_refused_and_leave_no_trace(make_network):
    network = make_network()
    optimizer = SAM(torch.optim.SGD(network.model.parameters(), lr=0.1), rho=0.3)
    scaler = GradScaler("cpu", init_scale=1024.0)
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
    optimizer.perturb()
    scaler.scale(network.loss()).backward()
    with pytest.raises(RuntimeError, match="while perturbed"):
        scaler.step(optimizer)
    optimizer.restore()
    assert all(torch.equal(a, b) for a, b in zip(network.weights(), before, strict=True))
    optimizer.step(network.closure(optimizer))  # without the scaler the closure form is fine again


def test_a_disabled_scaler_may_pass_a_closure(make_network):
    network, other = make_network(), make_network()
    for net, scaler in ((network, GradScaler("cpu", enabled=False)), (other, None)):
        optimizer = SAM(torch.optim.SGD(net.model.parameters(), lr=0.1), rho=0.3)
        closure = net.closure(optimizer)
        _ = scaler.step(optimizer, closure) if scaler else optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(network.weights(), other.weights(), strict=True))
