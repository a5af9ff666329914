"""The measures of ``benchmarks/finetune.py`` on points written by hand, and its pairs of tasks."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import pytest
from pages import ROOT


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("finetune")


def point(new: float, old: float, loss: float) -> dict[str, float]:
    return {"test/new_acc": new, "test/old_acc": old, "test/old_loss": loss}


def test_the_frontier_is_the_most_that_is_left_at_each_new_accuracy(bench: ModuleType) -> None:
    found = [point(50, 90, 1), point(70, 60, 1), point(60, 40, 1), point(90, 10, 1)]
    assert bench.frontier(found, np.array([40.0, 50.0, 55.0, 70.0, 80.0])) == pytest.approx(
        (90 + 90 + 60 + 60 + 10) / 5
    )


def test_a_way_is_held_against_the_plain_run_that_is_as_good_and_keeps_most(bench: ModuleType) -> None:
    plain = [point(70, 0, 3.0), point(85, 0, 5.0), point(90, 0, 9.0), point(86, 0, 7.0)]
    assert bench.where_it_is_best([point(60, 0, 1.5), point(80, 0, 2.0)], plain, 1.0) == pytest.approx(1 / 4)
    # Better than all of them: against the best.
    assert bench.where_it_is_best([point(95, 0, 2.0)], plain, 1.0) == pytest.approx(1 / 8)


def test_the_packages_are_two_texts_in_the_same_tokens(bench: ModuleType) -> None:
    old, new = bench.TASKS["packages"].splits()
    assert old.num_outputs == new.num_outputs == 256
    texts = [bytes(splits.train[0].flatten().tolist()) for splits in (old, new)]
    assert b"class EventLoop" in texts[0] or b"asyncio" in texts[0]
    assert b"xml" in texts[1]
    assert texts[0][:1000] not in texts[1]
