"""Coherence of successive gradients: the cosine by hand, and the share of signal that it estimates."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from optland.pilot.measure import DENSE, EVERY, Coherence


class Measured:
    """Every update in turn, as if the cosine were due at each."""

    def __init__(self, params: list[nn.Parameter], optimizer: torch.optim.Optimizer | None = None) -> None:
        self.params, self.optimizers = params, [] if optimizer is None else [optimizer]
        self.coherence = Coherence()

    def measure(self) -> float:
        found = self.coherence.observe(1, self.params, self.optimizers)
        return math.nan if found is None else float(found)

    def forget(self) -> None:
        self.coherence.forget()


def given(params: list[nn.Parameter], gradients: list[torch.Tensor | None]) -> None:
    for p, g in zip(params, gradients, strict=True):
        p.grad = g


def test_the_cosine_is_over_all_tensors_together() -> None:
    params = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    coherence = Measured(params)
    given(params, [torch.tensor([3.0, 0.0]), torch.tensor([4.0])])
    assert math.isnan(coherence.measure())
    given(params, [torch.tensor([1.0, 1.0]), torch.tensor([-1.0])])
    assert coherence.measure() == pytest.approx((3.0 - 4.0) / (5.0 * math.sqrt(3.0)))
    coherence.forget()
    assert math.isnan(coherence.measure())


def test_tensors_without_a_gradient_are_left_out() -> None:
    params = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    coherence = Measured(params)
    given(params, [torch.tensor([1.0, 0.0]), torch.tensor([9.0, 9.0])])
    coherence.measure()
    given(params, [torch.tensor([1.0, 1.0]), None])
    assert coherence.measure() == pytest.approx(1.0 / math.sqrt(2.0))
    given(params, [torch.tensor([2.0, 2.0]), torch.tensor([1.0, 0.0])])
    assert coherence.measure() == pytest.approx(1.0)


def test_a_zero_gradient_has_no_direction() -> None:
    params = [nn.Parameter(torch.zeros(3))]
    coherence = Measured(params)
    given(params, [torch.zeros(3)])
    coherence.measure()
    given(params, [torch.ones(3)])
    assert math.isnan(coherence.measure())


def test_the_mean_cosine_is_the_share_of_signal() -> None:
    """g = G + noise in d = 4096 dimensions: E[cos] -> |G|^2 / (|G|^2 + tr(Sigma)), here 1 / 5."""
    generator = torch.Generator().manual_seed(0)
    d, n = 4096, 200
    G = torch.randn(d, generator=generator)
    G *= 1.0 / G.norm()
    params = [nn.Parameter(torch.zeros(d))]
    coherence = Measured(params)
    found = []
    for _ in range(n):
        given(params, [G + 2.0 * torch.randn(d, generator=generator) / math.sqrt(d)])
        found.append(coherence.measure())
    mean = sum(found[1:]) / (n - 1)
    assert mean == pytest.approx(0.2, abs=4 * 0.015 / math.sqrt(n) + 0.002)


def test_an_adaptive_optimizers_metric_is_taken() -> None:
    """Over sqrt(v): a coordinate of large gradients does not decide alone."""
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = torch.optim.Adam([p], lr=0.0)
    coherence = Measured([p], optimizer)
    gradients = [torch.tensor([100.0, 1.0]).double(), torch.tensor([100.0, -1.0]).double()]
    found = []
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
        found.append(coherence.measure())
    v = torch.zeros(2).double()
    for g in gradients:
        v = 0.999 * v + 0.001 * g**2
    x, y = (g / (v.sqrt() + 1e-8) for g in gradients)
    assert found[1] == pytest.approx(float(x @ y / (x.norm() * y.norm())))
    assert abs(found[1]) < 0.01


def test_it_is_measured_at_each_of_the_first_updates_and_then_now_and_then() -> None:
    """Where it is not due nothing is kept; a pair of successive updates is."""
    p = nn.Parameter(torch.zeros(2))
    coherence, found = Coherence(), []
    for step in range(1, DENSE + 3 * EVERY + 1):
        p.grad = torch.tensor([1.0, float(step)])
        if (cosine := coherence.observe(step, [p], [])) is not None:
            found.append(step)
            x, y = torch.tensor([1.0, float(step)]), torch.tensor([1.0, step - 1.0])
            assert float(cosine) == pytest.approx(float(x @ y / (x.norm() * y.norm())), rel=1e-5)
        assert bool(coherence.last) == Coherence.due(step + 1)
    assert found == [*range(2, DENSE + 1), *range(DENSE + EVERY, DENSE + 3 * EVERY + 1, EVERY)]
