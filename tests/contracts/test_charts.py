"""docs/charts.md says what the vocabulary says."""

from __future__ import annotations

from contracts.charts import PAGE, page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/contracts/charts.py --write"
