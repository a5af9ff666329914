"""Optimizers by name, for configurations and sweeps."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

from optland.config import did_you_mean
from optland.optim.cards import CARDS
from optland.optim.two_pass import EngineOptions, TwoPass

__all__ = ["available", "create", "options_of"]

BASES: dict[str, type[Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
METHODS: dict[str, type[TwoPass]] = {card.name: card.method for card in CARDS}

_FORM_ARGUMENTS = {"self", "base", "base_class", "adaptive", "params"}


def available(pattern: str = "*") -> list[str]:
    """Names that :func:`create` knows and that match a shell pattern, sorted.

    Example:
        >>> available("[ul]*sam")
        ['lesam', 'looksam', 'usam']
    """
    return sorted(fnmatch.filter([*METHODS, *BASES, "none"], pattern))


def create(name: str, params: Iterable[Any], base: str | None = None, **options: Any) -> Optimizer:
    """Make an optimizer from names and options.

    Args:
        name: A method (``"sam"``), a base optimizer alone (``"adamw"``), or ``"none"`` for ``base`` alone.
        params: Parameters, groups, or (name, parameter) pairs.
        base: The base optimizer of a method; default ``"sgd"``.
        **options: Options of the method (``rho``) and of the base (``lr``), told apart by their names.
            ``model`` may always be given; a base alone has no use for it.

    Raises:
        ValueError: A name or an option is not known; the message says what is, and what was probably meant.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> type(create("asam", [w], base="adamw", lr=1e-3, rho=0.2)).__name__
        'ASAM'
    """
    _check("optimizer", name, available())
    if name in BASES and base not in (None, name):
        raise ValueError(
            f"{name!r} is a base optimizer itself and cannot take base={base!r}; drop one of the two"
        )
    base = name if name in BASES else base or "sgd"
    _check("base optimizer", base, sorted(BASES))
    for key in options:
        _check(f"option of {name!r} over {base!r}", key, options_of(name, base))
    of_base, of_method = _options(BASES[base]), _options(METHODS[name]) if name in METHODS else {"model"}
    inner = BASES[base](params, **{key: value for key, value in options.items() if key in of_base})
    if name not in METHODS:
        return inner
    missing = _required(METHODS[name]) - options.keys()
    if missing:
        raise ValueError(f"{name!r} needs {', '.join(f'{key}=' for key in sorted(missing))}; pass it")
    build: Callable[..., TwoPass] = METHODS[name]
    return build(inner, **{key: value for key, value in options.items() if key in of_method})


def options_of(name: str, base: str = "sgd") -> list[str]:
    """Names of the options that :func:`create` takes for a method over a base, sorted.

    Args:
        name: A name of :func:`available`.
        base: The base optimizer; the name itself where that is a base alone.

    Example:
        >>> "rho" in options_of("sam"), "rho" in options_of("adamw", "adamw"), "betas" in options_of("sam", "adamw")
        (True, False, True)
    """
    return sorted(_options(BASES[base]) | (_options(METHODS[name]) if name in METHODS else {"model"}))


def _options(cls: type) -> set[str]:
    """Names that a constructor takes beside parameters or base."""
    parameters = inspect.signature(cls).parameters.values()
    engine = set(EngineOptions.__annotations__) if issubclass(cls, TwoPass) else set()
    return ({p.name for p in parameters if p.kind is not p.VAR_KEYWORD} | engine) - _FORM_ARGUMENTS


def _required(cls: type) -> set[str]:
    """Options without a default."""
    parameters = inspect.signature(cls).parameters.values()
    return {
        p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD
    } - _FORM_ARGUMENTS


def _check(what: str, given: str, known: list[str]) -> None:
    if given in known:
        return
    raise ValueError(f"unknown {what}: {given!r}.{did_you_mean(given, known)} Known: {', '.join(known)}.")
