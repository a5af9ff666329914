"""optland: train PyTorch models with the loss landscape in view.

The names that most people need, each imported when it is first used; everything else is in the packages below.

Example:
    >>> import torch, optland
    >>> from optland.problems import saddle
    >>> print(optland.trace(optland.hessian(saddle())))
    0 ± 0 (standard_error)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optland.curvature import critical_step, density, ggn, hessian, lanczos, trace
    from optland.objective import Objective
    from optland.optim import ASAM, MSAM, SAM
    from optland.optim.saddle import NegativeCurvature
    from optland.pilot import Pilot
    from optland.plots import plot

__all__ = [
    "ASAM",
    "MSAM",
    "SAM",
    "NegativeCurvature",
    "Objective",
    "Pilot",
    "__version__",
    "critical_step",
    "density",
    "ggn",
    "hessian",
    "lanczos",
    "plot",
    "trace",
]

__version__ = "0.1.0rc1"

_HOMES = {
    "ASAM": "optland.optim",
    "MSAM": "optland.optim",
    "SAM": "optland.optim",
    "NegativeCurvature": "optland.optim.saddle",
    "Objective": "optland.objective",
    "Pilot": "optland.pilot",
    "critical_step": "optland.curvature",
    "density": "optland.curvature",
    "ggn": "optland.curvature",
    "hessian": "optland.curvature",
    "lanczos": "optland.curvature",
    "plot": "optland.plots",
    "trace": "optland.curvature",
}


def __getattr__(name: str) -> Any:
    """Import a name of ``__all__`` from its home, once."""
    if name not in _HOMES:
        raise AttributeError(
            f"module 'optland' has no attribute {name!r}; its names are {', '.join(__all__)}"
        )
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
