"""The tables of ``damage.py``, ``finetune.py`` and ``release.py`` in this folder."""

from __future__ import annotations

import math
import statistics
from typing import Any

__all__ = ["damage_table", "finetune_table", "release_table"]

KINDS = {"cnn": "Fashion 10k, CNN", "vit": "Fashion 10k, ViT", "gpt": "Python sources, GPT"}
COLUMNS = (
    "second order",
    "trace form",
    "linearised",
    "size of the damage",
    "norm of the weights",
    "rate at the end",
)
TASKS = {"digits_turned": "digits to turned digits", "fashion_classes": "Fashion 0 to 4, then 5 to 9"}


def _tau(value: float) -> str:
    return f"{value:+.2f}" if math.isfinite(value) else "none"


def damage_table(result: dict[str, Any]) -> str:
    """Kendall's tau of every prediction and control, how many are within a factor of 2, and the bits."""
    kinds = result["kinds"]
    missing = [title for kind, title in KINDS.items() if "tau" not in kinds.get(kind, {})]
    lines = [f"Not complete yet: {', '.join(missing)}.\n"] if missing else []
    lines += [f"| net | damage | {' | '.join(COLUMNS)} |", f"|---|---|{'---:|' * len(COLUMNS)}"]
    for kind, found in kinds.items():
        for damage, taus in found.get("tau", {}).items():
            cells = " | ".join(_tau(taus[c]) for c in COLUMNS)
            lines.append(f"| {KINDS[kind]}, {found['nets']} nets | `{damage}` | {cells} |")
    means = " | ".join(f"**{_tau(result['mean_tau'][c])}**" for c in COLUMNS) if result["mean_tau"] else ""
    lines += [f"| all | mean | {means} |"] if means else []
    shares = [
        f"{name} {in_2} of {of} ({in_2 / of:.0%})"
        for name, (in_2, of) in result["within_factor_2"].items()
        if of
    ]
    lines.append(
        f"\nWithin a factor of 2 of true rises between 0.02 and 0.5: {'; '.join(shares) or 'none yet'}."
    )
    lines += ["\n| 3 bits on average: rise of the test loss | everywhere the same | by size of the change | by trace | "
              "by trace / the same, each seed |", "|---|---:|---:|---:|---:|"]  # fmt: skip
    for kind, found in kinds.items():
        bits = found["bits"]
        rises = [f"{statistics.fmean(bits[way]):.3f}" for way in ("uniform", "by size", "by trace")]
        ratios = ", ".join(f"{t / u:.2f}" for t, u in zip(bits["by trace"], bits["uniform"], strict=True))
        lines.append(f"| {KINDS[kind]} | {' | '.join(rises)} | {ratios} |")
    return "\n".join(lines)


def finetune_table(result: dict[str, Any]) -> str:
    """The area under each frontier, its gain over the plain run, and the rise of the old loss."""
    if not result["tasks"]:
        return "No pair of tasks is complete yet."
    lines = [
        "| tasks | way | old accuracy at equal new accuracy, % | above the plain run | rise of the old loss, of the "
        "tuned plain run's | gradient evaluations |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for task, rows in result["tasks"].items():
        for way, row in rows.items():
            (area, _), (gain, half) = row["area"], row["gain"]
            rises = row["rise"]
            rise = f"{statistics.median(rises):.2f}" if rises else "none reaches it"
            of = "" if len(rises) in (0, row["seeds"]) else f" ({len(rises)} of {row['seeds']} seeds)"
            above = "" if way == "plain" else f"{gain:+.1f} ± {half:.1f}"
            cells = (way.replace("_", " "), f"{area:.1f}", above, f"{rise}{of}", f"{row['ge']:,.0f}")
            lines.append(f"| {TASKS[task]}, {row['seeds']} seeds | {' | '.join(cells)} |")
    return "\n".join(lines)


def release_table(result: dict[str, Any]) -> str:
    """What the taken end gains over one plain run of equal cost."""
    if not result["configs"]:
        return "No config is complete yet."
    lines = [
        "| config | plain run, test loss after the damage | the taken end is lower by | its clean test loss | taken |",
        "|---|---:|---:|---:|---|",
    ]
    for config, row in result["configs"].items():
        (gain, half), (clean, clean_half) = row["gain"], row["clean"]
        taken = ", ".join(f"{name} ({row['taken'].count(name)})" for name in dict.fromkeys(row["taken"]))
        lines.append(
            f"| `release/{config}`, {len(row['taken'])} seeds | {row['base']:.3f} | {gain:+.3f} ± {half:.3f} | "
            f"{clean:+.1%} ± {clean_half:.1%} | {taken} |"
        )
    return "\n".join(lines)
