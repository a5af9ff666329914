"""``print(pilot)``: where the run stands, what set its rate, what was decided last and what looking has cost."""

from __future__ import annotations

import pytest
from pilot.runs import Loop
from scripted import WRECK, Asks

from optland.pilot import AutoLR


def test_before_anything() -> None:
    assert repr(Loop(policies=["auto_lr", "noise_batch"], mode="shadow").pilot).splitlines() == [
        "Pilot, mode shadow, policies: auto_lr, noise_batch",
        "  updates: 0",
        "  learning rate: 0.05 (set by: user)",
        "  last decision: none",
        "  cost: 0 gradient evaluations of training and 0 of probes, 0.0% of 0% allowed; 0.00 s in probes",
    ]


def test_in_the_middle_of_a_run() -> None:
    run = Loop(policies=[AutoLR(tau=0.02), "edge_monitor"], budget=0.25, total_steps=40).run(10)
    mode, updates, rate, decision, cost = repr(run.pilot).splitlines()
    assert mode == "Pilot, mode control, policies: auto_lr, edge_monitor"
    assert updates == "  updates: 10, 25% of the run"
    applied = run.log.rows[-1]["lr/applied"]
    assert rate == f"  learning rate: {applied:.3g} applied, 0.05 in the groups (set by: ratio)"
    assert decision == "  last decision: none"
    used = run.pilot.budget.probe_ge
    assert (
        f"160 gradient evaluations of training and {used:.4g} of probes, {used / 160:.1%} of 25% allowed"
        in cost
    )
    assert " s in probes, " in cost


def test_what_was_lost_and_decided_last() -> None:
    run = Loop(told={5: WRECK}, total_steps=40).run(7)
    lines = repr(run.pilot).splitlines()
    assert lines[1] == "  updates: 6, 15% of the run; 1 cancelled"
    assert lines[2] == "  learning rate: 0.025 applied, 0.05 in the groups (set by: guard)"
    assert lines[3].startswith(
        "  last decision: update 5, guard, rewind: the loss 1e+06 is above 10 times the first loss"
    )


@pytest.mark.parametrize(
    ("mode", "what", "words"),
    [
        ("control", "lr_factor", "update 2, asks, lr_factor: as scripted"),
        ("shadow", "lr_factor", "update 2, asks, lr_factor (not taken): as scripted"),
        ("control", "alarm", "update 2, asks, alarm: as scripted"),
    ],
)
def test_what_was_not_carried_out_says_so(mode: str, what: str, words: str) -> None:
    run = Loop(policies=[Asks({2: [(what, 0.5)]})], mode=mode).run(4)
    assert repr(run.pilot).splitlines()[3] == f"  last decision: {words}"


def test_off_has_a_report_too() -> None:
    run = Loop(mode="off", total_steps=40).run(4)
    lines = repr(run.pilot).splitlines()
    assert lines[0] == "Pilot, mode off, policies: none"
    assert lines[1] == "  updates: 4, 10% of the run"


def test_the_row_counts_training_and_looking_together() -> None:
    run = Loop(policies=["auto_lr", "edge_monitor"], budget=0.25, total_steps=40).run(10)
    budget, row = run.pilot.budget, run.log.rows[-1]
    assert budget.probe_ge > 0
    assert row["budget/ge"] == 10 * 16 + budget.probe_ge
