"""Decisions as a table for people: its columns, one row for each decision, and what is worth an alert."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from optland.config.secrets import redact_text
from optland.log.vocabulary import STEP, Scalar

__all__ = ["EVENTS", "EVENT_COLUMNS", "as_markdown", "event_alert", "event_row", "loss_alert"]

EVENTS = "ctl/events"
EVENT_COLUMNS = [STEP, "policy", "actuator", "old", "new", "reason", "taken", "signals"]

Alert = tuple[str, str, str]
"""Title, text and level."""


def event_row(event: Mapping[str, object]) -> list[object]:
    """A decision under :data:`EVENT_COLUMNS`: the step a number, ``taken`` a boolean, all else text.

    Args:
        event: As :meth:`optland.log.Logger.event` has it.
    """
    return [
        event.get(column) if column in (STEP, "taken") else redact_text(str(event.get(column)))
        for column in EVENT_COLUMNS
    ]


def event_alert(event: Mapping[str, object], step: int) -> Alert | None:
    """The alert of a decision: a rewind has one, and a finding of the doctor's.

    Args:
        event: As :meth:`optland.log.Logger.event` has it.
        step: The update, for the title.

    Returns:
        Title, text and level; None for all other decisions.
    """
    if event.get("policy") == "doctor":
        symptom, _, text = str(event.get("reason")).partition(": ")
        return f"doctor: {symptom} at step {step}", text, "WARN"
    if event.get("actuator") != "rewind":
        return None
    return f"{event.get('policy')}: rewind at step {step}", str(event.get("reason")), "WARN"


def loss_alert(row: Mapping[str, Scalar], step: int) -> Alert | None:
    """The alert of a row: a loss that is not finite has one.

    Args:
        row: The scalars of one step.
        step: The update, for the title.

    Returns:
        Title, text and level; None where the loss is finite or not there.
    """
    loss = row.get("train/loss")
    if not isinstance(loss, float) or math.isfinite(loss):
        return None
    return f"the loss is {loss} at step {step}", "train/loss is not finite", "ERROR"


def as_markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    r"""A table as Markdown, for those who show text alone.

    Args:
        columns: A name for each column.
        rows: Cells of each row; a bar in one is escaped.

    Example:
        >>> as_markdown(["step", "reason"], [[3, "a|b"]]).splitlines()
        ['| step | reason |', '| --- | --- |', '| 3 | a\\|b |']
    """
    lines = [list(columns), ["---"] * len(columns), *rows]
    return "\n".join(
        f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )
