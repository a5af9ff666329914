"""What a finished run says of its settings: from rows and decisions that were written by hand."""

from __future__ import annotations

import math

import pytest

from optland.pilot import advise


def decision(actuator: str, *, taken: bool = True, new: float = 0.01, step: int = 7) -> dict[str, object]:
    return {"step": step, "actuator": actuator, "taken": taken, "new": new, "old": 0.02, "reason": ""}


def test_advice_names_what_the_signals_show() -> None:
    rows = [
        {"step": k, "val/acc": 95.0 - k, "noise/b_simple": 900.0, "noise/b_current": 64.0} for k in range(6)
    ]
    text = advise(rows, [], 0.05)
    assert "noise scale ended at 900 with batches of 64" in text
    assert "peaked at 95.0" in text


@pytest.mark.parametrize(
    ("rows", "factor", "remedy"),
    [
        ([{"step": 1, "ctl/pace": 0.1}, {"step": 2, "ctl/pace": 0.025}], 1.0, "a pace (tau) of 0.025."),
        ([], 0.25, "start with 0.25 of the learning rate."),
        ([{"step": 1, "lr/ceiling": 0.1}], 1.0, "lower the learning rate."),
    ],
)
def test_after_rewinds_it_names_what_held_in_the_end(
    rows: list[dict[str, float]], factor: float, remedy: str
) -> None:
    """The pace of ``auto_lr``; the factor on a rate that nobody else turns; else only that it was too high."""
    text = advise(rows, [decision("rewind", new=1.0), decision("rewind", new=factor)], 0.05)
    assert text.startswith("The run was rewound 2 times; ")
    assert text.endswith(remedy)


def test_advice_in_shadow_mode_does_not_claim_a_rewind() -> None:
    text = advise([{"step": 1, "ctl/pace": 0.1}], [decision("rewind", taken=False)], 0.05)
    assert text == "The run would have been rewound once."


def test_advice_sees_a_language_model_that_overfits() -> None:
    rows = [{"step": k, "val/bpc": bits} for k, bits in enumerate([3.0, 2.5, 2.4, 2.6])]
    assert "best at 2.40 bits in epoch 3 and ended at 2.60" in advise(rows, [], 0.05)
    assert "bits" not in advise(rows[:3], [], 0.05)


def test_advice_marks_probes_that_did_not_converge() -> None:
    rows = [{"step": 1, "curv/lambda_max_converged": 0.0}, {"step": 2, "curv/lambda_max_converged": 1.0}]
    assert "1 of 2 sharpness probes did not converge" in advise(rows, [], 0.05)


def test_a_run_without_findings_says_so() -> None:
    assert advise([{"step": 1, "train/loss": 0.1}], [], 0.05).startswith("Nothing stood out")


def test_a_dead_run_is_told_to_lower_rho_first() -> None:
    rows = [
        {"step": k, "train/loss": 2.3, "sam/rho": 0.3, "edge/ratio": 0.2, "ctl/pace": 1.0} for k in range(20)
    ]
    text = advise(rows, [decision("rewind", new=0.0003)] * 6, 0.05)
    assert "nothing was learnt. First lower rho" in text
    assert "healthy" not in text
    assert "tau" not in text


def test_advice_counts_the_updates_that_were_left_out_and_names_the_deepest_cut() -> None:
    """A cap that has ended is written as infinite, or as null where it went through JSON."""
    taken = [
        decision("skip"),
        decision("skip", step=9),
        decision("lr_factor", new=0.5),
        decision("lr_factor", new=math.inf),
        decision("lr_factor") | {"new": None},
    ]
    text = advise([], taken, 0.05)
    assert "2 updates were left out as spikes, the first at step 7" in text
    assert "was cut to 0.5 of the schedule" in text
    shadow = [decision("skip", taken=False), decision("lr_factor", taken=False, new=0.5)]
    text = advise([], shadow, 0.05)
    assert "1 update would have been left out" in text
    assert "would have been cut to 0.5" in text


def test_advice_tells_gradients_that_were_not_finite_from_what_was_decided() -> None:
    rows = [{"step": 5, "ctl/lost": 1.0}, {"step": 20, "ctl/lost": 5.0}, {"step": 30, "ctl/lost": math.nan}]
    decisions = [decision("skip"), decision("rewind", new=1.0), decision("batch_size", new=64.0)]
    assert "3 updates cancelled for a gradient that was not finite" in advise(rows, decisions, 0.05)
    assert "not finite" not in advise(rows[:1], decisions[:1], 0.05)
