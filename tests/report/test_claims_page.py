"""The page of claims: every verdict and number of the rows is on it and in the file beside it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from optland.report.claims import claims_table, plot_claims, write_claims
from optland.train.experiments.claims.claim import Claim, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.table import Row
from optland.train.experiments.claims.verdicts import Band, Verdict, effect_of, verdict_of


def row(name: str, values: list[float], band: Band, *, dead: int = 0, missing: int = 0) -> Row:
    found = Found(
        {"digits": values},
        {"a part": 0.125},
        {"seeds": [(1.0, 2.0), (3.0, math.nan)]},
        ("x", "y"),
        "A <note>.",
    )
    claim = Claim(name, f"text of {name}", "a source", "how", band, lambda evidence, dial: found)
    effect = effect_of(found.values, band)
    verdict = verdict_of(effect, band, effect.p_value)
    return Row(claim, effect, found, effect.p_value, verdict, 6, missing, dead, 1234.0)


ROWS = [
    row("good", [3.9, 4.0, 4.1], Band(low=3.0, high=5.0, null=1.0, is_ratio=True), dead=2),
    row("open", [4.0], Band(low=1.0), missing=3),
    row("wrong", [-2.0, -2.1, -1.9], Band(low=1.0)),
]
ROWS[0] = replace(ROWS[0], claim=replace(ROWS[0].claim, published="a factor of 4.2"))


def test_the_page_and_the_file_hold_every_row(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    page = write_claims(
        ROWS, Dial(), tmp_path, about={"command": "optland run test_claims small"}
    ).read_text()
    for part in (
        "text of good",
        "text of open",
        "text of wrong",
        "2 of 6 runs died",
        "3 of 6 runs are not there yet",
        "Published: a factor of 4.2.",
    ):
        assert part in page
    assert "A &lt;note&gt;." in page
    assert "1 row still misses runs" in page
    apart = page.index("Published experiments repeated</h")
    assert page.index("text of open") < apart < page.index("text of good (a source)")
    found = json.loads((tmp_path / "claims.json").read_text())
    assert [r["verdict"] for r in found["rows"]] == ["supported", "undecided at this scale", "opposite"]
    assert [r["published"] for r in found["rows"]] == ["a factor of 4.2", "", ""]
    assert found["rows"][1]["effect"]["mean"] is None
    assert found["rows"][0]["effect"]["mean"] == pytest.approx(4.0, rel=0.01)
    assert found["dial"]["seeds"] == 3


def test_the_table_says_what_was_found_and_what_was_not() -> None:
    columns, (good, untold, wrong) = claims_table(ROWS)
    cells = dict(zip(columns, good, strict=True))
    assert cells["predicted"] == "3 to 5 times"
    assert str(cells["found (95 %)"]).startswith("4 times [3.")
    assert cells["dead"] == "2 of 6"
    assert untold[columns.index("found (95 %)")] == "not measured on enough seeds"
    assert wrong[columns.index("verdict")] == Verdict.OPPOSITE
    assert claims_table(ROWS, ["claim", "verdict"])[1][0] == ["good", "supported"]


def test_the_picture_has_a_point_for_every_decided_row(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = plot_claims(ROWS, tmp_path / "claims.png")
    (axis,) = page.axes
    drawn = [float(line.get_xdata()[0]) for line in axis.lines if line.get_marker() == "o"]
    assert drawn == [pytest.approx(math.log(4.0) / math.log(3.0), rel=0.01), pytest.approx(-2.0)]
    assert (tmp_path / "claims.png").stat().st_size > 5000
