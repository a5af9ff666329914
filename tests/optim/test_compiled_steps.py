"""``torch.compile`` of a step, or of a loop with one: the numbers are those without the compiler."""

import pytest
import torch
from drivers import ALL, assert_identical, make, slow_unless
from torch import nn

from optland.optim import SAM
from optland.optim.saddle import NegativeCurvature, NoisyGradient, PerturbedGradient

# The compiler itself looks at .grad of what passes between its graphs.
pytestmark = pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor:UserWarning")


def closure_step(network, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = network.loss()
        loss.backward()
        return loss

    return optimizer.step(closure)


def phase_step(network, optimizer):
    optimizer.zero_grad()
    for _ in optimizer.passes():
        network.loss().backward()
    optimizer.step()


def written_out_step(network, optimizer):
    optimizer.zero_grad()
    network.loss().backward()
    if optimizer.perturb():
        network.loss().backward()
        optimizer.restore()
    optimizer.step()


def micro_batch_step(network, optimizer):
    for part in (slice(0, 6), slice(6, 12)):
        for _ in optimizer.passes(share=0.5):
            (0.5 * network.loss(part)).backward()
        optimizer.accumulate()
    optimizer.step()


def step_and_look(network, optimizer):
    closure_step(network, optimizer)
    with optimizer.perturbed():
        return network.loss()


def loop(network, optimizer):
    for _ in range(2):
        closure_step(network, optimizer)
        phase_step(network, optimizer)


def trained(function, make_network, build, *, compiled, calls=3):
    torch._dynamo.reset()
    network = make_network(nn.Dropout(0.3))
    optimizer = build(network)
    if compiled:
        function = torch.compile(function, backend="eager")
    torch.manual_seed(0)
    results = [function(network, optimizer) for _ in range(calls)]
    return network.weights() + [r for r in results if r is not None]


def assert_as_without(function, make_network, build, **options):
    assert_identical(
        trained(function, make_network, build, compiled=True, **options),
        trained(function, make_network, build, compiled=False, **options),
    )


TWO_PASSES = [closure_step, phase_step, written_out_step, micro_batch_step, step_and_look, loop]
QUICK = {("sam", closure_step), ("wsam", phase_step), ("msam", loop), ("sam", step_and_look)}
ROWS = [
    slow_unless((name, function) in QUICK, name, function)
    for name in ALL
    for function in TWO_PASSES
    # written for two passes, of which MSAM has one and CR-SAM three
    if not (function is written_out_step and name in ("msam", "crsam"))
]


@pytest.mark.cell("torch.compile", "SAM closure")
@pytest.mark.cell("torch.compile", "SAM phase")
@pytest.mark.parametrize(("name", "function"), ROWS)
def test_every_method(name, function, make_network):
    assert_as_without(function, make_network, lambda network: make(name, network))


@pytest.mark.parametrize(
    "wrapper",
    [slow_unless(w is NegativeCurvature, w) for w in (NegativeCurvature, PerturbedGradient, NoisyGradient)],
)
def test_every_saddle_wrapper(wrapper, make_network):
    assert_as_without(
        closure_step,
        make_network,
        lambda network: wrapper(torch.optim.SGD(network.model.parameters(), lr=0.1)),
    )


@pytest.mark.slow
def test_the_class_form(make_network):
    def step(network, optimizer):
        network.loss().backward()
        optimizer.first_step(zero_grad=True)
        network.loss().backward()
        optimizer.second_step(zero_grad=True)

    def build(network):
        return SAM(network.model.parameters(), torch.optim.SGD, rho=0.2, lr=0.1, model=network.model)

    assert_as_without(step, make_network, build)


def test_a_compiled_closure_and_a_compiled_model_in_it(make_network):
    def by_closure(network, optimizer):
        return optimizer.step(torch.compile(network.closure(optimizer), backend="eager"))

    expected = trained(closure_step, make_network, lambda n: make("sam", n), compiled=False)
    assert_identical(trained(by_closure, make_network, lambda n: make("sam", n), compiled=False), expected)

    def in_place(network):
        optimizer = make("sam", network)
        network.model.compile(backend="eager")
        return optimizer

    assert_identical(trained(closure_step, make_network, in_place, compiled=False), expected)


def test_a_step_that_has_to_be_one_graph_is_refused_by_the_compiler(make_network):
    network = make_network()
    optimizer = make("sam", network)
    weights = network.weights()
    network.loss().backward()
    torch._dynamo.reset()
    with pytest.raises(Exception, match="disable"):
        torch.compile(lambda: optimizer.perturb(), backend="eager", fullgraph=True)()
    assert not optimizer.is_perturbed
    assert_identical(network.weights(), weights)
