"""``optland diagnose``: what is wrong with a run, from its log, and the one thing to do about it."""

from __future__ import annotations

import argparse
import json
import shlex
import textwrap
from collections.abc import Mapping
from pathlib import Path

from optland import doctor
from optland.cli.diagnose_landscape import Around, look_around, order_of
from optland.cli.diagnose_options import check_diagnose
from optland.cli.opened import ConfiguredStart, measuring
from optland.cli.recipes import named_recipe
from optland.cli.terminal import DONE, FAILED, say
from optland.config import UserError
from optland.doctor import Diagnosis, Finding, Symptom
from optland.doctor.diagnose import SHOWN
from optland.doctor.readers.read import Log, read_log
from optland.doctor.several import between

__all__ = ["diagnose"]

WIDTH = 110

_FLAGS = {
    "transformers": {
        "optimizer.lr": "--learning_rate", "optimizer.weight_decay": "--weight_decay", "clip": "--max_grad_norm",
        "batch_size": "--per_device_train_batch_size", "optimizer.momentum": "--adam_beta1",
    },
}  # fmt: skip
"""Flags of the tools that have a command line, for our keys."""

_EXPLAINED = {
    Symptom.VANISHING_GRADIENTS: "layer/first_over_last", Symptom.EXPLODING_GRADIENTS: "layer/first_over_last",
    Symptom.DEAD_UNITS: "layer/dead_max", Symptom.SADDLE_PLATEAU: "curv/ncr", Symptom.PLATEAU: "curv/ncr",
    Symptom.BATCH_BELOW_NOISE: "noise/b_simple", Symptom.BATCH_ABOVE_NOISE: "noise/b_simple",
    Symptom.SAM_TOO_MUCH: "sam/loss_gap", Symptom.SAM_TOO_LITTLE: "sam/cos", Symptom.STALE_MOMENTUM: "edge/not_descent",
    Symptom.CORRUPT_BATCHES: "update/grad_norm",
}  # fmt: skip


def diagnose(arguments: argparse.Namespace) -> int:
    """Run ``optland diagnose``.

    Args:
        arguments: Those of :func:`optland.cli.diagnose_options.add_arguments`.

    Returns:
        The exit code: 1 where a symptom of ``--fail-on`` was found.

    Raises:
        UserError: A log or a checkpoint cannot be read, or a symptom is not known.
    """
    failing = check_diagnose(arguments, [symptom.value for symptom in Symptom])
    if arguments.preflight:
        return _preflight(arguments, failing)
    logs = [_read(run) for run in arguments.runs]
    if not arguments.landscape:
        return _diagnosed(arguments, logs, {}, failing)

    def looking() -> int:
        around = {log.path: look_around(log, arguments.samples) for log in logs}
        return _diagnosed(arguments, logs, around, failing)

    return measuring(looking, "Interrupted; nothing was said.")


def _diagnosed(
    arguments: argparse.Namespace, logs: list[Log], around: Mapping[Path, Around], failing: list[str]
) -> int:
    """Hold the logs against the rules, and say what was found."""
    found = {log.path: doctor.diagnose(log.histories) for log in logs}
    together = between({str(log.path.parent): log.histories for log in logs}) if len(logs) > 1 else []
    order = order_of([log.histories for log in logs], measured=bool(around))
    if arguments.json:
        for log in logs:
            look = {"landscape": around[log.path].to_dict()} if around else {}
            say(json.dumps({"run": str(log.path), "kind": log.kind, **found[log.path].to_dict(), **look}))
        if together or order:
            both = {"findings": [f.to_dict() for f in together]} | (
                {"order": order.to_dict()} if order else {}
            )
            say(json.dumps({"runs": [str(log.path) for log in logs], **both}))
    else:
        for log in logs:
            say(in_words(log, found[log.path]))
            if around:
                say(_paragraph(f"\n{around[log.path]}"))
        for finding in together:
            say(_paragraph(f"\nOver {len(logs)} runs: {finding}"))
        if order:
            say(_paragraph(f"\nOver {len(logs)} runs: {order}"))
    seen = {f.symptom.value for one in found.values() for f in one.findings}
    return FAILED if (seen | {f.symptom.value for f in together}) & set(failing) else DONE


def _preflight(arguments: argparse.Namespace, failing: list[str]) -> int:
    """Try the start of a configured run."""
    if len(arguments.runs) < 2:
        raise UserError(
            "--preflight takes a recipe and a config; write: optland diagnose --preflight RECIPE CONFIG"
        )
    recipe, config, *overrides = arguments.runs
    start = ConfiguredStart(recipe, config, overrides)
    found = doctor.preflight(start.model, start.loss_fn, start.batches, start.optimizer)
    if arguments.json:
        say(
            json.dumps({"run": " ".join(arguments.runs), "chance": found.chance, **found.diagnosis.to_dict()})
        )
    else:
        say(_paragraphs(str(found)))
        evaluations = found.cost_ge / start.batch_size
        say(
            f"cost: {found.cost_ge:.0f} gradient evaluations, as much as {evaluations:.0f} updates of one pass"
        )
    return FAILED if {f.symptom.value for f in found.diagnosis.findings} & set(failing) else DONE


def _read(run: str) -> Log:
    """The log of a run or of another tool; what cannot be read is the user's to mend."""
    try:
        return read_log(run)
    except ValueError as error:
        raise UserError(str(error)) from error


def in_words(log: Log, found: Diagnosis) -> str:
    """The verdict, and at most three findings with one command each.

    Args:
        log: What was read.
        found: What the rules say of it.

    Returns:
        Lines of at most 110 letters. ``right in ... %`` is how often such a finding was right on tasks that the rules
        were not made on; only alarms have it.
    """
    lines = [f"{log.path} ({log.kind}, {found.step} updates)", _paragraph(f"Verdict: {found.verdict}")]
    for number, finding in enumerate(found.findings[:SHOWN], start=1):
        sure = f", right in {100 * finding.right:.0f} % of such findings" if finding.alarm else ""
        lines += ["", f"{number}. {finding.title}{sure}"]
        for head, text in (
            ("seen: ", finding.evidence),
            ("means: ", finding.reading),
            ("fix: ", finding.fix),
        ):
            lines.append(_paragraph(f"{head}{text}", "   "))
        lines.append(f"   type: {command_for(log, finding)}")
    return "\n".join(lines)


def command_for(log: Log, finding: Finding) -> str:
    """One command: the run again with the change, or the page that explains the number.

    Args:
        log: What was read; of a run folder of optland the command is complete, of another tool's log it is the flag to
            change.
        finding: What is to be done.
    """
    key, _, value = finding.action.partition("=")
    if log.kind == "optland" and value:
        config = log.path.parent / "config.yaml"
        if config.is_file() and (recipe := named_recipe(config)):
            return shlex.join(["optland", "run", recipe, str(config), finding.action])
    flag = _FLAGS.get(log.kind, {}).get(key)
    if flag is not None and value:
        return f"the same command with {flag} {value}"
    if value:
        return f"the same run with {finding.action}"
    return f"optland explain {_EXPLAINED.get(finding.symptom, 'train/loss')}"


def _paragraphs(text: str) -> str:
    return "\n".join(_paragraph(line) for line in text.splitlines())


def _paragraph(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}   ")
