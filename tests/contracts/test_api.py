"""docs/api.txt is the list of public names as they are now."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Literal, Protocol

import pytest
from contracts.api import COMMAND, FILE, Public, everything, exported, listing, main, members, shown


def test_the_list_of_public_names_is_up_to_date() -> None:
    old = FILE.read_text(encoding="utf-8").splitlines() if FILE.is_file() else []
    difference = list(
        difflib.unified_diff(old, listing().splitlines(), "docs/api.txt", "now", lineterm="", n=0)
    )
    assert not difference, f"docs/api.txt is out of date; run `{COMMAND}`:\n" + "\n".join(difference)


def test_every_name_has_one_home() -> None:
    names = [public.name for public in exported()]
    assert len(names) == len(set(names))
    assert {public.home for public in exported() if public.home} <= {p.name for p in exported() if not p.home}


class Answer(StrEnum):
    YES = "yes"
    NO = "no"


class Asks(Protocol):
    def ask(self) -> str: ...


class Base:
    def __init__(
        self, size: int, *rest: int, name: str = "x", of: object = object(), **more: int
    ) -> None: ...


def plain(x: float, /, y: tuple[float, ...] = (0.5,), *, answer: Answer = Answer.NO) -> None: ...


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (plain, "(x, y=(0.5,), *, answer='no')"),
        (Base, "(size, *rest, name='x', of=..., **more)"),
        (Answer, ": 'yes', 'no'"),
        (Literal["a", "b"], ": 'a', 'b'"),
        (Asks, ""),
        (3.0, ""),
        (Base.__init__, "(size, *rest, name='x', of=..., **more)"),
    ],
)
def test_what_is_shown_of_a_name(value: object, text: str) -> None:
    assert shown(value) == text


def test_a_class_has_its_public_methods() -> None:
    class Thing:
        def act(self, num_steps: int) -> None: ...

        def _hidden(self) -> None: ...

        @property
        def size(self) -> int:
            return 1

        @classmethod
        def of(cls, size: int) -> Thing:
            return cls()

    Thing.__module__ = "optland.made_up"
    found = [public.name + shown(public.value) for public in members(Public("a.Thing", Thing), {Thing})]
    assert found == ["a.Thing.act(num_steps)", "a.Thing.of(size)", "a.Thing.size"]


def test_an_unknown_argument_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print"]) == 2
    assert "--write" in capsys.readouterr().err


def without_a_summary(names: Iterable[Public]) -> list[str]:
    """Functions, classes, methods and properties whose docstring does not open with one sentence of a line's length."""
    problems = []
    for public in (p for p in names if not p.home):
        value = public.value.fget if isinstance(public.value, property) else public.value
        value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        first = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
        if not first.endswith(".") or len(first) > 120 or re.search(r"(?<!\.)\. ", first):
            problems.append(f"{public.name}: {first!r} is no sentence of at most 120 characters")
    return problems


def test_every_public_name_opens_with_a_sentence() -> None:
    assert without_a_summary(everything()) == []


def test_a_missing_a_long_and_a_second_sentence_are_noticed() -> None:
    def bare() -> None: ...

    def long() -> None: ...

    def two() -> None:
        """Do it. Then say so."""

    def good() -> None:
        """Do L(w_1, ..., w_k) and w_k ... w_1.

        Then say so.
        """

    long.__doc__ = f"Do {'it ' * 50}."
    found = without_a_summary(Public(f.__name__, f) for f in (bare, long, two, good))
    assert [line.partition(":")[0] for line in found] == ["bare", "long", "two"]
