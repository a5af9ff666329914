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
from optland.optim.keys import key as key_of
from optland.optim.saddle import (
    CubicNewton,
    NegativeCurvature,
    NoisyGradient,
    PerturbedGradient,
    SaddleFreeNewton,
    TrustRegionNewton,
)
from optland.optim.saddle.krylov_solver import KrylovSolver
from optland.optim.saddle.wrapper import SaddleWrapper
from optland.optim.two_pass import EngineOptions, TwoPass

__all__ = ["available", "create", "options_of", "wrap"]

BASES: dict[str, type[Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
METHODS: dict[str, type[TwoPass]] = {card.name: card.method for card in CARDS}
WRAPPERS: dict[str, type[SaddleWrapper]] = {
    "negative_curvature": NegativeCurvature,
    "noisy_gradient": NoisyGradient,
    "perturbed_gradient": PerturbedGradient,
}
"""Saddle-escaping wrappers of a base."""

SOLVERS: dict[str, type[KrylovSolver]] = {
    "cubic_newton": CubicNewton,
    "saddle_free_newton": SaddleFreeNewton,
    "trust_region_newton": TrustRegionNewton,
}
"""Second-order solvers, which have no base."""

_FORM_ARGUMENTS = {"self", "base", "base_class", "adaptive", "params"}


def available(pattern: str = "*") -> list[str]:
    """Names that :func:`create` knows and that match a shell pattern, sorted.

    Args:
        pattern: As :mod:`fnmatch` has it; case matters.

    Returns:
        Methods, saddle wrappers, second-order solvers, bases, and ``none``.

    Example:
        >>> available("[ul]*sam"), available("*newton")
        (['lesam', 'looksam', 'usam'], ['cubic_newton', 'saddle_free_newton', 'trust_region_newton'])
    """
    return sorted(fnmatch.filter([*METHODS, *WRAPPERS, *SOLVERS, *BASES, "none"], pattern))


def create(name: str, params: Iterable[Any], base: str | None = None, **options: Any) -> Optimizer:
    """Make an optimizer from names and options.

    Args:
        name: A method (``"sam"``), a base optimizer alone (``"adamw"``), or ``"none"`` for ``base`` alone.
        params: Parameters, groups, or (name, parameter) pairs.
        base: The base optimizer of a method; default ``"sgd"``.
        **options: Options of the method (``rho``) and of the base (``lr``), distinguished by their names. Where both
            have one of a name, the method's is written as in the groups, ``sam_alpha``, and the base keeps its
            default. ``model`` may always be given; a base alone has no use for it.

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
    if name in SOLVERS:
        return _solver(name, params, base, options)
    base = name if name in BASES else base or "sgd"
    _check("base optimizer", base, sorted(BASES))
    shared = _shared(name, base)
    for key in options:
        if key in shared:
            raise ValueError(
                f"{name!r} and its base {base!r} both have an option {key!r}; write {key_of(key)}={options[key]!r} for "
                f"that of {name!r}, and for the other make the base first and wrap it"
            )
        _check(f"option of {name!r} over {base!r}", key, options_of(name, base))
    of_base = _options(BASES[base])
    inner = BASES[base](params, **{key: value for key, value in options.items() if key in of_base})
    method: type[TwoPass] | type[SaddleWrapper] | None = METHODS.get(name) or WRAPPERS.get(name)
    if method is None:
        return inner
    missing = _required(method) - options.keys()
    if missing:
        raise ValueError(
            f"{name!r} needs {', '.join(f'{key}=' for key in sorted(missing))}; give it to "
            "optland.optim.create in Python, or choose another method"
        )
    build: Callable[..., Optimizer] = method
    taken = {key_of(key) if key in shared else key: key for key in _options(method)}
    return build(inner, **{taken[key]: value for key, value in options.items() if key in taken})


def wrap(name: str, base: Optimizer, **options: Any) -> TwoPass:
    """Put a two-pass method around an optimizer instance, by name.

    Args:
        name: A method, such as ``"sam"``; see :data:`CARDS`.
        base: The optimizer that makes the update.
        **options: Those of the method.

    Raises:
        ValueError: A name or an option is not known; the message says what is, and what was probably meant.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> wrap("asam", torch.optim.RAdam([w]), rho=0.2).param_groups[0]["sam_rho"]
        0.2
    """
    _check("two-pass method", name, sorted(METHODS))
    for key in options:
        _check(f"option of {name!r}", key, sorted(_of_method(name)))
    build: Callable[..., TwoPass] = METHODS[name]
    return build(base, **options)


def options_of(name: str, base: str = "sgd") -> list[str]:
    """Names of the options that :func:`create` takes for a method over a base, sorted.

    Args:
        name: A name of :func:`available`.
        base: The base optimizer; the name itself where that is a base alone.

    Returns:
        Where both have one of a name, the method's is written as in the groups, ``sam_alpha``, and the base's is left
        out.

    Example:
        >>> "rho" in options_of("sam"), "rho" in options_of("adamw", "adamw"), "betas" in options_of("sam", "adamw")
        (True, False, True)
    """
    if name in SOLVERS:
        return sorted(_solver_options(name))
    shared = _shared(name, base)
    return sorted((_options(BASES[base]) | _of_method(name)) - shared | {key_of(key) for key in shared})


def _shared(name: str, base: str) -> set[str]:
    """Names of options that a method and its base both have."""
    return _options(BASES[base]) & _of_method(name)


def _of_method(name: str) -> set[str]:
    """Options of a method or wrapper; ``model`` may always be given."""
    method = METHODS.get(name) or WRAPPERS.get(name)
    return {"model"} | (set() if method is None else _options(method))


def _solver_options(name: str) -> set[str]:
    """Options of a solver, those of all solvers included."""
    return (_options(SOLVERS[name]) | _options(KrylovSolver)) - {"options"}


def _solver(name: str, params: Iterable[Any], base: str | None, options: dict[str, Any]) -> Optimizer:
    if base is not None:
        raise ValueError(f"{name!r} makes its own steps and cannot take base={base!r}; drop it")
    for key in options:
        _check(f"option of {name!r}", key, sorted(_solver_options(name)))
    build: Callable[..., Optimizer] = SOLVERS[name]
    return build(params, **options)


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
