"""Every method over every base that it can have, in other precisions, and with compiled models."""

import io

import pytest
import torch
from drivers import (
    ALL,
    BASES,
    assert_identical,
    assert_same_state,
    fits,
    make,
    passes_of,
    remembered,
    run,
    run_phases,
    slow_unless,
    snapshot,
    wrap,
)
from torch import nn

from optland.optim import MSAM
from optland.optim.metrics import PreconditionedSAM

# SGD and AdamW are the bases of every other test; of their other kernels one suffices by default, for every method.
# The other bases meet one method of each mechanism: two passes, one, three, with a memory, decoupled.
UNUSUAL = {"lion", "muon", "schedulefree", "adadelta", "rmsprop", "asgd"}
MECHANISMS = {"sam", "msam", "crsam", "looksam", "wsam"}
PAIRS = [
    slow_unless(base == "adamw fused" or (base in UNUSUAL and name in MECHANISMS), name, base)
    for name in ALL
    for base in BASES
    if fits(name, base)
]


def matrices(network):
    """Muon takes matrices alone."""
    return [p for p in network.model.parameters() if p.ndim == 2]


@pytest.mark.parametrize(("name", "base"), PAIRS)
def test_forms_agree_rho_zero_is_the_base_and_a_checkpoint_resumes(name, base, make_network):
    one, two, three, four = (make_network() for _ in range(4))
    lr = 0.02
    first, second, third = (make(name, net, base, lr=lr, params=matrices(net)) for net in (one, two, three))
    run(one, first, 4)
    run_phases(two, second, 4)
    assert_identical(one.weights(), two.weights())
    assert not torch.equal(one.weights()[0], four.weights()[0])

    run(three, third, 2)
    file = io.BytesIO()
    torch.save(third.state_dict(), file)
    file.seek(0)
    resumed = make(name, three, base, lr=9.0, params=matrices(three))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    run(three, resumed, 2)
    assert_identical(one.weights(), three.weights())
    assert_same_state(snapshot(first), snapshot(resumed))

    plain = make_network()
    run(plain, BASES[base](matrices(plain), lr=lr), 3)
    run(four, make(name, four, base, lr=lr, params=matrices(four), rho=0.0), 3)
    assert_identical(plain.weights(), four.weights())


def test_bases_without_what_a_method_reads_are_refused(make_network):
    network = make_network()
    params = list(network.model.parameters())
    with pytest.raises(ValueError, match="momentum"):
        MSAM(torch.optim.SGD(params, lr=0.1))
    with pytest.raises(ValueError, match="second moment"):
        PreconditionedSAM(torch.optim.SGD(params, lr=0.1))
    # those that only look as if they had it are found out at the second step
    for build, base, message in (
        (MSAM, "schedulefree", "no momentum"),
        (PreconditionedSAM, "lion", "second moment"),
    ):
        optimizer = build(BASES[base](params, lr=0.01))
        run(network, optimizer, 1)
        weights = network.weights()
        with pytest.raises(ValueError, match=message):
            run(network, optimizer, 1)
        assert not optimizer.is_perturbed
        assert_identical(network.weights(), weights)


def test_schedule_free_averages_through_the_wrapper(make_network):
    network, other = make_network(), make_network()
    optimizer = make("sam", network, "schedulefree", lr=0.01)
    run(network, optimizer, 5)
    at_y = network.weights()
    optimizer.eval()
    assert not torch.equal(network.weights()[0], at_y[0])
    with pytest.raises(Exception, match="train mode"):
        run(network, optimizer, 1)
    assert not optimizer.is_perturbed
    optimizer.train()
    for a, b in zip(network.weights(), at_y, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    assert not hasattr(make("sam", other), "train")  # a trainer asks so


@pytest.mark.parametrize("name", ALL)
def test_tensor_learning_rates(name, make_network):
    one, two = make_network(), make_network()
    run(one, make(name, one, "adamw", lr=0.01), 3)
    optimizer = make(
        name, two, "adamw", lr=torch.tensor(0.01, dtype=torch.float64), base_options={"foreach": False}
    )
    run(two, optimizer, 3)
    for a, b in zip(one.weights(), two.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.cell("plain loop", "bf16")
@pytest.mark.parametrize("name", ALL)
def test_weights_in_bfloat16(name, make_network):
    def network():
        return make_network(dtype=torch.bfloat16)

    still = network()
    before = still.weights()
    optimizer = make(name, still, lr=0.0, rho=0.5)
    run(still, optimizer, 3)
    assert_identical(still.weights(), before)
    assert optimizer.telemetry.read()["sam/rho_realised"] == pytest.approx(
        optimizer.telemetry.read()["sam/rho"], rel=0.05
    )
    straight, resumed = network(), network()
    optimizer = make(name, straight, rho=0.1)
    losses = run(straight, optimizer, 6)
    assert losses[-1] < losses[0]
    optimizer = make(name, resumed, rho=0.1)
    run(resumed, optimizer, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optimizer = make(name, resumed, rho=0.1)
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    run(resumed, optimizer, 3)
    assert_identical(straight.weights(), resumed.weights())
    assert all(
        value.dtype == torch.bfloat16
        for entry in optimizer.state.values()
        for key, value in entry.items()
        if key in remembered(name)
    )


@pytest.mark.cell("plain loop", "bf16")
@pytest.mark.parametrize("name", ALL)
def test_autocast_to_bfloat16_in_the_forward(name, make_network):
    one, two, full = (make_network(dtype=torch.float32) for _ in range(3))

    def autocast(network):
        plain = network.loss

        def loss(*args):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return plain(*args)

        network.loss = loss

    autocast(one)
    autocast(two)
    run(one, make(name, one), 4)
    run_phases(two, make(name, two), 4)
    run(full, make(name, full), 4)
    assert_identical(one.weights(), two.weights())
    for a, b in zip(one.weights(), full.weights(), strict=True):
        assert a.dtype == torch.float32
        assert not torch.equal(a, b)
        if name != "wsam":  # climbs nine times the difference of two rounded gradients
            torch.testing.assert_close(a, b, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("name", ["msam", "crsam"])  # compiling takes seconds; SAM is in test_guards
def test_the_model_may_be_compiled(name, make_network):
    network, eager = make_network(nn.Dropout(0.5)), make_network(nn.Dropout(0.5))
    optimizer, expected = make(name, network), make(name, eager)
    network.model = torch.compile(network.model, backend="eager")
    for net, opt in ((network, optimizer), (eager, expected)):
        torch.manual_seed(0)
        run_phases(net, opt, 2)
        run(net, opt, 2)
    assert_identical(network.weights(), eager.weights())
    assert optimizer.last_evaluations in (1, passes_of(name))


def test_the_wrapper_may_hold_the_compiled_model(make_network):
    network, eager = make_network(nn.Dropout(0.5)), make_network(nn.Dropout(0.5))
    network.model = torch.compile(network.model, backend="eager")
    for net in (network, eager):
        optimizer = wrap("sam", torch.optim.SGD(net.model.parameters(), lr=0.1), net)
        torch.manual_seed(0)
        run_phases(net, optimizer, 2)
        run(net, optimizer, 2)
    assert_identical(network.weights(), eager.weights())
