"""Whatever would train wrongly raises, says how it is done, and changes no weight."""

import copy
import pickle

import pytest
import torch
from drivers import ALL, assert_identical, make, run, wrap
from torch import nn

from optland.optim import ASAM, SAM
from optland.optim.saddle import PerturbedGradient


@pytest.fixture
def network(make_network):
    return make_network()


@pytest.fixture
def optimizer(network):
    return SAM(
        torch.optim.SGD(network.model.parameters(), lr=0.1, momentum=0.9), rho=0.3, model=network.model
    )


@pytest.fixture(autouse=True)
def weights_unchanged(network, optimizer):
    before = network.weights()
    yield
    if optimizer.is_perturbed:
        optimizer.restore()
    assert all(torch.equal(a, b) for a, b in zip(network.weights(), before, strict=True))


def test_step_without_a_second_pass(network, optimizer):
    network.loss().backward()
    with pytest.raises(RuntimeError, match=r"plain step of SGD.*step\(closure\).*perturb\(\).*GradScaler"):
        optimizer.step()


def test_step_after_a_second_pass_without_backward(network, optimizer):
    network.loss().backward()
    grads = [p.grad.clone() for p in network.model.parameters()]
    optimizer.perturb()
    with pytest.raises(RuntimeError, match="without a second pass"):
        optimizer.step()
    assert not optimizer.is_perturbed
    assert all(torch.equal(p.grad, g) for p, g in zip(network.model.parameters(), grads, strict=True))


def test_a_restored_step_is_not_taken_with_later_gradients(network, optimizer):
    network.loss().backward()
    optimizer.perturb()
    network.loss().backward()
    optimizer.restore()
    optimizer.zero_grad()
    network.loss().backward()
    with pytest.raises(RuntimeError, match="without a second pass"):
        optimizer.step()


@pytest.mark.parametrize(
    "action",
    [
        lambda o: o.perturb(),
        lambda o: o.state_dict(),
        lambda o: o.load_state_dict({}),
        lambda o: o.add_param_group({"params": [nn.Parameter(torch.ones(1))]}),
        lambda o: o.step(lambda: None),
        lambda o: o.perturbed().__enter__(),
        copy.deepcopy,
        pickle.dumps,
    ],
)
def test_half_way_through_a_step(network, optimizer, action):
    network.loss().backward()
    optimizer.perturb()
    with pytest.raises(RuntimeError, match="while the weights are perturbed"):
        action(optimizer)
    assert optimizer.is_perturbed


@pytest.mark.parametrize("name", ALL)
def test_half_way_through_a_step_of_any_method(make_network, name):
    network = make_network()
    optimizer = make(name, network)
    run(network, optimizer, 2)
    weights = network.weights()
    optimizer.zero_grad()
    for _ in optimizer.passes():
        network.loss().backward()
    actions = [
        lambda: optimizer.perturb(),
        lambda: optimizer.state_dict(),
        lambda: optimizer.load_state_dict({}),
        lambda: optimizer.step(lambda: None),
        lambda: optimizer.accumulate(lambda: None),
        lambda: optimizer.perturbed().__enter__(),
        lambda: copy.deepcopy(optimizer),
    ]
    for action in actions:
        with pytest.raises(RuntimeError, match="while the weights are perturbed"):
            action()
        assert optimizer.is_perturbed
    optimizer.restore()
    assert all(torch.equal(a, b) for a, b in zip(network.weights(), weights, strict=True))
    optimizer.step()


class Switched(torch.optim.SGD):
    """A base with two modes, as schedule-free ones have."""

    mode = "train"

    def train(self):
        self.mode = "train"

    def eval(self):
        self.mode = "eval"


@pytest.mark.parametrize("name", ["sam", "msam", "crsam"])
@pytest.mark.parametrize("outer", [None, PerturbedGradient])
def test_a_trainer_that_asks_for_modes_half_way_through_a_step(make_network, name, outer):
    for kind in (torch.optim.SGD, Switched):
        network = make_network()
        inner = wrap(name, kind(network.model.parameters(), lr=0.1, momentum=0.9), network)
        asked = inner if outer is None else outer(inner)
        run(network, inner, 1)
        for _ in inner.passes():
            network.loss().backward()
            for mode in ("eval", "train"):
                assert hasattr(asked, mode) is (kind is Switched)  # in every pass
        assert not hasattr(asked, "no such thing")
        if kind is Switched:
            switch = asked.eval  # the look is free, the call is not
            with pytest.raises(RuntimeError, match=r"eval\(\) while the weights are perturbed"):
                switch()
            inner.step()
            switch()
            assert inner.base.mode == "eval"
            asked.train()
            assert inner.base.mode == "train"
        else:
            inner.step()
            with pytest.raises(AttributeError, match="has no attribute 'train'"):
                asked.train()


def test_a_third_pass_that_was_left_out(make_network):
    network = make_network()
    optimizer = make("crsam", network)
    weights = network.weights()
    network.loss().backward()
    optimizer.perturb()
    network.loss().backward()
    with pytest.raises(RuntimeError, match=r"takes three passes.*the third is missing"):
        optimizer.step()
    assert not optimizer.is_perturbed
    assert all(torch.equal(a, b) for a, b in zip(network.weights(), weights, strict=True))


def test_an_evaluation_half_way_through_a_step(network, optimizer):
    network.loss().backward()
    optimizer.perturb()
    network.model.eval()
    with torch.no_grad(), pytest.raises(RuntimeError, match="evaluated while the weights are perturbed"):
        network.model(network.x)
    optimizer.restore()
    with torch.no_grad():
        network.model(network.x)
    network.loss().backward()  # a model that is trained in evaluation mode
    with optimizer.perturbed(), torch.no_grad():
        network.model(network.x)
        with pytest.raises(RuntimeError, match="while the weights are perturbed"):
            optimizer.perturbed().__enter__()


def test_restore_and_perturb_out_of_order(optimizer):
    with pytest.raises(RuntimeError, match=r"restore\(\) without perturb\(\)"):
        optimizer.restore()
    with pytest.raises(RuntimeError, match="no gradient"):
        optimizer.perturb()
    with pytest.raises(RuntimeError, match="finite gradients"):
        optimizer.perturbed().__enter__()


def test_accumulating_outside_a_closure_that_does_not_zero(network, optimizer):
    def closure():
        loss = network.loss()
        loss.backward()
        return loss

    network.loss().backward()
    grads = [p.grad.clone() for p in network.model.parameters()]
    with pytest.raises(RuntimeError, match="did not zero them"):
        optimizer.step(closure)
    assert all(torch.equal(p.grad, g) for p, g in zip(network.model.parameters(), grads, strict=True))


def test_accumulating_on_top_of_the_last_steps_gradients_is_noticed_too(network, optimizer):
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step(network.closure(optimizer))
    network.loss().backward()

    def closure():
        network.loss().backward()

    with pytest.raises(RuntimeError, match="did not zero them"):
        optimizer.step(closure)


def test_the_second_call_of_the_closure_must_run_backward(network, optimizer):
    calls = []

    def closure():
        optimizer.zero_grad()
        calls.append(1)
        if len(calls) == 1:
            network.loss().backward()

    with pytest.raises(RuntimeError, match="ran no backward"):
        optimizer.step(closure)


def test_legacy_calls_belong_to_the_class_form(network, optimizer):
    with pytest.raises(RuntimeError, match="class form"):
        optimizer.first_step()
    with pytest.raises(RuntimeError, match="class form"):
        optimizer.second_step()
    legacy = SAM(network.model.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(RuntimeError, match="existing gradients"):
        legacy.step(lambda: network.loss().backward())


@pytest.mark.parametrize("rho", [-0.1, float("nan"), float("inf")])
def test_impossible_radius(network, rho):
    base = torch.optim.SGD([{"params": network.model.parameters()}], lr=0.1)
    group, defaults = set(base.param_groups[0]), set(base.defaults)
    with pytest.raises(ValueError, match="rho="):
        SAM(base, rho=rho)
    with pytest.raises(ValueError, match="eta="):
        ASAM(base, eta=-1.0)
    assert (set(base.param_groups[0]), set(base.defaults)) == (group, defaults)
    with pytest.raises(ValueError, match="rho="):
        SAM(torch.optim.SGD([{"params": network.model.parameters(), "rho": rho}], lr=0.1))
    optimizer = SAM(torch.optim.SGD(network.model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="rho="):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "rho": rho})
    assert len(optimizer.param_groups) == 1


def test_constructor_arguments_that_mix_the_forms(network, optimizer):
    params = list(network.model.parameters())
    base = torch.optim.SGD(params, lr=0.1)
    with pytest.raises(TypeError, match="optimizer instance and was given a list"):
        SAM(params, rho=0.1)
    with pytest.raises(TypeError, match="the class SGD"):
        SAM(torch.optim.SGD)
    with pytest.raises(TypeError, match="name the radius"):
        SAM(base, 0.05)
    with pytest.raises(TypeError, match=r"\['lr'\]"):
        SAM(base, lr=0.1)
    with pytest.raises(TypeError, match="use ASAM"):
        SAM(base, adaptive=True)
    with pytest.raises(TypeError, match="two passes already"):
        ASAM(optimizer)
    with pytest.raises(TypeError, match=r"nn\.Module"):
        SAM(base, model=params)
    with pytest.raises(ValueError, match="LBFGS"):
        SAM(torch.optim.LBFGS(params))


def test_sparse_and_complex_gradients_are_refused():
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = SAM(torch.optim.SGD(embedding.parameters(), lr=0.1))
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="sparse"):
        optimizer.perturb()
    z = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = SAM(torch.optim.SGD([z], lr=0.1))
    z.abs().sum().backward()
    with pytest.raises(TypeError, match="complex"):
        optimizer.perturb()


class Synced(nn.Module):
    """What matters here of DistributedDataParallel, whose ``no_sync()`` puts this attribute to False."""

    def __init__(self, module):
        super().__init__()
        self.module, self.require_backward_grad_sync = module, True

    def forward(self, x):
        return self.module(x)


@pytest.mark.parametrize(
    ("name", "gate", "says"),
    [
        ("sam", None, None),
        ("lesam", None, None),
        ("sam", "every(2)", None),
        ("sam", "large_gradient(10)", "asks for its length"),
        ("wsam", None, "one pass ran under no_sync"),
        ("gsam", None, "one pass ran under no_sync"),
        ("crsam", None, "one pass ran under no_sync"),
        ("looksam", None, "remembers"),
        ("fsam", None, "remembers"),
    ],
)
def test_replicas_that_would_drift_apart(name, gate, says):
    model = Synced(nn.Linear(2, 1))
    optimizer = make(
        name, model, guarded=False, params=model.parameters(), model=model, **({"gate": gate} if gate else {})
    )
    before = [p.detach().clone() for p in model.parameters()]

    def backward(*, synced):
        model.require_backward_grad_sync = synced
        model(torch.ones(1, 2)).sum().backward()

    def step(synced):
        optimizer.zero_grad()
        for number in optimizer.passes():
            for flag in synced if number == 0 else [True]:
                backward(synced=flag)
        optimizer.step()

    if says is None:
        step([False])
    else:
        with pytest.raises(RuntimeError, match=says):
            step([False])
        assert not optimizer.is_perturbed
        assert_identical(before, list(model.parameters()))
        step([False, True])  # two micro-batches, of which the second reduces the sum
    assert not torch.equal(before[0], next(iter(model.parameters())))
