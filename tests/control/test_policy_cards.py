"""The cards, the classes and the README say the same."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

from optland.control import POLICIES
from optland.control.cards import POLICY_CARDS, policy_table

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
WORDS = {
    "lr_factor": "lr factor", "batch_size": "batch size", "rho": "rho", "sam_duty": "SAM duty", "skip": "skip",
    "rollback": "rollback", "adam_v0": "v_0",
}  # fmt: skip


def test_every_policy_has_one_card() -> None:
    assert [card.name for card in POLICY_CARDS] == list(POLICIES)


def test_the_readme_holds_the_table_made_from_the_cards() -> None:
    assert policy_table() in README


@pytest.mark.parametrize("card", POLICY_CARDS, ids=lambda card: card.name)
def test_a_card_names_what_its_class_needs(card: object) -> None:
    needs = getattr(card.policy, "needs", frozenset())  # type: ignore[attr-defined]
    assert all(WORDS[need] in card.actuators for need in needs)  # type: ignore[attr-defined]


@pytest.mark.parametrize("card", POLICY_CARDS, ids=lambda card: card.name)
def test_a_module_tells_cost_use_defaults_and_source(card: object) -> None:
    module = importlib.import_module(card.policy.__module__)  # type: ignore[attr-defined]
    text = inspect.getdoc(module) or ""
    flat = " ".join(text.split())
    assert "math::" in text
    for word in ("Cost:", "When", "hen not:", "Default"):
        assert word in flat, word
    cited = re.search(r"\d{4}\.\d{5}", card.reference)  # type: ignore[attr-defined]
    assert cited
    assert cited.group() in flat
