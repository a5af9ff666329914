"""Fifty steps of every method against the literal oracles, in float64."""

import pytest
import references as by_hand
import torch
from drivers import ALL, fits, mean_loss, slow_unless
from references import CASES, adadelta_run, adamw_run, asgd_run, first_second_step_run, rmsprop_run, sgd_run

from optland.objective import Objective
from optland.optim import SAM
from optland.optim.eigen_sam import EigenSAM
from optland.optim.registry import METHODS


def loss_of(network):
    """The network's loss as a function of a list of weights; the model is not touched."""
    names = [name for name, _ in network.model.named_parameters()]

    def loss(*w):
        out = torch.func.functional_call(network.model, dict(zip(names, w, strict=True)), (network.x,))
        return torch.nn.functional.cross_entropy(out, network.y)

    return loss


def gradient_of(network):
    """Its gradient."""
    loss = loss_of(network)

    def gradient(w):
        w = [wi.detach().requires_grad_() for wi in w]
        return list(torch.autograd.grad(loss(*w), w))

    return gradient


def top_eigenvector_of(network):
    """The eigenvector of the largest eigenvalue of the exact Hessian, by a dense decomposition."""
    loss = loss_of(network)

    def top(w):
        blocks = torch.autograd.functional.hessian(loss, tuple(wi.detach() for wi in w), vectorize=True)
        sizes = [wi.numel() for wi in w]
        rows = [
            torch.cat([b.reshape(n, m) for b, m in zip(row, sizes, strict=True)], 1)
            for row, n in zip(blocks, sizes, strict=True)
        ]
        v = torch.linalg.eigh(torch.cat(rows)).eigenvectors[:, -1]
        return [part.reshape(wi.shape) for part, wi in zip(v.split(sizes), w, strict=True)]

    return top


def assert_same(model, expected, rtol=1e-10):
    for p, e in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), e, rtol=rtol, atol=rtol / 100)


def sgd(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-3)


def adamw(params):
    return torch.optim.AdamW(params, lr=0.01, betas=(0.9, 0.99), weight_decay=0.05)


def by_hand_run(base, network, rule, steps=50):
    if base in NAMESAKES:
        return NAMESAKES[base](network.weights(), rule)
    if base is sgd:
        return sgd_run(network.weights(), rule, steps, 0.1, 0.9, 1e-3)
    return adamw_run(network.weights(), rule, steps, 0.01, (0.9, 0.99), 1e-8, 0.05)


_PLAIN = {}


def plain_run(base, network):
    """The base without a method, computed once: every network of the fixture is the same."""
    if base not in _PLAIN:
        gradient = gradient_of(network)
        _PLAIN[base] = by_hand_run(base, network, lambda w, _: (gradient(w), None))
    return _PLAIN[base]


def test_no_method_is_without_an_oracle():
    assert {method for method, _, _ in CASES.values()} | {"eigensam"} == set(ALL)


@pytest.mark.parametrize(
    ("case", "base"),
    [
        slow_unless(case == "sam" or fits(CASES[case][0], "sgd") == (base is sgd), case, base)
        for case in CASES
        for base in (sgd, adamw)
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_fifty_steps(make_network, case, base):
    network, (name, options, oracle) = make_network(), CASES[case]
    if not fits(name, base.__name__):
        return  # SGD has no second moment for adam_sam, and no oracle either
    start = network.weights()
    expected = by_hand_run(base, network, oracle(gradient_of(network)))
    optimizer = METHODS[name](base(network.model.parameters()), **options)
    for _ in range(50):
        optimizer.step(network.closure(optimizer))
    assert_same(network.model, expected)
    plain = plain_run(base, make_network())
    assert max((a - b).abs().max() for a, b in zip(plain, expected, strict=True)) > 1e-4  # the method matters
    assert max((a - b).abs().max() for a, b in zip(start, expected, strict=True)) > 1e-2


def adadelta(params):
    return torch.optim.Adadelta(params, lr=0.5, rho=0.8, eps=1e-4)


def rmsprop(params):
    return torch.optim.RMSprop(params, lr=0.005, alpha=0.95, eps=1e-2)


def asgd(params):
    return torch.optim.ASGD(params, lr=0.25, lambd=0.125, alpha=0.5)


NAMESAKES = {
    adadelta: lambda w, rule: adadelta_run(w, rule, 20, 0.5, 0.8, 1e-4),
    rmsprop: lambda w, rule: rmsprop_run(w, rule, 20, 0.005, 0.95, 1e-2),
    asgd: lambda w, rule: asgd_run(w, rule, 20, 0.25, 0.125, 0.5),
}
"""Bases that have a rho or an alpha of their own, with other values than any method's here."""


@pytest.mark.parametrize("base", NAMESAKES)
@pytest.mark.parametrize("case", ["sam", "looksam", "looksam, bounded", "gsam", "gsam at w", "pgn"])
def test_twenty_steps_over_bases_with_a_rho_or_an_alpha(make_network, case, base):
    network, (name, options, oracle) = make_network(), CASES[case]
    expected = by_hand_run(base, network, oracle(gradient_of(network)))
    optimizer = METHODS[name](base(network.model.parameters()), **options)
    for _ in range(20):
        optimizer.step(network.closure(optimizer))
    # ASGD keeps its rate in float32.
    assert_same(network.model, expected, rtol=1e-5 if base is asgd else 1e-9)
    plain = plain_run(base, make_network())
    assert max((a - b).abs().max() for a, b in zip(plain, expected, strict=True)) > 1e-4


@pytest.mark.parametrize("base", [sgd, slow_unless(False, adamw)])
def test_fifty_steps_of_eigen_sam_with_a_dense_eigenvector(make_network, base):
    network = make_network()
    rule = by_hand.eigen_sam(gradient_of(network), top_eigenvector_of(network), rho=0.2, alpha=0.5)
    expected = by_hand_run(base, network, rule)
    objective = Objective(network.model, mean_loss, [(network.x, network.y)])
    optimizer = EigenSAM(
        base(network.model.parameters()), objective, rho=0.2, alpha=0.5, refresh=1, rtol=1e-12, max_matvecs=80
    )
    for _ in range(50):
        optimizer.step(network.closure(optimizer))
    assert_same(
        network.model, expected, rtol=1e-7
    )  # an eigenvector is known to the root of what its value is


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
