"""Fifty steps against the literal oracles, in float64."""

import pytest
import torch
from references import adamw_run, asam_point, first_second_step_run, sam_point, sgd_run

from optland.optim import ASAM, SAM

POINTS = {
    "sam": (lambda base: SAM(base, rho=0.05), lambda w, g: sam_point(w, g, 0.05)),
    "asam": (
        lambda base: ASAM(base, rho=0.5, eta=0.01),
        lambda w, g: asam_point(w, g, 0.5, 0.01, [wi.ndim >= 2 for wi in w]),
    ),
}


def gradient_of(network):
    """The network's gradient as a function of a list of weights; the model is not touched."""
    names = [name for name, _ in network.model.named_parameters()]

    def gradient(w):
        w = [wi.detach().requires_grad_() for wi in w]
        out = torch.func.functional_call(network.model, dict(zip(names, w, strict=True)), (network.x,))
        return list(torch.autograd.grad(torch.nn.functional.cross_entropy(out, network.y), w))

    return gradient


def assert_same(model, expected):
    for p, e in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), e, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", POINTS)
def test_fifty_steps_over_sgd(make_network, name):
    network, (wrap, point) = make_network(), POINTS[name]
    expected = sgd_run(network.weights(), gradient_of(network), point, 50, 0.2, 0.9, 1e-3)
    optimizer = wrap(torch.optim.SGD(network.model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3))
    for _ in range(50):
        optimizer.step(network.closure(optimizer))
    assert_same(network.model, expected)


@pytest.mark.parametrize("name", POINTS)
def test_fifty_steps_over_adamw(make_network, name):
    network, (wrap, point) = make_network(), POINTS[name]
    expected = adamw_run(network.weights(), gradient_of(network), point, 50, 0.01, (0.9, 0.99), 1e-8, 0.05)
    optimizer = wrap(
        torch.optim.AdamW(network.model.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.05)
    )
    for _ in range(50):
        optimizer.step(network.closure(optimizer))
    assert_same(network.model, expected)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("call", ["steps", "closure"])
def test_class_form_gives_the_numbers_of_the_most_used_implementation(make_network, adaptive, call):
    network = make_network()
    expected = first_second_step_run(
        network.weights(), gradient_of(network), steps=50, rho=0.1, lr=0.1, momentum=0.9, adaptive=adaptive
    )
    optimizer = SAM(
        network.model.parameters(), torch.optim.SGD, rho=0.1, adaptive=adaptive, lr=0.1, momentum=0.9
    )

    def closure():
        loss = network.loss()
        loss.backward()
        return loss

    for _ in range(50):
        network.loss().backward()
        if call == "steps":
            optimizer.first_step(zero_grad=True)
            network.loss().backward()
            optimizer.second_step(zero_grad=True)
        else:
            optimizer.step(closure)
            optimizer.zero_grad()
    assert_same(network.model, expected)
    assert optimizer.base_optimizer is optimizer.base
