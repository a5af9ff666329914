"""The arguments of ``optland release``, apart from its work so that the other commands need not load PyTorch."""

from __future__ import annotations

import argparse

from optland.cli.arguments import add_run_arguments, whole_from

__all__ = ["EXAMPLES", "add_arguments"]

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``optland release`` takes."""
    add = parser.add_argument
    add("run", metavar="RUN", help="a run folder, a checkpoint file or a weights file")
    add("--for", metavar="DAMAGE", dest="damage", required=True, help="int4, prune=0.8 or noise=0.2")
    add("--max-matvecs", metavar="M", type=whole_from(0), default=400,
        help="most Hessian products for dealing out bits, up to four per matrix (default: 400)")  # fmt: skip
    add_run_arguments(parser, of="measure on, of each split")
