"""Advice on the settings of a finished run, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

__all__ = ["advise"]

Row = Mapping[str, float]


def advise(
    rows: Sequence[Row], decisions: Sequence[Mapping[str, object]], budget: float, used: float | None = None
) -> str:
    """A paragraph of advice from a run's logged rows and decisions.

    Args:
        rows: Logged rows in order, keys of the metric vocabulary.
        decisions: Logged decisions in order.
        budget: The probe budget as a share of training cost.
        used: What the probes cost in the end; None takes the last logged value.

    Example:
        >>> advise([{"step": 1, "edge/ratio": 1.4}, {"step": 2, "edge/ratio": 1.2}], [], 0.05)[:57]
        'The learning rate was above the critical one in 100 % of '
    """
    dead = _about_progress(rows)
    if dead:
        return " ".join([*dead, *_about_probes(rows, budget, used)])
    sentences = [
        *_about_edge(rows),
        *_about_rewinds(rows, decisions),
        *_about_steps(rows, decisions),
        *_about_batch(rows, decisions),
        *_about_sam(rows),
        *_about_fit(rows),
        *_about_probes(rows, budget, used),
    ]
    return " ".join(sentences) if sentences else "Nothing stood out: no signal asks for another setting."


def _values(rows: Sequence[Row], key: str) -> list[float]:
    return [
        float(row[key]) for row in rows if key in row and row[key] is not None and math.isfinite(row[key])
    ]


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])


def _about_progress(rows: Sequence[Row]) -> list[str]:
    """A run whose loss ends where it began has one finding; the other signals then describe a dead net."""
    losses = _values(rows, "train/loss")
    if len(losses) < 10 or _median(losses[-5:]) < 0.95 * losses[0]:
        return []
    remedy = "lower rho" if _values(rows, "sam/rho") else "lower the learning rate, or let auto_lr set it"
    end = f"The loss ended at {_median(losses[-5:]):.3g}, where it began ({losses[0]:.3g})"
    return [f"{end}: nothing was learnt. First {remedy}."]


def _about_edge(rows: Sequence[Row]) -> list[str]:
    ratios = _values(rows, "edge/ratio")
    if not ratios:
        return []
    median, above = _median(ratios), sum(r > 1 for r in ratios) / len(ratios)
    if above > 0.2:
        return [
            f"The learning rate was above the critical one in {above:.0%} of {len(ratios)} probes "
            f"(median edge ratio {median:.2f}): lower its peak, or let auto_lr set it.".replace("%", " %")
        ]
    if median < 0.1:
        return [
            f"The median edge ratio was {median:.2g}: the edge was far away. A pace (tau) or peak learning rate "
            "twice as high may train faster; raise it step by step, since noise can ask for less than the edge allows."
        ]
    return [f"The median edge ratio was {median:.2f}, in the healthy range (0.1 to 0.7)."]


def _about_rewinds(rows: Sequence[Row], decisions: Sequence[Mapping[str, object]]) -> list[str]:
    """How often the run went back, and the pace or share of the rate that held in the end."""
    rewinds = [d for d in decisions if d["actuator"] == "rewind"]
    if not rewinds:
        return []
    times = "once" if len(rewinds) == 1 else f"{len(rewinds)} times"
    if not rewinds[0]["taken"]:
        return [f"The run would have been rewound {times}."]
    paces, factor = _values(rows, "ctl/pace"), _number(rewinds[-1]["new"])
    if paces:
        remedy = f"start with a pace (tau) of {paces[-1]:.2g}"
    elif factor < 1:
        remedy = f"start with {factor:.3g} of the learning rate"
    else:
        remedy = "lower the learning rate"
    return [f"The run was rewound {times}; {remedy}."]


def _about_steps(rows: Sequence[Row], decisions: Sequence[Mapping[str, object]]) -> list[str]:
    """Updates that were cancelled, and the lowest factor on the rate."""
    sentences = []
    skips = [d for d in decisions if d["actuator"] == "skip"]
    if skips:
        done = bool(skips[0]["taken"])
        verb = ("was" if len(skips) == 1 else "were") if done else "would have been"
        sentences.append(
            f"{_updates(len(skips))} {verb} left out as spikes, the first at step {skips[0].get('step', 0)}: look at "
            "those batches."
        )
    lost = int(max(_values(rows, "ctl/lost"), default=0.0))
    taken = sum(bool(d["taken"]) and d["actuator"] in ("skip", "rewind") for d in decisions)
    if lost > taken:
        sentences.append(
            f"{_updates(lost - taken)} cancelled for a gradient that was not finite: look for damaged samples, or "
            "for numbers that overflow (a few are usual under a GradScaler)."
        )
    cuts = [d for d in decisions if d["actuator"] == "lr_factor" and _number(d["new"]) < 1]
    if cuts:
        what = "was cut" if any(d["taken"] for d in cuts) else "would have been cut"
        deepest = min(_number(d["new"]) for d in cuts)
        sentences.append(f"The learning rate {what} to {deepest:.3g} of the schedule.")
    return sentences


def _updates(count: int) -> str:
    return "1 update" if count == 1 else f"{count} updates"


def _number(value: object) -> float:
    """The number in a decision; infinite for a cap that has ended."""
    return math.inf if value is None else float(str(value))


def _about_batch(rows: Sequence[Row], decisions: Sequence[Mapping[str, object]]) -> list[str]:
    scales, batches = _values(rows, "noise/b_simple"), _values(rows, "noise/b_current")
    if not scales or not batches:
        return []
    scale, batch = scales[-1], batches[-1]
    grown = [d for d in decisions if d["actuator"] == "batch_size" and d["taken"]]
    sentences = []
    if grown:
        sentences.append(f"The batch grew to {float(str(grown[-1]['new'])):.0f} as the noise scale rose.")
    if scale > 4 * batch:
        sentences.append(
            f"The noise scale ended at {scale:.0f} with batches of {batch:.0f}: steps are noise-limited, "
            "a larger batch or a longer decay would pay."
        )
    elif scale < batch / 4:
        sentences.append(
            f"The noise scale ended at {scale:.0f}, far below the batch of {batch:.0f}: use a smaller one."
        )
    return sentences


def _about_sam(rows: Sequence[Row]) -> list[str]:
    stability = _values(rows, "sam/stability")
    if not stability:
        return []
    above = sum(s > 2 for s in stability) / len(stability)
    if above > 0.1:
        return [
            f"SAM's stability ratio was above 2 in {100 * above:.0f} % of the logged steps: lower rho or the rate."
        ]
    return []


def _about_fit(rows: Sequence[Row]) -> list[str]:
    accuracy, bits = _values(rows, "val/acc"), _values(rows, "val/bpc")
    remedy = "stop early, or use SAM with a larger rho."
    if len(accuracy) >= 3 and max(accuracy) - accuracy[-1] > 3:
        best = max(accuracy)
        where = accuracy.index(best) + 1
        return [
            f"Validation accuracy peaked at {best:.1f} in epoch {where} and ended at {accuracy[-1]:.1f}: {remedy}"
        ]
    if len(bits) >= 3 and bits[-1] > 1.03 * min(bits):
        where = bits.index(min(bits)) + 1
        return [
            f"Validation was best at {min(bits):.2f} bits in epoch {where} and ended at {bits[-1]:.2f}: {remedy}"
        ]
    return []


def _about_probes(rows: Sequence[Row], budget: float, used: float | None) -> list[str]:
    converged = _values(rows, "curv/lambda_max_converged")
    sentences = []
    if converged and sum(converged) < len(converged):
        failed = len(converged) - int(sum(converged))
        sentences.append(
            f"{failed} of {len(converged)} sharpness probes did not converge; read those as lower bounds."
        )
    logged = _values(rows, "budget/probe_frac")
    if used is None and logged:
        used = logged[-1]
    if used is not None:
        sentences.append(f"Probes cost {100 * used:.1f} % of training ({100 * budget:.0f} % allowed).")
    return sentences
