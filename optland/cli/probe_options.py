"""The arguments of ``optland probe``, apart from its work so that the other commands need not load PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from optland.config import UserError

__all__ = ["EXAMPLES", "OPTIONS", "add_probe_arguments", "check", "refuse_too_small"]

EXAMPLES = """examples:
  optland probe runs/landscape_train/digits
  optland probe runs/landscape_train/digits --samples 2000 --split val --k 5
  optland probe runs/landscape_train/digits --no-density --max-matvecs 60
  optland probe runs/landscape_train/digits --double --out figures
  optland probe runs/landscape_train/digits/checkpoint.pt.previous
  optland probe elsewhere/weights.pt --config configs/landscape_train/digits.yaml
  optland probe runs/mine --recipe my_experiment/mine.py

Measured are the eigenvalues at both ends, the trace by layer, the density, the kind of point, and the
largest learning rate that the run's optimizer can stand there, each with its error and whether it
converged: all on a random sample of the run's data, in evaluation mode, without augmentation and without
weight decay. The weights are those the run was evaluated with: the average, where precision.ema keeps one.
Errors are those of the estimators on these samples. On fewer samples than there are, the largest eigenvalue
comes out too high and the smallest too low: repeat with more --samples to see how much.

The table is printed and kept as probe.json and probe.png in the run folder, numbered where there is one
already. What it can cost is said before it begins; Ctrl-C ends it and writes nothing.
"""

OPTIONS = [
    "--config", "--recipe", "--samples", "--split", "--k", "--max-matvecs", "--density", "--no-density", "--double",
    "--batch-size", "--seed", "--out", "--device",
]  # fmt: skip

_LEAST = {"samples": 1, "k": 1, "max_matvecs": 1, "batch_size": 1, "seed": 0}


def add_probe_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``optland probe`` takes."""
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder, or a checkpoint file")
    add("--config", metavar="FILE", help="the run's config; by default config.yaml beside the checkpoint")
    add(
        "--recipe",
        metavar="RECIPE",
        help="its recipe, by name or script; by default the one the config names",
    )
    add("--samples", metavar="N", type=int, default=512, help="samples to measure on (default: 512)")
    add("--split", choices=["train", "val", "test"], default="train", help="of which split (default: train)")
    add("--k", metavar="K", type=int, default=3, help="eigenvalues at each end (default: 3)")
    add(
        "--max-matvecs",
        metavar="M",
        type=int,
        default=200,
        help="most Hessian products of each part (default: 200)",
    )
    add("--density", action=argparse.BooleanOptionalAction, default=True,
        help="the density of all eigenvalues, the most expensive part (default: yes)")  # fmt: skip
    add("--double", action="store_true", help="measure in float64, for nearly flat points")
    add(
        "--batch-size",
        metavar="B",
        type=int,
        help="samples at a time, which memory depends on (default: the run's)",
    )
    add(
        "--seed",
        metavar="S",
        type=int,
        default=0,
        help="seed of the sample and of every estimator (default: 0)",
    )
    add("--out", metavar="FOLDER", help="where to write (default: the run folder)")
    add(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="cuda where there is one by default"
    )


def check(arguments: argparse.Namespace) -> None:
    """Refuse numbers that cannot be.

    Raises:
        UserError: One of them is too small.
    """
    refuse_too_small(arguments, _LEAST)


def refuse_too_small(arguments: argparse.Namespace, least: Mapping[str, int]) -> None:
    """Refuse whole numbers below the least that each may be.

    Args:
        arguments: As parsed; an option that was not given, None, is passed over.
        least: The least value of each, by its name in ``arguments``.

    Raises:
        UserError: One of them is too small.
    """
    for name, smallest in least.items():
        value = getattr(arguments, name)
        if value is not None and value < smallest:
            option = name.replace("_", "-")
            raise UserError(f"--{option}: {value} is too small; use a whole number from {smallest}")
