"""docs/examples/wandb_workspace.py: every chart of the vocabulary once, and the axis that the rows have."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from optland.log.vocabulary import is_chart, key_of

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "wandb_workspace.py"


def example() -> Any:
    spec = importlib.util.spec_from_file_location("wandb_workspace", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("prefix", ["optland/", ""])
def test_it_has_the_charts_of_the_vocabulary_the_important_first(prefix: str) -> None:
    found = example().sections(prefix)
    keys = [key for held in found.values() for key in held]
    assert len(set(keys)) == len(keys)
    assert all(is_chart(key.removeprefix(prefix)) and key_of(key.removeprefix(prefix)) for key in keys)
    assert {f"{prefix}train/loss", f"{prefix}lr/applied", f"{prefix}edge/ratio"} <= set(keys)
    titles = [title.partition(":")[0] for title in found]
    assert titles.index("val") < titles.index("train") < titles.index("edge") < titles.index("noise")


def test_it_shows_what_it_would_make_without_a_server() -> None:
    shown = subprocess.run(
        [sys.executable, str(EXAMPLE), "--show"], check=True, capture_output=True, text=True
    )
    assert "  optland/edge/ratio\n" in shown.stdout
    wrong = subprocess.run(
        [sys.executable, str(EXAMPLE), "mine"], check=False, capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert "give the entity and the project, or --show" in wrong.stderr


def test_the_workspace_holds_them_on_the_axis_of_the_rows() -> None:
    """With the real package, where it is installed; nothing is sent."""
    pytest.importorskip("wandb_workspaces")
    made = example().workspace("team", "project", "optland/")
    plots = [plot for section in made.sections for plot in section.panels]
    assert {str(plot.x) for plot in plots} == {"optland/step"}
    assert [section.name for section in made.sections] == list(example().sections("optland/"))
