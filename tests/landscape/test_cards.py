"""Every function that measures has a row in the docs' table of probes, and every row a function."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import optland.curvature
import optland.landscape

PAGE = (Path(__file__).resolve().parents[2] / "docs/reference/probes.md").read_text(encoding="utf-8")
TABLE = re.search(r"<!-- begin probes -->\n(.*?)<!-- end probes -->", PAGE, flags=re.S)
ROWS = set(re.findall(r"^\| `(\w+)` \|", TABLE[1], flags=re.M)) if TABLE else set()
MAKERS = {
    "bits_by_layer", "checkpoint_plane", "damaged", "difference", "eigenvector_direction",
    "pruned", "random_direction", "random_sharpness", "rank_correlations", "rounded", "ruggedness", "shaken",
}  # fmt: skip


def test_the_rows_are_the_functions_that_measure() -> None:
    public = {n for n in optland.landscape.__all__ if inspect.isfunction(getattr(optland.landscape, n))}
    others = ROWS - public
    assert ROWS - others == public - MAKERS
    assert [name for name in others if not callable(getattr(optland.curvature, name, None))] == []
    assert len(others) >= 7
