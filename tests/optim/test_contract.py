"""What every method owes to loops, schedulers and hooks; each test runs for the whole registry."""

import copy

import pytest
import torch
from drivers import (
    ALL,
    BASES,
    PASSES,
    assert_identical,
    assert_same_state,
    fitting,
    make,
    passes_of,
    run,
    run_phases,
    slow_unless,
    snapshot,
    wrap,
)
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook

from optland.optim.registry import METHODS

EVERY = pytest.mark.parametrize("name", ALL)
EACH_PASS = pytest.mark.parametrize(("name", "number"), PASSES)
FORMS = pytest.mark.parametrize("form", [run, run_phases])

LAYERS = {"plain": (), "dropout": (nn.Dropout(0.3),), "batchnorm": (nn.BatchNorm1d(8),)}


@EVERY
def test_the_number_of_passes_is_that_of_the_paper(name, make_network):
    network, count = make_network(), []
    optimizer = make(name, network)
    assert optimizer.evaluations == passes_of(name)
    for _ in optimizer.passes():
        network.loss().backward()
        count.append(optimizer.is_perturbed)
    optimizer.step()
    # momentum SAM never sees w, the others see it first
    assert count == ([True] if name == "msam" else [False] + [True] * (passes_of(name) - 1))
    assert optimizer.last_evaluations == passes_of(name)


@pytest.mark.cell("plain loop", "SAM closure")
@pytest.mark.cell("plain loop", "SAM phase")
@EVERY
@pytest.mark.parametrize(
    ("base", "layers"),  # a plain network over AdamW and other bases is in test_bases
    [
        slow_unless(base == "sgd" and layers != "plain", base, layers)
        for base in ("sgd", "adamw")
        for layers in LAYERS
    ],
)
def test_closure_and_phase_form_agree_bit_for_bit(name, make_network, base, layers):
    one, two = (make_network(*copy.deepcopy(LAYERS[layers])) for _ in range(2))
    start = one.weights()
    torch.manual_seed(3)
    first = make(name, one, base)
    run(one, first, 4)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    second = make(name, two, base)
    run_phases(two, second, 4)
    assert_identical(one.weights(), two.weights())
    assert_identical(one.model.buffers(), two.model.buffers())
    assert_same_state(snapshot(first), snapshot(second))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(one.weights()[0], start[0])


@EVERY
@FORMS
@pytest.mark.parametrize(
    "base",
    ["sgd", slow_unless(False, "adamw"), slow_unless(False, "rmsprop")],  # others are in test_bases
)
def test_rho_zero_is_the_base_optimizer_bit_for_bit(name, make_network, base, form):
    layers = (nn.BatchNorm1d(8), nn.Dropout(0.3))
    one, two = (make_network(*copy.deepcopy(layers)) for _ in range(2))
    plain = BASES[fitting(name, base)](one.model.parameters(), lr=0.05)
    optimizer = make(name, two, base, lr=0.05, rho=0.0)
    torch.manual_seed(0)
    expected = run(one, plain, 5)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    losses = form(two, optimizer, 5)
    if losses is not None:  # the closure form also knows that one pass is enough
        assert losses == expected
        assert optimizer.last_evaluations == 1
    assert_identical(one.weights(), two.weights())
    assert_identical(one.model.buffers(), two.model.buffers())
    assert torch.equal(torch.get_rng_state(), state)


@EVERY
@FORMS
def test_rho_may_go_to_zero_in_the_middle_of_a_run(name, make_network, form):
    network, other = make_network(), make_network()
    optimizer = make(name, network, rho=0.3)
    form(network, optimizer, 2)
    other.model.load_state_dict(network.model.state_dict())
    plain = BASES[fitting(name)](other.model.parameters(), lr=0.1)
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in optimizer.param_groups:
        group["sam_rho"] = 0.0
    form(network, optimizer, 3)
    run(other, plain, 3)
    assert_identical(network.weights(), other.weights())


@EVERY
@FORMS
def test_lr_zero_leaves_the_weights_alone(name, make_network, form):
    network = make_network(dtype=torch.float32)
    before = network.weights()
    optimizer = make(name, network, lr=0.0, rho=0.7)
    form(network, optimizer, 3)
    assert optimizer.last_evaluations == passes_of(name)
    assert_identical(network.weights(), before)


SCHEDULERS = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=6),
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0),
}


@pytest.mark.cell("plain loop", "scheduler")
@EVERY
@pytest.mark.parametrize(
    ("scheduler_name", "form"),
    [
        # One that turns the momentum too, and one that is called with a value.
        slow_unless(key == "onecycle" or (form is run and key == "plateau"), key, form)
        for key in SCHEDULERS
        for form in (run, run_phases)
    ],
)
def test_schedulers_attach_and_drive_the_base(name, make_network, scheduler_name, form):
    network, other = make_network(), make_network()
    optimizer = make(name, network)
    plain = BASES[fitting(name)](other.model.parameters(), lr=0.1)
    schedulers = [SCHEDULERS[scheduler_name](o) for o in (optimizer, plain)]
    seen = []
    for _ in range(5):
        form(network, optimizer, 1)
        run(other, plain, 1)
        for scheduler in schedulers:
            scheduler.step(*([1.0] if scheduler_name == "plateau" else []))
        scheduled = plain.param_groups[0]
        for key in scheduled.keys() & {"lr", "momentum", "betas"}:
            assert optimizer.base.param_groups[0][key] == scheduled[key]
        seen.append(scheduled["lr"])
    assert len(set(seen)) > 1


@EVERY
@FORMS
def test_step_hooks_fire_once_and_see_the_unperturbed_weights(name, make_network, form):
    network = make_network()
    optimizer = make(name, network, lr=0.0)
    start, events = network.weights(), []

    def hook(kind):
        def record(opt, args, kwargs):
            assert opt is optimizer
            assert_identical(network.weights(), start)
            events.append(kind)

        return record

    optimizer.register_step_pre_hook(hook("before"))
    optimizer.register_step_post_hook(hook("after"))
    optimizer.base.register_step_post_hook(lambda *_: events.append("base"))
    form(network, optimizer, 2)
    assert events == ["before", "base", "after"] * 2


@EVERY
def test_global_hooks_fire_once(name, make_network):
    network, count = make_network(), []
    optimizer = make(name, network)
    handle = register_optimizer_step_post_hook(lambda *_: count.append(1))
    try:
        run(network, optimizer, 3)
    finally:
        handle.remove()
    assert len(count) == 3


@EACH_PASS
def test_an_exception_in_any_pass_leaves_no_trace(name, number, make_network):
    network, other = make_network(), make_network()
    optimizer, undisturbed = make(name, network), make(name, other)
    for net, opt in ((network, optimizer), (other, undisturbed)):
        run(net, opt, 2)  # so that the next one is a full step for each method
    weights, state, calls = network.weights(), snapshot(optimizer), []

    def closure():
        optimizer.zero_grad()
        network.loss().backward()
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        return network.loss()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert len(calls) == number
    assert not optimizer.is_perturbed
    assert_identical(network.weights(), weights)
    assert_same_state(snapshot(optimizer), state)
    for net, opt in ((network, optimizer), (other, undisturbed)):
        run(net, opt, 2)
    assert_identical(network.weights(), other.weights())


@EVERY
def test_an_interrupt_while_the_weights_move_leaves_no_trace(name, make_network, monkeypatch):
    network = make_network()
    optimizer = make(name, network)
    run(network, optimizer, 2)
    weights = network.weights()

    def half_way(alpha, x, y):
        y[0].add_(x[0], alpha=alpha)
        raise KeyboardInterrupt

    network.loss().backward()
    with monkeypatch.context() as patch:
        patch.setattr("optland.optim.flight.vectors.axpy_", half_way)
        with pytest.raises(KeyboardInterrupt):
            optimizer.perturb()
    assert not optimizer.is_perturbed
    assert_identical(network.weights(), weights)
    run(network, optimizer, 1)


@EVERY
def test_groups_added_later_get_rho_and_are_trained(name, make_network):
    network = make_network()
    first, last = network.model[0], network.model[-1]
    optimizer = make(name, network, params=first.parameters(), rho=0.3)
    run(network, optimizer, 1)
    optimizer.add_param_group({"params": last.parameters(), "lr": 0.2})
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.param_groups[1]["sam_rho"] == optimizer.defaults["sam_rho"] == 0.3
    before = last.weight.detach().clone()
    run(network, optimizer, 2)
    run_phases(network, optimizer, 2)
    assert not torch.equal(last.weight, before)


@EVERY
@FORMS
def test_frozen_and_unused_parameters_are_left_alone(name, make_network, form):
    network = make_network()
    network.model[0].requires_grad_(False)
    unused = nn.Parameter(torch.ones(3))
    params = [*network.model.parameters(), unused]
    optimizer = make(name, network, params=params, base_options={"weight_decay": 0.1})
    frozen = network.model[0].weight.clone()
    form(network, optimizer, 3)
    assert torch.equal(network.model[0].weight, frozen)
    assert torch.equal(unused, torch.ones(3))
    assert unused.grad is None
    assert unused not in optimizer.state


class Twice(nn.Module):
    """Uses one weight for both maps."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return torch.tanh(x @ self.weight.T) @ self.weight.T


@EVERY
def test_tied_parameters_are_one_parameter(name, make_network):
    tied, single = make_network(), make_network()
    one, two = (nn.Linear(4, 4, bias=False, dtype=torch.float64) for _ in range(2))
    two.weight = one.weight
    single.model = Twice(one.weight.detach().clone())
    tied.model = nn.Sequential(one, nn.Tanh(), two)
    for network in (tied, single):
        run(network, make(name, network, rho=0.3), 4)
    torch.testing.assert_close(one.weight, single.model.weight, rtol=1e-12, atol=1e-14)


@EVERY
def test_a_parameter_that_only_the_first_pass_uses_comes_back(name, make_network):
    if name == "msam":
        return  # there is one pass, so no parameter that only the first of two uses
    b, seen = nn.Parameter(torch.full((2, 2), 2.0, dtype=torch.float64)), []
    network = make_network()
    optimizer = make(name, network, params=[*network.model.parameters(), b], rho=0.5, base_options={})

    def closure():
        optimizer.zero_grad()
        seen.append(b.detach().clone())
        loss = network.loss() + (3.0 * b.sum() if len(seen) == 1 else 0.0)
        loss.backward()
        return loss

    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step(closure)
    assert bool((seen[1] > 2.0).all())  # perturbed along its gradient
    assert torch.equal(b, torch.full_like(b, 2.0))


@EVERY
def test_a_parameter_that_only_the_last_pass_uses_is_updated_and_not_perturbed(name, make_network):
    b, seen = nn.Parameter(torch.tensor([[2.0]], dtype=torch.float64)), []
    network = make_network()
    optimizer = make(name, network, params=[*network.model.parameters(), b], rho=0.5)

    def closure():
        optimizer.zero_grad()
        seen.append(b.item())
        loss = network.loss() + (3.0 * b.sum() if len(seen) == passes_of(name) else 0.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert seen == [2.0] * passes_of(name)
    # CR-SAM subtracts the gradient at w - eps with weight beta - gamma; WSAM climbs outside of .grad
    moved = {"crsam": 0.1 * (0.1 - 0.01) * 3.0, "wsam": 0.1 * 9 * 3.0}.get(name, 0.1 * b.grad.item())
    if name == "adam_sam":
        moved = 0.1 * (1.0 + 0.01 * 2.0)  # AdamW's first step is its rate, and decays
    assert b.item() == pytest.approx(2.0 - moved, rel=1e-6)
    assert b.item() != 2.0


@pytest.mark.cell("plain loop", "accumulation")
@EVERY
def test_gradient_accumulation_in_phase_form_is_the_full_batch_step(name, make_network):
    whole, pieces = make_network(), make_network()
    run(whole, make(name, whole), 4)
    optimizer = make(name, pieces)
    for _ in range(4):
        for _ in optimizer.passes():
            for i in range(3):
                (pieces.loss(slice(4 * i, 4 * i + 4)) / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(whole.weights(), pieces.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@EVERY
def test_restore_is_exact_after_many_rounds(name, make_network):
    network = make_network(dtype=torch.float32)
    optimizer = make(name, network, rho=0.3)
    run(network, optimizer, 2)  # momentum SAM needs a momentum
    weights, moved = network.weights(), 0
    for _ in range(12):
        optimizer.zero_grad()
        for _ in optimizer.passes():
            moved += not torch.equal(network.model[0].weight, weights[0])
            network.loss().backward()
        optimizer.restore()
    assert moved == 12 * max(1, passes_of(name) - 1)
    assert_identical(network.weights(), weights)


@EVERY
def test_restore_without_a_pass_calls_the_step_off(name, make_network):
    network = make_network()
    optimizer = make(name, network, rho=0.3)
    run(network, optimizer, 2)
    weights, state = network.weights(), snapshot(optimizer)
    optimizer.zero_grad()
    network.loss().backward()
    grads = [p.grad.clone() for p in network.model.parameters()]
    optimizer.perturb()
    optimizer.restore()
    assert_identical(network.weights(), weights)
    assert_identical([p.grad for p in network.model.parameters()], grads)
    with pytest.raises(RuntimeError, match="without a second pass"):
        optimizer.step()
    assert_same_state(snapshot(optimizer), state)


@EVERY
def test_perturbed_is_a_visit(name, make_network):
    network = make_network(nn.BatchNorm1d(8), nn.Dropout(0.5))
    optimizer = make(name, network, rho=0.3)
    run(network, optimizer, 2)
    telemetry, state = optimizer.telemetry.read(), snapshot(optimizer)
    grads = [p.grad.clone() for p in network.model.parameters()]
    weights, buffers = network.weights(), [b.clone() for b in network.model.buffers()]
    rng = torch.get_rng_state()

    def visit():
        with optimizer.perturbed():
            assert not torch.equal(network.model[0].weight, weights[0])
            network.loss().backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        visit()
    assert_identical(network.weights(), weights)
    assert_identical([p.grad for p in network.model.parameters()], grads)
    assert_identical(network.model.buffers(), buffers)
    assert torch.equal(torch.get_rng_state(), rng)
    assert optimizer.telemetry.read() == telemetry
    assert_same_state(snapshot(optimizer), state)
    assert not optimizer.is_perturbed


@EVERY
def test_a_visit_goes_where_the_step_goes(name, make_network):
    network = make_network()
    optimizer = make(name, network, rho=0.3)
    run(network, optimizer, 2)
    optimizer.zero_grad()
    network.loss().backward()
    with optimizer.perturbed():
        visited = network.weights()
    places = []
    optimizer.zero_grad()
    for _ in optimizer.passes():
        places.append(network.weights())
        network.loss().backward()
    optimizer.step()
    assert_identical(visited, places[0 if name == "msam" else 1])


@EVERY
def test_gradients_stay_for_logging_and_named_parameters_are_kept(name, make_network):
    network = make_network()
    optimizer = make(name, network, params=network.model.named_parameters())
    run(network, optimizer, 1)
    assert all(p.grad is not None for p in network.model.parameters())
    assert optimizer.param_groups[0]["param_names"][0] == "0.weight"


@EVERY
def test_repr_shows_the_method_and_the_base(name, make_network):
    optimizer = make(name, make_network(), rho=0.25)
    text = repr(optimizer)
    assert text.startswith(METHODS[name].__name__)
    assert "rho=0.25" in text
    assert type(optimizer.base).__name__ in text
    assert "weight_decay: " in text


@EVERY
def test_wrapping_a_base_again_takes_the_new_rho(name, make_network):
    network = make_network()
    base = BASES[fitting(name)]([{"params": network.model.parameters()}], lr=0.1)
    for rho in (0.3, 0.6):
        assert wrap(name, base, network, rho=rho).param_groups[0]["sam_rho"] == rho


@EVERY
def test_no_forward_is_recorded_for_ever(name, make_network):
    network = make_network(nn.Dropout(0.3))
    optimizer = make(name, network)
    (recorder,) = network.model._forward_pre_hooks.values()
    run(network, optimizer, 5)
    run_phases(network, optimizer, 5)
    assert len(recorder.states) <= 1


@EVERY
def test_impossible_values_are_refused_by_name(name, make_network):
    network = make_network()
    base = BASES[fitting(name)](network.model.parameters(), lr=0.1)
    for rho in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="rho="):
            wrap(name, base, network, rho=rho)
    optimizer = wrap(name, base, network)
    groups = len(optimizer.param_groups)
    with pytest.raises(ValueError, match="rho="):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "rho": -1.0})
    assert len(optimizer.param_groups) == groups
    with pytest.raises(TypeError, match="optimizer instance"):
        wrap(name, network.model.parameters(), network)
    with pytest.raises(TypeError, match="two passes already"):
        wrap(name, optimizer, network)
    with pytest.raises(ValueError, match="LBFGS"):
        wrap(name, torch.optim.LBFGS(network.model.parameters()), network)
