"""Which parameters are perturbed; all are updated."""

import pytest
import torch
from drivers import ALL, assert_identical, fitting, make, run, run_phases
from torch import nn

from optland.optim import SAM


class MyNorm(nn.Module):
    """A normalisation of one's own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8, dtype=torch.float64))

    def forward(self, x):
        return self.scale * x / x.square().mean(-1, keepdim=True).add(1e-6).sqrt()


CHOICES = {
    "weights": ("weights", {"0.weight", "4.weight"}),
    "norm": ("norm", {"1.weight", "1.bias", "2.scale"}),
    "function": (lambda name, p: name.startswith("0."), {"0.weight", "0.bias"}),
    "all": ("all", {"0.weight", "0.bias", "1.weight", "1.bias", "2.scale", "4.weight", "4.bias"}),
}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("choice", CHOICES)
def test_only_the_chosen_move_and_all_are_updated(name, choice, make_network):
    only, expected = CHOICES[choice]
    network = make_network(nn.LayerNorm(8), MyNorm())
    optimizer = make(name, network, rho=0.2, only=only, **({"sparsity": 0.0} if name == "sparse_sam" else {}))
    start = network.weights()
    run(network, optimizer, 2)
    assert all(not torch.equal(a, b) for a, b in zip(network.weights(), start, strict=True))
    before, moved = network.weights(), set()
    optimizer.zero_grad()
    for _ in optimizer.passes():
        named = network.model.named_parameters()
        moved |= {key for (key, p), w in zip(named, before, strict=True) if not torch.equal(p, w)}
        network.loss().backward()
    optimizer.step()
    assert moved == expected
    lengths = optimizer.telemetry.read()
    if name in ("sam", "gsam", "fsam", "adam_sam"):
        assert lengths["sam/rho"] == pytest.approx(0.2, rel=1e-12)  # the whole radius is theirs


@pytest.mark.parametrize("name", ALL)
def test_both_forms_agree_on_a_selection(name, make_network):
    one, two = make_network(nn.LayerNorm(8)), make_network(nn.LayerNorm(8))
    run(one, make(name, one, only="norm"), 4)
    run_phases(two, make(name, two, only="norm"), 4)
    assert_identical(one.weights(), two.weights())


def test_the_norm_is_over_the_chosen_alone(make_network):
    network = make_network()
    optimizer = make("sam", network, rho=0.3, only="weights")
    optimizer.zero_grad()
    network.loss().backward()
    weights = [p for p in network.model.parameters() if p.ndim == 2]
    g = [p.grad.clone() for p in weights]
    length = torch.cat([x.flatten() for x in g]).norm()
    before = [p.detach().clone() for p in weights]
    with optimizer.perturbed():
        for p, w, x in zip(weights, before, g, strict=True):
            torch.testing.assert_close(p.detach() - w, 0.3 * x / length, rtol=1e-9, atol=1e-12)


def test_groups_that_come_later_are_selected_too(make_network):
    network = make_network()
    optimizer = SAM(
        torch.optim.SGD(network.model[0].parameters(), lr=0.1), rho=0.3, only="weights", model=network.model
    )
    optimizer.add_param_group({"params": network.model[-1].parameters()})
    before = network.weights()
    network.loss().backward()
    with optimizer.perturbed():
        moved = [not torch.equal(p, w) for p, w in zip(network.model.parameters(), before, strict=True)]
    assert moved == [True, False, True, False]


def test_what_cannot_be_meant_is_refused(make_network):
    network = make_network()

    def build(only, model=network.model):
        return SAM(torch.optim.SGD(network.model.parameters(), lr=0.1), only=only, model=model)

    with pytest.raises(ValueError, match=r"only='norms' is not known.*Did you mean 'norm'"):
        build("norms")
    with pytest.raises(ValueError, match="only='norm' selects none of the optimizer's 4 parameters"):
        build("norm")
    with pytest.raises(ValueError, match="needs model="):
        build("norm", model=None)
    with pytest.raises(ValueError, match="needs model="):
        build(lambda name, p: True, model=None)
    with pytest.raises(ValueError, match="selects none"):
        build(lambda name, p: False)
    with pytest.raises(TypeError, match="only=3 is a int"):
        build(3)
    assert fitting("sam") == "sgd"
