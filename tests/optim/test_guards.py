"""BatchNorm statistics and random numbers of a two-pass step are those of one pass."""

import copy
import gc

import pytest
import torch
from drivers import ALL, make, run, run_phases
from torch import nn

from optland.optim import SAM
from optland.optim.guards import PassGuard


class MaskRecorder(nn.Module):
    """Dropout that shows its masks, and a buffer of its own that counts training forwards."""

    def __init__(self):
        super().__init__()
        self.masks = []
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.masks.append(torch.rand_like(x) > 0.5)
            self.seen.add_(1)
            return x * self.masks[-1]
        return x


def sam(network, **options):
    return SAM(torch.optim.SGD(network.model.parameters(), lr=0.1), rho=0.3, **options)


def closure_step(network, optimizer):
    optimizer.step(network.closure(optimizer))


def phase_step(network, optimizer):
    optimizer.zero_grad()
    network.loss().backward()
    optimizer.perturb()
    network.loss().backward()
    optimizer.step()


FORMS = pytest.mark.parametrize("step", [closure_step, phase_step])


@FORMS
def test_statistics_are_those_of_the_first_pass(make_network, step):
    network, plain = (make_network(nn.BatchNorm1d(8), MaskRecorder()) for _ in range(2))
    optimizer = sam(network, model=network.model)
    for _ in range(3):
        torch.manual_seed(0)
        plain.model.load_state_dict(network.model.state_dict())
        plain.loss()
        torch.manual_seed(0)
        step(network, optimizer)
        for a, b in zip(network.model.buffers(), plain.model.buffers(), strict=True):
            assert torch.equal(a, b)
    assert network.model[1].num_batches_tracked.item() == network.model[2].seen.item() == 3


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("form", [run, run_phases])
def test_every_method_draws_one_mask_a_step_and_counts_one_batch(make_network, name, form):
    network = make_network(nn.BatchNorm1d(8), MaskRecorder())
    optimizer, masks = make(name, network), network.model[2].masks
    firsts = []
    for step in range(1, 5):
        masks.clear()
        form(network, optimizer, 1)
        assert len(masks) == optimizer.last_evaluations
        assert all(torch.equal(mask, masks[0]) for mask in masks)
        assert network.model[1].num_batches_tracked.item() == network.model[2].seen.item() == step
        firsts.append(masks[0])
    assert not torch.equal(firsts[0], firsts[1])


def test_without_the_model_the_statistics_move_twice(make_network):
    network = make_network(nn.BatchNorm1d(8))
    with pytest.warns(RuntimeWarning, match="running statistics of 1 BatchNorm1d"):
        closure_step(network, sam(network))
    assert network.model[1].num_batches_tracked.item() == 2


@FORMS
def test_both_passes_see_the_same_masks_and_the_random_state_moves_once(make_network, step):
    network = make_network(MaskRecorder())
    optimizer = sam(network, model=network.model)
    torch.manual_seed(0)
    network.loss()
    after_one_pass = torch.get_rng_state()
    network.model[1].masks.clear()
    torch.manual_seed(0)
    step(network, optimizer)
    step(network, optimizer)
    masks = network.model[1].masks
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])
    torch.manual_seed(0)
    step(network, optimizer)
    assert torch.equal(torch.get_rng_state(), after_one_pass)


def test_the_closure_form_replays_all_draws_without_a_model(make_network):
    network, drawn = make_network(), []
    optimizer = sam(network)

    def closure():
        optimizer.zero_grad()
        drawn.append(torch.randn(3))  # an augmentation, say
        loss = network.loss()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.equal(drawn[0], drawn[1])


def test_micro_batches_are_replayed_forward_by_forward(make_network):
    network = make_network(MaskRecorder())
    optimizer = sam(network, model=network.model)
    optimizer.zero_grad()
    for sweep in range(2):
        for i in range(3):
            torch.randn(5 + sweep)  # a loader draws in between, and differently in each sweep
            if sweep == 0:
                with torch.no_grad():
                    network.loss()  # an evaluation in between is no part of the pass
            network.loss(slice(4 * i, 4 * i + 4)).backward()
        if sweep == 0:
            optimizer.perturb()
            after_one_pass = torch.get_rng_state()
    torch.randn(7)
    optimizer.step()
    masks = [m for m in network.model[1].masks if m.shape[0] == 4]
    assert len(masks) == 6
    assert all(torch.equal(masks[i], masks[i + 3]) for i in range(3))
    assert torch.equal(torch.get_rng_state(), after_one_pass)


def test_forwards_before_zero_grad_are_no_part_of_the_pass(make_network):
    network = make_network(MaskRecorder())
    optimizer = sam(network, model=network.model)
    network.loss()
    phase_step(network, optimizer)
    masks = network.model[1].masks
    assert torch.equal(masks[1], masks[2])


def test_guards_are_idempotent(make_network):
    network = make_network(nn.BatchNorm1d(8))
    guard = PassGuard(network.model)
    guard.end_second()  # nothing was begun
    network.loss()
    mean = network.model[1].running_mean.clone()
    rng = torch.get_rng_state()
    guard.begin_second()
    torch.randn(3)
    network.loss()
    guard.begin_second()
    network.loss()
    assert not torch.equal(network.model[1].running_mean, mean)
    guard.end_second()
    guard.end_second()
    assert torch.equal(network.model[1].running_mean, mean)
    assert torch.equal(torch.get_rng_state(), rng)
    assert network.model[1].momentum == 0.1
    network.loss()
    assert not torch.equal(network.model[1].running_mean, mean)


def test_the_hook_leaves_with_the_optimizer_and_sleeps_in_copies_of_the_model(make_network):
    network = make_network(nn.Dropout(0.5))
    optimizer = sam(network, model=network.model)
    (recorder,) = network.model._forward_pre_hooks.values()
    average = copy.deepcopy(network.model)
    (copied,) = average._forward_pre_hooks.values()
    average(network.x)
    assert not copied.states
    network.loss()
    assert len(recorder.states) == 1
    del optimizer, recorder
    gc.collect()
    assert not network.model._forward_pre_hooks


def test_the_model_may_be_compiled(make_network):
    network = make_network(nn.Dropout(0.5))
    optimizer = sam(network, model=network.model)
    eager = make_network(nn.Dropout(0.5))
    eager_optimizer = sam(eager, model=eager.model)
    network.model = torch.compile(network.model, backend="eager")
    for net, opt in ((network, optimizer), (eager, eager_optimizer)):
        torch.manual_seed(0)
        phase_step(net, opt)
        phase_step(net, opt)
    for a, b in zip(network.weights(), eager.weights(), strict=True):
        assert torch.equal(a, b)
