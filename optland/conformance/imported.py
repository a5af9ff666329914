"""A subject from an import path: how an optimizer is built and driven is found out by trying.

Three ways of building are known: ``Class(base, rho=...)``, ``Class(params, base class, rho=..., lr=...)`` and, of what
has an update of its own, ``Class(params, lr=...)``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from optland.config.imports import imported
from optland.conformance.oracles import ORACLES
from optland.conformance.ours import LETTERS, ours
from optland.conformance.subject import Base, Claim, Drive, FirstSecond, Subject
from optland.optim.registry import METHODS

__all__ = ["subject_at"]

OWN_STEP = "has its own update and no base optimizer"

_NOT_ASKED = "is not asked of an optimizer that takes one pass"

_ALONE = {
    **dict.fromkeys(("resume-settings", "schedulers", "added-group", "hooks"), OWN_STEP),
    **dict.fromkeys(("checkpoint-first", "scaler-misuse", "not-finite-first"), _NOT_ASKED),
}
"""Checks that hold an optimizer against its base, and those that torch's own optimizers would not pass."""


def subject_at(path: str, claims: str | None = None) -> Subject:
    """The subject of an optimizer class, or a :class:`Subject` that is there already.

    Args:
        path: ``package.module:Name``.
        claims: The method that it claims to be; None takes its name in lower case, or no method.

    Returns:
        One that is named like the path. Of this package's own methods it is that of
        :func:`~optland.conformance.ours.ours`.

    Raises:
        ValueError: No such path, module or name, no optimizer, one that cannot be built, or an unknown method.

    Example:
        >>> subject_at("torch.optim:AdamW").claim.method
        'adamw'
    """
    found = imported(path)
    if isinstance(found, Subject):
        return found
    if not isinstance(found, type) or not callable(getattr(found, "step", None)):
        raise ValueError(
            f"{path} is a {type(found).__name__}; name an optimizer class, or a conformance Subject"
        )
    own = [s for s in ours() if METHODS[s.name] is found and claims in (None, s.claim.method)]
    if own:
        return replace(own[0], name=path)
    method = (claims or found.__name__).lower()
    if claims is not None and method not in ORACLES:
        raise ValueError(f"claims {claims!r} is not known; choose from {sorted(ORACLES)}")
    options = _options(path, found, method)
    for make in _forms(found, options):
        if _builds(make, options):
            return _subject(path, found, make, method, options)
    raise ValueError(
        f"{path} was built neither as Class(base, rho=...), Class(params, base class, rho=..., lr=...) nor "
        "Class(params, lr=...); describe it by an optland.conformance.Subject, and name that"
    )


_OPTIONAL = {"p", "matrices_only", "bounded", "decouple", "start", "fresh"}
"""Letters that an oracle has a default for, which is that of the paper."""


def _options(path: str, cls: type, method: str) -> dict[str, Any]:
    """The letters of the method that the class takes by name; of an unknown method the radius, where it has one."""
    known = inspect.signature(cls).parameters
    letters = LETTERS[method] if method in ORACLES else {"rho": 0.3}
    missing = [x for x in letters if x not in known and x not in _OPTIONAL]
    if method in ORACLES and missing:
        raise ValueError(
            f"{path} claims to be {method} and has no parameter {', '.join(missing)}; describe it by an "
            "optland.conformance.Subject, and name that, or say what it is with --claims"
        )
    return {letter: value for letter, value in letters.items() if letter in known}


def _forms(cls: Any, options: Mapping[str, Any]) -> list[Callable[..., Any]]:
    """The ways of building, the one for a wrapper of an instance first."""
    known = inspect.signature(cls).parameters

    def taken(given: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in given.items() if name in known}

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
        disclaims=_ALONE if alone else {},
    )  # fmt: skip
