"""The package's own methods as subjects, from its registry."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from optland.optim.conformance.problems import Problem
from optland.optim.conformance.subject import Base, Claim, Drive, Phases, Subject
from optland.optim.registry import METHODS

__all__ = ["ours"]

LETTERS: dict[str, dict[str, Any]] = {
    "sam": {"rho": 0.3, "p": 2.0},
    "usam": {"rho": 0.1, "lam": 0.0},
    "asam": {"rho": 0.3, "eta": 0.0},
    "gsam": {"rho": 0.3, "alpha": 0.2},
    "wsam": {"rho": 0.3, "gamma": 0.7, "decouple": False},
    "looksam": {"rho": 0.3, "k": 2, "alpha": 0.7},
    "fsam": {"rho": 0.3, "sigma": 1.0, "lam": 0.8},
    "vasso": {"rho": 0.3, "theta": 0.4},
    "msam": {"rho": 0.3},
    "lesam": {"rho": 0.5, "sigma": 0.1},
    "fishersam": {"rho": 0.3, "eta": 1.0},
    "crsam": {"rho": 0.3, "alpha": 0.1, "beta": 0.1},
}
"""Parameters of each method in its paper's letters, with values at which every term of it is seen."""

SPELLINGS: dict[str, tuple[str, ...]] = {
    "alpha": ("alpha", "gamma"),
    "decouple": ("decouple", "decoupled"),
    "k": ("k", "every", "interval"),
    "lam": ("lam", "decay", "beta", "momentum"),
    "rho": ("rho", "gamma", "rho_max", "radius"),
    "theta": ("theta", "decay", "beta"),
}
"""Names under which a constructor may take a letter; the first that it has."""


def ours(form: Literal["closure", "phase"] = "closure") -> list[Subject]:
    """A subject for every method of the registry, with all parameters that its constructor takes.

    Args:
        form: How they are driven; ``"phase"`` is ``perturb()`` and ``step()`` between two backward passes.

    Example:
        >>> sorted(subject.name for subject in ours())[:2]
        ['adam_sam', 'asam']
    """
    return [_subject(name, form) for name in METHODS]


def _subject(name: str, form: Literal["closure", "phase"]) -> Subject:
    cls = METHODS[name]
    accepted = inspect.signature(cls).parameters
    letters = LETTERS.get(name, {"rho": 0.3})
    taken: set[str] = set()
    names: dict[str, str] = {}
    for letter in letters:
        spelled = next(
            (s for s in SPELLINGS.get(letter, (letter,)) if s in accepted and s not in taken), None
        )
        if spelled is not None:
            names[letter] = spelled
            taken.add(spelled)

    def make(params: list[Any], base: Base, model: nn.Module, options: Mapping[str, Any]) -> Any:
        chosen = {names[letter]: value for letter, value in options.items() if letter in names}
        build: Any = cls
        return build(base(params), model=model, **chosen)

    options = {letter: value for letter, value in letters.items() if letter in names}
    off = {"sigma": 0.0} if name == "lesam" else {"rho": 0.0}
    return Subject(
        name if form == "closure" else f"{name} ({form} form)",
        make,
        Claim(name, {**options, "matrices_only": True} if name == "asam" else options, off),
        drive=Drive() if form == "closure" else Phases(),
        halves=("perturb", "step"),
        scaled=_scaled,
    )


def _scaled(optimizer: Any, problem: Problem, scaler: torch.amp.GradScaler) -> None:
    """The documented step under a scaler."""
    problem.backward(scaler.scale)
    optimizer.perturb(loss_scale=scaler.get_scale())
    problem.backward(scaler.scale)
    optimizer.restore()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
