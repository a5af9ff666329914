"""What is wrong and ends nothing is said: once, at the user's own line, with the remedy."""

import copy
import pickle
import warnings

import pytest
import torch
from drivers import ALL, assert_identical, make, run
from torch import nn

from optland.optim import MSAM, SAM
from optland.optim.saddle import PerturbedGradient
from optland.optim.saddle.trigger import Trigger


@pytest.fixture
def caught():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


def words(caught):
    assert all(w.filename == __file__ for w in caught)
    return [str(w.message) for w in caught]


def forgetful(network, optimizer):
    """A closure that computes the loss and nothing else."""

    def closure():
        optimizer.zero_grad()
        return network.loss()

    return closure


# A closure without a backward pass -----------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_closure_that_brings_no_gradient(name, make_network, caught):
    network = make_network()
    optimizer = make(name, network)
    run(network, optimizer, 1)
    before, state = network.weights(), copy.deepcopy(optimizer.state_dict()["state"])
    steps = []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    assert not caught
    for _ in range(2):
        loss = optimizer.step(forgetful(network, optimizer))
        assert name == "msam" or loss.item() == network.loss().item()  # MSAM's is that of w + eps
    optimizer.accumulate(forgetful(network, optimizer))
    optimizer.step()
    assert_identical(network.weights(), before)
    for i, entry in optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(state[i][key])), key
    assert len(steps) == 3
    (said,) = words(caught)
    assert "brought no gradient" in said
    assert "loss.backward()" in said
    run(network, optimizer, 1)
    assert not torch.equal(network.weights()[0], before[0])


@pytest.mark.parametrize(
    "build",
    [
        lambda n: SAM(torch.optim.SGD(n.model.parameters(), lr=0.1), gate="every(2)"),
        lambda n: MSAM(torch.optim.AdamW(n.model.parameters(), lr=0.1), gate=lambda _: False),
        lambda n: SAM(torch.optim.SGD(n.model.parameters(), lr=0.1), rho=0.0),
        # kicks of weights that stand still are its own affair
        lambda n: PerturbedGradient(SAM(torch.optim.SGD(n.model.parameters(), lr=0.1)), trigger=Trigger(())),
    ],
)
def test_it_is_said_behind_gates_and_wrappers_too(build, make_network, caught):
    network = make_network()
    optimizer = build(network)
    before = network.weights()
    for _ in range(2):
        optimizer.step(forgetful(network, optimizer))
    assert_identical(network.weights(), before)
    assert len(words(caught)) == 1


def test_a_loss_of_other_parameters_brings_no_gradient_either(make_network, caught):
    network, other = make_network(), make_network()
    optimizer = SAM(torch.optim.SGD(network.model.parameters(), lr=0.1))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)  # whose wrapper lies around step
    optimizer.step(lambda: other.loss().backward())
    assert "to any parameter of SAM" in words(caught)[0]


# Running statistics without model= -----------------------------------------------------------------


def by_closure(network, optimizer):
    optimizer.step(network.closure(optimizer))


def by_phases(network, optimizer):
    optimizer.zero_grad()
    for _ in optimizer.passes():
        network.loss().backward()
    optimizer.step()


FORMS = pytest.mark.parametrize("form", [by_closure, by_phases])


@FORMS
@pytest.mark.parametrize(
    ("layer", "called"),
    [
        (lambda: nn.BatchNorm1d(8), "1 BatchNorm1d"),
        (lambda: nn.Sequential(nn.BatchNorm1d(8), nn.BatchNorm1d(8)), "2 BatchNorm1d"),
        (lambda: Named(8), "1 Named"),
        (
            lambda: nn.Sequential(
                nn.Unflatten(1, (4, 2)),
                nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
                nn.Flatten(),
            ),
            "1 InstanceNorm1d",
        ),
    ],
)
def test_statistics_that_move_twice(layer, called, form, make_network, caught):
    network = make_network(layer())
    optimizer = SAM(torch.optim.SGD(network.model.parameters(), lr=0.1), rho=0.3)
    for _ in range(3):
        form(network, optimizer)
    (said,) = words(caught)
    assert f"statistics of {called} once more" in said
    assert "model=model" in said


class Named(nn.BatchNorm1d):
    """A layer of somebody's own, made of one of PyTorch's."""


@FORMS
@pytest.mark.parametrize("quiet", ["model", "eval", "momentum", "layer norm", "no second pass", "msam"])
def test_statistics_that_do_not(quiet, form, make_network, caught):
    norm = nn.LayerNorm(8) if quiet == "layer norm" else nn.BatchNorm1d(8)
    network = make_network(norm)
    base = torch.optim.SGD(network.model.parameters(), lr=0.1, momentum=0.9)
    build = MSAM if quiet == "msam" else SAM
    optimizer = build(
        base,
        model=network.model if quiet == "model" else None,
        gate=(lambda _: False) if quiet == "no second pass" else None,
    )
    if quiet == "eval":
        norm.eval()
    if quiet == "momentum":  # the remedy of older code: the second pass gives the statistics no weight
        plain = network.loss

        def loss(*args):
            norm.momentum = 0.0 if optimizer.is_perturbed else 0.1
            return plain(*args)

        network.loss = loss
    for _ in range(2):
        form(network, optimizer)
    assert words(caught) == []


# A model= that is not the one called ---------------------------------------------------------------


def test_masks_that_could_not_be_repeated(make_network, caught):
    network = make_network(nn.Dropout(0.5))
    optimizer = SAM(torch.optim.SGD(network.model.parameters(), lr=0.1), model=network.model)
    network.loss = lambda: nn.functional.cross_entropy(
        network.model.forward(network.x), network.y
    )  # past the hooks
    for _ in range(2):
        by_phases(network, optimizer)
    (said,) = words(caught)
    assert "no forward pass of model= was seen" in said
    by_closure(network, optimizer)  # repeats whatever is drawn
    plain = make_network()
    optimizer = SAM(torch.optim.SGD(plain.model.parameters(), lr=0.1), model=plain.model)
    plain.loss = lambda: nn.functional.cross_entropy(plain.model.forward(plain.x), plain.y)
    by_phases(plain, optimizer)  # nothing is drawn, so nothing is lost
    assert len(caught) == 1


def test_gradients_zeroed_between_forward_and_backward(make_network, caught):
    def trained(zero_first):
        network = make_network(nn.Dropout(0.5))
        optimizer = SAM(torch.optim.SGD(network.model.parameters(), lr=0.1), model=network.model)
        torch.manual_seed(0)
        for _ in range(3):
            if zero_first:
                optimizer.zero_grad()
            loss = network.loss()
            if not zero_first:
                optimizer.zero_grad()
            loss.backward()
            optimizer.perturb()
            network.loss().backward()
            optimizer.step()
        return network.weights()

    assert_identical(trained(True), trained(False))
    assert not caught


# Where and how often -------------------------------------------------------------------------------


def test_a_notice_as_an_error_leaves_everything_in_place(make_network):
    network = make_network(nn.BatchNorm1d(8))
    optimizer = SAM(torch.optim.SGD(network.model.parameters(), lr=0.1))
    before = network.weights()
    with pytest.raises(RuntimeWarning, match="running statistics"):
        by_closure(network, optimizer)
    assert not optimizer.is_perturbed
    assert_identical(network.weights(), before)
    by_closure(network, optimizer)
    assert not torch.equal(network.weights()[0], before[0])


def test_copies_have_been_told(make_network, caught):
    network = make_network()
    optimizer = SAM(torch.optim.SGD(network.model.parameters(), lr=0.1))
    optimizer.step(forgetful(network, optimizer))
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        copied.step(lambda: None)
    assert len(caught) == 1
