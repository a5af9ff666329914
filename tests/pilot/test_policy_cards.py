"""The cards, the classes, the results and the README say the same."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

from optland.pilot import POLICIES, HostFacts, NoiseBatch
from optland.pilot.cards import FOR_DISPLAY, POLICY_CARDS, PolicyCard, policy_table

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WORDS = {
    "step_length": "step length", "lr": "cap on the lr", "lr_factor": "lr factor", "batch_size": "batch size",
    "beta1": "betas", "beta2": "betas", "skip": "skip", "rewind": "rewind", "escape": "escape",
}  # fmt: skip
OPTIONS = {"auto_lr": {"ceiling": 1.0}}
"""What makes a policy turn all that it can."""


@pytest.fixture(params=POLICY_CARDS, ids=lambda card: card.name)
def card(request: pytest.FixtureRequest) -> PolicyCard:
    return request.param  # type: ignore[no-any-return]


def test_every_policy_has_one_card() -> None:
    assert [card.name for card in POLICY_CARDS] == list(POLICIES)


def test_the_readme_holds_the_table_made_from_the_cards() -> None:
    assert policy_table() in README


def test_a_card_names_all_that_its_class_turns_and_nothing_else(card: PolicyCard) -> None:
    policy = card.policy(**OPTIONS.get(card.name, {}))
    policy.begin(HostFacts(steps=100, has_length=True, adam=True))
    turned = policy.turns | policy.caps
    words = {WORDS[name] for name in turned}
    assert all(word in card.turns for word in words)
    assert not [
        word for word in WORDS.values() if word not in words and re.search(rf"\b{word}\b", card.turns)
    ]
    assert (card.turns == "-") == (not turned)


def test_the_betas_follow_under_adam_alone_and_where_nobody_sets_lengths() -> None:
    policy = NoiseBatch()
    policy.begin(HostFacts(adam=True, lengths_set=True))
    assert policy.turns == {"batch_size"}
    policy.begin(HostFacts(adam=False))
    assert policy.turns == {"batch_size", "lr_factor"}


def test_a_card_has_measurements_or_says_that_it_is_for_display(card: PolicyCard) -> None:
    """What a card points to holds cells of it; what only shows turns nothing."""
    if card.measured == FOR_DISPLAY:
        assert card.turns == "-"
        return
    for name in card.measured.split(", "):
        text = (ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8")
        keys = set(re.findall(r'"([^"]+)":', text)) | set(re.findall(r"\w+", text))
        assert json.loads(text)
        assert card.name in keys or (card.name, name) == ("spike_guard", "spikes")


def test_a_module_tells_cost_use_defaults_and_source(card: PolicyCard) -> None:
    module = importlib.import_module(card.policy.__module__)
    text = inspect.getdoc(module) or ""
    flat = " ".join(text.split())
    assert "math::" in text
    for word in ("Cost:", "When", "hen not:", "Default"):
        assert word in flat, word
    cited = re.search(r"\d{4}\.\d{5}", card.reference)
    assert cited
    assert cited.group() in flat
