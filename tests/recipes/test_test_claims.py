"""The recipe of the claims, as a user runs it: stopped, gone on with, finished; nothing is done twice."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from command_line import optland

TINY = [
    "dial.seeds=1",
    "dial.deep_seeds=1",
    "dial.samples=64",
    "dial.epochs=2",
    "dial.deep_epochs=1",
    "dial.searches=1",
]


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_and_ends_with_a_page(tmp_path: Path) -> None:
    words = ["run", "test_claims", "smoke", "out=run", "log.wandb=disabled", "minutes=0.1", *TINY]
    first = optland(*words, cwd=tmp_path)
    assert first.returncode == 75, first.stderr
    measured = tmp_path / "run" / "measured"
    done = sum(len(file.read_text().splitlines()) for file in measured.glob("*.jsonl"))
    assert done >= 1
    for _ in range(100):  # each goes on for six seconds
        again = optland(*words, "--resume", cwd=tmp_path)
        if again.returncode != 75:
            break
    assert again.returncode == 0, again.stderr
    keys = Counter(
        json.loads(line)["key"] for file in measured.glob("*.jsonl") for line in file.read_text().splitlines()
    )
    assert set(keys.values()) == {1}
    found = json.loads((tmp_path / "run" / "claims.json").read_text())
    assert len(found["rows"]) > 40
    assert {row["missing"] for row in found["rows"]} == {0}
    assert (tmp_path / "run" / "report.html").stat().st_size > 100_000


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("dial.depth=9", "depth: 9 must be even"),
        ("dial.level=0", "level: a training loss of 0"),
        ("minutes=0", "minutes: 0"),
        ("dial.data=[cifar]", "data"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_made(setting: str, words: str, tmp_path: Path) -> None:
    refused = optland("run", "test_claims", "smoke", "out=run", "log.wandb=disabled", setting, cwd=tmp_path)
    assert refused.returncode == 2
    assert words in refused.stderr
    assert not (tmp_path / "run").exists()
