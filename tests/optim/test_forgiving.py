"""Sloppy but harmless loops train exactly like tidy ones."""

import torch

from optland.optim import SAM


def run(network, zero, steps=4):
    optimizer = SAM(torch.optim.SGD(network.model.parameters(), lr=0.1, momentum=0.9), rho=0.3)

    def closure():
        zero(optimizer, network)
        loss = network.loss()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return network.weights()


ZEROINGS = {
    "to None": lambda o, n: o.zero_grad(),
    "in place": lambda o, n: o.zero_grad(set_to_none=False),
    "through the model": lambda o, n: n.model.zero_grad(),
    "through the base": lambda o, n: o.base.zero_grad(),
    "not at all": lambda o, n: None,
}


def test_closures_may_zero_in_any_way_or_not_at_all(make_network):
    expected = run(make_network(), ZEROINGS["to None"])
    for zero in ZEROINGS.values():
        for a, b in zip(run(make_network(), zero), expected, strict=True):
            assert torch.equal(a, b)


def test_foreign_gradients_are_no_harm_to_a_closure_that_zeroes(make_network):
    expected = run(make_network(), ZEROINGS["to None"], steps=1)
    for how in ("to None", "in place"):
        network = make_network()
        (7 * network.loss()).backward()
        for a, b in zip(run(network, ZEROINGS[how], steps=1), expected, strict=True):
            assert torch.equal(a, b)


def test_phase_form_needs_no_zeroing_between_the_passes(make_network):
    networks = [make_network() for _ in range(3)]
    for network, zero in zip(networks, ("to None", "in place", "not at all"), strict=True):
        optimizer = SAM(torch.optim.SGD(network.model.parameters(), lr=0.1), rho=0.3)
        for _ in range(2):
            optimizer.zero_grad()
            network.loss().backward()
            optimizer.perturb()
            ZEROINGS[zero](optimizer, network)
            network.loss().backward()
            optimizer.step()
    for network in networks[1:]:
        for a, b in zip(network.weights(), networks[0].weights(), strict=True):
            assert torch.equal(a, b)
