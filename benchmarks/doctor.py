"""Measure how often the doctor is right: seeded faults on tasks and architectures that its rules were not made on.

    python benchmarks/doctor.py --part dev              # runs on which rules are tuned; kept in a scratch file
    python benchmarks/doctor.py --part held             # the runs that are reported
    python benchmarks/doctor.py --score dev             # hold the kept runs against the rules as they are

What a run has shown (losses, norms, probes: its histories) is kept, so rules can be changed without training again.
Kinds, cells and accepted findings are in ``doctor_faults.py``, which was written before the first rule.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import warnings
from collections import Counter, defaultdict
from typing import Any

import torch
from doctor_faults import ACCEPTED, HEALTHY, plan
from doctor_runs import run
from kept import SCRATCH, Kept

from optland.doctor import Histories, diagnose

SIZES = {"dev": (7, 50), "held": (12, 150)}
"""Runs of each kind, and healthy ones."""


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
    state = {**line["histories"], "series": left}
    found = Histories()
    found.load_state_dict(state)
    return found


def score(part: str, without: tuple[str, ...] = (), verbose: bool = False) -> dict[str, Any]:
    """First and second findings of every kept run against the accepted ones."""
    kept, right = Kept(SCRATCH / f"doctor_{part}.jsonl"), defaultdict(list)
    named: Counter[str] = Counter()
    first_of: dict[str, Counter[str]] = defaultdict(Counter)
    for line in kept.done.values():
        found = diagnose(histories_of(line, without)).findings
        kind = line["spec"]["kind"]
        symptoms = [str(f.symptom) for f in found]
        named.update(set(symptoms[:2]))
        first_of[kind][symptoms[0] if symptoms else "-"] += 1
        wanted = ACCEPTED.get(kind, ())
        right[kind].append(
            (
                bool(symptoms[:1] and symptoms[0] in wanted),
                any(s in wanted for s in symptoms[:2]),
                not symptoms,
            )
        )
        if verbose and (kind == HEALTHY) == bool(symptoms):
            spec = line["spec"]
            said = found[0].evidence if found else ""
            print(f"{kind} {spec['cell']} way {spec['way']} {spec['optimizer']}: {symptoms[:3]} {said}")
    kinds = [k for k in ACCEPTED if k in right]
    one = {k: sum(r[0] for r in right[k]) / len(right[k]) for k in kinds}
    two = {k: sum(r[1] for r in right[k]) / len(right[k]) for k in kinds}
    healthy = right[HEALTHY]
    return {
        "runs": sum(len(right[k]) for k in kinds), "healthy": len(healthy),
        "first": sum(one.values()) / max(1, len(one)), "two": sum(two.values()) / max(1, len(two)),
        "false_alarms": sum(not r[2] for r in healthy) / max(1, len(healthy)),
        "by_kind": {k: [round(one[k], 2), round(two[k], 2)] for k in kinds},
        "first_of": {k: dict(c.most_common()) for k, c in first_of.items()},
        "named": dict(named.most_common()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=SIZES)
    parser.add_argument("--score", choices=SIZES)
    parser.add_argument("--kinds", default="")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--most", type=int, default=10_000)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part:
        kinds = tuple(options.kinds.split(",")) if options.kinds else tuple(ACCEPTED)
        train(options.part, options.minutes, kinds, options.most)
    if options.score:
        print(json.dumps(score(options.score, verbose=options.verbose), indent=1))


if __name__ == "__main__":
    main()
