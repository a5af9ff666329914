"""The examples of these hosts run, and train."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


@pytest.mark.parametrize(
    ("name", "library", "updates"),
    [
        ("transformers_sam", "transformers", 171),
        ("accelerate_sam", "accelerate", 116),
        ("timm_sam", "timm", 116),
    ],
)
def test_an_example_trains(tmp_path: Path, name: str, library: str, updates: int) -> None:
    pytest.importorskip(library)
    file = EXAMPLES / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.main(*([str(tmp_path)] if name == "transformers_sam" else []))
    assert found["updates"] == updates
    assert found["last loss"] < 0.5 * found["first loss"]
    assert len(file.read_text().splitlines()) <= 60
