"""A subject from an import path: how an optimizer is built and driven is found out by trying.

Three ways of building are known: ``Class(base, rho=...)``, ``Class(params, base class, rho=..., lr=...)`` and, of what
has an update of its own, ``Class(params, lr=...)``.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from optland.conformance.oracles import ORACLES
from optland.conformance.ours import LETTERS
from optland.conformance.subject import Base, Claim, Drive, FirstSecond, Subject

__all__ = ["subject_at"]

OWN_STEP = "has its own update and no base optimizer"

_BASED = ("resume-settings", "schedulers", "added-group", "hooks")
"""Checks that hold an optimizer against its base, or that say nothing of one that has none."""


def subject_at(path: str, claims: str | None = None) -> Subject:
    """The subject of an optimizer class, or a :class:`Subject` that is there already.

    Args:
        path: ``package.module:Name``.
        claims: The method that it claims to be; None takes its name in lower case, or no method.

    Raises:
        ValueError: There is nothing of that name, no optimizer, one that cannot be built, or an unknown method.

    Example:
        >>> subject_at("torch.optim:AdamW").claim.method
        'adamw'
    """
    found = _imported(path)
    if isinstance(found, Subject):
        return found
    if not isinstance(found, type) or not callable(getattr(found, "step", None)):
        raise ValueError(
            f"{path} is a {type(found).__name__}; name an optimizer class, or a conformance Subject"
        )
    method = (claims or found.__name__).lower()
    if claims is not None and method not in ORACLES:
        raise ValueError(f"claims {claims!r} is not known; choose from {sorted(ORACLES)}")
    options = dict(LETTERS[method]) if method in ORACLES else _radius(found)
    for make in _forms(found, options):
        if _builds(make, options):
            return _subject(path, found, make, method, options)
    raise ValueError(
        f"{path} was built neither as Class(base, rho=...), Class(params, base class, rho=..., lr=...) nor "
        "Class(params, lr=...); describe it by an optland.conformance.Subject, and name that"
    )


def _imported(path: str) -> Any:
    module, colon, name = path.partition(":")
    if not colon or not module or not name:
        raise ValueError(f"{path!r} is no import path; write package.module:Class")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ValueError(
            f"{path}: {module} cannot be imported ({error}); install it, or run this beside it"
        ) from error
    except AttributeError as error:
        raise ValueError(f"{path}: {module} has no {name}") from error


def _radius(cls: type) -> dict[str, Any]:
    """Of a method that no paper here describes, the radius alone, where it has one."""
    return {"rho": 0.3} if "rho" in inspect.signature(cls).parameters else {}


def _forms(cls: Any, options: Mapping[str, Any]) -> list[Callable[..., Any]]:
    """The ways of building, the one for a wrapper of an instance first."""
    known = inspect.signature(cls).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in known.values())

    def taken(given: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in given.items() if anything or name in known}

    def instance(params: list[Any], base: Base, model: nn.Module, given: Mapping[str, Any]) -> Any:
        about = {"model": model} if "model" in known else {}
        return cls(base(params), **taken(given), **about)

    def of_class(params: list[Any], base: Base, model: nn.Module, given: Mapping[str, Any]) -> Any:
        return cls(params, base.cls, **taken(given), **base.options)

    def alone(params: list[Any], base: Base, model: nn.Module, given: Mapping[str, Any]) -> Any:
        return cls(params, **taken({**given, "lr": base.options["lr"]}))

    return [instance, of_class, alone]


def _builds(make: Callable[..., Any], options: Mapping[str, Any]) -> bool:
    """Whether a way of building gives an optimizer on these parameters."""
    model = nn.Linear(2, 1)
    try:
        made = make(list(model.parameters()), Base("sgd", {"lr": 0.1}), model, options)
        return [p for group in made.param_groups for p in group["params"]] == list(model.parameters())
    except Exception:  # another way may fit; where none does, all of them are named
        return False


def _subject(
    path: str, cls: type, make: Callable[..., Any], method: str, options: Mapping[str, Any]
) -> Subject:
    two_calls = callable(getattr(cls, "first_step", None)) and callable(getattr(cls, "second_step", None))
    alone = make.__name__ == "alone"
    off = {"rho": 0.0} if "rho" in options and not alone else None
    return Subject(
        path, make, Claim(method, options, off), drive=FirstSecond() if two_calls else Drive(),
        halves=("first_step", "second_step") if two_calls else None,
        disclaims=dict.fromkeys(_BASED, OWN_STEP) if alone else {},
    )  # fmt: skip
