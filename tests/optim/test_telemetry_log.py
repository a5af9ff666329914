"""SAM's telemetry in a log: the numbers of the telemetry itself, training bit for bit the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optland.optim import SAM, TwoPass, log_telemetry


def trained(
    log: Any = None, every: int = 1, *, steps: int = 6, phases: bool = False
) -> tuple[Tensor, list[Any]]:
    """Train a linear model; returns its weights, and the telemetry that a user would have read after each update."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.1)
    if log is not None:
        log_telemetry(optimizer, log, every=every)
    read = []
    for _ in range(steps):
        x = torch.randn(8, 3)

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
            loss.backward()
            return loss

        if phases:
            for _ in optimizer.passes():
                closure()
            optimizer.step()
        else:
            optimizer.step(closure)
        read.append(optimizer.telemetry.read())
    return torch.cat([p.detach().flatten() for p in model.parameters()]), read


@pytest.mark.parametrize("phases", [False, True])
@pytest.mark.parametrize("every", [1, 2, 4])
def test_the_rows_are_the_telemetry_and_training_is_the_same(every: int, phases: bool) -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    weights, read = trained(lambda row, step: rows.append((step, row)), every, phases=phases)
    plain, _ = trained(phases=phases)
    assert torch.equal(weights, plain)
    expected = [(n, read[n - 1]) for n in range(every, 7, every)]
    assert [(n, {k.removeprefix("optland/"): v for k, v in row.items()}) for n, row in rows] == [
        (n, {"step": n, **values}) for n, values in expected
    ]
    assert {"sam/curvature", "sam/cos", "update/grad_norm"} <= expected[0][1].keys()


def test_it_goes_on_counting_in_a_resumed_run_and_ends_with_close() -> None:
    w = nn.Parameter(torch.ones(2))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    optimizer = SAM(torch.optim.SGD([w], lr=0.1))
    for _ in range(3):
        optimizer.step(closure)
    state = optimizer.state_dict()
    optimizer = SAM(torch.optim.SGD([w], lr=0.1))
    optimizer.load_state_dict(state)
    steps: list[int] = []
    log = log_telemetry(optimizer, lambda _, step: steps.append(step), every=1)
    optimizer.step(closure)
    log.close()
    optimizer.step(closure)
    assert steps == [4]


def test_one_that_is_wrapped_is_found_and_one_without_telemetry_refused() -> None:
    class Wrapped:
        def __init__(self, optimizer: TwoPass) -> None:
            self.optimizer = optimizer

    w = nn.Parameter(torch.ones(2))
    log_telemetry(Wrapped(SAM(torch.optim.SGD([w], lr=0.1))), print)
    log_telemetry(SAM(torch.optim.SGD([w], lr=0.1)), None)  # a process that does not log
    with pytest.raises(TypeError, match="a SGD has no telemetry; give one of optland's two-pass methods"):
        log_telemetry(torch.optim.SGD([w], lr=0.1), print)
    with pytest.raises(ValueError, match="every=0"):
        log_telemetry(SAM(torch.optim.SGD([w], lr=0.1)), print, every=0)
