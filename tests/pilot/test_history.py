"""Signals on their way to policies: each once, with error and age."""

from __future__ import annotations

import json
import math

import pytest

from optland.pilot import History, Signal


def test_each_reader_is_given_a_measurement_once() -> None:
    history = History()
    one, two = history.reader(), history.reader()
    assert one.new("a") is None
    history.put([Signal("a", 1.0, step=3, error=0.1), Signal("b", 5.0, step=3, error=0.2)])
    assert one.new("a") == Signal("a", 1.0, step=3, error=0.1)
    assert one.new("a") is None
    assert one.new("b") == Signal("b", 5.0, step=3, error=0.2)
    assert two.new("a") == Signal("a", 1.0, step=3, error=0.1), "what one has seen is new to another"


def test_the_same_value_measured_again_is_a_new_measurement() -> None:
    history = History()
    reader = history.reader()
    for _ in range(3):
        history.put([Signal("a", 1.0, step=3)])
        assert reader.new("a") is not None
        assert reader.new("a") is None


def test_only_the_newest_measurement_is_given() -> None:
    history = History()
    reader = history.reader()
    history.put([Signal("a", 1.0, step=1)])
    history.put([Signal("a", 2.0, step=2, error=0.1, valid=False, why="unresolved")])
    assert reader.new("a") == Signal("a", 2.0, step=2, error=0.1, valid=False, why="unresolved")
    assert reader.last("a") == Signal("a", 2.0, step=2, error=0.1, valid=False, why="unresolved")
    assert reader.last("b") is None


def test_the_age_is_in_updates_and_grows_while_nothing_is_measured() -> None:
    history = History()
    reader = history.reader()
    assert reader.age("a") is None
    history.put([Signal("a", 1.0, step=4)])
    for step, age in ((4, 0), (5, 1), (11, 7)):
        history.step = step
        assert (reader.step, reader.age("a")) == (step, age)


def test_settings_and_progress_are_those_of_now() -> None:
    held = {"lr": 0.1}
    history = History(held.get)
    reader = history.reader()
    assert (reader.setting("lr"), reader.setting("rho"), reader.progress) == (0.1, None, None)
    assert reader.step == 0, "no update has been made"
    held["lr"], history.progress = 0.2, 0.5
    assert (reader.setting("lr"), reader.progress) == (0.2, 0.5)


def test_what_is_forgotten_is_as_if_never_measured() -> None:
    history = History()
    reader = history.reader()
    history.put([Signal("a", 1.0, step=1), Signal("b", 2.0, step=1)])
    history.forget(["a", "c"])
    assert reader.new("a") is None
    assert reader.last("a") is None
    assert reader.new("b") is not None


def test_as_much_is_kept_as_there_are_names() -> None:
    history = History()
    for step in range(1000):
        history.put([Signal("a", float(step), step), Signal("b", 0.0, step)])
    assert len(history.state_dict()["last"]) == 2


def test_a_resumed_history_has_seen_what_had_been_seen() -> None:
    one, two = History(), History()
    seen, resumed = one.reader(), two.reader()
    one.put([Signal("a", 1.0, 1), Signal("b", math.inf, 1, error=0.5)])
    seen.new("a")
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    resumed.load_state_dict(json.loads(json.dumps(seen.state_dict())))
    assert resumed.new("a") is None
    found = resumed.new("b")
    assert found is not None
    assert (found.value, found.error) == (math.inf, 0.5)
    two.put([Signal("a", 3.0, 2, error=0.1)])
    assert resumed.new("a") == Signal("a", 3.0, 2, error=0.1)


@pytest.mark.parametrize(
    ("signal", "row"),
    [
        (Signal("a", 1.0, 1), {"a": 1.0}),
        (Signal("a", 1.0, 1, error=0.1), {"a": 1.0, "a_error": 0.1}),
        (Signal("a", math.nan, 1, valid=False, why="not_descent"), {}),
        (Signal("a", 1.0, 1, error=0.1, valid=False, why="unresolved"), {"a": 1.0, "a_error": 0.1}),
        (Signal("a", math.nan, 1, valid=False, why="unresolved"), {}),
    ],
)
def test_what_is_logged_of_a_signal(signal: Signal, row: dict[str, float]) -> None:
    assert dict(signal.row()) == row
