"""Measure how often the doctor is right: seeded faults on tasks and architectures that its rules were not made on.

    python benchmarks/doctor.py --part dev              # runs on which rules are tuned; kept in a scratch file
    python benchmarks/doctor.py --part third            # the runs that are reported; every pass has its own seeds
    python benchmarks/doctor.py --score dev             # hold the kept runs against the rules as they are
    python benchmarks/doctor.py --mend third --most 50  # make runs again with the fix of their first finding
    python benchmarks/doctor.py --preflight third       # look at configurations before they run
    python benchmarks/doctor.py --report third --version 3     # results/doctor.json with this pass, and calibration

What a run has shown (losses, norms, probes: its histories) is kept, so rules can be changed without training again.
Kinds, cells and accepted findings are in ``doctor_faults.py``, which was written before the first rule.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import time
import warnings
from collections import Counter, defaultdict
from functools import partial
from typing import Any

import torch
from doctor_calibration import COUNTS, RESULT, rewritten
from doctor_faults import ACCEPTED, CELLS, HEALTHY, INSTABILITY, SILENT, Spec, plan
from doctor_mends import NO_FIX, OF_THE_LOOP, auc, looked_at, mended
from doctor_runs import BUDGET, run
from doctor_tasks import knowing_nothing, task_of
from kept import SCRATCH, Kept

from optland.doctor import Finding, diagnose
from optland.doctor.histories import Histories

SIZES = {
    "dev": (7, 50),
    "held": (12, 150),
    "second": (3, 60),
    "more": (4, 160),
    "third": (4, 60),
    "fourth": (2, 50),
    "fifth": (12, 150),
}
"""Runs of each kind, and healthy ones."""

DEVELOPMENT = ("dev", "more")
"""Parts on which rules are tuned."""

LANDSCAPE = ("edge", "curv", "noise")
"""Groups of signals that the ablation goes without."""


def rounded(state: dict[str, Any]) -> dict[str, Any]:
    """Histories with five digits a value: what a log has."""
    series = {
        n: [steps, [float(f"{v:.5g}") for v in values]] for n, (steps, values) in state["series"].items()
    }
    return {**state, "series": series}


def train(part: str, minutes: float, kinds: tuple[str, ...], most: int) -> None:
    kept, end = Kept(SCRATCH / f"doctor_{part}.jsonl"), time.monotonic() + 60 * minutes
    specs = plan(part, *SIZES[part], kinds)[:most]
    random.Random(0).shuffle(specs)  # what is kept of an interrupted pass has every kind
    for spec in specs:
        if time.monotonic() > end:
            break
        if spec.key in kept.done:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = run(spec)
        found["histories"] = rounded(found["histories"])
        kept.add({"key": spec.key, "spec": vars(spec) | {}, **found})
        off = " OFF" if found["off"] else ""
        print(spec.kind, spec.cell, spec.way, found["final"], f"{found['seconds']:.1f} s{off}", flush=True)


def histories_of(line: dict[str, Any], without: tuple[str, ...] = ()) -> Histories:
    """The histories of a kept run, under the keys that the rules read, and without those of some groups."""
    series = {"val/loss" if n == "val/eval" else n: v for n, v in line["histories"]["series"].items()}
    left = {n: v for n, v in series.items() if n.split("/")[0] not in without}
    found = Histories()
    found.load_state_dict({**line["histories"], "series": left})
    return found


def findings_of(line: dict[str, Any], without: tuple[str, ...] = ()) -> tuple[Finding, ...]:
    return diagnose(histories_of(line, without)).findings


def kept_runs(part: str) -> list[dict[str, Any]]:
    return list(Kept(SCRATCH / f"doctor_{part}.jsonl").done.values())


def judged(lines: list[dict[str, Any]], without: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Of each run its kind and its first three findings; one named in over 20 % of all runs counts as none."""
    rows = []
    for line in lines:
        found = findings_of(line, without)
        rows.append(
            {
                "kind": line["spec"]["kind"],
                "cell": line["spec"]["cell"],
                "way": line["spec"]["way"],
                "final": line["final"],
                "said": [str(f.symptom) for f in found[:3]],
                "sure": [f.confidence for f in found[:3]],
            }
        )
    named = Counter(s for row in rows for s in set(row["said"][:1]))
    common = {s for s, count in named.items() if count > 0.2 * len(rows)}
    return [{**row, "counted": [s for s in row["said"] if s not in common]} for row in rows]


def right(row: dict[str, Any], first: int) -> bool:
    return any(s in ACCEPTED.get(row["kind"], ()) for s in row["counted"][:first])


def rate(rows: list[dict[str, Any]], first: int) -> float:
    """Balanced over kinds: the mean over kinds of the share that is right."""
    by_kind = defaultdict(list)
    for row in rows:
        by_kind[row["kind"]].append(right(row, first))
    return statistics.fmean(statistics.fmean(found) for found in by_kind.values())


def interval(rows: list[dict[str, Any]], first: int, draws: int = 2000) -> list[float]:
    """95 % of the balanced rate, from draws of runs within their kinds."""
    chance, by_kind = random.Random(0), defaultdict(list)
    for row in rows:
        by_kind[row["kind"]].append(float(right(row, first)))
    means = sorted(
        statistics.fmean(statistics.fmean(chance.choices(found, k=len(found))) for found in by_kind.values())
        for _ in range(draws)
    )
    return [means[int(0.025 * draws)], means[int(0.975 * draws)]]


def score(part: str) -> dict[str, Any]:
    """Rates of the rules as they are on the kept runs of a part."""
    rows = judged(kept_runs(part))
    faulty, healthy = [r for r in rows if r["kind"] != HEALTHY], [r for r in rows if r["kind"] == HEALTHY]
    return {
        "faulty": len(faulty), "healthy": len(healthy),
        "first": rate(faulty, 1), "first_interval": interval(faulty, 1),
        "first_two": rate(faulty, 2), "first_two_interval": interval(faulty, 2),
        "false_alarms": sum(bool(r["said"]) for r in healthy), **where_trained(rows),
        "named_in_healthy": dict(Counter(s for r in healthy for s in r["said"][:1])),
        "by_kind": {k: table(faulty, k) for k in ACCEPTED if any(r["kind"] == k for r in faulty)},
        "silent": {k: table(faulty, k)["first"] for k in SILENT if any(r["kind"] == k for r in faulty)},
        "calibration": calibration(rows), "counted": counted(rows),
    }  # fmt: skip


def table(rows: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    mine = [r for r in rows if r["kind"] == kind]
    named = Counter(r["said"][0] if r["said"] else "nothing" for r in mine)
    return {
        "runs": len(mine), "first": sum(right(r, 1) for r in mine), "first_two": sum(right(r, 2) for r in mine),
        "named": dict(named.most_common(3)),
    }  # fmt: skip


def calibration(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Of first findings, by the weight of their evidence: how many, and the share that was right."""
    found = []
    for low, high in ((0.0, 0.5), (0.5, 0.75), (0.75, 0.87), (0.87, 0.95), (0.95, 1.01)):
        mine = [r for r in rows if r["said"] and low <= r["sure"][0] < high]
        if mine:
            found.append({"from": low, "to": min(1.0, high), "findings": len(mine),
                          "right": sum(right(r, 1) for r in mine)})  # fmt: skip
    return found


def counted(rows: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Of each symptom: how often it was the first finding, and how often that was right."""
    found: dict[str, list[int]] = {}
    for row in rows:
        if row["said"]:
            pair = found.setdefault(row["said"][0], [0, 0])
            pair[0] += 1
            pair[1] += right(row, 1)
    return dict(sorted(found.items()))


def ablation(part: str, draws: int = 2000) -> dict[str, Any]:
    """First findings on instability faults with and without curvature, noise and edge: paired over the runs."""
    lines = [line for line in kept_runs(part) if line["spec"]["kind"] in INSTABILITY]
    with_, without = judged(lines), judged(lines, LANDSCAPE)
    for row in [*with_, *without]:  # the rule on what is named too often is one for the whole pass
        row["counted"] = row["said"]
    pairs = [(float(right(a, 1)), float(right(b, 1))) for a, b in zip(with_, without, strict=True)]
    chance = random.Random(0)
    gains = sorted(
        statistics.fmean(a - b for a, b in chance.choices(pairs, k=len(pairs))) for _ in range(draws)
    )
    return {
        "runs": len(pairs), "with": statistics.fmean(a for a, _ in pairs),
        "without": statistics.fmean(b for _, b in pairs),
        "difference": statistics.fmean(a - b for a, b in pairs),
        "interval": [gains[int(0.025 * draws)], gains[int(0.975 * draws)]],
    }  # fmt: skip


def mend(part: str, count: int) -> None:
    """Runs of which the first finding is right, made again with its fix."""
    kept = Kept(SCRATCH / f"doctor_mends_{part}.jsonl")
    lines = [line for line in kept_runs(part) if line["spec"]["kind"] not in (*NO_FIX, HEALTHY)]
    rows = dict(zip((line["key"] for line in lines), judged(lines), strict=True))
    chosen = [line for line in lines if right({**(r := rows[line["key"]]), "counted": r["said"]}, 1)]
    random.Random(1).shuffle(chosen)
    for line in chosen[:count]:
        spec, finding = Spec(**line["spec"]), findings_of(line)[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = kept.of(spec.key, partial(mended, spec, finding))
        print(found, flush=True)


def before(part: str, count: int) -> None:
    """Preflight on the configurations of runs."""
    kept = Kept(SCRATCH / f"doctor_preflight_{part}.jsonl")
    lines = kept_runs(part)
    random.Random(2).shuffle(lines)
    for line in lines[:count]:
        spec = Spec(**line["spec"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = kept.of(spec.key, partial(looked_at, spec))
        print(found, flush=True)


def untrained(rows: list[dict[str, Any]]) -> list[bool]:
    """Whether each run did not train, by its loss on all training data at its end, which the doctor does not see.

    It trained where that loss lies below the middle between the loss of knowing nothing and the median of the runs of
    its cell that were drawn healthy. A run that was drawn healthy and did not train is healthy by its settings alone.
    """
    ends = [math.inf if row["final"] is None else row["final"] for row in rows]
    best: dict[str, list[float]] = defaultdict(list)
    for row, end in zip(rows, ends, strict=True):
        if row["kind"] == HEALTHY:
            best[row["cell"]].append(end)
    middles = {
        cell: 0.5 * (knowing_nothing(task_of(CELLS[cell]["task"])) + statistics.median(found))
        for cell, found in best.items()
    }
    return [not end < middles[row["cell"]] for row, end in zip(rows, ends, strict=True)]


def failing(part: str) -> dict[str, bool]:
    """Of each kept run whether it did not train, by its key."""
    lines = kept_runs(part)
    rows = [{**line["spec"], "final": line["final"]} for line in lines]
    return dict(zip((line["key"] for line in lines), untrained(rows), strict=True))


def where_trained(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Of the runs that were drawn healthy how many trained, and in how many of those something was found."""
    failed = untrained(rows)
    healthy = [(row, bad) for row, bad in zip(rows, failed, strict=True) if row["kind"] == HEALTHY]
    trained = [row for row, bad in healthy if not bad]
    return {
        "trained": len(trained), "healthy_that_failed": len(healthy) - len(trained),
        "failed_and_found": sum(bool(row["said"]) for row, bad in healthy if bad),
        "alarms_where_trained": sum(bool(row["said"]) for row in trained),
    }  # fmt: skip


def report(part: str, version: int) -> None:
    """Add a pass of this version of the rules, with what was asked beside findings, and rewrite the calibration."""
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"passes": []}
    mine = {"version": version, "part": part, **score(part), "ablation": ablation(part)}
    mine |= {"mends": _mends(part), "preflight": _preflight(part)}
    earlier = [p | where_trained(published(p["part"])) for p in result["passes"] if p["part"] != part]
    result["passes"] = [*earlier, mine]
    result |= {"torch": torch.__version__, "budget": BUDGET}
    if all(kept_runs(p) for p in DEVELOPMENT):  # else what was counted before stays
        result["development"] = [_development(p) for p in DEVELOPMENT]
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    rows = [
        {"spec": line["key"], **row}
        for line, row in zip(kept_runs(part), judged(kept_runs(part)), strict=True)
    ]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    RESULT.with_name(f"doctor_{part}_runs.jsonl").write_text(text, encoding="utf-8")
    COUNTS.write_text(rewritten(COUNTS.read_text(encoding="utf-8"), result), encoding="utf-8")


def published(part: str) -> list[dict[str, Any]]:
    """The runs of an earlier pass, with what the rules of that time said."""
    lines = RESULT.with_name(f"doctor_{part}_runs.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _development(part: str) -> dict[str, Any]:
    found = score(part)
    names = ("faulty", "healthy", "first", "first_two", "false_alarms", "alarms_where_trained")
    return {"part": part, **{name: found[name] for name in names}}


def _mends(part: str) -> dict[str, Any]:
    mends = list(Kept(SCRATCH / f"doctor_mends_{part}.jsonl").done.values())
    near = [_near(m["mended"], m["twin"]) for m in mends]
    missed = Counter(m["kind"] for m, ok in zip(mends, near, strict=True) if not ok)
    drawn = sum(_near(m["mended"], m["drawn"]) for m in mends)
    return {"runs": len(mends), "within_10_percent": sum(near), "of_the_draw": drawn, "missed": dict(missed)}


def _near(mended: float | None, other: float | None) -> bool:
    """At most 1.1 times the other's loss."""
    return mended is not None and other is not None and mended <= 1.1 * other


def _preflight(part: str) -> dict[str, Any]:
    looks, failed = Kept(SCRATCH / f"doctor_preflight_{part}.jsonl").done, failing(part)
    tried = {key: look for key, look in looks.items() if "chance" in look and key in failed}
    given = {key: look for key, look in tried.items() if look["kind"] not in OF_THE_LOOP}
    missed = Counter(look["kind"] for key, look in given.items() if failed[key] and look["chance"] < 0.5)
    return {
        "runs": len(tried), "failing": sum(failed[k] for k in tried), "auc": _auc(tried, failed),
        "given": len(given), "given_failing": sum(failed[k] for k in given), "auc_given": _auc(given, failed),
        "missed": dict(missed),
        "updates": statistics.median([look["updates"] for look in tried.values()]),
        "most_updates": max(look["updates"] for look in tried.values()),
        "not_tried": sum("failed" in look for look in looks.values()),
        "taken_back": all(look["taken_back"] for look in tried.values()),
    }  # fmt: skip


def _auc(looks: dict[str, dict[str, Any]], failed: dict[str, bool]) -> float:
    return auc([look["chance"] for look in looks.values()], [failed[key] for key in looks])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=SIZES)
    parser.add_argument("--score", choices=SIZES)
    parser.add_argument("--mend", choices=SIZES)
    parser.add_argument("--preflight", choices=SIZES)
    parser.add_argument("--report", choices=SIZES)
    parser.add_argument("--version", type=int, default=3)
    parser.add_argument("--kinds", default="")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--most", type=int, default=10_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part:
        kinds = tuple(options.kinds.split(",")) if options.kinds else tuple(ACCEPTED)
        train(options.part, options.minutes, kinds, options.most)
    if options.score:
        print(json.dumps(score(options.score), indent=1))
    if options.mend:
        mend(options.mend, options.most)
    if options.preflight:
        before(options.preflight, options.most)
    if options.report:
        report(options.report, options.version)


if __name__ == "__main__":
    main()
