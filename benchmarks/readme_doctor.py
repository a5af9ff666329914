"""The tables of the doctor, from ``results/doctor.json``."""

from __future__ import annotations

from typing import Any

__all__ = ["doctor_table"]


def doctor_table(result: dict[str, Any]) -> str:
    """All passes against the bars, every kind, and calibration."""
    first = result["passes"][0]
    return "\n".join([*_passes(result), "", *_beside(result), "", *_kinds(first), "", *_calibration(first)])


def _share(value: float, interval: list[float]) -> str:
    return f"{value:.0%} ({interval[0]:.0%} to {interval[1]:.0%})"


def _passes(result: dict[str, Any]) -> list[str]:
    passes = result["passes"]
    silent = [sum(n == p["by_kind"][k]["runs"] for k, n in p["silent"].items()) for p in passes]
    alarms = [f"{p['false_alarms']} ({p['false_alarms'] / p['healthy']:.0%})" for p in passes]
    rows = [
        ("faulty and healthy runs", "", [f"{p['faulty']}, {p['healthy']}" for p in passes]),
        ("first finding right, balanced over kinds", "60 %", [_share(p["first"], p["first_interval"]) for p in passes]),
        ("one of the first two", "80 %", [_share(p["first_two"], p["first_two_interval"]) for p in passes]),
        ("healthy runs with a finding", "5 %", alarms),
        ("healthy runs that in fact did not train", "", [str(p["healthy_that_failed"]) for p in passes]),
        ("silent kinds found in every run", "9 of 12", [f"{n} of {len(passes[0]['silent'])}" for n in silent]),
        ("instability faults: first finding right", "", [f"{p['ablation']['with']:.0%}" for p in passes]),
        ("the same without curvature, noise and edge", "", [f"{p['ablation']['without']:.0%}" for p in passes]),
        ("difference in points, with its interval", "", [_points(p["ablation"]) for p in passes]),
    ]  # fmt: skip
    head = " | ".join(f"rules {p['version']}" for p in passes)
    lines = [f"| held-out tasks and architectures | bar | {head} |", f"|---|---|{'---|' * len(passes)}"]
    return [*lines, *(f"| {what} | {bar} | {' | '.join(found)} |" for what, bar, found in rows)]


def _points(ablation: dict[str, Any]) -> str:
    low, high = (100 * end for end in ablation["interval"])
    return f"{100 * ablation['difference']:.0f} ({low:.0f} to {high:.0f})"


def _beside(result: dict[str, Any]) -> list[str]:
    mends, start, development = result["mends"], result["preflight"], result["development"]
    missed = ", ".join(f"{kind.replace('_', ' ')} {n}" for kind, n in mends["missed"].items())
    return [
        f"Fixes: of {mends['runs']} runs whose first finding was right and has a fix that a setting makes, "
        f"{mends['within_10_percent']} end with a training loss of at most 1.1 times that of their healthy twin (bar: "
        f"80 %); the others: {missed or 'none'}.",
        "",
        f"Preflight: area under the ROC curve {start['auc']:.2f} (bar: 0.9) for not training as configured, "
        f"{start['failing']} of {start['runs']} configurations, at the cost of {start['updates']:.0f} updates at the "
        f"median and {start['most_updates']:.0f} at most (bar: 60); everything was taken back bit for bit in "
        f"{'all of them' if start['taken_back'] else 'not all of them'}.",
        "",
        f"On the {development['faulty']} development runs the first finding is right in {development['first']:.0%}, "
        f"with {development['false_alarms']} alarms in {development['healthy']} healthy ones.",
    ]  # fmt: skip


def _kinds(first: dict[str, Any]) -> list[str]:
    lines = [
        "| kind of fault, rules 1 | runs | first right | first two | named first |",
        "|---|---:|---:|---:|---|",
    ]
    for kind, row in first["by_kind"].items():
        named = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in row["named"].items())
        lines.append(
            f"| {kind.replace('_', ' ')} | {row['runs']} | {row['first']} | {row['first_two']} | {named} |"
        )
    return lines


def _calibration(first: dict[str, Any]) -> list[str]:
    lines = ["| weight of the evidence, rules 1 | first findings | right |", "|---|---:|---:|"]
    return [*lines, *(
        f"| {row['from']:.2f} to {row['to']:.2f} | {row['findings']} | {row['right'] / row['findings']:.0%} |"
        for row in first["calibration"]
    )]  # fmt: skip
