"""The arguments of ``optland verify``, apart from its work so that the other commands need not load PyTorch."""

from __future__ import annotations

import argparse

__all__ = ["EXAMPLES", "add_arguments"]

EXAMPLES = """examples:
  optland verify
  optland verify --device cuda --json
  optland verify torch.optim:AdamW
  optland verify mypackage.sharpness:SAM --claims sam

Without a name: quantities with a closed form are measured on the device of this machine, and four methods of the
package are held to their papers. With one: the optimizer of that import path is held to what it claims to be, a
method of the SAM family by --claims or by its name, else to what torch.optim asks of any optimizer.

An optimizer is built as Class(base, rho=...), Class(params, base class, rho=..., lr=...) or Class(params, lr=...),
whichever it takes, and driven by first_step and second_step where it has them, else by a closure. One that wants
another treatment is described by an optland.conformance.Subject; its import path is taken in place of the class.

The exit code is 0 where every check passed, 1 where one did not, 2 where the optimizer cannot be used.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``optland verify`` takes."""
    add = parser.add_argument
    add(
        "optimizer",
        metavar="MODULE:NAME",
        nargs="?",
        help="import path of an optimizer; optland itself by default",
    )
    add(
        "--claims",
        metavar="METHOD",
        help="what it claims to be, such as sam; by default its name in lower case",
    )
    add("--device", choices=["auto", "cpu", "cuda"], default="auto",
        help="of the closed forms; cuda where there is one by default")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object instead of lines")
