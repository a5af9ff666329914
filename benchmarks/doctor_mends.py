"""What ``benchmarks/doctor.py`` asks beside findings: does the fix mend, and is the start enough to tell."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from doctor_faults import HEALTHY, SILENT, Spec, draw
from doctor_runs import Run, run

from optland.doctor import Finding, preflight

__all__ = ["NO_FIX", "OF_THE_LOOP", "auc", "looked_at", "mended", "mended_spec", "twin_of"]

NO_FIX = (*SILENT, "wrong_labels", "overfit")
"""Kinds whose fix is a change of the program or other data: nothing that a setting mends."""

OF_THE_LOOP = ("accumulation", "not_zeroed", "scheduler", "modes", "corrupt")
"""Kinds that lie in the loop, which preflight does not get: what it is given is a healthy configuration."""

_BLOCKS = {"init": "kaiming", "gain": 1.0, "norm": "batch"}

_FAULTY: dict[str, tuple[str, ...]] = {
    "rate_high": ("lr",), "rate_low": ("lr",), "exploding": ("gain",), "dead": ("bias",), "saddle": ("gain",),
    "vanishing": ("depth", "activation", "gain", "norm", "skips"), "batch_small": ("batch",),
    "batch_large": ("batch", "steps"), "momentum": ("momentum",), "regularised": ("weight_decay", "dropout"),
    "corrupt": ("corrupt",), "conditioning": ("inputs",), "sam_much": ("rho",), "sam_little": ("rho",),
}  # fmt: skip
"""The settings in which each fault lies; what else its generator set, such as an optimizer that shows it, is none."""


def twin_of(spec: Spec) -> Spec:
    """The run without its fault: the fault's settings as a healthy run of the cell has them, all others as they are.

    A fault of SAM's rho has a twin with the usual one, 0.05: that the run is one of SAM is no fault.
    """
    base = draw(HEALTHY, spec.cell, spec.seed)
    if spec.kind.startswith("sam_"):
        base = replace(base, rho=0.05)
    return replace(spec, kind=HEALTHY, **{name: getattr(base, name) for name in _FAULTY[spec.kind]})


def mended_spec(spec: Spec, finding: Finding) -> Spec:
    """The run with what the finding says: its action as it stands, else its fix."""
    symptom, (key, _, value) = str(finding.symptom), finding.action.partition("=")
    if key == "optimizer.lr":
        return replace(spec, lr=float(value))
    if key == "optimizer.rho":
        return replace(spec, rho=float(value))
    if key == "optimizer.weight_decay":
        return replace(spec, weight_decay=float(value))
    if key == "optimizer.momentum":
        return replace(spec, momentum=float(value))
    if key == "model.dropout":
        return replace(spec, dropout=float(value))
    if (
        key == "batch_size"
    ):  # as many samples as before where the batch was too large, as many updates where too small
        size = int(value)
        return replace(spec, batch=size, steps=max(spec.steps, spec.steps * spec.batch // size))
    changes: dict[str, dict[str, Any]] = {
        "exploding_gradients": {**_BLOCKS, "clip": 1.0},
        "vanishing_gradients": {
            "init": "kaiming", "gain": spec.depth**-0.5, "norm": "", "activation": "relu", "skips": True
        },
        "saddle_plateau": {"init": "kaiming", "gain": 1.0},
        "dead_units": {"bias": 0.0, "activation": "gelu"},
        "inputs_off_scale": {"inputs": ""},
        "corrupt_batches": {"corrupt": 0},
    }  # fmt: skip
    return replace(spec, **changes.get(symptom, {}))


def mended(spec: Spec, finding: Finding) -> dict[str, Any]:
    """Final losses of the run with the fix, of the same run without its fault, and of the healthy draw of its seed.

    The last is what earlier passes compared with; it may have another optimizer, rate or depth than the run.
    """
    drawn = draw(HEALTHY, spec.cell, spec.seed)
    return {
        "kind": spec.kind, "symptom": str(finding.symptom), "action": finding.action,
        "mended": run(mended_spec(spec, finding), pilot=False)["final"],
        "twin": run(twin_of(spec), pilot=False)["final"], "drawn": run(drawn, pilot=False)["final"],
    }  # fmt: skip


def looked_at(spec: Spec) -> dict[str, Any]:
    """What preflight says of a run before it begins, and what that costs in updates of one pass."""
    torch.manual_seed(spec.seed)
    made = Run(spec)
    first = copy.deepcopy(made.model.state_dict())
    try:
        found = preflight(made.model, made.trained_loss, made.loader, made.optimizer, seed=spec.seed)
    except Exception as error:
        return {"kind": spec.kind, "failed": f"{type(error).__name__}: {error}"[:200]}
    same = all(torch.equal(a, first[name]) for name, a in made.model.state_dict().items())
    passes = 2 if spec.rho else 1
    size = min(spec.batch, len(made.task.x))
    return {
        "kind": spec.kind,
        "chance": found.chance,
        "updates": found.cost_ge / size / passes,
        "taken_back": same,
    }


def auc(scores: list[float], labels: list[bool]) -> float:
    """Area under the ROC curve: how often a failing run has the higher score; a tie counts a half."""
    bad = [s for s, b in zip(scores, labels, strict=True) if b]
    good = [s for s, b in zip(scores, labels, strict=True) if not b]
    if not bad or not good:
        return math.nan
    won = sum((b > g) + 0.5 * (b == g) for b in bad for g in good)
    return won / (len(bad) * len(good))
