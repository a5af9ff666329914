"""Gradients that a two-pass step cannot work with are refused in words, before anything has moved."""

from types import SimpleNamespace

import pytest
import torch
from drivers import ALL, make
from torch import nn

from optland.optim import MSAM, SAM


def bag(*, sparse):
    """A sparse embedding under a dense layer, with a batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 3, sparse=sparse), nn.Flatten(), nn.Linear(6, 2))
    x, y = torch.randint(6, (8, 2)), torch.randint(2, (8,))
    network = SimpleNamespace(model=model, x=x, y=y)
    network.loss = lambda: nn.functional.cross_entropy(model(x), y)
    return network


def mixed():
    """A complex and a real parameter."""
    model = nn.Module()
    model.z = nn.Parameter(torch.tensor([1.0 + 2.0j, 3.0 - 1.0j]))
    model.w = nn.Parameter(torch.ones(2, 2))
    network = SimpleNamespace(model=model, x=None, y=None)
    network.loss = lambda: (model.w @ model.z.abs()).square().sum()
    return network


KINDS = {
    "sparse": (lambda: bag(sparse=True), "sparse_coo"),
    "complex": (mixed, "complex"),
}


def closure_of(network, optimizer):
    def closure():
        optimizer.zero_grad()
        network.loss().backward()

    return closure


def by_closure(network, optimizer):
    optimizer.step(closure_of(network, optimizer))


def by_phases(network, optimizer):
    optimizer.zero_grad()
    for _ in optimizer.passes():
        network.loss().backward()
    optimizer.step()


def by_micro_batches(network, optimizer):
    optimizer.accumulate(closure_of(network, optimizer))


def in_a_block(network, optimizer):
    network.loss().backward()
    with optimizer.perturbed():
        pass


def without_a_second_pass(network, optimizer):
    network.loss().backward()
    optimizer.step()


FORMS = [by_closure, by_phases, by_micro_batches]


def state_of(network, optimizer):
    weights = [p.detach().clone() for p in network.model.parameters()]
    return weights, {k: len(v) for k, v in optimizer.state.items()}


# An Objective, which EigenSAM needs, refuses complex parameters by itself.
PAIRS = [(name, kind) for name in ALL for kind in KINDS if (name, kind) != ("eigensam", "complex")]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_refused_by_every_method_in_every_form(name, kind):
    build, says = KINDS[kind]
    for form in FORMS:
        network = build()
        optimizer = make(name, network, guarded=False)
        weights, state = state_of(network, optimizer)
        for _ in range(2):  # the second try finds the gradients of the first
            with pytest.raises(TypeError, match=f"needs dense real gradients and found a.*{says}"):
                form(network, optimizer)
            if optimizer.is_perturbed:  # MSAM's loop broke off between its only pass and the step
                optimizer.restore()
        after, later = state_of(network, optimizer)
        assert state == later
        assert all(torch.equal(a, b) for a, b in zip(weights, after, strict=True))


@pytest.mark.parametrize("form", [in_a_block, without_a_second_pass])
@pytest.mark.parametrize("kind", KINDS)
def test_refused_outside_of_a_pass(kind, form):
    build, says = KINDS[kind]
    network = build()
    with pytest.raises(TypeError, match=says):
        form(network, make("sam", network, guarded=False))


def twofold(places):
    """A dense layer, and an embedding whose gradient is sparse at the calls of the given numbers, else dense."""
    network = bag(sparse=False)
    calls = []

    def loss():
        network.model[0].sparse = len(calls) in places
        calls.append(1)
        return nn.functional.cross_entropy(network.model(network.x), network.y)

    network.loss = loss
    return network


@pytest.mark.parametrize(
    ("name", "at"), [("sam", 1), ("wsam", 1), ("crsam", 1), ("crsam", 2), ("msam", 0), ("lesam", 1)]
)
@pytest.mark.parametrize("form", FORMS)
def test_refused_where_only_the_pass_at_the_perturbed_weights_is_sparse(name, at, form):
    network = twofold({at})
    optimizer = make(name, network, guarded=False)
    weights, state = state_of(network, optimizer)
    with pytest.raises(TypeError, match="sparse_coo"):
        form(network, optimizer)
    assert not optimizer.is_perturbed
    after, later = state_of(network, optimizer)
    assert state == later
    assert all(torch.equal(a, b) for a, b in zip(weights, after, strict=True))
    by_closure(network, optimizer)  # and goes on with dense ones


def test_a_step_that_a_gate_leaves_plain_and_leftovers_of_another_optimizer():
    network = bag(sparse=True)
    base = torch.optim.SGD(network.model.parameters(), lr=0.1, momentum=0.9)
    gated = MSAM(base, gate=lambda _: False)
    gated.perturb()
    network.loss().backward()
    with pytest.raises(TypeError, match="sparse_coo"):
        gated.step()
    for build in (SAM, MSAM):
        network.loss().backward()  # left in .grad by a loop that steps something else
        optimizer = build(base)
        with pytest.raises(TypeError, match="sparse_coo"):
            by_closure(network, optimizer)
