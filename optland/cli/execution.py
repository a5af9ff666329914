"""Run a recipe's script in this process."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from optland.cli.recipes import Recipe
from optland.cli.terminal import DONE
from optland.config import UserError

__all__ = ["execute"]


def execute(recipe: Recipe, arguments: Sequence[str]) -> int:
    """Run the script as ``python script.py arguments`` would, in this process.

    Args:
        recipe: The recipe.
        arguments: ``CONFIG [key=value ...] [--resume | --validate]``.

    Returns:
        The exit code of the script.

    Raises:
        UserError: The script does not end as a recipe does, so nothing ran.
    """
    before = sys.argv
    sys.argv = [str(recipe.script), *arguments]
    try:
        runpy.run_path(str(recipe.script), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            raise  # the interpreter prints the text and exits with 1
        return end.code or DONE
    finally:
        sys.argv = before
    raise UserError(
        f"{recipe.script}: nothing ran. Its last lines must be:\n"
        'if __name__ == "__main__":\n    raise SystemExit(run_script(__file__))'
    )
