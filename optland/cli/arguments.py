"""Arguments that several commands take, which need no PyTorch."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

__all__ = ["above_zero", "add_run_arguments", "add_survey_arguments", "whole_from"]


def add_run_arguments(
    parser: argparse.ArgumentParser, *, of: str = "measure on", least: int = 1, out: str = "the run folder"
) -> None:
    """Add what every command takes that measures a trained run.

    Args:
        parser: That of the command.
        of: What samples are for, in words.
        least: Fewest samples.
        out: Where it writes by default, in words.
    """
    add = parser.add_argument
    add("--config", metavar="FILE", help="the run's config; by default config.yaml beside the checkpoint")
    add(
        "--recipe",
        metavar="RECIPE",
        help="its recipe, by name or script; by default the one the config names",
    )
    add("--samples", metavar="N", type=whole_from(least), default=512, help=f"samples to {of} (default: 512)")
    add("--batch-size", metavar="B", type=whole_from(1),
        help="samples at a time, which memory depends on (default: the run's)")  # fmt: skip
    add("--seed", metavar="S", type=whole_from(0), default=0, help="seed of everything random (default: 0)")
    add("--out", metavar="FOLDER", help=f"where to write (default: {out})")
    add(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="cuda where there is one by default"
    )


def add_survey_arguments(parser: argparse.ArgumentParser, max_matvecs: int | None) -> None:
    """Add what decides how much of the landscape is measured.

    Args:
        parser: That of the command.
        max_matvecs: Most Hessian products by default; None where the command has ``--seconds`` and goes by those, with
            the density where it fits.
    """
    add = parser.add_argument
    by_time = max_matvecs is None
    most = "as many as fit --seconds, 200 at most" if by_time else max_matvecs
    add("--split", choices=["train", "val", "test"], default="train", help="of which split (default: train)")
    add("--max-matvecs", metavar="M", type=whole_from(1), default=max_matvecs,
        help=f"most Hessian products of each part (default: {most})")  # fmt: skip
    shown = "where it fits --seconds" if by_time else "yes"
    add("--density", action=argparse.BooleanOptionalAction, default=None if by_time else True,
        help=f"the density of all eigenvalues, the most expensive part (default: {shown})")  # fmt: skip


def above_zero(text: str) -> float:
    """The type of an argument that is a number above 0.

    Args:
        text: As it was typed.

    Raises:
        argparse.ArgumentTypeError: It is none.

    Example:
        >>> above_zero("2.5")
        2.5
    """
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from error
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0; use a number such as 60")
    return value


def whole_from(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number.

    Args:
        least: The smallest that it may be.

    Example:
        >>> whole_from(1)("3")
        3
    """

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from error
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is too small; use a whole number from {least}")
        return value

    return parse
