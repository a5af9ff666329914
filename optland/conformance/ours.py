"""The package's own methods as subjects, from its registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from optland.conformance.problems import Problem
from optland.conformance.subject import Base, Claim, Drive, Phases, Subject
from optland.objective import Objective
from optland.optim.registry import METHODS

__all__ = ["LETTERS", "ours"]

LETTERS: dict[str, dict[str, Any]] = {
    "sam": {"rho": 0.3, "p": 2.0},
    "usam": {"rho": 0.1, "lam": 0.0},
    "asam": {"rho": 0.3, "eta": 0.0},
    "gsam": {"rho": 0.3, "alpha": 0.2},
    "wsam": {"rho": 0.3, "gamma": 0.7, "decouple": False},
    "pgn": {"rho": 0.3, "a": 0.6},
    "looksam": {"rho": 0.3, "k": 2, "alpha": 0.7, "bounded": False},
    "fsam": {"rho": 0.3, "sigma": 1.0, "lam": 0.8},
    "vasso": {"rho": 0.3, "theta": 0.4},
    "msam": {"rho": 0.3},
    "lesam": {"rho": 0.5, "sigma": 0.1},
    "fisher_sam": {"rho": 0.3, "eta": 1.0},
    "adam_sam": {"rho": 0.3, "delta": 1e-8},
    "eigensam": {"rho": 0.3, "alpha": 0.5, "refresh": 2, "rtol": 1e-9},
    "stable_sam": {"rho": 0.3},
    "sparse_sam": {"rho": 0.3, "sparsity": 0.5, "refresh": 2},
    "crsam": {"rho": 0.3, "alpha": 0.1, "beta": 0.1},
}
"""Parameters of each method in its paper's letters, with values at which every term of it is seen."""

NAMES: dict[str, dict[str, str]] = {
    "usam": {"lam": "normalised"},
    "wsam": {"decouple": "decoupled"},
    "fsam": {"lam": "decay"},
    "crsam": {"alpha": "gamma"},
}
"""Letters that a constructor spells out."""

NEEDS: dict[str, dict[str, Any]] = {
    "msam": {"momentum": 0.9},
    "adam_sam": {"bases": ("adamw",)},
}
"""What a method asks of its base."""


def ours(form: Literal["closure", "phase"] = "closure") -> list[Subject]:
    """A subject for every method of the registry, with the parameters of its paper.

    Args:
        form: How they are driven; ``"phase"`` is a backward pass at each of ``passes()``, and ``step()``.

    Returns:
        One for each, in the registry's order, with the claim's options at values where every term of the method is
        seen.

    Example:
        >>> sorted(subject.name for subject in ours())[:2]
        ['adam_sam', 'asam']
    """
    return [_subject(name, form) for name in METHODS]


def _subject(name: str, form: Literal["closure", "phase"]) -> Subject:
    spelled = NAMES.get(name, {})

    def make(params: list[Any], base: Base, model: nn.Module, options: Mapping[str, Any]) -> Any:
        chosen = {spelled.get(letter, letter): value for letter, value in options.items()}
        chosen.pop("matrices_only", None)  # a property, not an option
        if name == "eigensam":
            chosen["objective"] = Objective(model, _along_ones, [torch.ones(1)])
        build: Any = METHODS[name]
        return build(base(params), model=model, **chosen)

    options = LETTERS.get(name, {"rho": 0.3})
    off = {"sigma": 0.0} if name == "lesam" else {"rho": 0.0}
    return Subject(
        name if form == "closure" else f"{name} ({form} form)",
        make,
        Claim(
            name,
            {**options, "matrices_only": True} if name == "asam" else options,
            off,
            **NEEDS.get(name, {}),
        ),
        drive=Drive() if form == "closure" else Phases(),
        halves=("perturb", "perturb", "step") if name == "crsam" else ("perturb", "step"),
        scaled=_scaled,
        micro=_micro if form == "closure" else _micro_phases,
    )


def _along_ones(model: nn.Module, batch: Tensor) -> Tensor:
    """A loss of which the sharpest direction is known: (sum of the weights)^2 / 2, along (1, ..., 1)."""
    return 0.5 * torch.stack([p.sum() for p in model.parameters() if p.requires_grad]).sum().square()


def _scaled(optimizer: Any, problem: Problem, scaler: torch.amp.GradScaler) -> None:
    """The documented step under a scaler."""
    for _ in optimizer.passes(loss_scale=scaler.get_scale()):
        problem.backward(scaler.scale)
    optimizer.restore()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def _micro(optimizer: Any, problem: Problem, parts: list[slice]) -> None:
    """A closure for each part, whose loss is weighted by the part's share."""
    for part in parts:
        problem.parts = [part]
        share = len(problem.x[part]) / len(problem.x)
        optimizer.accumulate(Drive().closure(optimizer, problem), share=share)
    optimizer.step()


def _micro_phases(optimizer: Any, problem: Problem, parts: list[slice]) -> None:
    """All passes of a part before the next."""
    for part in parts:
        problem.parts = [part]
        for _ in optimizer.passes(share=len(problem.x[part]) / len(problem.x)):
            problem.backward()
        optimizer.accumulate()
    optimizer.step()
