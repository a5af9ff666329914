"""Bytes of the allocator, counted by the profiler: what a step holds at its most crowded moment, and after it."""

from functools import cache

import pytest
import torch
from drivers import ALL, BASES, fitting, make, slow_unless
from torch import nn
from torch.profiler import ProfilerActivity, profile

from optland.optim.cards import CARDS

OF = {card.name: card for card in CARDS}
TENSORS, LENGTH = 20, 40_000
SIZE = TENSORS * LENGTH * 8
"""One copy of the weights; its tensors are too large for sums to copy them together."""

STEPS = 3


class Sums:
    """Many tensors and next to no activations."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        draws = torch.randn(TENSORS, LENGTH, generator=generator, dtype=torch.float64)
        self.model = nn.ParameterList([nn.Parameter(w.view(40, -1).clone()) for w in draws])

    def loss(self):
        return torch.stack([p.square().sum() for p in self.model]).square().sum() / 1e8

    def closure(self, optimizer):
        def closure():
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            return loss

        return closure


def held(run):
    """Copies at the most crowded moment of a run, and at its end."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most / SIZE, now / SIZE


def by_closures(network, optimizer):
    for _ in range(STEPS):
        optimizer.step(network.closure(optimizer))
    optimizer.zero_grad()


def by_phases(network, optimizer):
    for _ in range(STEPS):
        optimizer.zero_grad()
        for _ in optimizer.passes():
            network.loss().backward()
        optimizer.step()
    optimizer.zero_grad()


@cache
def of_base(kind):
    network = Sums()
    base = BASES[kind](network.model.parameters(), lr=0.1, foreach=False)
    return held(lambda: by_closures(network, base))


def of_method(name, form, **options):
    network = Sums()
    optimizer = make(name, network, guarded=False, base_options={"foreach": False}, **options)
    return held(lambda: form(network, optimizer))


# A Lanczos run has its own memory, which its objective pays for.
WITHOUT_LANCZOS = [name for name in ALL if name != "eigensam"]


@pytest.mark.parametrize("name", WITHOUT_LANCZOS)
def test_the_most_crowded_moment_is_what_the_card_says(name):
    of_plain, after_plain = of_base(fitting(name))
    runs = [of_method(name, form, telemetry_every=0) for form in (by_closures, by_phases)]
    assert [after - after_plain for _, after in runs] == pytest.approx([OF[name].state] * 2, abs=0.05)
    most = max(most for most, _ in runs) - of_plain - OF[name].state
    assert most == pytest.approx(OF[name].peak, abs=0.2)  # a part is a tensor of twenty, or three


@pytest.mark.parametrize(
    "name", [slow_unless(n in ("sam", "looksam", "msam", "asam"), n) for n in WITHOUT_LANCZOS]
)
def test_a_measurement_takes_one_more_at_most(name):
    with_one, without = (of_method(name, by_closures, telemetry_every=every)[0] for every in (1, 0))
    assert with_one - without < 1.1
