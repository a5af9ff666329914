"""How far a run is, and words where its stated length cannot be meant."""

from __future__ import annotations

import json
import math
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

from optland.pilot.progress import Progress

KNOWS: Any = SimpleNamespace(total_steps=40, total_samples=320, epochs=4)
"""A loader that says what its whole run is: four epochs of ten updates of eight."""


class Listed:
    """A loader with a length per epoch, and nothing else."""

    def __len__(self) -> int:
        return 10


def test_updates_are_counted_where_the_length_is_in_updates() -> None:
    progress = Progress(total_steps=40)
    assert (progress.known, progress.steps(None), progress.steps(8)) == (True, 40, 40)
    for step in range(1, 41):
        assert progress.at(step, 8) == pytest.approx((step - 0.5) / 40)
        progress.count(8, step)
        assert progress.done(step) == step / 40
    assert progress.samples == 320
    assert progress.in_samples(8) == 320


def test_samples_are_counted_where_the_length_is_in_samples() -> None:
    """A batch that grows brings the run on faster."""
    progress, done = Progress(total_samples=320), 0
    assert (progress.steps(None), progress.steps(8), progress.steps(1000)) == (None, 40, 1)
    for step, size in enumerate([8] * 20 + [16] * 10, 1):
        assert progress.at(step, size) == pytest.approx((done + size / 2) / 320)
        progress.count(size, step)
        done += size
        assert progress.done(step) == done / 320
    assert progress.done(30) == 1.0


def test_without_a_length_there_is_no_progress() -> None:
    progress = Progress()
    assert (progress.known, progress.steps(8), progress.at(1, 8), progress.done(1)) == (
        False,
        None,
        None,
        None,
    )
    assert progress.tail(1) is None
    assert progress.in_samples(8) == math.inf


# ---------------------------------------------------------------- from a loader


@pytest.mark.parametrize("by_samples", [False, True])
def test_a_loader_says_the_length(by_samples: bool) -> None:
    progress = Progress()
    progress.learn(KNOWS, None, by_samples=by_samples)
    assert (progress.total_steps, progress.total_samples) == ((None, 320) if by_samples else (40, None))


@pytest.mark.parametrize(("epochs", "steps"), [(None, 10), (1, 10), (7, 70)])
def test_a_length_of_an_epoch_is_multiplied(epochs: int | None, steps: int) -> None:
    progress = Progress()
    progress.learn(Listed(), epochs, by_samples=False)
    assert progress.total_steps == steps


def test_an_iterable_without_a_length_says_nothing() -> None:
    progress = Progress()
    progress.learn(iter([]), 3, by_samples=False)
    assert not progress.known


def test_a_length_that_was_given_stays() -> None:
    """A run may be stopped before its loader is."""
    progress = Progress(total_steps=25)
    progress.learn(KNOWS, None, by_samples=False)
    assert progress.total_steps == 25
    unknown = Progress(open_ended=True)
    unknown.learn(KNOWS, None, by_samples=False)
    assert not unknown.known


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("given", "loader", "epochs", "says"),
    [
        (
            {"total_steps": 10},
            KNOWS,
            None,
            "total_steps=10 is the length of one epoch, and the run has 4.*make 40",
        ),
        (
            {"total_steps": 10},
            Listed(),
            5,
            "total_steps=10 is the length of one epoch, and the run has 5.*make 50",
        ),
        ({"total_samples": 80}, KNOWS, None, "total_samples=80 is the length of one epoch.*make 320"),
    ],
)
def test_the_length_of_one_epoch_is_not_that_of_several(
    given: dict[str, int], loader: Any, epochs: int | None, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        Progress(**given).learn(loader, epochs, by_samples=False)


def test_a_number_of_updates_is_no_length_where_the_batch_grows() -> None:
    with pytest.raises(ValueError, match=r"total_steps=40 cannot be kept .*give total_samples=epochs \* len"):
        Progress(total_steps=40).learn(KNOWS, None, by_samples=True)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"total_steps": 40, "total_samples": 320}, "two lengths of one run; give one"),
        ({"total_steps": 0}, "total_steps=0 must be a whole number, at least 1"),
        ({"total_samples": -8}, "total_samples=-8 must be a whole number, at least 1"),
        ({"total_steps": 2.5}, "total_steps=2.5 must be a whole number"),
        ({"total_steps": math.nan}, "total_steps=nan must be a whole number"),
        ({"total_steps": "32"}, "total_steps='32' must be a whole number"),
    ],
)
def test_lengths_that_cannot_be_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Progress(**given)


def test_a_number_of_updates_given_as_samples_is_noticed_at_the_first_batch() -> None:
    progress = Progress(total_samples=100)
    progress.check_first(25)
    with pytest.raises(ValueError, match=r"fewer than 4 batches of 26; .* write total_steps=100"):
        progress.check_first(26)
    Progress(total_steps=1).check_first(26)


# ---------------------------------------------------------------- a length that was not kept


def counted(given: dict[str, int], updates: int) -> tuple[Progress, list[str]]:
    """The words of a run of so many updates of eight samples."""
    progress = Progress(**given)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(1, updates + 1):
            progress.count(8, step)
        progress.end(updates)
    return progress, [str(w.message) for w in said]


@pytest.mark.parametrize("given", [{"total_steps": 100}, {"total_samples": 800}])
@pytest.mark.parametrize(
    ("updates", "says"),
    [
        (0, None), (89, "ended after 89% of"), (90, None), (100, None), (110, None),
        (111, "has passed its length: 111%"), (300, "has passed its length: 111%"),
    ],
)  # fmt: skip
def test_a_run_that_ends_early_or_goes_on_is_told_once(
    given: dict[str, int], updates: int, says: str | None
) -> None:
    _, said = counted(given, updates)
    assert len(said) == (says is not None)
    if says is not None:
        assert says in said[0]
        assert next(iter(given)) in said[0]


def test_a_run_without_a_length_is_told_nothing() -> None:
    assert counted({}, 1000)[1] == []


# ---------------------------------------------------------------- a run without an end


def test_the_end_of_an_open_run_goes_linearly_to_zero() -> None:
    progress = Progress(open_ended=True)
    assert progress.tail(100) == 1.0
    progress.decay(100, 10)
    found = [progress.tail(step) for step in range(101, 113)]
    assert found == pytest.approx([1 - (k + 0.5) / 10 for k in range(10)] + [0.0, 0.0])


def test_an_end_that_cannot_be_called_says_why() -> None:
    with pytest.raises(ValueError, match="steps 0 must be at least 1"):
        Progress(open_ended=True).decay(10, 0)
    for has_one in (Progress(total_steps=10, open_ended=True), Progress()):
        with pytest.raises(RuntimeError, match="open_ended=True"):
            has_one.decay(10, 5)
    ending = Progress(open_ended=True)
    ending.decay(10, 5)
    with pytest.raises(RuntimeError, match="the end of this run began at update 10"):
        ending.decay(11, 5)


def test_progress_resumes() -> None:
    one, two = Progress(open_ended=True), Progress(open_ended=True)
    one.count(8, 1)
    one.decay(1, 10)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert two.samples == 8
    assert [two.tail(k) for k in range(1, 12)] == [one.tail(k) for k in range(1, 12)]
