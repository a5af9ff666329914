"""The arguments of ``optland release``, apart from its work so that the other commands need not load PyTorch."""

from __future__ import annotations

import argparse

from optland.cli.probe_options import refuse_too_small

__all__ = ["EXAMPLES", "OPTIONS", "add_release_arguments", "check"]

EXAMPLES = """examples:
  optland release runs/landscape_train/digits --for int4
  optland release runs/landscape_train/digits --for int3 --out released
  optland release runs/language_model/stdlib --for prune=0.8 --samples 256
  optland release runs/landscape_train/digits --for noise=0.2

The weights of a run are rounded (int2 to int8: to nearest, a step for each output channel), pruned (the smallest of all
matrices together), or shaken by noise relative to each matrix, without retraining. Shown is the rise of the loss on
validation data: predicted from slope and curvature, and measured; then on test data, which chose nothing. For a
rounding, bits are dealt out over the layers under that average by slope and curvature, and the better of this and the
same bits everywhere, by validation, is taken.

Written are the weights after it (release-int4.safetensors, floats on the grid, with the bits of each layer in its
metadata; noise is nothing to be written) and what was found (release-int4.json).
"""

OPTIONS = [
    "--for", "--config", "--recipe", "--samples", "--max-matvecs", "--batch-size", "--seed", "--out", "--device",
]  # fmt: skip

_LEAST = {"samples": 1, "max_matvecs": 0, "batch_size": 1, "seed": 0}


def add_release_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``optland release`` takes."""
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder, a checkpoint file or a weights file")
    add("--for", metavar="DAMAGE", dest="damage", required=True, help="int4, prune=0.8 or noise=0.2")
    add("--config", metavar="FILE", help="the run's config; by default config.yaml beside the checkpoint")
    add("--recipe", metavar="RECIPE", help="its recipe; by default the one the config names")
    add("--samples", metavar="N", type=int, default=512, help="samples of each split (default: 512)")
    add("--max-matvecs", metavar="M", type=int, default=400,
        help="most Hessian products for dealing out bits, up to four per matrix (default: 400)")  # fmt: skip
    add("--batch-size", metavar="B", type=int, help="samples at a time (default: the run's)")
    add("--seed", metavar="S", type=int, default=0, help="seed of the samples and of noise (default: 0)")
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
