"""Select the perturbed parameters: all, all but biases and normalisation, normalisation alone, or a choice.

Perturbing the normalisation layers alone is often as good as perturbing everything (Mueller, Vlaar, Rolnick & Hein
2023, "Normalization Layers Are All That Sharpness-Aware Minimization Needs", arXiv:2306.04226); the radius has to be
searched anew, and is larger. All parameters have a gradient and are updated in any case.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import Tensor, nn

from optland.config import did_you_mean
from optland.context.modules import BATCH_NORMS

__all__ = ["Selection", "selected"]

Kind = Literal["all", "weights", "norm"]
Selection = Kind | Callable[[str, Tensor], bool]
"""``"all"``; ``"weights"``: tensors of two or more dimensions; ``"norm"``: scales and shifts of normalisation layers;
or a function of name and parameter."""

_NORMALISATION = (
    *BATCH_NORMS,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def selected(selection: Selection, params: list[Tensor], model: nn.Module | None) -> set[Tensor] | None:
    """The parameters to perturb, None for all.

    Args:
        selection: Which.
        params: Parameters of the optimizer.
        model: Their module: needed to tell names and normalisation layers.

    Returns:
        Parameters by identity.

    Raises:
        ValueError: ``selection`` is not known, needs a model, or leaves nothing.
        TypeError: ``selection`` is neither a name nor callable.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> selected("weights", list(layer.parameters()), None) == {layer.weight}
        True
    """
    if selection == "all":
        return None
    if isinstance(selection, str) and selection not in get_args(Kind):
        known = list(get_args(Kind))
        hint = did_you_mean(selection, known)
        raise ValueError(
            f"only={selection!r} is not known; use one of {', '.join(known)}, or a function.{hint}"
        )
    if selection == "weights":
        found = {p for p in params if p.ndim >= 2}
    elif model is None:
        raise ValueError(
            f"only={selection!r} needs model=, to tell the parameters by name and layer; pass it"
        )
    elif callable(selection):
        found = {p for name, p in model.named_parameters() if selection(name, p)}
    elif selection == "norm":
        found = {p for m in model.modules() if _normalises(m) for p in m.parameters(recurse=False)}
    else:
        raise TypeError(
            f"only={selection!r} is a {type(selection).__name__}; use a name or a function(name, parameter)"
        )
    chosen = found.intersection(params)
    if not chosen:
        raise ValueError(f"only={_name(selection)} selects none of the optimizer's {len(params)} parameters")
    return chosen


def _normalises(module: nn.Module) -> bool:
    # Own classes are told by their name, as nearly everybody names them.
    return isinstance(module, _NORMALISATION) or "norm" in type(module).__name__.lower()


def _name(selection: Any) -> str:
    return repr(selection) if isinstance(selection, str) else getattr(selection, "__name__", repr(selection))
