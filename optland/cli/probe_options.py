"""The arguments of ``optland probe``, apart from its work so that the other commands need not load PyTorch."""

from __future__ import annotations

import argparse

from optland.cli.arguments import above_zero, add_run_arguments, add_survey_arguments, whole_from

__all__ = ["EXAMPLES", "add_arguments"]

EXAMPLES = """examples:
  optland probe runs/landscape_train/digits
  optland probe runs/landscape_train/digits --samples 2000 --split val --k 5
  optland probe runs/landscape_train/digits --no-density --max-matvecs 60
  optland probe runs/landscape_train/digits --seconds 300
  optland probe runs/landscape_train/digits --double --out figures
  optland probe runs/landscape_train/digits/checkpoint.pt.previous
  optland probe elsewhere/weights.pt --config mine.yaml
  optland probe runs/mine --recipe my_experiment/mine.py

Measured are the eigenvalues at both ends, the trace by layer, the density, the kind of point, and the
largest learning rate that the run's optimizer can stand there, each with its error and whether it
converged: all on a random sample of the run's data, in evaluation mode, without augmentation and without
weight decay. The weights are those the run was evaluated with: the average, where precision.ema keeps one.
Errors are those of the estimators on these samples. On fewer samples than there are, the largest eigenvalue
comes out too high and the smallest too low: repeat with more --samples to see how much.

It ends in about a minute: where 200 products of each part would take longer, fewer are made, and what was left
out is said. --seconds gives it longer; --max-matvecs sets the number, and then the numbers are the same on
every machine.

The table is printed and kept as probe.json and probe.png in the run folder, numbered where there is one
already. What it can cost is said before it begins; Ctrl-C ends it and writes nothing.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``optland probe`` takes."""
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder, or a checkpoint file")
    add("--k", metavar="K", type=whole_from(1), default=3, help="eigenvalues at each end (default: 3)")
    add("--double", action="store_true", help="measure in float64, for nearly flat points")
    add("--seconds", metavar="S", type=above_zero, default=60.0,
        help="about how long it may take where --max-matvecs is not given (default: 60)")  # fmt: skip
    add_survey_arguments(parser, max_matvecs=None)
    add_run_arguments(parser)
