"""The tables of the doctor, from ``results/doctor.json``."""

from __future__ import annotations

from typing import Any

__all__ = ["doctor_table"]


def doctor_table(result: dict[str, Any]) -> str:
    """Figures against the bars, every kind, calibration, and all passes."""
    return "\n".join([*_bars(result), "", *_kinds(result), "", *_calibration(result), "", *_passes(result)])


def _bars(r: dict[str, Any]) -> list[str]:
    ablation, mends, start = r["ablation"], r["mends"], r["preflight"]
    low, high = r["first_interval"]
    low2, high2 = r["first_two_interval"]
    silent = [k for k, count in r["silent"].items() if count == r["by_kind"][k]["runs"]]
    rows = [
        ("first finding right, balanced over kinds", f"{r['first']:.0%} ({low:.0%} to {high:.0%})", "60 %"),
        ("one of the first two right", f"{r['first_two']:.0%} ({low2:.0%} to {high2:.0%})", "80 %"),
        ("healthy runs with a finding", f"{r['false_alarms']} of {r['healthy']}", "at most 5 %"),
        ("silent kinds found in every run", f"{len(silent)} of {len(r['silent'])}", "9 of 12"),
        (
            "first finding without curvature, noise and edge, instability faults",
            f"{ablation['without']:.0%}, with them {ablation['with']:.0%} (difference "
            f"{100 * ablation['interval'][0]:.0f} to {100 * ablation['interval'][1]:.0f} points)",
            "the interval",
        ),
        (
            "fixes after which the loss is at most 1.1 times that of the healthy twin",
            f"{mends['within_10_percent']} of {mends['runs']}",
            "80 %",
        ),
        (
            "preflight: area under the ROC curve for not training",
            f"{start['auc']:.2f} ({start['failing']} of {start['runs']} fail), at {start['updates']:.0f} updates' cost",
            "0.9, 60 updates",
        ),
    ]
    head = [f"{r['faulty']} faulty and {r['healthy']} healthy runs on held-out tasks and architectures:", "",
            "| what | measured | bar |", "|---|---|---|"]  # fmt: skip
    return [*head, *(f"| {a} | {b} | {c} |" for a, b, c in rows)]


def _kinds(r: dict[str, Any]) -> list[str]:
    lines = ["| kind of fault | runs | first right | first two | named first |", "|---|---:|---:|---:|---|"]
    for kind, row in r["by_kind"].items():
        named = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in row["named"].items())
        lines.append(
            f"| {kind.replace('_', ' ')} | {row['runs']} | {row['first']} | {row['first_two']} | {named} |"
        )
    return lines


def _calibration(r: dict[str, Any]) -> list[str]:
    lines = ["| weight of the evidence | first findings | right |", "|---|---:|---:|"]
    return [*lines, *(
        f"| {row['from']:.2f} to {row['to']:.2f} | {row['findings']} | {row['right'] / row['findings']:.0%} |"
        for row in r["calibration"]
    )]  # fmt: skip


def _passes(r: dict[str, Any]) -> list[str]:
    def said(one: dict[str, Any]) -> str:
        return (
            f"first {one['first']:.0%}, first two {one['first_two']:.0%}, false alarms {one['false_alarms']} of "
            f"{one['healthy']} ({one['faulty']} faulty runs)"
        )

    passes = "; ".join(f"version {i}: {said(one)}" for i, one in enumerate(r["passes"], start=1))
    return [
        f"Held-out passes, one per version of the rules: {passes}. Development: {said(r['development'])}."
    ]
