"""Every probe has a card, and every card a probe."""

from __future__ import annotations

import importlib
import inspect

import pytest

import optland.landscape
from optland.landscape.cards import PROBES, ProbeCard


@pytest.mark.parametrize("card", PROBES, ids=lambda card: card.call)
def test_a_card_names_what_is_there(card: ProbeCard) -> None:
    assert callable(getattr(importlib.import_module(card.module), card.call))
    assert all((card.tells, card.cost, card.memory, card.error))


def test_every_function_that_measures_has_a_card() -> None:
    makers = {
        "checkpoint_plane", "cosine", "difference", "eigenvector_direction", "filter_normalised", "gradient_direction",
        "layer_normalised", "overlap", "random_direction", "random_sharpness", "rank_correlations",
        "recalibrated", "ruggedness", "update_direction",
    }  # fmt: skip
    public = {n for n in optland.landscape.__all__ if inspect.isfunction(getattr(optland.landscape, n))}
    assert public - makers == {c.call for c in PROBES if c.module == "optland.landscape"}
