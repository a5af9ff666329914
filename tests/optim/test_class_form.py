"""Code and checkpoints that were written for the most used implementation of SAM.

``Original`` is that implementation's algorithm written out slowly, with its layout of groups, state and checkpoints.
"""

import functools
import io

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adadelta, Adam, AdamW

from optland.optim import SAM


class Original(torch.optim.Optimizer):
    """Perturbs by rho T^2 g / |T g|, T = |w| where adaptive; one norm over all groups, and no state of the base's."""

    def __init__(self, params, base_optimizer, rho=0.05, adaptive=False, **kwargs):
        super().__init__(params, {"rho": rho, "adaptive": adaptive, **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)

    def entries(self):
        return [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        scale = {p: p.abs() if group["adaptive"] else torch.ones_like(p) for p, group in self.entries()}
        length = sum(float((scale[p] * p.grad).square().sum()) for p, _ in self.entries()) ** 0.5
        for p, group in self.entries():
            self.state[p]["old_p"] = p.detach().clone()
            p.add_(group["rho"] / (length + 1e-12) * scale[p] ** 2 * p.grad)
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for p, _ in self.entries():
            p.copy_(self.state[p]["old_p"])
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        self.first_step(zero_grad=True)
        with torch.enable_grad():
            closure()
        self.second_step()


def by_steps(network, optimizer):
    network.loss().backward()
    optimizer.first_step(zero_grad=True)
    network.loss().backward()
    optimizer.second_step(zero_grad=True)


def by_closure(network, optimizer):
    network.loss().backward()
    optimizer.step(lambda: network.loss().backward())
    optimizer.zero_grad()


BASES = {
    "sgd": (SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}),
    "adam": (Adam, {"lr": 0.01}),
    "adamw": (AdamW, {"lr": 0.01, "weight_decay": 0.1}),
}


def groups_of(network):
    first, *others = network.model.parameters()
    return [{"params": [first], "rho": 0.2, "adaptive": True, "lr": 0.03}, {"params": others}]


def assert_close(one, other):
    for a, b in zip(one.weights(), other.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("form", [by_steps, by_closure])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_the_numbers_are_the_originals(base, adaptive, form, make_network):
    kind, options = BASES[base]
    for parameters in (lambda n: n.model.parameters(), groups_of):
        one, two = make_network(), make_network()
        ours = SAM(parameters(one), kind, rho=0.1, adaptive=adaptive, **options)
        theirs = Original(parameters(two), kind, rho=0.1, adaptive=adaptive, **options)
        for _ in range(4):
            form(one, ours)
            form(two, theirs)
        assert_close(one, two)


@pytest.mark.parametrize(
    "build",
    [
        lambda params: SAM(params=params, base_optimizer=SGD, rho=0.1, lr=0.1),
        lambda params: SAM(params, base_optimizer=SGD, rho=0.1, lr=0.1),
        lambda params: SAM(params, SGD, 0.1, False, lr=0.1),
        lambda params: SAM(params, functools.partial(SGD, lr=0.1), rho=0.1),
        lambda params: SAM(
            base_optimizer=lambda given, lr: SGD(given, lr=lr), params=params, rho=0.1, lr=0.1
        ),
    ],
)
def test_every_way_to_write_it(build, make_network):
    one, two = make_network(), make_network()
    ours, theirs = build(one.model.parameters()), Original(two.model.parameters(), SGD, rho=0.1, lr=0.1)
    by_steps(one, ours)
    by_steps(two, theirs)
    assert_close(one, two)
    assert ours.base_optimizer is ours.base
    assert ours.base_optimizer.param_groups is ours.param_groups
    assert isinstance(ours.base_optimizer, SGD)


def test_what_was_given_twice_or_not_at_all(make_network):
    params = list(make_network().model.parameters())
    with pytest.raises(TypeError, match="got params= and the same by position"):
        SAM(params, params=params, base_optimizer=SGD, lr=0.1)
    with pytest.raises(TypeError, match="got base_optimizer= and the same by position"):
        SAM(params, SGD, base_optimizer=Adam, lr=0.1)
    with pytest.raises(TypeError, match="needs an optimizer"):
        SAM(base_optimizer=SGD, lr=0.1)
    with pytest.raises(TypeError, match="name the radius"):
        SAM(SGD(params, lr=0.1), base_optimizer=SGD)
    with pytest.raises(TypeError, match="wraps an optimizer instance and was given a list"):
        SAM(params=params)


def saved(optimizer):
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("parameters", [lambda n: n.model.parameters(), groups_of])
@pytest.mark.parametrize("base", BASES)
def test_its_checkpoints_load_and_train_on(base, parameters, make_network):
    kind, options = BASES[base]
    network = make_network()
    theirs = Original(parameters(network), kind, rho=0.1, adaptive=True, **options)
    theirs.param_groups[0]["lr"] = 0.02  # a schedule has been at work
    for _ in range(3):
        by_steps(network, theirs)
    checkpoint = saved(theirs)
    assert any("old_p" in entry for entry in checkpoint["state"].values())

    one, two = make_network(), make_network()
    for net in (one, two):
        net.model.load_state_dict(network.model.state_dict())
    ours = SAM(parameters(one), kind, rho=9.0, **{**options, "lr": 9.0})
    ours.load_state_dict(checkpoint)
    fresh = Original(parameters(two), kind, rho=0.1, adaptive=True, **options)  # it loses the base's state
    fresh.param_groups[0]["lr"] = 0.02
    assert "old_p" not in str(ours.state_dict()["state"])
    for group, mine in zip(fresh.param_groups, ours.param_groups, strict=True):
        assert (mine["lr"], mine["sam_rho"], mine["sam_adaptive"]) == (
            group["lr"],
            group["rho"],
            group["adaptive"],
        )
    for _ in range(3):
        by_steps(one, ours)
        by_steps(two, fresh)
    assert_close(one, two)


def test_older_checkpoints_and_the_form_with_an_instance(make_network):
    network = make_network()
    params = list(network.model.parameters())
    state = {i: {"e_w": torch.zeros_like(p)} for i, p in enumerate(params)}
    groups = [{"lr": 0.01, "rho": 0.3, "adaptive": True, "params": list(range(len(params)))}]
    instance = SAM(Adam(params, lr=1.0), rho=0.1)
    groups[0] = {**Adam(params).state_dict()["param_groups"][0], **groups[0]}
    instance.load_state_dict({"state": state, "param_groups": groups})
    other = make_network()
    expected = Original(other.model.parameters(), Adam, rho=0.3, adaptive=True, lr=0.01)
    for _ in range(3):
        instance.step(network.closure(instance))
        by_steps(other, expected)
    assert_close(network, other)


def test_ours_resume_in_either_form_with_the_state_of_the_base(make_network):
    straight, resumed = make_network(), make_network()
    optimizer = SAM(straight.model.parameters(), Adam, rho=0.1, adaptive=True, lr=0.01)
    for _ in range(2):
        by_steps(straight, optimizer)
    resumed.model.load_state_dict(straight.model.state_dict())
    again = SAM(Adam(resumed.model.parameters(), lr=9.0), rho=9.0)
    again.load_state_dict(saved(optimizer))
    for _ in range(2):
        by_steps(straight, optimizer)
        again.step(resumed.closure(again))
    for a, b in zip(straight.weights(), resumed.weights(), strict=True):
        assert torch.equal(a, b)


def test_a_base_with_a_rho_of_its_own(make_network):
    network = make_network()
    optimizer = SAM(network.model.parameters(), Adadelta, rho=0.05, lr=1.0)
    by_steps(network, optimizer)
    assert optimizer.param_groups[0]["rho"] == 0.9  # Adadelta's, which the original overwrote with the radius
    assert optimizer.param_groups[0]["sam_rho"] == 0.05


def test_state_that_no_copy_has_left_is_kept_as_it_is():
    p = nn.Parameter(torch.ones(2))
    optimizer = SAM(SGD([p], lr=0.1))
    optimizer.load_state_dict({**optimizer.state_dict(), "state": {0: {}}})
    assert optimizer.state[p] == {}
