"""A pilot in words, for ``print``, and as a row of the log."""

from __future__ import annotations

import math
from typing import Any

from optland.optim.two_pass import TwoPass
from optland.pilot.steering import BINDING

__all__ = ["in_words", "row_of"]


def in_words(pilot: Any) -> str:
    """Mode, policies, applied rate, last decision, and the cost in gradients and in wall time.

    Args:
        pilot: A :class:`~optland.pilot.pilot.Pilot`; asking for the applied rate waits for the device.
    """
    names = ", ".join(p.name for p in pilot.controls.policies) or "none"
    done = pilot.progress.done(pilot.step)
    share = f", {done:.0%} of the run" if done is not None else ""
    over = pilot.step > 0 and (done is None or done >= 1.0)
    lost = f"; {pilot.lost} cancelled" if pilot.lost else ""
    user, applied, budget = pilot.host.rate, pilot.steering.applied(), pilot.budget
    rate = f"{applied:.3g} applied, {user:.3g} in the groups" if math.isfinite(applied) else f"{user:.3g}"
    seconds = f"{pilot.probe_seconds:.2f} s in probes"
    wall = (
        f"{seconds}, {pilot.probe_seconds / pilot.seconds:.1%} of the time" if pilot.seconds > 0 else seconds
    )
    lines = [
        f"Pilot, mode {pilot.mode}, policies: {names}",
        f"  updates: {pilot.step}{share}{lost}",
        f"  learning rate: {rate} (set by: {pilot.steering.binding})",
        f"  last decision: {pilot.record.last()}",
        f"  cost: {budget.train_ge:.4g} gradient evaluations of training and {budget.probe_ge:.4g} of probes, "
        f"{budget.used:.1%} of {budget.fraction:.0%} allowed; {wall}",
    ]
    if over and (never := pilot.looks.never_ran()):
        lines.append(f"  {never}")
    return "\n".join(lines)


def row_of(pilot: Any, loss: float) -> dict[str, float]:
    """Everything known about the last update under the names of the metric vocabulary; NaN where there is nothing.

    Args:
        pilot: A :class:`~optland.pilot.pilot.Pilot`.
        loss: Of the update, of all ranks together.

    Returns:
        Numbers by ``group/name``, and ``step`` and ``samples``; times in milliseconds, costs in gradient evaluations.
    """
    host, budget, steering = pilot.host, pilot.budget, pilot.steering
    applied, known, factor = steering.applied(), pilot.scalars.known(), steering.factor
    norm = pilot.history.last("update/grad_norm")
    row: dict[str, float] = {
        "step": host.step,
        "samples": pilot.samples,
        "train/loss": loss,
        "train/loss_ema": pilot.trouble.guard.average,
        "lr/user": host.rate,
        "lr/applied": applied if math.isfinite(applied) else host.rate,
        "lr/binding": BINDING[steering.binding],
        "update/rel": known.get("update/rel", math.nan),
        "update/grad_norm": math.nan if norm is None else norm.value,
        "ctl/lr_would_be": known.get("ctl/lr_would_be", math.nan),
        "ctl/lr_factor" if steering.act else "ctl/lr_factor_would_be": factor if factor != 1.0 else math.nan,
        "ctl/lost": float(pilot.lost) if pilot.lost else math.nan,
        **pilot.controls.metrics(),
        "noise/b_current": float(host.batch_size),
        "budget/ge": budget.train_ge + budget.probe_ge,
        "budget/probe_frac": budget.used,
        "budget/allowed": budget.allowed,
        "budget/probe_ms": 1e3 * pilot.probe_seconds,
        **pilot.looks.ages(),
        **pilot.live.row(),
    }
    for optimizer in host.inner:
        if isinstance(optimizer, TwoPass):
            row |= optimizer.telemetry.read()
    return row
