"""What to say of a finished run: one verdict, the facts beside it, and at most one action that can be typed.

Signals of one run often ask for things that exclude each other: a far edge for a longer step, a stability ratio for a
shorter one. So they are taken in order of what they cost the run, and the first that asks for a change is the only one
that does. A run that learnt, held and ended at its best asks for nothing, whatever a single signal says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from optland.doctor import diagnose
from optland.doctor.histories import Histories

__all__ = ["Advice", "advise"]

Row = Mapping[str, float]
Events = Sequence[Mapping[str, object]]

FELL = 3.0
"""Points of validation accuracy below its peak from which on a run has lost what it had."""

SURE = 0.8
"""Weight of the evidence from which on a finding of the doctor's is the verdict."""

WASTED = 0.2
"""Share of the probes above the critical rate from which on a rate that was given is too high."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What a finished run says.

    Attributes:
        verdict: One sentence or two: how it ended, and what decided that.
        action: What to add to the command, such as ``optimizer.rho=0.05``; empty where nothing asks for a change.
        facts: Sentences that ask for nothing: cost, what the policies did, what did not converge.

    Example:
        >>> print(Advice("It ended below its best.", "patience=5", "Probes cost 4.9 % of training."))
        It ended below its best. Probes cost 4.9 % of training. Next: the same with patience=5
    """

    verdict: str
    action: str = ""
    facts: str = ""

    def __str__(self) -> str:
        parts = [self.verdict, self.facts, f"Next: the same with {self.action}" if self.action else ""]
        return " ".join(part for part in parts if part)


class _Finding(NamedTuple):
    """A sentence, and the change that it asks for."""

    words: str
    action: str = ""


def advise(rows: Sequence[Row], decisions: Events, budget: float, used: float | None = None) -> Advice:
    """The verdict on a run, and at most one action, from its logged rows and decisions.

    Args:
        rows: Logged rows in order, keys of the metric vocabulary.
        decisions: Logged decisions in order.
        budget: The probe budget as a share of training cost.
        used: What the probes cost in the end; None takes the last logged value.

    Example:
        >>> rows = [{"step": k, "val/acc": acc} for k, acc in enumerate([80.0, 95.0, 88.0])]
        >>> found = advise(rows, [], budget=0.05)
        >>> found.verdict[:69]
        'Validation accuracy was best in epoch 2, 95.0 %, and ended at 88.0 %:'
        >>> found.action
        'patience=1'
    """
    facts = " ".join([*_what_was_done(rows, decisions), *_about_probes(rows, budget, used)])
    for judge in _IN_ORDER:
        if finding := judge(rows, decisions):
            return Advice(finding.words, finding.action, facts)
    return Advice(_how_it_ended(rows), "", facts)


def _values(rows: Sequence[Row], key: str) -> list[float]:
    return [
        float(row[key]) for row in rows if key in row and row[key] is not None and math.isfinite(row[key])
    ]


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])


def _sets_the_rate(rows: Sequence[Row]) -> bool:
    """Whether ``auto_lr`` was at work, so that there is no rate to choose."""
    return bool(_values(rows, "ctl/pace"))


def _lower_rate(rows: Sequence[Row], factor: float) -> str:
    """The action that shortens steps: the pace of ``auto_lr``, else the rate that was given."""
    paces = _values(rows, "ctl/pace")
    if paces:
        return f"pilot.tau={paces[-1] * factor:.2g}"
    rates = _values(rows, "lr/applied")
    return f"optimizer.lr={max(rates) * factor:.2g}" if rates and max(rates) > 0 else ""


class _Judged(NamedTuple):
    """The best evaluation of a classifier against its last.

    ``error`` is twice the standard error of the difference of both accuracies (about 95 %); 0 where the log does not
    hold their errors, as nobody knows on how many samples they were measured.
    """

    evaluations: int
    epoch: int
    since: int
    top: float
    end: float
    error: float

    @property
    def fall(self) -> float:
        return self.top - self.end


def _judged(rows: Sequence[Row]) -> _Judged | None:
    """None without evaluations. The best is that of early stopping: of equal accuracies the one with the lower loss."""
    seen = [row for row in rows if row.get("val/acc") is not None and math.isfinite(row["val/acc"])]
    if not seen:
        return None
    best = max(range(len(seen)), key=lambda k: (seen[k]["val/acc"], -seen[k].get("val/loss", 0.0)))
    top, last = seen[best], seen[-1]
    errors = [row.get("val/acc_error", 0.0) for row in (top, last)]
    return _Judged(
        evaluations=len(seen),
        epoch=int(top.get("epoch", best + 1)),
        since=len(seen) - 1 - best,
        top=float(top["val/acc"]),
        end=float(last["val/acc"]),
        error=2.0 * math.hypot(*errors),
    )


# What asks for a change, the most costly first ---------------------------------------------------------------


def _nothing_learnt(rows: Sequence[Row], decisions: Events) -> _Finding | None:
    """A run whose loss ends where it began; the other signals then describe a dead net."""
    losses = _values(rows, "train/loss")
    if len(losses) < 10 or _median(losses[-5:]) < 0.95 * losses[0]:
        return None
    radius = _values(rows, "sam/rho")
    action = f"optimizer.rho={radius[-1] / 4:.2g}" if radius else _lower_rate(rows, 0.25)
    return _Finding(
        f"Nothing was learnt: the loss ended at {_median(losses[-5:]):.3g}, where it began ({losses[0]:.3g}).",
        action,
    )


def _not_finite(rows: Sequence[Row], decisions: Events) -> _Finding | None:
    lost = int(max(_values(rows, "ctl/lost"), default=0.0))
    taken = sum(bool(d["taken"]) and d["actuator"] in ("skip", "rewind") for d in decisions)
    if lost <= taken:
        return None
    return _Finding(
        f"{_updates(lost - taken)} cancelled for a gradient that was not finite: look for damaged samples, or for "
        "numbers that overflow (a few are usual under a GradScaler)."
    )


def _rewound(rows: Sequence[Row], decisions: Events) -> _Finding | None:
    """How often the run went back, and the pace or share of the rate that held in the end."""
    rewinds = [d for d in decisions if d["actuator"] == "rewind" and d["taken"]]
    if not rewinds:
        return None
    times = "once" if len(rewinds) == 1 else f"{len(rewinds)} times"
    factor = _number(rewinds[-1]["new"])
    action = _lower_rate(rows, 1.0 if _sets_the_rate(rows) else factor if factor < 1 else 0.5)
    return _Finding(f"The run was rewound {times}: its steps were too long at first.", action)


def _fell(rows: Sequence[Row], decisions: Events) -> _Finding | None:
    """Validation that ended well below its best: more training of this kind loses what there was."""
    judged, bits = _judged(rows), _values(rows, "val/bpc")
    lost = "the last epochs fitted what does not generalise."
    if judged is not None and judged.evaluations >= 3 and judged.fall > max(FELL, judged.error):
        return _Finding(
            f"Validation accuracy was best in epoch {judged.epoch}, {judged.top:.1f} %, and ended at "
            f"{judged.end:.1f} %: {lost}",
            f"patience={min(5, judged.since)}",
        )
    if len(bits) >= 3 and bits[-1] > 1.03 * min(bits):
        best = bits.index(min(bits))
        return _Finding(
            f"Validation was best at {min(bits):.2f} bits in epoch {best + 1} and ended at {bits[-1]:.2f}: {lost}",
            f"patience={min(5, len(bits) - 1 - best)}",
        )
    return None


def _above_the_edge(rows: Sequence[Row], decisions: Events) -> _Finding | None:
    """Only of a rate that was given: ``auto_lr`` is at or above the edge in places and ends no worse for it."""
    ratios = _values(rows, "edge/ratio")
    if not ratios or _sets_the_rate(rows):
        return None
    above, median = sum(r > 1 for r in ratios) / len(ratios), _median(ratios)
    if above <= WASTED:
        return None
    return _Finding(
        f"The learning rate was above the critical one in {100 * above:.0f} % of {len(ratios)} probes (median edge "
        f"ratio {median:.2f}).",
        _lower_rate(rows, min(0.5, 0.5 / median)),
    )


def _what_the_doctor_finds(rows: Sequence[Row], decisions: Events) -> _Finding | None:
    """The first finding of the doctor's rules, where its evidence is strong."""
    paced = _sets_the_rate(rows)
    found = diagnose(Histories.from_rows(rows, {"paced": paced})).findings
    if not found or found[0].confidence < SURE:
        return None
    first = found[0]
    typed = first.action if "=" in first.action and first.action.startswith("optimizer.") else ""
    return _Finding(f"{first.title.capitalize()}: {first.evidence} {first.reading}", typed)


_IN_ORDER: tuple[Callable[[Sequence[Row], Events], _Finding | None], ...] = (
    _nothing_learnt,
    _not_finite,
    _rewound,
    _fell,
    _above_the_edge,
    _what_the_doctor_finds,
)


def _how_it_ended(rows: Sequence[Row]) -> str:
    """The verdict where nothing asks for a change."""
    judged, bits = _judged(rows), _values(rows, "val/bpc")
    if judged is not None:
        return f"Nothing asks for a change: validation accuracy ended at {judged.end:.1f} %, {_near(judged)}."
    if bits:
        near = "its best" if bits[-1] == min(bits) else f"close to its best, {min(bits):.2f}"
        return f"Nothing asks for a change: validation ended at {bits[-1]:.2f} bits, {near}."
    losses = _values(rows, "train/loss")
    if losses:
        return f"Nothing asks for a change: the loss went from {losses[0]:.3g} to {losses[-1]:.3g}."
    return "Nothing asks for a change."


def _near(judged: _Judged) -> str:
    """Where a run that asks for nothing ended, beside its best evaluation."""
    if not judged.since:
        return "its best"
    best = f"its best, {judged.top:.1f} % in epoch {judged.epoch}"
    if not judged.fall:
        return f"as high as in its best epoch, {judged.epoch}, where the loss was lower"
    return f"close to {best}" if judged.fall <= FELL else f"within the error (± {judged.error:.1f}) of {best}"


# What was done, and what it cost -----------------------------------------------------------------------------


def _what_was_done(rows: Sequence[Row], decisions: Events) -> list[str]:
    """Updates that were left out, the deepest cut of the rate, and how far the batch grew."""
    sentences = []
    imagined = [d for d in decisions if d["actuator"] == "rewind" and not d["taken"]]
    if imagined:
        times = "once" if len(imagined) == 1 else f"{len(imagined)} times"
        sentences.append(f"The run would have been rewound {times}.")
    skips = [d for d in decisions if d["actuator"] == "skip"]
    if skips:
        done = bool(skips[0]["taken"])
        verb = ("was" if len(skips) == 1 else "were") if done else "would have been"
        sentences.append(
            f"{_updates(len(skips))} {verb} left out as spikes, the first at step {skips[0].get('step', 0)}."
        )
    cuts = [d for d in decisions if d["actuator"] == "lr_factor" and _number(d["new"]) < 1]
    if cuts:
        what = "was cut" if any(d["taken"] for d in cuts) else "would have been cut"
        deepest = min(_number(d["new"]) for d in cuts)
        sentences.append(f"The learning rate {what} to {deepest:.3g} of the schedule.")
    grown = [d for d in decisions if d["actuator"] == "batch_size" and d["taken"]]
    if grown:
        sentences.append(f"The batch grew to {float(str(grown[-1]['new'])):.0f} with the noise scale.")
    return sentences


def _updates(count: int) -> str:
    return "1 update" if count == 1 else f"{count} updates"


def _number(value: object) -> float:
    """The number in a decision; infinite for a cap that has ended."""
    return math.inf if value is None else float(str(value))


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
