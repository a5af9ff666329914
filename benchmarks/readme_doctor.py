"""The tables of the doctor, from ``results/doctor.json``."""

from __future__ import annotations

from typing import Any

__all__ = ["doctor_cost_table", "doctor_table"]

Pass = dict[str, Any]


def doctor_table(result: dict[str, Any]) -> str:
    """All passes against the bars, every kind, and calibration."""
    passes = result["passes"]
    return "\n".join([
        *_passes(passes), "", *_beside(result), "", *_kinds(passes), "", *_calibration(passes),
    ])  # fmt: skip


def doctor_cost_table(result: dict[str, Any]) -> str:
    """What the doctor takes of the wall time of a run."""
    lines = [
        "| net | updates | update, ms | rules in the pilot | watch and rules |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, net in result["nets"].items():
        shares = [f"{net[how]['share']:.2%}" for how in ("rules", "watched")]
        lines.append(
            f"| {name} | {net['updates']:,} | {net['rules']['ms_per_update']:.2f} | {' | '.join(shares)} |"
        )
    return "\n".join([
        *lines, "",
        "Share of the wall time of a run that is spent in the doctor's own calls, one CPU thread, torch "
        f"{result['torch']}; no pass through the model is among them. "
        "The median of five runs of the short one, of one run of the others.",
    ])  # fmt: skip


def _share(value: float, interval: list[float]) -> str:
    return f"{value:.0%} ({interval[0]:.0%} to {interval[1]:.0%})"


def _of(count: int, total: int) -> str:
    return f"{count} of {total} ({count / total:.0%})"


def _passes(passes: list[Pass]) -> list[str]:
    silent = [sum(n == p["by_kind"][k]["runs"] for k, n in p["silent"].items()) for p in passes]
    rows = [
        ("faulty and healthy runs", "", [f"{p['faulty']}, {p['healthy']}" for p in passes]),
        ("first finding right, balanced over kinds", "60 %", [_share(p["first"], p["first_interval"]) for p in passes]),
        ("one of the first two", "80 %", [_share(p["first_two"], p["first_two_interval"]) for p in passes]),
        ("runs drawn healthy with a finding", "", [_of(p["false_alarms"], p["healthy"]) for p in passes]),
        ("those that trained, with a finding", "5 %", [_of(p["alarms_where_trained"], p["trained"]) for p in passes]),
        ("those that did not train, with a finding", "",
         [f"{p['failed_and_found']} of {p['healthy_that_failed']}" for p in passes]),
        ("silent kinds found in every run", "9 of 12",
         [f"{n} of {len(p['silent'])}" for n, p in zip(silent, passes, strict=True)]),
        ("instability faults: first finding right", "", [f"{p['ablation']['with']:.0%}" for p in passes]),
        ("the same without curvature, noise and edge", "", [f"{p['ablation']['without']:.0%}" for p in passes]),
        ("difference in points, with its interval", "", [_points(p["ablation"]) for p in passes]),
        ("fixes: as good as the same run without its fault", "80 %", [_mends(p, "within_10_percent") for p in passes]),
        ("fixes: as good as the healthy draw of its seed", "", [_mends(p, "of_the_draw") for p in passes]),
        ("preflight: area under the ROC curve, all runs", "", [_auc(p, "auc", "runs") for p in passes]),
        ("preflight: without faults that lie in the loop", "0.9", [_auc(p, "auc_given", "given") for p in passes]),
        ("preflight: cost in updates, median and most", "60", [_updates(p) for p in passes]),
    ]  # fmt: skip
    head = " | ".join(_names(passes))
    lines = [f"| held-out tasks and architectures | bar | {head} |", f"|---|---|{'---|' * len(passes)}"]
    return [*lines, *(f"| {what} | {bar} | {' | '.join(found)} |" for what, bar, found in rows)]


def _names(passes: list[Pass]) -> list[str]:
    """The version of the rules of each pass; a version may have had more than one."""
    versions = [p["version"] for p in passes]
    again = [version in versions[:i] for i, version in enumerate(versions)]
    return [f"rules {v}{', again' * more}" for v, more in zip(versions, again, strict=True)]


def _points(ablation: dict[str, Any]) -> str:
    low, high = (100 * end for end in ablation["interval"])
    return f"{100 * ablation['difference']:.0f} ({low:.0f} to {high:.0f})"


def _mends(one: Pass, which: str) -> str:
    found = one.get("mends", {})
    return _of(found[which], found["runs"]) if which in found else "not asked"


def _auc(one: Pass, which: str, count: str) -> str:
    found = one.get("preflight", {})
    return f"{found[which]:.2f} ({found[count]} runs)" if which in found else "not asked"


def _updates(one: Pass) -> str:
    found = one.get("preflight")
    return f"{found['updates']:.0f}, {found['most_updates']:.0f}" if found else "not asked"


def _beside(result: dict[str, Any]) -> list[str]:
    last = result["passes"][-1]
    mends, start = last["mends"], last["preflight"]
    missed = ", ".join(f"{kind.replace('_', ' ')} {n}" for kind, n in mends["missed"].items())
    unseen = ", ".join(f"{kind.replace('_', ' ')} {n}" for kind, n in start.get("missed", {}).items())
    development = "; ".join(
        f"{part['first']:.0%} of {part['faulty']} faulty runs, {part['alarms_where_trained']} alarms in "
        f"{part['healthy']} healthy ones" for part in result["development"]
    )  # fmt: skip
    return [
        f"{_names(result['passes'])[-1].capitalize()}: fixes that missed: {missed or 'none'}. "
        f"Runs that did not train and that preflight gave a chance below a half: {unseen or 'none'}. "
        "Everything was taken back bit for bit in "
        f"{'all of them' if start['taken_back'] else 'not all of them'}.",
        "",
        f"On the two sets of development runs the first finding is right in {development}.",
    ]


def _kinds(passes: list[Pass]) -> list[str]:
    last = passes[-1]
    names = _names(passes)
    head = " | ".join(f"{name}: first right" for name in names)
    lines = [
        f"| kind of fault | {head} | {names[-1]}: first two | named first |",
        f"|---|{'---:|' * len(passes)}---:|---|",
    ]
    for kind, row in last["by_kind"].items():
        named = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in row["named"].items())
        rows = [p["by_kind"].get(kind) for p in passes]
        cells = ["-" if r is None else f"{r['first']} of {r['runs']}" for r in rows]
        two = f"{row['first_two']} of {row['runs']}"
        lines.append(f"| {kind.replace('_', ' ')} | {' | '.join(cells)} | {two} | {named} |")
    return lines


def _calibration(passes: list[Pass]) -> list[str]:
    lines = ["| weight of the evidence | rules | first findings | right |", "|---|---|---:|---:|"]
    return [*lines, *(
        f"| {row['from']:.2f} to {row['to']:.2f} | {name.removeprefix('rules ')} | {row['findings']} | "
        f"{row['right'] / row['findings']:.0%} |"
        for name, p in zip(_names(passes), passes, strict=True) for row in p["calibration"]
    )]  # fmt: skip
