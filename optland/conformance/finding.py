"""The finding of one check, and the report of all findings on a subject."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from optland.words import Words

__all__ = ["KINDS", "Finding", "Report", "Status"]

KINDS = {
    "method": "the step is that of the paper",
    "contract": "what torch.optim asks of every optimizer",
    "model": "buffers, dropout and compiled modules",
    "safety": "what a two-pass step should not let happen silently",
}


class Status(Words):
    """Verdict of one check."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Finding:
    """Outcome of one check on one subject.

    Attributes:
        check: Identifier of the check.
        kind: One of :data:`KINDS`.
        status: ``error`` is an exception of the subject, or its running past the time limit, where it was used
            as documented.
        figure: Measured deviation, in the unit that the check's docstring names; NaN where none was measured.
        tolerance: Largest deviation that passes.
        detail: Why, in words; for a failure also in which precision.
    """

    check: str
    kind: str
    status: Status
    figure: float = math.nan
    tolerance: float = math.nan
    detail: str = ""

    @property
    def bad(self) -> bool:
        """Whether the finding counts against the subject."""
        return self.status in (Status.FAILED, Status.ERROR)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; figures that are not finite become None or a word.

        Returns:
            One entry for each field; NaN is None, and an infinity of either sign ``"inf"``.
        """
        figures = {"figure": _plain(self.figure), "tolerance": _plain(self.tolerance)}
        return {**asdict(self), "status": str(self.status), **figures}


def _plain(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else "inf"


@dataclass(frozen=True)
class Report:
    """All findings on one subject.

    Args:
        subject: Its name.
        findings: One for each check, in the order of the report.

    Example:
        >>> report = Report("mine", (Finding("step", "method", Status.PASSED, 1e-16, 1e-7),))
        >>> print(report)
        mine: 1 passed, 0 failed, 0 not applicable
        >>> report.conforms
        True
    """

    subject: str
    findings: tuple[Finding, ...]

    @property
    def failures(self) -> tuple[Finding, ...]:
        """Failed checks and errors."""
        return tuple(f for f in self.findings if f.bad)

    @property
    def conforms(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    def count(self, kind: str | None = None) -> tuple[int, int]:
        """(passed, applicable) checks of a kind, or of all kinds.

        Args:
            kind: A key of :data:`KINDS`; None for all.
        """
        chosen = [f for f in self.findings if kind in (None, f.kind) and f.status != Status.NOT_APPLICABLE]
        return sum(f.status == Status.PASSED for f in chosen), len(chosen)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"subject": self.subject, "findings": [f.to_dict() for f in self.findings]}

    def __str__(self) -> str:
        passed, applicable = self.count()
        rest = len(self.findings) - applicable
        return f"{self.subject}: {passed} passed, {applicable - passed} failed, {rest} not applicable"

    def table(self) -> str:
        """All findings as text, one per line, those that do not apply in the last line."""
        lines = [str(self)]
        rest = []
        for f in self.findings:
            if f.status == Status.NOT_APPLICABLE:
                rest.append(f"{f.check} ({f.detail})")
                continue
            sign = "<=" if f.status == Status.PASSED else "> "
            figure = "" if math.isnan(f.figure) else f"{f.figure:.1e} {sign} {f.tolerance:.1e}"
            lines.append(f"  {f.kind:9}{f.check:22}{f.status:8}{figure:20} {f.detail}".rstrip())
        return "\n".join([*lines, "  not applicable: " + ", ".join(rest)] if rest else lines)
