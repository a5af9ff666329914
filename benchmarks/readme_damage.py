"""The tables of ``damage.py``, ``finetune.py`` and ``release.py`` in this folder."""

from __future__ import annotations

import math
import statistics
from typing import Any

__all__ = ["damage_table", "finetune_table", "release_table"]

KINDS = {
    "digits": "digits, CNN",
    "mnist1d": "MNIST-1D, CNN",
    "cnn": "Fashion 10k, CNN",
    "vit": "Fashion 10k, ViT",
    "gpt": "Python sources, GPT",
}
COLUMNS = (
    "second order",
    "trace form",
    "linearised",
    "size of the damage",
    "norm of the weights",
    "rate at the end",
)
TASKS = {
    "digits_turned": "digits to turned digits",
    "fashion_classes": "Fashion 0 to 4, then 5 to 9",
    "packages": "asyncio and email, then xml and json",
}
DEFAULT = "replay"


def _tau(value: float) -> str:
    return f"{value:+.2f}" if math.isfinite(value) else "none"


def damage_table(result: dict[str, Any]) -> str:
    """Kendall's tau of every prediction and control, and how many are within a factor of 2."""
    kinds = result["kinds"]
    missing = [title for kind, title in KINDS.items() if kind not in kinds]
    lines = [f"Not complete yet: {', '.join(missing)}.\n"] if missing else []
    lines += [f"| net | damage | {' | '.join(COLUMNS)} |", f"|---|---|{'---:|' * len(COLUMNS)}"]
    for kind in (kind for kind in KINDS if kind in kinds):
        found = kinds[kind]
        for damage, taus in found["tau"].items():
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
            (area, width), (gain, half) = row["area"], row["gain"]
            rises = row["rise"]
            rise = f"{statistics.median(rises):.2f}" if rises else "none reaches it"
            of = "" if len(rises) in (0, row["seeds"]) else f" ({len(rises)} of {row['seeds']} seeds)"
            above = "" if way == "plain" else f"{gain:+.1f} ± {half:.1f}"
            cells = (
                way.replace("_", " "),
                f"{area:.1f} ± {width:.1f}",
                above,
                f"{rise}{of}",
                f"{row['ge']:,.0f}",
            )
            lines.append(f"| {TASKS[task]}, {row['seeds']} seeds | {' | '.join(cells)} |")
    missing = [title for task, title in TASKS.items() if task not in result["tasks"]]
    halved = [TASKS[task] for task, rows in result["tasks"].items() if _halved(rows[DEFAULT])]
    verdict = f"{len(halved)} of {len(result['tasks'])} pairs" + (f" ({'; '.join(halved)})" if halved else "")
    return "\n".join(
        [
            *lines,
            "",
            f"With 95 % intervals over the seeds. The default, {DEFAULT}, at least halves the rise of the old loss on "
            f"{verdict}.{' Not measured yet: ' + '; '.join(missing) + '.' if missing else ''} "
            f"Measured with torch {result['torch']}.",
        ]
    )


def _halved(row: dict[str, Any]) -> bool:
    """Whether the median rise is at most half of the plain run's; one that is worse on the new task does not count."""
    rises = [*row["rise"], *[math.inf] * (row["seeds"] - len(row["rise"]))]
    return bool(statistics.median(rises) <= 0.5)


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
