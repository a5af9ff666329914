"""m-sharpness: each micro-batch with a perturbation of its own, in both forms."""

import copy

import pytest
import torch
from drivers import ALL, assert_identical, make, run, slow_unless
from torch import nn

from optland.optim import SAM, Every
from optland.optim.micro_batches import GradientSum

EVERY = pytest.mark.parametrize("name", ALL)
PARTS = [slice(0, 4), slice(4, 8), slice(8, 12)]


def backward(network, part):
    (network.loss(part) / len(PARTS)).backward()


def by_closures(network, optimizer, steps):
    for _ in range(steps):
        for part in PARTS:

            def closure(part=part):
                optimizer.zero_grad()
                backward(network, part)

            optimizer.accumulate(closure, share=1 / len(PARTS))
        optimizer.step()


def by_phases(network, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        for part in PARTS:
            for _ in optimizer.passes(share=1 / len(PARTS)):
                backward(network, part)
            optimizer.accumulate()
        optimizer.step()


STOCHASTIC = (nn.BatchNorm1d(8), nn.Dropout(0.3))


@EVERY
@pytest.mark.parametrize(
    ("layers", "gate"),
    [
        (STOCHASTIC, Every(2)),
        slow_unless(False, (), None),
        slow_unless(False, (), Every(2)),
        slow_unless(False, STOCHASTIC, None),
    ],
)
def test_both_forms_agree_bit_for_bit(name, make_network, layers, gate):
    one, two = (make_network(*copy.deepcopy(layers)) for _ in range(2))
    for network, form in ((one, by_closures), (two, by_phases)):
        torch.manual_seed(0)
        form(network, make(name, network, rho=0.2, gate=gate), 3)
    assert_identical(one.weights(), two.weights())
    assert_identical(one.model.buffers(), two.model.buffers())


@EVERY
def test_the_whole_batch_as_one_part_is_the_plain_step(name, make_network):
    one, two = make_network(nn.Dropout(0.3)), make_network(nn.Dropout(0.3))
    torch.manual_seed(0)
    run(one, make(name, one), 3)
    torch.manual_seed(0)
    optimizer = make(name, two)
    for _ in range(3):
        optimizer.accumulate(two.closure(optimizer))
        optimizer.step()
    assert_identical(one.weights(), two.weights())


def test_statistics_and_draws_are_those_of_one_sweep(make_network):
    layers = (nn.BatchNorm1d(8), nn.Dropout(0.3))
    network, plain = make_network(*copy.deepcopy(layers)), make_network(*copy.deepcopy(layers))
    torch.manual_seed(0)
    for part in PARTS:
        plain.loss(part)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    by_phases(network, make("sam", network), 1)
    assert_identical(network.model.buffers(), plain.model.buffers())
    assert torch.equal(torch.get_rng_state(), state)


def test_single_samples_of_a_linear_regression_in_closed_form():
    # For (x'w - y)^2 / 2 one sample gives r x + rho sign(r) |x| x, with the residual r = x'w - y.
    torch.manual_seed(0)
    x, y, w = (torch.randn(*s, dtype=torch.float64) for s in ((6, 3), (6,), (3,)))
    p, rho = nn.Parameter(w.clone()), 0.3
    optimizer = SAM(torch.optim.SGD([p], lr=1.0), rho=rho)
    for i in range(6):

        def closure(i=i):
            optimizer.zero_grad()
            loss = 0.5 * (x[i] @ p - y[i]).square() / 6
            loss.backward()
            return loss

        optimizer.accumulate(closure)
    optimizer.step()
    r = x @ w - y
    expected = (r[:, None] * x + rho * (r.sign() * x.norm(dim=1))[:, None] * x).mean(0)
    torch.testing.assert_close(w - p.detach(), expected, rtol=1e-12, atol=0)


def test_the_sum_keeps_its_own_memory_where_the_gradients_are_views():
    # DistributedDataParallel's gradients may be views of buckets, which its next backward pass writes to.
    p = nn.Parameter(torch.zeros(2))
    bucket, total = torch.tensor([1.0, 2.0, 3.0]), GradientSum()
    for _ in range(2):
        p.grad = bucket[:2]
        total.take([p])
        bucket.mul_(10.0)
    total.place([p])
    assert p.grad.tolist() == [11.0, 22.0]


@EVERY
def test_misuse_raises_and_says_how(name, make_network):
    network = make_network()
    optimizer = make(name, network)
    run(network, optimizer, 2)
    weights = network.weights()
    optimizer.zero_grad()
    network.loss().backward()
    with pytest.raises(RuntimeError, match=r"accumulate\(\) comes after perturb\(\)"):
        optimizer.accumulate()
    optimizer.zero_grad()
    for _ in optimizer.passes():
        backward(network, PARTS[0])
    with pytest.raises(RuntimeError, match="while the weights are perturbed"):
        optimizer.accumulate(lambda: None)
    optimizer.accumulate()
    with pytest.raises(RuntimeError, match="would lose what was accumulated"):
        optimizer.step(network.closure(optimizer))
    backward(network, PARTS[1])  # belongs to no perturbation
    with pytest.raises(RuntimeError, match="not part of its sum"):
        optimizer.step()
    optimizer.zero_grad()  # the sum is still there
    assert_identical(network.weights(), weights)
    optimizer.step()
    assert not torch.equal(network.weights()[0], weights[0])


def test_a_failing_micro_batch_leaves_the_sum_of_the_others(make_network):
    network, other = make_network(), make_network()
    optimizer, expected = make("sam", network), make("sam", other)

    def closure(net, opt, part, calls=None):
        opt.zero_grad()
        backward(net, part)
        if calls is not None:
            calls.append(1)
            if len(calls) == 2:
                raise ZeroDivisionError

    for part in PARTS:
        expected.accumulate(lambda part=part: closure(other, expected, part))
    expected.step()
    optimizer.accumulate(lambda: closure(network, optimizer, PARTS[0]))
    calls = []
    with pytest.raises(ZeroDivisionError):
        optimizer.accumulate(lambda: closure(network, optimizer, PARTS[1], calls))
    for part in PARTS[1:]:
        optimizer.accumulate(lambda part=part: closure(network, optimizer, part))
    optimizer.step()
    assert_identical(network.weights(), other.weights())


def test_closures_need_not_zero_the_last_update(make_network):
    network, other = make_network(), make_network()
    by_closures(other, make("sam", other), 2)
    optimizer = make("sam", network)
    for _ in range(2):
        for part in PARTS:
            optimizer.accumulate(lambda part=part: backward(network, part))
        optimizer.step()
    assert_identical(network.weights(), other.weights())


def test_restore_and_zero_grad_drop_a_sum(make_network):
    network, other = make_network(), make_network()
    optimizer = make("sam", network)
    optimizer.accumulate(network.closure(optimizer))
    optimizer.restore()
    optimizer.zero_grad()
    run(network, optimizer, 2)
    run(other, make("sam", other), 2)
    assert_identical(network.weights(), other.weights())
