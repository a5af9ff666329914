"""The pilot says what the doctor finds: once, in its log, without another pass and without a change of the run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.doctor import watch
from optland.log import NullLogger
from optland.pilot import Pilot


class Events(NullLogger):
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def event(self, event: Any) -> None:
        self.events.append(dict(event))


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def train(
    num_steps: int, *, freeze: bool = False, watched: bool = False, zero: bool = True, budget: float = 0.05
) -> Pilot:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    held = list(model[2].parameters()) if freeze else list(model.parameters())
    optimizer = torch.optim.SGD(held, 0.1)
    y = torch.arange(960) % 3
    x = torch.randn(960, 8) + 2 * F.one_hot(y, 8)
    doctor = watch(model, optimizer) if watched else None
    with Pilot(
        optimizer,
        model,
        loss_fn,
        policies=[],
        mode="monitor",
        budget=budget,
        total_steps=num_steps,
        log=Events(),
        watch=doctor,
    ) as pilot:
        for _ in range(num_steps):
            batch = (chosen := torch.randint(960, (32,)), x[chosen])[1], y[chosen]
            if zero:
                optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            optimizer.step()
            pilot.after_step(batch, loss)
    return pilot


def said(pilot: Pilot) -> list[tuple[int, str]]:
    log = pilot.record.log
    assert isinstance(log, Events)
    return [(e["step"], e["reason"].partition(":")[0]) for e in log.events if e["policy"] == "doctor"]


def test_weights_that_no_optimizer_holds_are_said_once() -> None:
    assert said(train(60, freeze=True)) == [(10, "weights not held")]


def test_with_a_watch_it_sees_what_the_loop_does() -> None:
    assert said(train(60, watched=True, zero=False))[0] == (10, "gradients not zeroed")


def test_a_healthy_run_hears_nothing() -> None:
    assert said(train(60)) == []
    assert said(train(60, watched=True)) == []


def test_the_probes_of_the_pilot_are_no_evaluations_in_the_wrong_mode() -> None:
    torch.manual_seed(0)
    pilot = train(40, watched=True, budget=0.5)
    assert pilot.looks.last != {}  # probes ran
    assert pilot.live.histories.fact("tested") == 0


def test_findings_resume() -> None:
    pilot, other = train(60, freeze=True), train(20, freeze=True)
    other.live.load_state_dict(pilot.live.state_dict())
    assert other.live.news(100, []) == []
