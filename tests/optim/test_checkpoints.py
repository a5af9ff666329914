"""Saving and loading: what a method remembers travels with the base's own state, and nothing else does."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from drivers import (
    ALL,
    BASES,
    assert_identical,
    assert_same_state,
    fits,
    fitting,
    make,
    remembered,
    run,
    run_phases,
    slow_unless,
    snapshot,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import lr_scheduler

from optland.optim import Every, LargeGradient

EVERY = pytest.mark.parametrize("name", ALL)
FORMS = pytest.mark.parametrize("form", [run, run_phases])

GATES = {
    "none": lambda: None,
    "every": lambda: Every(2),
    "large gradient": lambda: LargeGradient(6),
}


def through_a_file(**saved):
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.cell("plain loop", "resume")
@EVERY
@pytest.mark.parametrize(
    ("base", "form", "gate"),
    [
        ("sgd", run, "none"),
        ("sgd", run_phases, "large gradient"),  # a gate that remembers
        slow_unless(False, "adamw", run, "none"),  # AdamW and other bases are in test_bases
        slow_unless(False, "sgd", run, "every"),
        slow_unless(False, "sgd", run_phases, "none"),
        slow_unless(False, "adamw", run_phases, "every"),
        slow_unless(False, "adamw", run, "large gradient"),
    ],
)
def test_three_steps_saved_and_three_more_are_six(name, make_network, base, form, gate):
    straight, saved, fresh = make_network(), make_network(), make_network()
    uninterrupted = make(name, straight, base, rho=0.3, gate=GATES[gate]())
    form(straight, uninterrupted, 6)
    optimizer = make(name, saved, base, rho=0.3, gate=GATES[gate]())
    form(saved, optimizer, 3)
    checkpoint = through_a_file(model=saved.model.state_dict(), optimizer=optimizer.state_dict())
    fresh.model.load_state_dict(checkpoint["model"])
    resumed = make(name, fresh, base, rho=0.01, lr=9.0, gate=GATES[gate]())
    resumed.load_state_dict(checkpoint["optimizer"])
    assert resumed.param_groups[0]["sam_rho"] == 0.3
    form(fresh, resumed, 3)
    assert_identical(straight.weights(), fresh.weights())
    assert_same_state(snapshot(uninterrupted), snapshot(resumed))


@EVERY
def test_checkpoint_holds_the_bases_state_and_what_the_method_remembers(name, make_network):
    network, other = make_network(), make_network()
    optimizer = make(name, network)
    plain = BASES[fitting(name)](other.model.parameters(), lr=0.1)
    run(network, optimizer, 2)
    run(other, plain, 2)
    entries = [set(entry) for entry in optimizer.state_dict()["state"].values()]
    of_base = [set(entry) for entry in plain.state_dict()["state"].values()]
    assert entries == [keys | remembered(name) for keys in of_base]
    assert optimizer.state is optimizer.base.state


@EVERY
def test_a_plain_base_checkpoint_can_be_continued(name, make_network):
    network, other = make_network(), make_network()
    plain = BASES[fitting(name)](network.model.parameters(), lr=0.3)
    run(network, plain, 2)
    other.model.load_state_dict(network.model.state_dict())
    optimizer = make(name, network, rho=0.25)
    optimizer.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert (optimizer.param_groups[0]["sam_rho"], optimizer.param_groups[0]["lr"]) == (0.25, 0.3)
    run(network, optimizer, 3)
    # and back: the base alone goes on from the method's checkpoint
    again = BASES[fitting(name)](network.model.parameters(), lr=9.0)
    again.load_state_dict(through_a_file(it=optimizer.state_dict())["it"])
    run(network, again, 1)
    assert again.param_groups[0]["lr"] == 0.3


@EVERY
@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deep", "pickle"]
)
def test_copies_go_on_by_themselves_with_the_same_numbers(name, make_network, copier):
    network = make_network(nn.BatchNorm1d(8), nn.Dropout(0.2))
    optimizer = make(name, network, rho=0.2, gate=Every(2), only="weights")
    lr_scheduler.StepLR(optimizer, 1)  # patches step of this instance, which a copy must not inherit
    run(network, optimizer, 2)
    twin, twin_optimizer = copier((network, optimizer))
    before = network.weights()
    torch.manual_seed(5)
    run_phases(twin, twin_optimizer, 3)
    assert_identical(network.weights(), before)
    torch.manual_seed(5)
    run_phases(network, optimizer, 3)
    assert_identical(network.weights(), twin.weights())
    assert_identical(network.model.buffers(), twin.model.buffers())
    assert_same_state(snapshot(optimizer), snapshot(twin_optimizer))


@EVERY
def test_a_copy_between_two_micro_batches_has_the_sum(name, make_network):
    network = make_network()
    optimizer = make(name, network)
    run(network, optimizer, 1)

    def second_half(net, opt):
        opt.accumulate(lambda: half(net, opt, slice(6, 12)), share=0.5)
        opt.step()

    def half(net, opt, part):
        opt.zero_grad()
        (net.loss(part) / 2).backward()

    optimizer.accumulate(lambda: half(network, optimizer, slice(6)), share=0.5)
    twin, twin_optimizer = copy.deepcopy((network, optimizer))
    second_half(network, optimizer)
    second_half(twin, twin_optimizer)
    assert_identical(network.weights(), twin.weights())


@EVERY
@pytest.mark.parametrize(
    ("base", "before"),
    [("sgd", 0), ("sgd", 3), slow_unless(False, "adamw", 0), slow_unless(False, "adamw", 3)],
)
def test_distributed_checkpoint_state_dicts_resume(name, make_network, base, before):
    saved, fresh = make_network(), make_network()
    optimizer = make(name, saved, base, rho=0.3)
    run(saved, optimizer, before)
    saved.model.zero_grad()
    state: Any = copy.deepcopy(get_optimizer_state_dict(saved.model, optimizer))
    assert remembered(name) <= set(state["state"]["0.weight"])
    fresh.model.load_state_dict(saved.model.state_dict())
    resumed = make(name, fresh, base, rho=0.01, lr=9.0)
    set_optimizer_state_dict(fresh.model, resumed, state)
    assert resumed.param_groups[0]["sam_rho"] == 0.3
    assert_same_state(snapshot(resumed), snapshot(optimizer))
    run(saved, optimizer, 3)
    run(fresh, resumed, 3)
    assert_identical(saved.weights(), fresh.weights())


@EVERY
def test_room_for_the_state_is_no_update(name, make_network):
    network, other = make_network(), make_network()
    optimizer, expected = make(name, network), make(name, other)
    weights = network.weights()
    optimizer.step()  # no gradients at all
    for p in network.model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step(closure=None)
    assert len(optimizer.state) == 4
    assert all(remembered(name) <= set(entry) for entry in optimizer.state.values())
    assert_identical(network.weights(), weights)
    assert optimizer.steps == 0
    if fits(name, "sgd"):  # AdamW itself counts the step that made its room
        optimizer.param_groups[0]["lr"] = 0.1
        run(network, optimizer, 3)
        run(other, expected, 3)
        assert_identical(network.weights(), other.weights())


@EVERY
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


@EVERY
def test_loading_drops_what_a_step_had_in_flight(name, make_network):
    network, other = make_network(), make_network()
    for net, disturbed in ((network, True), (other, False)):
        optimizer = make(name, net, gate=LargeGradient(6))
        run(net, optimizer, 2)
        saved = copy.deepcopy((net.model.state_dict(), optimizer.state_dict()))
        if disturbed:
            optimizer.zero_grad()
            for _ in optimizer.passes():
                (100 * net.loss()).backward()
            optimizer.restore()
            optimizer.zero_grad()
        net.model.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
        run(net, optimizer, 2)
    assert_identical(network.weights(), other.weights())
