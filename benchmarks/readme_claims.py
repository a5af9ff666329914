"""The table of decided claims, from benchmarks/results/claims_small.json."""

from __future__ import annotations

from collections import Counter
from typing import Any

__all__ = ["claims_small_table"]


def claims_small_table(result: dict[str, Any]) -> str:
    """How much was done, the verdicts counted, and a row for each claim."""
    dial, rows = result["dial"], result["rows"]
    counts = Counter(row["verdict"] for row in rows)
    done = result["pieces"] - result["missing"]
    lines = [
        f"Dial `{dial['name']}`: {', '.join(dial['data'])}, {dial['samples']} training samples each, {dial['seeds']} "
        f"seeds, nets of up to {dial['depth']} layers. {done} of {result['pieces']} runs and experiments are done"
        + (", so rows that need the others are undecided. " if result["missing"] else ". ")
        + f"{result['dead']} of {result['runs']} training runs died. "
        f"Training took {result['runs_ge'] / 1e6:.1f} million gradient evaluations.",
        "",
        f"{len(rows)} rows: "
        + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
        + ".",
        "",
        "| claim | predicted | found (95 %) | p after Holm | verdict | dead |",
        "|---|---|---|---:|---|---:|",
    ]
    return "\n".join([*lines, *map(_row, rows)])


def _row(row: dict[str, Any]) -> str:
    effect, band = row["effect"], row["band"]
    times = " times" if band["is_ratio"] else ""
    found = "on too few seeds"
    if effect["mean"] is not None:
        found = f"{effect['mean']:.3g}{times} [{effect['low']:.3g}, {effect['high']:.3g}]"
    claimed = (
        f"{band['low']:.3g} or more" if band["high"] is None else f"{band['low']:.3g} to {band['high']:.3g}"
    )
    words = f"**{row['name']}**: {row['text'].rstrip('.')}. *{row['measured']}*"
    if row.get("published"):
        words += f" Published: {row['published']}."
    dead = f"{row['dead']} of {row['runs']}" if row["dead"] else ""
    return f"| {words} | {claimed}{times} | {found} | {row['p_value']:.2g} | {row['verdict']} | {dead} |"
