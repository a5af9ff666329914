"""One word, one meaning: every public parameter is in the glossary, and the glossary keeps the rules."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping

import pytest
from contracts.api import Public, everything, parameters
from contracts.glossary import GLOSSARY

ELSEWHERE = (
    "optland.conformance",
    "optland.optim",
    "optland.vectors",
)
"""Optimizers and their suite, whose words are those of the papers, and helpers that the rest is written with."""

COUNTS = {
    "k": "SciPy's word for the number of eigenvalues",
    "m": "the paper's word, as in m-sharpness",
    "epochs": "everybody's word",
    "total_steps": "the whole run, as PyTorch's OneCycleLR has it",
    "total_samples": "as total_steps",
    "num": "the protocol of a run's data",
    "context": "the field's word",
    "vocabulary": "the field's word",
    "step": "the number of one, not how many",
    "epoch": "the number of one, not how many",
}
"""Words for a number of things that do not begin with ``num_``."""

FORBIDDEN = {
    "tol": "rtol or atol",
    "rho": "radius; rho is SAM's",
    "max_products": "max_matvecs",
    "matvecs": "max_matvecs or num_matvecs",
    "random_state": "seed",
    "rng_seed": "seed",
}


def is_result(value: object) -> bool:
    """A frozen dataclass: its fields are documented as attributes, and few write its constructor."""
    if not inspect.isclass(value) or not dataclasses.is_dataclass(value):
        return False
    return bool(getattr(value, "__dataclass_params__").frozen)  # noqa: B009


def words(names: Iterable[Public]) -> Iterator[tuple[str, str]]:
    """Public name and parameter, of everything that users call."""
    for public in names:
        if not public.home and not public.name.startswith(ELSEWHERE) and not is_result(public.value):
            for item in parameters(public.value):
                if item.kind is not item.VAR_KEYWORD and not item.name.startswith("_"):
                    yield public.name, item.name


def unknown(names: Iterable[Public], glossary: Mapping[str, str]) -> list[str]:
    """What is wrong with the parameters, in words."""
    return [
        f"{where}({word}=): {advice(word)}"
        for where, word in words(names)
        if word not in glossary or word in FORBIDDEN
    ]


def advice(word: str) -> str:
    if word in FORBIDDEN:
        return f"write {FORBIDDEN[word]}"
    return "not in tests/contracts/glossary.py; use a word of the glossary, or add this one with its sentence"


def wrong_words(glossary: Mapping[str, str]) -> list[str]:
    """Counts that are not ``num_*``, limits that are not ``max_*``, and the other way round."""
    problems = []
    for word, sentence in glossary.items():
        counts = sentence.startswith("Number of ") and not word.endswith("_size")
        if counts and not word.startswith("num_") and word not in COUNTS:
            problems.append(f"{word} is a count; write num_{word}")
        if word.startswith("num_") and not sentence.startswith("Number of "):
            problems.append(f"{word} is no count")
        if sentence.startswith("Most ") != word.startswith("max_") and not sentence.startswith("Largest"):
            problems.append(f"{word}: limits are max_*, and what is max_* is a limit")
        if word.endswith("tol") and not re.fullmatch(r"(\w+_)?[ar]tol", word):
            problems.append(f"{word}: a tolerance is rtol or atol")
        if word in FORBIDDEN:
            problems.append(f"{word}: write {FORBIDDEN[word]}")
        if not sentence.endswith("."):
            problems.append(f"{word} has no sentence")
    return problems


def test_every_parameter_is_in_the_glossary() -> None:
    assert unknown(everything(), GLOSSARY) == []


def test_the_glossary_keeps_the_rules() -> None:
    assert wrong_words(GLOSSARY) == []


def test_every_word_of_the_glossary_is_used() -> None:
    assert sorted(set(GLOSSARY) - {word for _, word in words(everything())}) == []


def test_every_exception_is_needed() -> None:
    assert COUNTS.keys() <= GLOSSARY.keys()


def made_up(
    objective: object, *, tol: float = 0.1, tries: int = 3, rho: float = 0.1, seed: int = 0
) -> None: ...


def test_words_outside_the_glossary_are_noticed() -> None:
    found = unknown([Public("optland.curvature.made_up", made_up)], GLOSSARY)
    assert [line.split(":")[0] for line in found] == [
        f"optland.curvature.made_up({word}=)" for word in ("tol", "tries", "rho")
    ]
    assert "rtol or atol" in found[0]
    assert "glossary" in found[1]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("tries", "Number of attempts."),
        ("num_tries", "Attempts."),
        ("budget", "Most products."),
        ("max_tries", "Attempts."),
        ("flat_tol", "Tolerance."),
        ("rho", "Radius."),
        ("seed", "no end"),
    ],
)
def test_words_that_break_a_rule_are_noticed(word: str, sentence: str) -> None:
    assert len(wrong_words({word: sentence})) == 1
