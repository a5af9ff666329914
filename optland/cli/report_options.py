"""The arguments of ``optland report``, apart from its work so that the other commands need not load PyTorch."""

from __future__ import annotations

import argparse

from optland.cli.arguments import add_run_arguments, add_survey_arguments, whole_from

__all__ = ["EXAMPLES", "add_arguments"]

EXAMPLES = """examples:
  optland report runs/landscape_train/digits
  optland report runs/seeds/seed0 runs/seeds/seed1 --out runs/seeds/report
  optland report runs/a/checkpoint.pt runs/b/checkpoint.pt --curve-steps 600
  optland report runs/mine/early.pt runs/mine/middle.pt runs/mine/checkpoint.pt --trajectory
  optland report runs/landscape_train/digits --samples 2000 --points 41 --wandb offline

One HTML file that needs no network: surfaces to turn, the spectrum, sharpness, rays and the dimension of the
gradients, each with what it says in words; between several checkpoints of one architecture also the straight
line and a trained curve. The same as PNGs lies beside it, and with --wandb in a run. Every checkpoint is looked
at on the same samples, those of the first run's data, in evaluation mode.

What is done is kept in the folder measured/ there: after Ctrl-C the same command goes on where it was.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``optland report`` takes."""
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", help="run folders or checkpoint files")
    add("--points", metavar="P", type=whole_from(3), default=21,
        help="points of a side of each surface, odd (default: 21)")  # fmt: skip
    add("--distance", metavar="D", type=float, default=1.0,
        help="how far the random surface goes, in multiples of the weights' own size (default: 1)")  # fmt: skip
    add("--curve-steps", metavar="S", type=whole_from(0), default=300,
        help="training steps of a curve between two checkpoints; 0 for lines alone (default: 300)")  # fmt: skip
    add("--trajectory", action="store_true",
        help="the checkpoints are one run's, in its order: draw their path, and survey the last")  # fmt: skip
    add("--wandb", choices=["disabled", "offline", "online"], default="disabled",
        help="also show the pictures and tables in a wandb run (default: disabled)")  # fmt: skip
    add_survey_arguments(parser, max_matvecs=100)
    add_run_arguments(parser, least=4, out="report/ in the folder of the first run")
