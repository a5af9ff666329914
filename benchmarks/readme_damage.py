"""The tables of ``bits.py``, ``damage.py``, ``finetune.py`` and ``release.py`` in this folder."""

from __future__ import annotations

import math
import statistics
from typing import Any

__all__ = ["bits_table", "damage_table", "finetune_table", "release_table"]

KINDS = {
    "digits": "digits, CNN",
    "mnist1d": "MNIST-1D, CNN",
    "cnn": "Fashion 10k, CNN",
    "vit": "Fashion 10k, ViT",
    "gpt": "Python sources, GPT",
    "resnet": "Fashion 10k, ResNet-8",
}
DAMAGED = ("digits", "mnist1d", "cnn", "vit", "gpt")
DEALT = ("vit", "gpt", "resnet")
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
    missing = [KINDS[kind] for kind in DAMAGED if kind not in kinds]
    lines = [f"Not complete yet: {', '.join(missing)}.\n"] if missing else []
    lines += [f"| net | damage | {' | '.join(COLUMNS)} |", f"|---|---|{'---:|' * len(COLUMNS)}"]
    for kind in (kind for kind in DAMAGED if kind in kinds):
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


def bits_table(result: dict[str, Any]) -> str:
    """The rise of the test loss at 3 bits on average, by the way they are dealt out."""
    kinds = result["kinds"]
    if not kinds:
        return "No net is complete yet."
    ways = ("everywhere", "size", "trace", "layer by layer", "second order", "taken")
    lines = [
        f"| net | {' | '.join(ways)} | predicted / measured on validation | taken / everywhere, each seed |",
        f"|---|{'---:|' * len(ways)}---:|---:|",
    ]
    met = 0
    for kind in (kind for kind in DEALT if kind in kinds):
        found = kinds[kind]
        means = {way: statistics.fmean(found[way]["test"]) for way in ways}
        met += means["taken"] <= 0.7 * means["everywhere"] and means["taken"] < means["size"]
        ours, plain = (found[way] for way in ("taken", "everywhere"))
        ratios = ", ".join(f"{a / b:.2f}" for a, b in zip(ours["test"], plain["test"], strict=True))
        local = f"{statistics.fmean(plain['predicted']) / statistics.fmean(plain['val']):.2f}"
        cells = [*(f"{means[way]:.4f}" for way in ways), local, ratios]
        lines.append(f"| {KINDS[kind]}, {len(plain['test'])} seeds | {' | '.join(cells)} |")
    missing = [
        f"{KINDS[kind]} ({len(found['everywhere']['test'])} of {result['seeds']} seeds)"
        for kind, found in kinds.items()
        if len(found["everywhere"]["test"]) < result["seeds"]
    ] + [KINDS[kind] for kind in DEALT if kind not in kinds]
    lines += [
        "",
        f"Rise of the test loss, means over seeds. At most 0.7 of the rise with the same bits everywhere, and below "
        f"that by size, on {met} of {len(kinds)} nets. Measured with torch {result['torch']}."
        + (f" Not complete yet: {', '.join(missing)}." if missing else ""),
    ]
    return "\n".join(lines)


def finetune_table(result: dict[str, Any]) -> str:
    """The area under each frontier, its gain over the plain run, and the rise of the old loss."""
    if not result["tasks"]:
        return "No pair of tasks is complete yet."
    lines = [
        "| tasks | way | old accuracy at equal new accuracy, % | above the plain run | rise of the old loss, of the "
        "tuned plain run's | the same where it is best on the new task | gradient evaluations |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for task, rows in result["tasks"].items():
        for way, row in rows.items():
            (area, width), (gain, half) = row["area"], row["gain"]
            rises = row["rise"]
            rise = f"{statistics.median(rises):.2f}" if rises else "none reaches it"
            of = "" if len(rises) in (0, row["seeds"]) else f" ({len(rises)} of {row['seeds']} seeds)"
            best = f"{statistics.median(row['where best']):.2f}"
            above = "" if way == "plain" else f"{gain:+.1f} ± {half:.1f}"
            cells = (
                way.replace("_", " "),
                f"{area:.1f} ± {width:.1f}",
                above,
                f"{rise}{of}",
                best,
                f"{row['ge']:,.0f}",
            )
            lines.append(f"| {TASKS[task]}, {row['seeds']} seeds | {' | '.join(cells)} |")
    missing = [title for task, title in TASKS.items() if task not in result["tasks"]]
    halved = [TASKS[task] for task, rows in result["tasks"].items() if _halved(rows[DEFAULT])]
    verdict = f"{len(halved)} of {len(result['tasks'])} pairs" + (f" ({'; '.join(halved)})" if halved else "")
    where = sum(statistics.median(rows[DEFAULT]["where best"]) <= 0.5 for rows in result["tasks"].values())
    told = [
        f"With 95 % intervals over the seeds. The default, {DEFAULT}, at least halves the rise of the old loss on",
        f"{verdict}, and where it is best on the new task on {where}.",
        *([f"Not measured yet: {'; '.join(missing)}."] if missing else []),
        f"Measured with torch {result['torch']}.",
    ]
    return "\n".join([*lines, "", " ".join(told)])


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
