"""``optland verify``: closed forms and conformance on this machine, or an optimizer of another package."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from optland import __version__
from optland.cli.closed_forms import CLOSED_FORMS
from optland.cli.opened import usable_device
from optland.cli.terminal import DONE, FAILED, say
from optland.config import UserError
from optland.conformance import Finding, Status, Subject, ours, run
from optland.conformance.imported import subject_at

__all__ = ["verify"]

METHODS = ("sam", "asam", "msam", "looksam")
"""Two passes, scaled ones, a single pass, a memory; ``python -m optland.conformance`` has all methods."""


def verify(arguments: argparse.Namespace) -> int:
    """Run ``optland verify``.

    Args:
        arguments: Those of :func:`optland.cli.verify_options.add_arguments`.

    Returns:
        The exit code: 1 where a check failed.

    Raises:
        UserError: The optimizer cannot be used, or the device is not there.
    """
    if arguments.claims is not None and arguments.optimizer is None:
        usage = "optland verify MODULE:CLASS --claims METHOD"
        raise UserError(f"--claims {arguments.claims}: of which optimizer? Write: {usage}")
    device = usable_device(arguments.device)
    found: list[tuple[str, Finding]] = []
    for one in _findings(arguments, device):
        found.append(one)
        if not arguments.json and not _of_others(one[1]):
            say(_line(*one))
    bad = sum(f.bad for _, f in found)
    applied = [f for _, f in found if f.status != Status.NOT_APPLICABLE]
    if arguments.json:
        head = {"optland": __version__, "torch": torch.__version__, "device": device}
        findings = [{"of": of, **finding.to_dict()} for of, finding in found]
        say(json.dumps({**head, "failed": bad, "findings": findings}, indent=1))
    else:
        rest = len(found) - len(applied)
        where = f"torch {torch.__version__}, {device}"
        say(f"\n{len(applied) - bad} of {len(applied)} checks passed on {where}; {rest} do not apply")
    return FAILED if bad else DONE


def _findings(arguments: argparse.Namespace, device: str) -> Iterator[tuple[str, Finding]]:
    """Every finding as soon as it is there, with what it is of."""
    if arguments.optimizer is None:
        for name in CLOSED_FORMS:
            yield "closed form", _measured(name, device)
        subjects = [s for s in ours() if s.name in METHODS]
    else:
        subjects = [_subject(arguments)]
    for subject in subjects:
        for finding in run(subject).findings:
            yield subject.name, finding


def _measured(name: str, device: str) -> Finding:
    """A closed form on the device; what raises there is a finding, since the others are to be seen too."""
    try:
        figure, tolerance = CLOSED_FORMS[name](device)
    except Exception as error:
        return Finding(name, "closed form", Status.ERROR, detail=f"{type(error).__name__}: {error}")
    status = Status.PASSED if figure <= tolerance else Status.FAILED
    return Finding(name, "closed form", status, figure, tolerance, (CLOSED_FORMS[name].__doc__ or "").strip())


def _subject(arguments: argparse.Namespace) -> Subject:
    """The optimizer of an import path, looked for also in the present folder, and what it claims to be."""
    sys.path.insert(0, str(Path.cwd()))  # as of a script that is run here
    try:
        return subject_at(arguments.optimizer, arguments.claims)
    except ValueError as error:
        raise UserError(str(error)) from error


def _of_others(finding: Finding) -> bool:
    """Whether a check is of the methods of others, and says nothing about this optimizer: those are counted alone."""
    other = finding.kind == "method" and finding.detail.startswith("not for ")
    return other and finding.status == Status.NOT_APPLICABLE


def _line(of: str, finding: Finding) -> str:
    """A finding as a line: status, of what, check, figure and its largest that passes, and what went wrong."""
    figure = "" if finding.figure != finding.figure else f"{finding.figure:.1e} of {finding.tolerance:.1e}"
    detail = "" if finding.status == Status.PASSED else finding.detail
    return f"{finding.status:15}{of:24}{finding.check:26}{figure:20} {detail}".rstrip()
