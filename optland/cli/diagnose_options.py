"""The arguments of ``optland diagnose``, apart from its work so that the other commands need not load PyTorch."""

from __future__ import annotations

import argparse

from optland.cli.arguments import whole_from
from optland.config import UserError

__all__ = ["EXAMPLES", "add_arguments", "check_diagnose"]

EXAMPLES = """examples:
  optland diagnose runs/landscape_train/digits
  optland diagnose runs/seeds/seed0 runs/seeds/seed1 runs/seeds/seed2
  optland diagnose runs/seeds/seed* --landscape
  optland diagnose results/checkpoint-500
  optland diagnose lightning_logs/version_0/metrics.csv --json
  optland diagnose runs/landscape_train/digits --fail-on any
  optland diagnose wandb/offline-run-20260101_120000-abcdefgh --fail-on not_finite,rate_above_edge
  optland diagnose --preflight landscape_train digits optimizer.lr=3

RUN is a run folder of optland, or the log of another tool: trainer_state.json of transformers, metrics.csv of
Lightning, event files of TensorBoard, a CSV exported from W&B, or the folder of an offline run of it.

Printed are one verdict, and at most three findings: what was seen, how the landscape explains it, and one command to
type. How often such a finding was right on tasks and architectures that the rules were not made on stands beside it.
Faults that no log shows (weights that no optimizer holds, a softmax taken twice ...) need a look at the loop itself:
optland.doctor.watch(model, optimizer, loader).

With --landscape the loss around each run's checkpoint is measured too: both ends of the spectrum and the rise along a
SAM step, on training samples, each with its error. Of three runs and more, the rank correlation of sharpness (measured,
or as logged) and test error is printed with its interval.

With --fail-on the exit code is 1 where one of the symptoms is found, for a CI job.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``optland diagnose`` takes."""
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", help="run folders, or logs of other tools")
    add("--json", action="store_true", help="print one JSON object per run instead of words")
    add("--fail-on", metavar="SYMPTOM,...", default="",
        help="exit code 1 where one of these is found; any for all of them")  # fmt: skip
    add("--landscape", action="store_true",
        help="measure the loss around each checkpoint; takes run folders of optland")  # fmt: skip
    add(
        "--samples",
        metavar="N",
        type=whole_from(1),
        default=512,
        help="training samples for that (default: 512)",
    )
    add("--preflight", action="store_true",
        help="look at a config before it is run: RUN is then RECIPE CONFIG [key=value ...]")  # fmt: skip


def check_diagnose(arguments: argparse.Namespace, symptoms: list[str]) -> list[str]:
    """The symptoms of ``--fail-on``.

    Args:
        arguments: As parsed.
        symptoms: All that there are.

    Returns:
        Their names; all of them for ``any``, none where it is not given.

    Raises:
        UserError: One is not known, or options do not go together.
    """
    if arguments.landscape and arguments.preflight:
        raise UserError("--landscape looks at a checkpoint, and --preflight at a start; give one of them")
    asked = [word.strip() for word in arguments.fail_on.split(",") if word.strip()]
    for word in asked:
        if word != "any" and word not in symptoms:
            raise UserError(f"--fail-on: '{word}' is no symptom; choose from any, {', '.join(symptoms)}")
    return symptoms if "any" in asked else asked
