"""A base that maximizes: the worst point nearby is the lowest, so the perturbation goes down."""

import pytest
import torch
from drivers import ALL, BASES, assert_identical, fits, fitting, make, run, run_phases, slow_unless, wrap
from torch import nn

from optland.optim import SAM
from optland.optim.saddle import NegativeCurvature
from optland.optim.saddle.trigger import Trigger

MAXIMIZING = sorted(set(ALL) - {"eigensam"})


class Negated:
    """A network whose loss is the negated one."""

    def __init__(self, network):
        self.network = network

    def loss(self):
        return -self.network.loss()

    def closure(self, optimizer):
        def closure():
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            return loss

        return closure


ROWS = [
    slow_unless(drive is run and base == fitting(name), name, base, drive)
    for name in MAXIMIZING
    for base in ("sgd", "adamw")
    for drive in (run, run_phases)
    if fits(name, base)
]


@pytest.mark.parametrize(("name", "base", "drive"), ROWS)
def test_maximizing_is_minimizing_the_negated_loss_bit_for_bit(name, base, drive, make_network):
    down, up = make_network(), make_network()
    options = {"lr": 0.05, "weight_decay": 1e-3}
    drive(down, wrap(name, BASES[base](down.model.parameters(), **options), down), 4)
    drive(Negated(up), wrap(name, BASES[base](up.model.parameters(), **options, maximize=True), up), 4)
    assert_identical(down.weights(), up.weights())


@pytest.mark.parametrize("foreach", [False, True])
def test_each_group_goes_to_its_own_worst_side(foreach):
    # x is minimized and y maximized on x^2 - y^2: eps = rho (g_x, -g_y) / |g|
    x, y = (nn.Parameter(torch.tensor([v], dtype=torch.float64)) for v in (3.0, 4.0))
    groups = [{"params": [x]}, {"params": [y], "maximize": True}]
    optimizer = SAM(torch.optim.SGD(groups, lr=0.1, foreach=foreach), rho=0.5)
    (x.square() - y.square()).sum().backward()  # g = (6, -8), of length 10
    with optimizer.perturbed():
        assert x.item() == pytest.approx(3.0 + 0.5 * 0.6, rel=1e-15)
        assert y.item() == pytest.approx(4.0 + 0.5 * 0.8, rel=1e-15)


def test_eigen_sam_refuses_a_maximizing_base_before_anything_moves(make_network):
    network = make_network()
    optimizer = make("eigensam", network, base_options={"maximize": True})
    before = network.weights()
    with pytest.raises(ValueError, match="maximize=True; minimize the negated loss"):
        run(network, optimizer, 1)
    assert not optimizer.is_perturbed
    assert_identical(before, network.weights())


def test_negative_curvature_refuses_a_maximizing_base_at_once_and_later(make_network):
    network = make_network()
    params = list(network.model.parameters())
    with pytest.raises(ValueError, match="leaves a saddle downwards, and this SGD has maximize=True"):
        NegativeCurvature(torch.optim.SGD(params, lr=0.1, maximize=True))
    optimizer = NegativeCurvature(torch.optim.SGD(params, lr=0.1), trigger=Trigger(("every",), every=1))
    run(network, optimizer, 1)
    optimizer.param_groups[0]["maximize"] = True
    before = network.weights()
    with pytest.raises(ValueError, match="minimize the negated loss"):
        run(network, optimizer, 1)
    assert_identical(before, network.weights())
