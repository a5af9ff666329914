"""The arguments of ``optland report``, apart from its work so that the other commands need not load PyTorch."""

from __future__ import annotations

import argparse

from optland.cli.probe_options import refuse_too_small

__all__ = ["EXAMPLES", "OPTIONS", "add_report_arguments", "check_report"]

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

OPTIONS = [
    "--config", "--recipe", "--samples", "--split", "--points", "--distance", "--max-matvecs", "--density",
    "--no-density", "--curve-steps", "--trajectory", "--batch-size", "--seed", "--out", "--device", "--wandb",
]  # fmt: skip

_LEAST = {"samples": 4, "max_matvecs": 1, "curve_steps": 0, "batch_size": 1, "seed": 0, "points": 3}


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``optland report`` takes."""
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", help="run folders or checkpoint files")
    add("--config", metavar="FILE", help="the runs' config; by default config.yaml beside each checkpoint")
    add("--recipe", metavar="RECIPE", help="their recipe; by default the one that the config names")
    add("--samples", metavar="N", type=int, default=512, help="samples to measure on (default: 512)")
    add("--split", choices=["train", "val", "test"], default="train", help="of which split (default: train)")
    add(
        "--points",
        metavar="P",
        type=int,
        default=21,
        help="points of a side of each surface, odd (default: 21)",
    )
    add("--distance", metavar="D", type=float, default=1.0,
        help="how far the random surface goes, in multiples of the weights' own size (default: 1)")  # fmt: skip
    add("--max-matvecs", metavar="M", type=int, default=100,
        help="most Hessian products of each part (default: 100)")  # fmt: skip
    add("--density", action=argparse.BooleanOptionalAction, default=True,
        help="the density of all eigenvalues, the most expensive part (default: yes)")  # fmt: skip
    add("--curve-steps", metavar="S", type=int, default=300,
        help="training steps of a curve between two checkpoints; 0 for lines alone (default: 300)")  # fmt: skip
    add("--trajectory", action="store_true",
        help="the checkpoints are one run's, in its order: draw their path, and survey the last")  # fmt: skip
    add(
        "--batch-size",
        metavar="B",
        type=int,
        help="samples at a time, which memory depends on (default: the run's)",
    )
    add("--seed", metavar="S", type=int, default=0, help="seed of everything random (default: 0)")
    add("--out", metavar="FOLDER", help="where to write (default: report/ in the folder of the first run)")
    add(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="cuda where there is one by default"
    )
    add("--wandb", choices=["disabled", "offline", "online"], default="disabled",
        help="also show the pictures and tables in a wandb run (default: disabled)")  # fmt: skip


def check_report(arguments: argparse.Namespace) -> None:
    """Refuse numbers that cannot be.

    Raises:
        UserError: One of them is too small.
    """
    refuse_too_small(arguments, _LEAST)
