"""The closing table of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optland.pilot import Pilot
from optland.pilot.advice import advise
from optland.train.loops.evaluate import History

__all__ = ["summarise", "what_it_took"]


def summarise(
    pilot: Pilot, history: History, rows: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Last and best accuracy, cost in gradient evaluations, probe share, decisions, verdict, and at most one action.

    Args:
        pilot: The run's pilot.
        history: Its evaluations; at least one.
        rows: Its logged rows.
        events: Its logged decisions.

    Returns:
        The table in the order in which it is shown: accuracies in percent, ``train/seconds`` of wall time,
        ``budget/ge`` in gradient evaluations, ``budget/probe_frac`` as a share of the training cost,
        ``budget/probe_ms`` of wall time. ``summary/advice`` and ``ctl/lost`` are there only where there is something to
        say.
    """
    last, best = history.last, history.best
    return {
        "test/acc last epoch": last["test/acc"],
        "test/acc best by validation": best["test/acc"],
        "epoch best by validation": int(best["epoch"]),
        "val/acc last epoch": last["val/acc"],
        "val/acc best": best["val/acc"],
        "train/epochs": int(last["epoch"]),
        **what_it_took(pilot, rows, events),
    }


def what_it_took(
    pilot: Pilot, rows: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The part of a closing table that every kind of run has: steps, cost, decisions, verdict, and at most one action.

    Args:
        pilot: The run's pilot.
        rows: Its logged rows.
        events: Its logged decisions.

    Returns:
        Part of a table, as :func:`summarise` gives it.
    """
    found = advise(rows, events, pilot.budget.fraction, pilot.budget.used)
    return {
        "train/steps": pilot.step,
        "train/seconds": pilot.seconds,
        "budget/ge": pilot.budget.train_ge + pilot.budget.probe_ge,
        "budget/probe_frac": pilot.budget.used,
        "budget/probe_ms": 1e3 * pilot.probe_seconds,
        "ctl/decisions": len(events),
        "ctl/rewinds": sum(event["actuator"] == "rewind" and bool(event["taken"]) for event in events),
        **({"ctl/lost": pilot.lost} if pilot.lost else {}),
        "summary/verdict": " ".join(filter(None, (found.verdict, found.facts, pilot.looks.never_ran()))),
        **({"summary/advice": found.action} if found.action else {}),
    }
