"""A number never travels without its error."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from optland.estimate import Estimate, Provenance

SOURCE = Provenance("lanczos", 32, "probe set", "eval", 0)


def estimate(value: float = 2.5, converged: bool = True) -> Estimate:
    return Estimate(value, 0.25, "residual", converged, 96.0, SOURCE)


def test_printing_shows_error_and_convergence() -> None:
    assert str(estimate()) == "2.5 ± 0.25 (residual)"
    assert str(estimate(converged=False)) == "2.5 ± 0.25 (residual) NOT CONVERGED"
    assert str(Estimate(1.0, math.nan, "none", True, 0.0, SOURCE)) == "1"


def test_it_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimate().value = 3.0


def test_notes_add_up_and_leave_the_original() -> None:
    first = estimate()
    noted = first.with_note("One.").with_note("Two.")
    assert (first.note, noted.note) == ("", "One. Two.")
    assert noted.value == first.value


def test_finite() -> None:
    assert estimate().finite
    assert not estimate(math.nan).finite
    assert not estimate(math.inf).finite


def test_dictionary_is_json_and_complete() -> None:
    record = json.loads(json.dumps(estimate().to_dict()))
    assert Provenance(**record.pop("provenance")) == SOURCE
    assert Estimate(**record, provenance=SOURCE) == estimate()
