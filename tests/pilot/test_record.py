"""The record of what was decided: ranks that have decided the same agree, and others are told apart."""

from __future__ import annotations

from optland.pilot.decision import Decision
from optland.pilot.record import Record


def record(*rates: float) -> Record:
    found = Record(None, 1)
    for step, rate in enumerate(rates):
        found.decided(Decision(step, "asks", "lr_factor", 1.0, rate, "as scripted", True))
    return found


def test_ranks_agree_where_they_decided_the_same_and_only_there() -> None:
    assert record(0.5, 0.25).told(*record(0.5, 0.25).signs)
    for other in ((), (0.5,), (0.5, 0.2), (0.25, 0.5), (0.2, 0.25)):
        assert not record(0.5, 0.25).told(*record(*other).signs), other
