"""The closure of a step does what it did, and says when its gradient is there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from optland.pilot.closures import with_each_call


def called(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[bool]]:
    """The arguments that come back, and what the notice was given."""
    told: list[bool] = []
    return with_each_call(args, kwargs, first=told.append, failed=lambda: told.append(False)), told


def test_a_closure_is_wrapped_where_it_was_given() -> None:
    """By place and by name; the optimizer in front, which may be callable, is none."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    for args, kwargs in (
        ((optimizer, lambda: 3.0), {}),
        ((optimizer,), {"closure": lambda: 3.0, "scale": 2.0}),
    ):
        (given, named), told = called(args, kwargs)
        closure = {**dict(zip(("self", "closure"), given, strict=False)), **named}["closure"]
        assert (given[0], len(given), named.keys()) == (optimizer, len(args), kwargs.keys())
        assert named.get("scale") == kwargs.get("scale")
        assert told == []
        assert [closure(), closure()] == [3.0, 3.0]
        assert told == [True]  # once, after the first evaluation


def test_a_step_without_a_closure_has_its_gradient_already() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    assert called((optimizer,), {}) == (None, [False])
    assert called((optimizer,), {"closure": None}) == (None, [False])


def test_a_closure_that_is_interrupted_in_any_evaluation_is_told_of() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    results = iter([3.0, KeyboardInterrupt])

    def closure() -> float:
        if (result := next(results)) is KeyboardInterrupt:
            raise KeyboardInterrupt
        return float(result)

    ((_, evaluated), _), told = called((optimizer, closure), {})
    assert evaluated() == 3.0
    with pytest.raises(KeyboardInterrupt):
        evaluated()
    assert told == [True, False]
