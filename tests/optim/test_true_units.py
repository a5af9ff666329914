"""Micro-batches in true units: what a method sees of a batch in pieces, against oracles that know the pieces.

Accumulated, a batch in pieces is the batch, whatever the method. With an eps for each piece (m-sharpness), the eps of
each is that of its own mean loss, not of the fraction of it that was handed to ``backward``.
"""

import math

import pytest
import torch
from drivers import ALL, TRUE_UNITS, assert_identical, fitting, make, mean_loss, slow_unless
from references import CASES, PARTS, adamw_run, sgd_run
from torch.amp import GradScaler

from optland.objective import Objective
from optland.optim import FSAM, Tail
from optland.optim.registry import METHODS

UNEQUAL = [slice(0, 2), slice(2, 7), slice(7, 12)]
EQUAL = [slice(0, 4), slice(4, 8), slice(8, 12)]
STEPS = 7

OF_LENGTH = sorted(TRUE_UNITS - {"wsam"})
"""Methods whose eps depends on the length of the gradient."""


def gradient_of(network, part=slice(None)):
    """The gradient of the mean loss of a part, as a function of the weights."""
    names = [name for name, _ in network.model.named_parameters()]

    def gradient(w):
        w = [wi.detach().requires_grad_() for wi in w]
        out = torch.func.functional_call(network.model, dict(zip(names, w, strict=True)), (network.x[part],))
        return list(torch.autograd.grad(torch.nn.functional.cross_entropy(out, network.y[part]), w))

    return gradient


def share_of(network, part):
    return len(network.x[part]) / len(network.x)


def backward(network, part, factor=1.0):
    (network.loss(part) * share_of(network, part) * factor).backward()


def base_of(method, params):
    if fitting(method) == "sgd":
        return torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-3)
    return torch.optim.AdamW(params, lr=0.01, betas=(0.9, 0.99), weight_decay=0.05)


def expected_of(method, network, rule):
    if fitting(method) == "sgd":
        return sgd_run(network.weights(), rule, STEPS, 0.1, 0.9, 1e-3)
    return adamw_run(network.weights(), rule, STEPS, 0.01, (0.9, 0.99), 1e-8, 0.05)


def optimizer_of(case, network):
    method, options, _ = CASES[case]
    return METHODS[method](base_of(method, network.model.parameters()), **options)


def assert_close(weights, expected, rtol=1e-9):
    for w, e in zip(weights, expected, strict=True):
        torch.testing.assert_close(w, e, rtol=rtol, atol=rtol / 100)


# The batch in pieces, with one eps ---------------------------------------------------------------------


def accumulated_phases(network, optimizer, parts):
    optimizer.zero_grad()
    for _ in optimizer.passes():
        for part in parts:
            backward(network, part)
    optimizer.step()


def accumulated_closure(network, optimizer, parts):
    def closure():
        optimizer.zero_grad()
        for part in parts:
            backward(network, part)

    optimizer.step(closure)


def accumulated_under_a_scaler(network, optimizer, parts):
    scaler = GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    for _ in optimizer.passes(loss_scale=scaler.get_scale()):
        for part in parts:
            backward(network, part, 1024.0)
    optimizer.restore()
    scaler.step(optimizer)
    optimizer.zero_grad()


@pytest.mark.parametrize(
    ("case", "form"),
    [
        slow_unless(form is accumulated_under_a_scaler or case == "sam", case, form)
        for case in CASES
        for form in (accumulated_phases, accumulated_closure, accumulated_under_a_scaler)
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_an_accumulated_batch_is_the_batch(make_network, case, form):
    network = make_network()
    method, _, rule = CASES[case]
    expected = expected_of(method, network, rule(gradient_of(network)))
    optimizer = optimizer_of(case, network)
    for _ in range(STEPS):
        form(network, optimizer, UNEQUAL)
    assert_close(network.weights(), expected)


def test_an_accumulated_batch_is_the_batch_for_eigen_sam(make_network):
    ends = []
    for parts in ([slice(None)], UNEQUAL):
        network = make_network()
        objective = Objective(network.model, mean_loss, [(network.x, network.y)])
        optimizer = make("eigensam", network, objective=objective, rho=0.2, alpha=0.5)
        for _ in range(STEPS):
            accumulated_phases(network, optimizer, parts)
        ends.append(network.weights())
    assert_close(*ends)


# An eps for each piece -------------------------------------------------------------------------------


def sharp_phases(network, optimizer, parts):
    optimizer.zero_grad()
    for part in parts:
        for _ in optimizer.passes(share=share_of(network, part)):
            backward(network, part)
        optimizer.accumulate()
    optimizer.step()


def sharp_closures(network, optimizer, parts):
    for part in parts:

        def closure(part=part):
            optimizer.zero_grad()
            backward(network, part)

        optimizer.accumulate(closure, share=share_of(network, part))
    optimizer.step()


def sharp_under_a_scaler(network, optimizer, parts):
    scaler = GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    for part in parts:
        for _ in optimizer.passes(loss_scale=scaler.get_scale(), share=share_of(network, part)):
            backward(network, part, 1024.0)
        optimizer.accumulate()
    optimizer.restore()
    scaler.step(optimizer)
    optimizer.zero_grad()


FORMS = [sharp_phases, sharp_closures, sharp_under_a_scaler]
SHARP = pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)


@pytest.mark.parametrize(
    ("case", "pieces", "form"),
    [
        slow_unless(
            case == "sam" or (pieces == "unequal" and form is sharp_under_a_scaler), case, pieces, form
        )
        for case in PARTS
        for pieces in ("equal", "unequal")
        for form in FORMS
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_each_micro_batch_climbs_its_own_mean_loss(make_network, case, pieces, form):
    parts = EQUAL if pieces == "equal" else UNEQUAL
    network = make_network()
    method = CASES[case][0]
    gradients = [gradient_of(network, part) for part in parts]
    rule = PARTS[case](gradients, [share_of(network, part) for part in parts])
    expected = expected_of(method, network, rule)
    optimizer = optimizer_of(case, network)
    for _ in range(STEPS):
        form(network, optimizer, parts)
    assert_close(network.weights(), expected)
    whole = make_network()
    together = expected_of(method, whole, CASES[case][2](gradient_of(whole)))
    apart = max((a - b).abs().max() for a, b in zip(expected, together, strict=True))
    if method != "msam":  # its eps is that of the momentum, for every micro-batch
        assert apart > 1e-5  # the test can tell


@pytest.mark.parametrize("case", CASES)
def test_copies_of_one_micro_batch_are_that_batch(make_network, case):
    network = make_network()
    network.x, network.y = network.x[:4], network.y[:4]
    method, _, rule = CASES[case]
    expected = expected_of(method, network, rule(gradient_of(network)))
    network.x, network.y = network.x.repeat(3, 1), network.y.repeat(3)
    optimizer = optimizer_of(case, network)
    for _ in range(STEPS):
        sharp_closures(network, optimizer, EQUAL)
    assert_close(network.weights(), expected)


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("sparse_sam", "eigensam")])
def test_the_order_of_micro_batches_does_not_matter(make_network, name):
    ends = []
    for parts in (UNEQUAL, UNEQUAL[::-1]):
        network = make_network()
        optimizer = make(name, network)
        for _ in range(4):
            sharp_phases(network, optimizer, parts)
        ends.append(network.weights())
    assert_close(*ends)


# Shares that were not told -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["closure", "phases"])
@pytest.mark.parametrize("name", OF_LENGTH)
def test_methods_that_need_the_share_insist_on_it(make_network, name, form):
    network = make_network()
    optimizer = make(name, network)
    weights = network.weights()

    def accumulate(part):
        if form == "closure":
            optimizer.accumulate(lambda: backward(network, part))
            return
        for _ in optimizer.passes():
            backward(network, part)
        optimizer.accumulate()

    accumulate(EQUAL[0])
    with pytest.raises(RuntimeError, match=r"add up to 2; .*share=1 / k"):
        accumulate(EQUAL[1])
    assert not optimizer.is_perturbed
    assert_identical(network.weights(), weights)
    optimizer.zero_grad()
    optimizer.restore()  # the sum, to be dropped
    optimizer.zero_grad()
    sharp_closures(network, optimizer, EQUAL)
    assert not torch.equal(network.weights()[0], weights[0])


@pytest.mark.parametrize("name", [name for name in ALL if name not in OF_LENGTH])
def test_for_the_others_the_share_cancels(make_network, name):
    ends = []
    for told in (True, False):
        network = make_network()
        optimizer = make(name, network)
        for _ in range(3):
            for part in EQUAL:
                optimizer.accumulate(
                    lambda n=network, part=part: backward(n, part), **({"share": 1 / 3} if told else {})
                )
            optimizer.step()
        ends.append(network.weights())
    assert_close(*ends)


def test_a_share_is_a_fraction_and_told_in_time(make_network):
    network = make_network()
    optimizer = make("sam", network)
    for share in (0.0, -0.5, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"share=.* is not possible"):
            optimizer.accumulate(network.closure(optimizer), share=share)
    for _ in optimizer.passes(share=0.5):
        network.loss().backward()
    with pytest.raises(ValueError, match=r"use perturb\(share=0.5\)"):
        optimizer.accumulate(share=0.5)
    optimizer.accumulate()


# What is reported, and remembered -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sam", "usam", "wsam", "msam"])
def test_telemetry_of_a_micro_batch_is_that_of_its_mean_loss(make_network, name):
    network, alone = make_network(), make_network()
    optimizer, expected = make(name, network), make(name, alone)

    def part_closure(net, opt, factor):
        opt.zero_grad()
        loss = factor * net.loss(EQUAL[2])
        loss.backward()
        return loss

    optimizer.accumulate(lambda: part_closure(network, optimizer, 1 / 3), share=1 / 3)
    expected.accumulate(lambda: part_closure(alone, expected, 1.0))
    assert optimizer.telemetry.read() == pytest.approx(expected.telemetry.read(), rel=1e-9)
    assert optimizer.gradient_norm() == pytest.approx(expected.gradient_norm(), rel=1e-12)


@pytest.mark.parametrize("name", ["fsam", "vasso"])
def test_the_mean_starts_with_the_first_gradient_that_it_is_told(make_network, name):
    network = make_network()
    optimizer = make(name, network, gate=Tail(4, share=0.5))
    for step in range(3):
        g = gradient_of(network)(network.weights())
        optimizer.step(network.closure(optimizer))
        kept = [optimizer.state[p].get("sam_gradient_mean") for p in network.model.parameters()]
        if step < 2:
            assert kept == [None] * 4
    assert_close(kept, g, rtol=1e-12)


def test_nothing_of_a_step_that_was_called_off_goes_into_the_mean(make_network):
    network, other = make_network(), make_network()
    for net, disturbed in ((network, True), (other, False)):
        optimizer = FSAM(torch.optim.SGD(net.model.parameters(), lr=0.1))
        for _ in range(3):
            if disturbed:
                optimizer.zero_grad()
                (7.0 * net.loss()).backward()
                optimizer.perturb()
                optimizer.restore()
                optimizer.zero_grad()
            optimizer.step(net.closure(optimizer))
    assert_identical(network.weights(), other.weights())


def test_a_share_of_a_step_in_one_piece_is_the_units_of_its_loss(make_network):
    # A trainer that divides every loss by the number of pieces, also where there is but one.
    network, other = make_network(), make_network()
    optimizer, expected = make("usam", network, rho=0.3), make("usam", other, rho=0.3)
    for _ in optimizer.passes(share=0.25):
        (0.25 * network.loss()).backward()
        places = network.weights()
    for _ in expected.passes():
        other.loss().backward()
        expected_places = other.weights()
    assert_close(places, expected_places, rtol=1e-12)
