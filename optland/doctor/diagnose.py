"""All rules on one run: the verdict on top, and what was found, the most telling first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from optland.doctor.calibration import COUNTED, share_of
from optland.doctor.finding import Finding
from optland.doctor.histories import Histories
from optland.doctor.rules import silent, steps, training
from optland.doctor.rules.shape import shape_of

__all__ = ["Diagnosis", "diagnose", "numbered"]

SHOWN = 3

ALARM = 0.5
"""Weight of the evidence from which on a finding is an alarm; one of less is a note."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found in a run.

    Attributes:
        findings: Alarms, the most telling first.
        notes: Findings that ask for nothing.
        step: Updates that were looked at.
    """

    findings: tuple[Finding, ...] = ()
    notes: tuple[Finding, ...] = ()
    step: int = 0

    @property
    def verdict(self) -> str:
        """One sentence: what is wrong, or that nothing was found."""
        if not self.findings:
            return f"Nothing is wrong that {self.step} updates would show."
        first = self.findings[0]
        return f"{first.title.capitalize() if first.title[:3] != 'SAM' else first.title}: {first.evidence}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON.

        Returns:
            ``verdict``, ``step``, ``findings`` and ``notes``, each finding a dictionary of its own.
        """
        return {
            "verdict": self.verdict, "step": self.step,
            "findings": [f.to_dict() for f in self.findings], "notes": [f.to_dict() for f in self.notes],
        }  # fmt: skip

    def __str__(self) -> str:
        return "\n".join([self.verdict, *numbered(self.findings)])


def numbered(findings: Sequence[Finding]) -> list[str]:
    """The first findings, each as a line with its number.

    Args:
        findings: The most telling first.
    """
    return [f"{i}. {f}" for i, f in enumerate(findings[:SHOWN], start=1)]


def diagnose(run: Histories) -> Diagnosis:
    """Hold a run against all rules.

    Args:
        run: What is known of it; rules whose signals are missing say nothing.

    Returns:
        Alarms and notes, each ordered by the weight of its evidence. A finding of weight 0.5 or more is an alarm; one
        of less is a note, which asks for nothing.

    Example:
        >>> run = Histories({"not_held": ["head.weight"], "not_held_share": 0.2})
        >>> diagnose(run).verdict
        'Weights not held: 1 tensors (20 % of the trained weights) are in no optimizer: head.weight.'
    """
    shape = shape_of(run)
    found = [f for rule in silent.RULES if (f := rule(run)) is not None]
    found += [f for rule in (*training.RULES, *steps.RULES) if (f := rule(run, shape)) is not None]
    told = (replace(f, step=run.step, right=share_of(COUNTED, f.symptom)) for f in found)
    ordered = sorted(told, key=lambda f: -f.confidence)
    ordered = [f if f.confidence >= ALARM else replace(f, alarm=False) for f in ordered]
    return Diagnosis(tuple(f for f in ordered if f.alarm), tuple(f for f in ordered if not f.alarm), run.step)
