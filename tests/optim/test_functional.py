"""Functional SAM: the slope of the loss from w, the Jacobian from w + eps."""

import copy

import pytest
import torch
from drivers import assert_identical, make, run
from torch import nn

from optland.optim import MSAM, SAM, Every, FunctionalLoss

cross_entropy = nn.functional.cross_entropy


def functional_closure(network, optimizer, loss_fn, part=slice(None)):
    def closure():
        optimizer.zero_grad()
        loss = loss_fn(network.model(network.x[part]), network.y[part])
        loss.backward()
        return loss

    return closure


def jacobian_product(network, at, slope):
    """J(at)' slope."""
    names = [name for name, _ in network.model.named_parameters()]
    w = [x.detach().requires_grad_() for x in at]
    outputs = torch.func.functional_call(network.model, dict(zip(names, w, strict=True)), (network.x,))
    return torch.autograd.grad(outputs, w, slope)


def test_the_gradient_is_the_jacobian_at_w_plus_eps_times_the_slope_at_w(make_network):
    network = make_network()
    optimizer = make("sam", network, rho=0.3, lr=1.0, base_options={"momentum": 0.0})
    loss_fn = FunctionalLoss(optimizer, cross_entropy)
    for _ in range(3):
        w = network.weights()
        outputs = network.model(network.x)
        slope = (outputs.softmax(1) - nn.functional.one_hot(network.y, 3)).detach() / 12
        g = jacobian_product(network, w, slope)
        length = torch.cat([x.flatten() for x in g]).norm()
        step = jacobian_product(network, [a + 0.3 * b / length for a, b in zip(w, g, strict=True)], slope)
        loss = optimizer.step(functional_closure(network, optimizer, loss_fn))
        assert loss.item() == pytest.approx(cross_entropy(outputs, network.y).item(), rel=1e-12)
        for a, b, s in zip(network.weights(), w, step, strict=True):
            torch.testing.assert_close(b - a, s, rtol=1e-10, atol=1e-13)


def test_a_model_linear_in_its_weights_gets_the_plain_gradient(make_network):
    networks = [make_network() for _ in range(3)]
    for network in networks:
        network.model = nn.Linear(4, 3, dtype=torch.float64)
        network.model.load_state_dict(networks[0].model.state_dict())
    functional, plain, sam = networks
    optimizer = make("sam", functional, rho=0.5)
    for _ in range(4):
        optimizer.step(functional_closure(functional, optimizer, FunctionalLoss(optimizer, cross_entropy)))
    run(plain, torch.optim.SGD(plain.model.parameters(), lr=0.1, momentum=0.9), 4)
    run(sam, make("sam", sam, rho=0.5), 4)
    for a, b, c in zip(functional.weights(), plain.weights(), sam.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        assert (a - c).abs().max() > 1e-3


@pytest.mark.parametrize("zeroing", ["optimizer", "model"])
def test_slopes_of_gated_steps_are_not_those_of_later_ones(make_network, zeroing):
    def train(reuse):
        network = make_network()
        optimizer = make("sam", network, rho=0.3, gate=Every(2))
        loss_fn = FunctionalLoss(optimizer, cross_entropy)
        for i in range(5):
            part = slice(2 * i, 2 * i + 2)  # each step sees other samples
            if not reuse:
                loss_fn = FunctionalLoss(optimizer, cross_entropy)
            (optimizer if zeroing == "optimizer" else network.model).zero_grad()
            for _ in optimizer.passes():
                loss_fn(network.model(network.x[part]), network.y[part]).backward()
            optimizer.step()
        return network.weights()

    assert_identical(train(reuse=True), train(reuse=False))


def test_three_passes_use_the_slope_twice(make_network):
    network, other = make_network(), make_network()
    optimizer = make("crsam", network, gamma=0.3, beta=0.2, rho=0.3)
    loss_fn = FunctionalLoss(optimizer, cross_entropy)
    run_closure = functional_closure(network, optimizer, loss_fn)
    # By hand: the loss replaced by its own linearisation at w, which is what a constant slope means.
    expected = make("crsam", other, gamma=0.3, beta=0.2, rho=0.3)
    for _ in range(3):
        outputs = other.model(other.x).detach()
        slope = (outputs.softmax(1) - nn.functional.one_hot(other.y, 3)) / 12

        def closure(slope=slope):
            expected.zero_grad()
            (other.model(other.x) * slope).sum().backward()

        optimizer.step(run_closure)
        expected.step(closure)
    for a, b in zip(network.weights(), other.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_micro_batches_keep_their_order(make_network):
    whole, pieces = make_network(), make_network()
    optimizer = make("sam", whole, rho=0.3)
    loss_fn = FunctionalLoss(optimizer, cross_entropy)
    optimizer.step(functional_closure(whole, optimizer, loss_fn))
    optimizer = make("sam", pieces, rho=0.3)
    loss_fn = FunctionalLoss(optimizer, cross_entropy)
    for _ in optimizer.passes():
        for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
            (loss_fn(pieces.model(pieces.x[part]), pieces.y[part]) / 3).backward()
    optimizer.step()
    for a, b in zip(whole.weights(), pieces.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_evaluations_leave_the_slopes_alone_and_misuse_raises(make_network):
    network = make_network()
    optimizer = make("sam", network, rho=0.3)
    loss_fn = FunctionalLoss(optimizer, cross_entropy)
    weights = network.weights()
    loss_fn(network.model(network.x), network.y).backward()
    with torch.no_grad():
        loss_fn(network.model(network.x[:2]), network.y[:2])
    optimizer.perturb()
    with pytest.raises(RuntimeError, match=r"outputs of shape \(2, 3\), where pass one had \(12, 3\)"):
        loss_fn(network.model(network.x[:2]), network.y[:2])
    loss_fn(network.model(network.x), network.y).backward()
    with pytest.raises(RuntimeError, match="none left"):
        loss_fn(network.model(network.x), network.y)
    optimizer.restore()
    assert_identical(network.weights(), weights)
    base = torch.optim.SGD(network.model.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(TypeError, match=r"wrap it: SAM\(optimizer\)"):
        FunctionalLoss(base, cross_entropy)
    with pytest.raises(TypeError, match="MSAM has no pass at w"):
        FunctionalLoss(MSAM(base), cross_entropy)
    assert copy.deepcopy(SAM(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))).evaluations == 2
