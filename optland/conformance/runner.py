"""Run the checks one after the other, whatever the subject does in them."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from optland.conformance import checks as checks  # registers them
from optland.conformance.bench import (
    CHECKS,
    Bench,
    Check,
    Measured,
    NotApplicableError,
    ViolationError,
)
from optland.conformance.finding import KINDS, Finding, Report, Status
from optland.conformance.subject import Subject
from optland.context.rng import preserve_rng

__all__ = ["run"]

_ORDER = [Status.NOT_APPLICABLE, Status.PASSED, Status.FAILED, Status.ERROR]


class _TimeLimit(BaseException):  # not an Exception, which a subject might swallow
    pass


def run(subject: Subject, *, only: Sequence[str] | None = None, time_limit: float = 30.0) -> Report:
    """Run all checks, or some, on a subject.

    The random state is put back, warnings of the subject are not shown, and an exception or a hang in a
    check is a finding.

    Args:
        subject: Under test.
        only: Identifiers of checks; None for all.
        time_limit: Seconds for a check in one precision. It needs the main thread of a POSIX system; there is
            no limit elsewhere.

    Returns:
        One finding for each check, in a fixed order.

    Raises:
        ValueError: ``only`` names a check that does not exist, or the limit is not positive.
    """
    unknown = sorted(set(only or ()) - set(CHECKS))
    if unknown:
        raise ValueError(f"no checks are named {', '.join(unknown)}; there are: {', '.join(CHECKS)}")
    if not time_limit > 0:
        raise ValueError(f"time_limit={time_limit} leaves no time; give seconds > 0")
    ordered = sorted(CHECKS.values(), key=lambda c: list(KINDS).index(c.kind))
    chosen = [c for c in ordered if only is None or c.id in only]
    return Report(subject.name, tuple(_worst(subject, c, time_limit) for c in chosen))


def _worst(subject: Subject, check: Check, time_limit: float) -> Finding:
    """The worst finding over the precisions of a check."""
    reason = subject.disclaims.get(check.id)
    if reason is None and check.methods is not None and subject.claim.method not in check.methods:
        reason = f"not for {subject.claim.method}"
    if reason is not None:
        return Finding(check.id, check.kind, Status.NOT_APPLICABLE, detail=reason)
    findings = [_measure(Bench(subject, *variant), check, time_limit) for variant in check.variants]
    return max(findings, key=lambda f: (_ORDER.index(f.status), _share(f)))


def _share(finding: Finding) -> float:
    """How much of the tolerance was used."""
    if finding.tolerance > 0:
        return finding.figure / finding.tolerance
    return 0.0 if finding.figure == 0 else float("inf")


def _measure(bench: Bench, check: Check, time_limit: float) -> Finding:
    try:
        with preserve_rng(0), warnings.catch_warnings(), _alarm(time_limit):
            warnings.simplefilter("ignore")
            measured = check.run(bench)
    except NotApplicableError as reason:
        return Finding(check.id, check.kind, Status.NOT_APPLICABLE, detail=str(reason))
    except ViolationError as violation:
        return Finding(check.id, check.kind, Status.FAILED, detail=f"{_where(bench)}: {violation}")
    except _TimeLimit:
        return Finding(check.id, check.kind, Status.ERROR, detail=f"{_where(bench)}: over {time_limit:g} s")
    except Exception as error:
        text = f"{type(error).__name__}: {error}".split("\n", maxsplit=1)[0][:200]
        return Finding(check.id, check.kind, Status.ERROR, detail=f"{_where(bench)}: {text}")
    return _verdict(bench, check, measured)


def _verdict(bench: Bench, check: Check, measured: Measured) -> Finding:
    status = Status.PASSED if measured.passed else Status.FAILED
    detail = measured.detail if measured.passed else f"{_where(bench)}: {measured.detail or check.title}"
    return Finding(check.id, check.kind, status, float(measured.figure), measured.tolerance, detail)


def _where(bench: Bench) -> str:
    return str(bench.dtype).removeprefix("torch.") + (" foreach" if bench.foreach else "")


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise when a block takes longer; an alarm that somebody else had set goes off at its own time."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def expire(number: int, frame: FrameType | None) -> None:
        raise _TimeLimit

    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, expire)
    others, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, handler)
        if others > 0:
            signal.setitimer(signal.ITIMER_REAL, max(others - (time.monotonic() - started), 1e-3))
