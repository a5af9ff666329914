"""What a finished run says of its settings: from rows and decisions that were written by hand."""

from __future__ import annotations

import itertools
import math
import re

import pytest

from optland.pilot.advice import advise
from optland.train.loops.evaluate import History, accuracy_error


def decision(actuator: str, *, taken: bool = True, new: float = 0.01, step: int = 7) -> dict[str, object]:
    return {"step": step, "actuator": actuator, "taken": taken, "new": new, "old": 0.02, "reason": ""}


def rows_of(**columns: list[float]) -> list[dict[str, float]]:
    """Rows of the columns, whose keys have a double underscore for the slash."""
    keys = [key.replace("__", "/") for key in columns]
    return [
        {"step": k, **{key: value for key, value in zip(keys, values, strict=True) if value is not None}}
        for k, values in enumerate(itertools.zip_longest(*columns.values()), start=1)
    ]


def test_a_run_that_ended_at_its_best_is_asked_for_nothing_whatever_single_signals_say() -> None:
    """At 99 % a stability ratio above 2, a far edge and a noisy batch ask for three things that exclude each other."""
    rows = rows_of(
        val__acc=[90.0, 97.0, 99.0], sam__stability=[3.0, 3.0, 3.0], sam__rho=[0.1] * 3, edge__ratio=[0.01] * 3,
        noise__b_simple=[9000.0] * 3, noise__b_current=[64.0] * 3, ctl__pace=[0.05] * 3,
    )  # fmt: skip
    found = advise(rows, [], 0.05)
    assert found.action == ""
    assert found.verdict == "Nothing asks for a change: validation accuracy ended at 99.0 %, its best."
    assert "rate" not in str(found)
    assert "rho" not in str(found)


def test_where_a_policy_finds_the_rate_none_is_advised() -> None:
    above = rows_of(edge__ratio=[1.4, 1.3, 1.2], lr__applied=[0.1, 0.2, 0.1])
    assert advise(above, [], 0.05).action == "optimizer.lr=0.077"  # half of the critical one: 0.2 x 0.5 / 1.3
    assert "above the critical one in 100 % of 3 probes" in advise(above, [], 0.05).verdict
    steered = [row | {"ctl/pace": 0.05} for row in above]
    assert advise(steered, [], 0.05).action == ""


@pytest.mark.parametrize(
    ("rows", "factor", "action"),
    [
        (rows_of(ctl__pace=[0.1, 0.025]), 1.0, "pilot.tau=0.025"),
        (rows_of(lr__applied=[0.1, 0.4]), 0.25, "optimizer.lr=0.1"),
        (rows_of(lr__applied=[0.1, 0.4]), 1.0, "optimizer.lr=0.2"),
        ([], 1.0, ""),
    ],
)
def test_after_rewinds_it_names_what_held_in_the_end(
    rows: list[dict[str, float]], factor: float, action: str
) -> None:
    """The pace of ``auto_lr``; the factor on a rate that nobody else turns; else half of it."""
    found = advise(rows, [decision("rewind", new=1.0), decision("rewind", new=factor)], 0.05)
    assert found.verdict.startswith("The run was rewound 2 times")
    assert found.action == action


def test_advice_in_shadow_mode_does_not_claim_a_rewind() -> None:
    found = advise([{"step": 1, "ctl/pace": 0.1}], [decision("rewind", taken=False)], 0.05)
    assert found.facts == "The run would have been rewound once."
    assert found.action == ""


def test_a_classifier_that_lost_what_it_had_is_told_to_stop_early() -> None:
    found = advise(rows_of(val__acc=[80.0, 95.0, 94.0, 92.0, 90.0, 89.0, 88.0, 87.5]), [], 0.05)
    assert "best in epoch 2, 95.0 %, and ended at 87.5 %" in found.verdict
    assert found.action == "patience=5"


@pytest.mark.parametrize(("samples", "lost"), [(None, True), (50, False), (2000, True)])
def test_a_fall_within_the_error_of_the_validation_samples_is_no_overfitting(
    samples: int | None, lost: bool
) -> None:
    """98 % and 94 % are 49 and 47 of 50 samples; of 2000 they are 80 samples apart, and of an unknown number a fall."""
    rows = rows_of(val__acc=[80.0, 98.0, 94.0])
    if samples is not None:
        for row in rows:
            row["val/acc_error"] = accuracy_error(row["val/acc"], samples)
    found = advise(rows, [], 0.05)
    assert ("fitted what does not generalise" in found.verdict) == lost
    assert found.action == ("patience=1" if lost else "")
    if not lost:
        assert "ended at 94.0 %, within the error (± 9.1) of its best, 98.0 % in epoch 2" in found.verdict


def test_the_best_epoch_is_that_of_early_stopping() -> None:
    """Of equal accuracies the one with the lower loss, by the count of the log: as the weights and the summary say."""
    accuracy, loss = [80.0, 98.0, 97.0, 98.0, 90.0], [0.9, 0.5, 0.3, 0.2, 0.4]
    history = History()
    rows = rows_of(val__acc=accuracy, val__loss=loss, epoch=[3.0, 4.0, 5.0, 6.0, 7.0])
    for row in rows:
        history.add(row)
    assert history.best["epoch"] == 6
    assert "best in epoch 6, 98.0 %, and ended at 90.0 %" in advise(rows, [], 0.05).verdict
    as_high = advise(rows_of(val__acc=[90.0, 98.0, 98.0], val__loss=[0.3, 0.1, 0.2]), [], 0.05).verdict
    assert as_high.endswith("ended at 98.0 %, as high as in its best epoch, 2, where the loss was lower.")


def test_a_language_model_that_overfits_is_told_to_stop_early() -> None:
    rows = rows_of(val__bpc=[3.0, 2.5, 2.4, 2.6])
    found = advise(rows, [], 0.05)
    assert "best at 2.40 bits in epoch 3 and ended at 2.60" in found.verdict
    assert found.action == "patience=1"
    assert advise(rows[:3], [], 0.05).verdict.endswith("ended at 2.40 bits, its best.")


def test_probes_that_did_not_converge_are_marked() -> None:
    rows = [{"step": 1, "curv/lambda_max_converged": 0.0}, {"step": 2, "curv/lambda_max_converged": 1.0}]
    assert "1 of 2 sharpness probes did not converge" in advise(rows, [], 0.05).facts


def test_a_run_without_findings_says_so() -> None:
    assert str(advise([{"step": 1, "train/loss": 0.1}], [], 0.05)).startswith("Nothing asks for a change")


def test_a_dead_run_is_told_to_lower_rho_first() -> None:
    dead = [
        {"step": k, "train/loss": 2.3, "sam/rho": 0.3, "edge/ratio": 0.2, "ctl/pace": 1.0} for k in range(20)
    ]
    found = advise(dead, [decision("rewind", new=0.0003)] * 6, 0.05)
    assert found.verdict.startswith("Nothing was learnt")
    assert found.action == "optimizer.rho=0.075"
    without = [{"step": k, "train/loss": 2.3, "lr/applied": 4.0} for k in range(20)]
    assert advise(without, [], 0.05).action == "optimizer.lr=1"


def test_facts_count_the_updates_that_were_left_out_and_name_the_deepest_cut() -> None:
    """A cap that has ended is written as infinite, or as null where it went through JSON."""
    taken = [
        decision("skip"),
        decision("skip", step=9),
        decision("lr_factor", new=0.5),
        decision("lr_factor", new=math.inf),
        decision("lr_factor") | {"new": None},
        decision("batch_size", new=128.0),
    ]
    facts = advise([], taken, 0.05).facts
    assert "2 updates were left out as spikes, the first at step 7" in facts
    assert "was cut to 0.5 of the schedule" in facts
    assert "The batch grew to 128" in facts
    shadow = [decision("skip", taken=False), decision("lr_factor", taken=False, new=0.5)]
    facts = advise([], shadow, 0.05).facts
    assert "1 update would have been left out" in facts
    assert "would have been cut to 0.5" in facts


def test_gradients_that_were_not_finite_are_told_from_what_was_decided() -> None:
    rows = [{"step": 5, "ctl/lost": 1.0}, {"step": 20, "ctl/lost": 5.0}, {"step": 30, "ctl/lost": math.nan}]
    decisions = [decision("skip"), decision("skip", step=9), decision("batch_size", new=64.0)]
    assert "3 updates cancelled for a gradient that was not finite" in advise(rows, decisions, 0.05).verdict
    assert "not finite" not in str(advise(rows[:1], decisions[:1], 0.05))


def test_there_is_never_more_than_one_action_and_it_can_be_typed() -> None:
    """Every combination of what signals can say: one verdict, and one ``key=value`` or none."""
    pieces = {
        "dead": [{"train/loss": 2.3} for _ in range(20)],
        "lost": [{"ctl/lost": 9.0}],
        "fell": [{"val/acc": a} for a in (80.0, 95.0, 80.0)],
        "edge": [{"edge/ratio": 1.5, "lr/applied": 0.1}],
        "paced": [{"ctl/pace": 0.05}],
        "sam": [{"sam/rho": 0.1, "sam/stability": 3.0}],
    }
    for chosen in itertools.product([False, True], repeat=len(pieces)):
        picked = [piece for piece, there in zip(pieces.values(), chosen, strict=True) if there]
        rows = [{"step": k, **row} for k, row in enumerate(itertools.chain(*picked))]
        for decisions in ([], [decision("rewind", new=0.5)]):
            found = advise(rows, decisions, 0.05)
            assert found.verdict
            assert re.fullmatch(r"([a-z_]+\.)?[a-z_]+=[0-9.e+-]+|", found.action), found


def test_a_rate_at_the_critical_one_is_not_above_it() -> None:
    rows = [{"step": k, "lr/applied": 0.1} for k in range(1, 21)]
    assert "critical" not in str(advise([{**row, "edge/ratio": 1.0} for row in rows], [], 0.05))
    assert "above the critical one" in str(advise([{**row, "edge/ratio": 1.01} for row in rows], [], 0.05))
