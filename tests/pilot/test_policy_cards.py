"""A policy's card, its code, its module and the results say the same."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path

import pytest

from optland.pilot import HostFacts, NoiseBatch
from optland.pilot.policies import POLICIES
from optland.pilot.policies.base import Policy

ROOT = Path(__file__).resolve().parents[2]
WORDS = {
    "step_length": "step length", "lr": "cap on the lr", "lr_factor": "lr factor", "batch_size": "batch size",
    "beta1": "betas", "beta2": "betas", "skip": "skip", "rewind": "rewind", "escape": "escape",
}  # fmt: skip
OPTIONS = {"auto_lr": {"ceiling": 1.0}}
"""What makes a policy turn all that it can."""


@pytest.fixture(params=list(POLICIES.values()), ids=list(POLICIES))
def kind(request: pytest.FixtureRequest) -> type[Policy]:
    return request.param


def test_a_card_names_all_that_its_class_turns_and_nothing_else(kind: type[Policy]) -> None:
    card = kind.card
    policy = kind(**OPTIONS.get(kind.name, {}))
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


def test_a_card_has_measurements_where_its_policy_turns_anything(kind: type[Policy]) -> None:
    """What a card points to holds cells of it; what only shows turns nothing."""
    assert (kind.card.turns == "-") == (not kind.card.measured)
    for name in kind.card.measured:
        text = (ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8")
        keys = set(re.findall(r'"([^"]+)":', text)) | set(re.findall(r"\w+", text))
        assert json.loads(text)
        assert kind.name in keys or (kind.name, name) == ("spike_guard", "spikes")


def test_a_module_tells_cost_use_defaults_and_source(kind: type[Policy]) -> None:
    module = importlib.import_module(kind.__module__)
    text = inspect.getdoc(module) or ""
    flat = " ".join(text.split())
    assert "math::" in text
    for word in ("Cost:", "When", "hen not:", "Default"):
        assert word in flat, word
    cited = re.search(r"\d{4}\.\d{5}", kind.card.reference)
    assert cited
    assert cited.group() in flat
