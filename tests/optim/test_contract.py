"""What every two-pass method owes to loops, schedulers and checkpoints; each test runs for the whole registry."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook

from optland.optim import create
from optland.optim.registry import METHODS

pytestmark = pytest.mark.parametrize("name", METHODS)


def make(name, network, base="sgd", **options):
    options = {"lr": 0.1, **({"momentum": 0.9} if base == "sgd" else {}), **options}
    return create(name, network.model.parameters(), base=base, model=network.model, **options)


def run(network, optimizer, steps):
    return [optimizer.step(network.closure(optimizer)).item() for _ in range(steps)]


def run_phases(network, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        network.loss().backward()
        optimizer.perturb()
        network.loss().backward()
        optimizer.step()


def assert_identical(a, b):
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


LAYERS = {"plain": (), "dropout": (nn.Dropout(0.3),), "batchnorm": (nn.BatchNorm1d(8),)}


@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("layers", LAYERS)
def test_closure_and_phase_form_agree_bit_for_bit(name, make_network, base, layers):
    one, two = (make_network(*copy.deepcopy(LAYERS[layers])) for _ in range(2))
    torch.manual_seed(3)
    run(one, make(name, one, base), 4)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    run_phases(two, make(name, two, base), 4)
    assert_identical(one.weights(), two.weights())
    assert_identical(one.model.buffers(), two.model.buffers())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("base", ["sgd", "adamw", "rmsprop"])
def test_rho_zero_is_the_base_optimizer_bit_for_bit(name, make_network, base):
    layers = (nn.BatchNorm1d(8), nn.Dropout(0.3))
    one, two = (make_network(*copy.deepcopy(layers)) for _ in range(2))
    options = {"momentum": 0.9} if base == "sgd" else {}
    plain = create(base, one.model.parameters(), lr=0.05, **options)
    two_pass = create(name, two.model.parameters(), base=base, lr=0.05, rho=0.0, **options)
    torch.manual_seed(0)
    expected = run(one, plain, 5)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    assert run(two, two_pass, 5) == expected
    assert two_pass.last_evaluations == 1
    assert_identical(one.weights(), two.weights())
    assert_identical(one.model.buffers(), two.model.buffers())
    assert torch.equal(torch.get_rng_state(), state)


def test_rho_zero_in_phase_form_is_the_base_optimizer_too(name, make_network):
    one, two = make_network(nn.Dropout(0.3)), make_network(nn.Dropout(0.3))
    torch.manual_seed(0)
    run(one, create("sgd", one.model.parameters(), lr=0.05), 4)
    torch.manual_seed(0)
    run_phases(two, make(name, two, lr=0.05, momentum=0.0, rho=0.0), 4)
    assert_identical(one.weights(), two.weights())


def test_lr_zero_leaves_the_weights_alone(name, make_network):
    network = make_network(dtype=torch.float32)
    before = network.weights()
    optimizer = make(name, network, lr=0.0, rho=0.7)
    run(network, optimizer, 3)
    assert optimizer.last_evaluations == optimizer.evaluations == 2
    assert_identical(network.weights(), before)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_three_steps_saved_and_three_more_are_six(name, make_network, base):
    straight, saved = make_network(), make_network()
    expected = run(straight, make(name, straight, base, rho=0.3), 6)
    optimizer = make(name, saved, base, rho=0.3)
    losses = run(saved, optimizer, 3)
    file = io.BytesIO()
    torch.save({"model": saved.model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    fresh = make_network()
    fresh.model.load_state_dict(checkpoint["model"])
    resumed = make(name, fresh, base, rho=0.01, lr=9.0)
    resumed.load_state_dict(checkpoint["optimizer"])
    assert resumed.param_groups[0]["rho"] == 0.3
    assert losses + run(fresh, resumed, 3) == expected
    assert_identical(straight.weights(), fresh.weights())


def test_checkpoint_holds_nothing_but_the_base_optimizers_state(name, make_network):
    network = make_network()
    optimizer = make(name, network)
    run(network, optimizer, 1)
    entries = {key for entry in optimizer.state_dict()["state"].values() for key in entry}
    assert entries == {"momentum_buffer"}
    assert optimizer.state is optimizer.base.state


def test_a_plain_base_checkpoint_can_be_continued(name, make_network):
    network = make_network()
    plain = torch.optim.SGD(network.model.parameters(), lr=0.3, momentum=0.9)
    run(network, plain, 2)
    optimizer = make(name, network, rho=0.25)
    optimizer.load_state_dict(plain.state_dict())
    assert (optimizer.param_groups[0]["rho"], optimizer.param_groups[0]["lr"]) == (0.25, 0.3)
    run(network, optimizer, 1)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on_by_themselves_with_the_same_numbers(name, make_network, copier):
    network = make_network(nn.BatchNorm1d(8), nn.Dropout(0.2))
    optimizer = make(name, network, rho=0.2)
    lr_scheduler.StepLR(optimizer, 1)  # patches step of this instance, which a copy must not inherit
    run(network, optimizer, 2)
    twin, twin_optimizer = copier((network, optimizer))
    before = network.weights()
    torch.manual_seed(5)
    run_phases(twin, twin_optimizer, 2)
    assert_identical(network.weights(), before)
    torch.manual_seed(5)
    run_phases(network, optimizer, 2)
    assert_identical(network.weights(), twin.weights())
    assert_identical(network.model.buffers(), twin.model.buffers())


SCHEDULERS = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 6),
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=6),
    "step": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0),
}


@pytest.mark.parametrize("form", [run, run_phases])
@pytest.mark.parametrize("scheduler_name", SCHEDULERS)
def test_schedulers_attach_and_drive_the_base(name, make_network, scheduler_name, form):
    network, other = make_network(), make_network()
    optimizer = make(name, network)
    plain = torch.optim.SGD(other.model.parameters(), lr=0.1, momentum=0.9)
    schedulers = [SCHEDULERS[scheduler_name](o) for o in (optimizer, plain)]
    seen = []
    for _ in range(5):
        form(network, optimizer, 1)
        run(other, plain, 1)
        for scheduler in schedulers:
            scheduler.step(*([1.0] if scheduler_name == "plateau" else []))
        assert optimizer.base.param_groups[0]["lr"] == plain.param_groups[0]["lr"]
        assert optimizer.base.param_groups[0]["momentum"] == plain.param_groups[0]["momentum"]
        seen.append(plain.param_groups[0]["lr"])
    assert len(set(seen)) > 1


@pytest.mark.parametrize("form", [run, run_phases])
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


def test_global_hooks_fire_once(name, make_network):
    network, count = make_network(), []
    optimizer = make(name, network)
    handle = register_optimizer_step_post_hook(lambda *_: count.append(1))
    try:
        run(network, optimizer, 3)
    finally:
        handle.remove()
    assert len(count) == 3


def test_state_dict_hooks_see_the_wrapper(name, make_network):
    optimizer, seen = make(name, make_network()), []
    optimizer.register_state_dict_pre_hook(lambda o: seen.append(o))
    optimizer.register_state_dict_post_hook(lambda o, d: {**d, "extra": 1})
    optimizer.register_load_state_dict_pre_hook(lambda o, d: {k: d[k] for k in ("state", "param_groups")})
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(o))
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    assert state["extra"] == 1
    assert len(seen) == 2
    assert all(o is optimizer for o in seen)


@pytest.mark.parametrize("failing_pass", [1, 2])
def test_an_exception_in_the_closure_leaves_everything_as_it_was(name, make_network, failing_pass):
    network = make_network(nn.BatchNorm1d(8))
    optimizer = make(name, network)
    run(network, optimizer, 1)
    weights = network.weights()
    calls = []

    def closure():
        optimizer.zero_grad()
        network.loss().backward()
        calls.append(1)
        if len(calls) == failing_pass:
            raise KeyboardInterrupt
        return network.loss()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert len(calls) == failing_pass
    assert not optimizer.is_perturbed
    assert_identical(network.weights(), weights)
    run(network, optimizer, 1)


def test_groups_added_later_get_rho_and_are_trained(name, make_network):
    network = make_network()
    first, last = network.model[0], network.model[-1]
    optimizer = create(name, first.parameters(), lr=0.1, rho=0.3)
    optimizer.add_param_group({"params": last.parameters(), "lr": 0.2})
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.param_groups[1]["rho"] == optimizer.defaults["rho"] == 0.3
    before = last.weight.detach().clone()
    run(network, optimizer, 1)
    assert not torch.equal(last.weight, before)


def test_frozen_and_unused_parameters_are_left_alone(name, make_network):
    network = make_network()
    network.model[0].requires_grad_(False)
    unused = nn.Parameter(torch.ones(3))
    optimizer = create(name, [*network.model.parameters(), unused], lr=0.1, weight_decay=0.1)
    frozen = network.model[0].weight.clone()
    run(network, optimizer, 2)
    assert torch.equal(network.model[0].weight, frozen)
    assert torch.equal(unused, torch.ones(3))
    assert unused.grad is None


@pytest.mark.parametrize("used_in_pass", [1, 2])
def test_a_parameter_that_only_one_pass_uses(name, used_in_pass):
    a, b = (nn.Parameter(torch.tensor([[2.0]])) for _ in range(2))
    optimizer = create(name, [a, b], lr=0.1, rho=0.5)
    calls, seen = [], []

    def closure():
        optimizer.zero_grad()
        calls.append(1)
        seen.append(b.item())
        loss = a.square().sum()
        if len(calls) == used_in_pass:
            loss = loss + 3.0 * b.sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    if used_in_pass == 1:  # perturbed, restored, and no gradient at w + eps
        assert seen[1] > 2.0
        assert b.item() == 2.0
    else:  # not perturbed, and moved by its gradient at w + eps
        assert seen == [2.0, 2.0]
        assert b.item() == pytest.approx(2.0 - 0.1 * 3.0)
    assert a.item() < 2.0


@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("bad_pass", [1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_gradient_in_either_pass_changes_nothing(name, make_network, base, bad_pass, value):
    network = make_network(nn.BatchNorm1d(8))
    optimizer = make(name, network, base)
    run(network, optimizer, 2)
    assert optimizer.telemetry.read()["sam/skipped"] == 0.0
    weights, state = network.weights(), copy.deepcopy(optimizer.state_dict()["state"])
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = network.loss()
        assert loss.isfinite()  # an infinite g must not carry the weights away
        loss.backward()
        calls.append(1)
        if len(calls) == bad_pass:
            network.model[0].bias.grad[0] = value
        return loss

    optimizer.step(closure)
    assert optimizer.telemetry.read()["sam/skipped"] == 1.0
    assert_identical(network.weights(), weights)
    after = optimizer.state_dict()["state"]
    assert all(
        torch.equal(torch.as_tensor(after[i][k]), torch.as_tensor(state[i][k]))
        for i in state
        for k in state[i]
    )
    assert all(b.isfinite().all() for b in network.model.buffers())
    run(network, optimizer, 1)
    assert optimizer.telemetry.read()["sam/skipped"] == 0.0


def test_without_the_finite_check_the_base_gets_what_there_is(name, make_network):
    network = make_network()
    optimizer = make(name, network, check_finite=False)

    def closure():
        optimizer.zero_grad()
        (network.loss() * float("nan")).backward()

    assert optimizer.step(closure) is None
    assert network.model[0].weight.isnan().all()


def test_gradient_accumulation_in_phase_form_is_the_full_batch_step(name, make_network):
    whole, pieces = make_network(), make_network()
    run(whole, make(name, whole), 3)
    optimizer = make(name, pieces)
    for _ in range(3):
        for backward_pass in (1, 2):
            for i in range(3):
                (pieces.loss(slice(4 * i, 4 * i + 4)) / 3).backward()
            if backward_pass == 1:
                optimizer.perturb()
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(whole.weights(), pieces.weights(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_restore_is_exact_after_many_rounds(name, make_network):
    network = make_network(dtype=torch.float32)
    optimizer = make(name, network, rho=0.3)
    weights = network.weights()
    for _ in range(50):
        network.loss().backward()
        optimizer.perturb()
        assert optimizer.is_perturbed
        network.loss().backward()
        optimizer.restore()
        optimizer.zero_grad()
    assert_identical(network.weights(), weights)


def test_perturbed_is_a_visit(name, make_network):
    network = make_network(nn.BatchNorm1d(8), nn.Dropout(0.5))
    optimizer = make(name, network, rho=0.3)
    run(network, optimizer, 1)
    telemetry = optimizer.telemetry.read()
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
    assert not optimizer.is_perturbed


def test_checkpointers_may_materialise_the_state_with_zero_gradients(name, make_network):
    network = make_network()
    optimizer = make(name, network, "adamw")
    weights = network.weights()
    optimizer.step()  # no gradients at all
    for p in network.model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step(closure=None)
    assert len(optimizer.state) == 4
    assert_identical(network.weights(), weights)


def test_gradients_stay_for_logging_and_named_parameters_are_kept(name, make_network):
    network = make_network()
    optimizer = create(name, network.model.named_parameters(), lr=0.1)
    run(network, optimizer, 1)
    assert all(p.grad is not None for p in network.model.parameters())
    assert optimizer.param_groups[0]["param_names"][0] == "0.weight"


def test_repr_shows_the_method_and_the_base(name, make_network):
    text = repr(make(name, make_network(), rho=0.25))
    assert text.startswith(METHODS[name].__name__)
    assert "rho=0.25" in text
    assert "SGD" in text
    assert "momentum: 0.9" in text


def test_wrapping_a_base_again_takes_the_new_rho(name, make_network):
    base = torch.optim.SGD([{"params": make_network().model.parameters()}], lr=0.1)
    for rho in (0.3, 0.6):
        assert METHODS[name](base, rho=rho).param_groups[0]["rho"] == rho
