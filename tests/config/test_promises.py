"""What a shipped config promises is a range over seeds that was measured, and its own seed is one of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_line import optland

from optland.cli.recipes import first_comment

ROOT = Path(__file__).resolve().parents[2]
MEASURED = json.loads((ROOT / "benchmarks" / "results" / "configs.json").read_text())["configs"]


@pytest.mark.parametrize("name", MEASURED)
def test_the_comment_says_the_range_that_was_measured(name: str) -> None:
    path, found = ROOT / "configs" / f"{name}.yaml", MEASURED[name]
    seed = re.search(r"^seed: (\d+)", path.read_text(), flags=re.MULTILINE)
    assert seed is not None
    assert seed[1] in found["runs"]
    figures = [run["last"] for run in found["runs"].values()]
    assert (found["low"], found["high"]) == (min(figures), max(figures))
    said = re.search(r"([\d.]+) to ([\d.]+) (?:%|bits) .*over (\d+) seeds", first_comment(path))
    assert said is not None, first_comment(path)
    assert float(said[1]) == pytest.approx(found["low"], abs=0.06)
    assert float(said[2]) == pytest.approx(found["high"], abs=0.06)
    assert int(said[3]) == len(figures)


def test_no_other_config_promises_one_figure() -> None:
    """A figure of one seed is what the next seed does not give."""
    for path in sorted((ROOT / "configs" / "landscape_train").glob("*.yaml")):
        if re.search(r"[\d.]+ % (test accuracy|at the last)", comment := first_comment(path)):
            assert f"landscape_train/{path.stem}" in MEASURED or "Needs the data" in comment, comment


@pytest.mark.slow
@pytest.mark.parametrize("name", ["landscape_train/digits", "landscape_train/digits_noisy"])
def test_the_default_run_lies_in_the_range(name: str, tmp_path: Path) -> None:
    """With a margin of the range itself and a point: another machine rounds otherwise and takes another path."""
    recipe, config = name.split("/")
    done = optland("run", recipe, config, "out=run", "log.wandb=disabled", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    last = json.loads((tmp_path / "run" / "summary.json").read_text())["test/acc last epoch"]
    found = MEASURED[name]
    margin = 1.0 + found["high"] - found["low"]
    assert found["low"] - margin <= last <= found["high"] + margin
