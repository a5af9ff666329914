"""Report, before a run begins, the packages that it will need at its end and that are not installed.

Which of the optional packages a recipe needs is read off the names that its script has imported: what draws pictures
needs matplotlib, and a run is worth having without them; a report is what a run is for, and it is refused.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType

from optland.cli.terminal import complain
from optland.config import UserError

__all__ = ["check_needs", "missing_for"]

_NEEDS = {
    "optland.report": ("the report", [("plotly.offline", "report"), ("matplotlib.figure", "report")]),
    "optland.plots": ("the figure", [("matplotlib.figure", "recipes")]),
}
"""By module of this package: what it makes, the foreign modules that it imports then, and the extra with them."""

_CAN_DO_WITHOUT = ("optland.plots",)


def check_needs(script: ModuleType) -> None:
    """Say what a recipe's script will lack.

    Args:
        script: The recipe's module, after its imports.

    Raises:
        UserError: It lacks what it is for.
    """
    origins = {str(getattr(value, "__module__", "")) for value in vars(script).values()}
    used = [ours for ours in _NEEDS if any(f"{origin}.".startswith(f"{ours}.") for origin in origins)]
    reasons = {ours: reason for ours in used if (reason := missing_for(ours))}
    if needed := [reason for ours, reason in reasons.items() if ours not in _CAN_DO_WITHOUT]:
        raise UserError("; ".join(needed))
    for reason in reasons.values():
        complain(f"optland: {reason}; the run goes on without")


def missing_for(ours: str) -> str:
    """Why a module of this package cannot do its work, with the fix; empty where nothing is missing.

    Args:
        ours: ``optland.plots`` or ``optland.report``.
    """
    what, theirs = _NEEDS[ours]
    missing = {name.partition(".")[0]: extra for name, extra in theirs if not _imports(name)}
    extras = ",".join(sorted(set(missing.values())))
    return f"{what} needs {_and(missing)}; run: pip install 'optland[{extras}]'" if missing else ""


def _imports(name: str) -> bool:
    """Whether it can be imported, which a package that is found may still not be."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _and(names: Iterable[str]) -> str:
    return " and ".join(names)
