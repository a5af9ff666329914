"""``optland explain``: every key, with and without its prefix, and the nearest one where there is none."""

from __future__ import annotations

import re
from typing import Any

import pytest

from optland.cli import main
from optland.log.meanings import GROUPS, VOCABULARY


def said(capsys: Any, *words: str) -> str:
    assert main(["explain", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("key", VOCABULARY, ids=lambda key: key.name)
def test_every_key_is_explained(capsys: Any, key: Any) -> None:
    name = re.sub(r"<\w+>", "min_thing" if "<end>" not in key.name else "lambda_max", key.name)
    first = said(capsys, name)
    assert first.splitlines()[0] == name
    words = " ".join(first.split())
    for text in (key.meaning, f"good: {key.good}", f"else: {key.remedy}"):
        assert " ".join(text.split()) in words
    assert said(capsys, f"optland/{name}") == first


def test_errors_axes_and_groups_are_explained(capsys: Any) -> None:
    assert "residual of: learning rate over the critical one" in " ".join(
        said(capsys, "edge/ratio_error").split()
    )
    assert "count of optimizer updates" in said(capsys, "optland/step")
    group = said(capsys, "sam")
    assert all(key.name in group for key in VOCABULARY if key.name.startswith("sam/"))
    everything = said(capsys)
    assert all(group in everything for group in GROUPS)
    assert all(key.name.partition("/")[2] in everything for key in VOCABULARY)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("edge/ration", "edge/ratio"),
        ("optland/sam/stabilty", "sam/stability"),
        ("lambda_max", "curv/lambda_max"),
    ],
)
def test_an_unknown_key_suggests_the_nearest(capsys: Any, asked: str, meant: str) -> None:
    assert main(["explain", asked]) == 2
    error = capsys.readouterr().err
    assert f"'{asked}' is no key of optland's. Did you mean '{meant}'?" in error


def test_what_is_like_nothing_gets_no_suggestion(capsys: Any) -> None:
    assert main(["explain", "zzzzzz"]) == 2
    assert "Did you mean" not in capsys.readouterr().err
    assert main(["explain", "--all"]) == 2
    assert "unknown option --all" in capsys.readouterr().err
