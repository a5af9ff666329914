"""Faults that no loss curve shows are found within 50 updates of real loops, and healthy loops raise nothing."""

from __future__ import annotations

import pytest
import torch
from doctor.faulty import FAULTS, Loop
from torch import nn

from optland import SAM
from optland.doctor import Symptom, diagnose, watch
from optland.doctor.histories import Histories
from optland.doctor.rules import silent


@pytest.mark.parametrize("way", [0, 1])
@pytest.mark.parametrize("symptom", FAULTS)
def test_a_fault_is_the_first_finding(symptom: str, way: int) -> None:
    found = FAULTS[symptom][way].run().diagnosis.findings
    assert found[0].symptom == symptom


@pytest.mark.parametrize(
    "loop",
    [Loop(), Loop(optimizer="AdamW"), Loop(parts=2), Loop(parts=4, optimizer="AdamW")],
    ids=["SGD", "AdamW", "two parts", "four parts"],
)
def test_a_healthy_loop_has_no_silent_fault(loop: Loop) -> None:
    run = loop.run().histories
    assert [f for rule in silent.RULES if (f := rule(run)) is not None] == []


def test_a_frozen_layer_is_a_note_and_no_alarm() -> None:
    loop = Loop(
        change_model=lambda model: model[0].requires_grad_(False),
        held=lambda model: [p for p in model.parameters() if p.requires_grad],
    )
    found = loop.run().diagnosis
    assert [f.symptom for f in found.notes] == [Symptom.FROZEN_LAYERS]
    assert found.findings == ()


def test_two_passes_of_sam_are_no_accumulation() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = SAM(torch.optim.SGD(model.parameters(), 0.1), rho=0.05, model=model)
    x, y = torch.randn(30, 4), torch.arange(30) % 3

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    with watch(model, optimizer) as doctor:
        for _ in range(12):
            doctor.after_step((x, y), optimizer.step(closure))
    assert doctor.histories.fact("loss_share") == pytest.approx(1.0, abs=1e-4)
    assert doctor.diagnosis.findings == ()


def test_gradients_zeroed_between_forward_and_backward_are_zeroed() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    with watch(model, optimizer) as doctor:
        for _ in range(12):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad(set_to_none=False)
            loss.backward()
            optimizer.step()
            doctor.after_step((x, y), loss)
    assert doctor.histories.fact("looked") == 10
    assert doctor.histories.fact("kept") == 0


def test_outputs_broadcast_against_targets_are_named() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1), torch.randn(32, 4)
    y = x.sum(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with watch(model, optimizer) as doctor:
        for _ in range(5):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()  # (32, 1) against (32,)
            loss.backward()
            optimizer.step()
            doctor.after_step((x, y), loss)
    (found,) = doctor.diagnosis.findings
    assert found.symptom == Symptom.WRONG_REDUCTION
    assert "different shapes" in found.evidence


def test_drifting_replicas_are_a_finding_and_equal_ones_are_none() -> None:
    assert diagnose(Histories({"replicas_apart": 0.0})).findings == ()
    assert diagnose(Histories({"replicas_apart": 0.1})).findings[0].symptom == Symptom.REPLICAS_DRIFT
