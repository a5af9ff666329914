"""Faults of the step: its length against the edge, its batch against the noise, its momentum, its second pass."""

from __future__ import annotations

import math

from optland.doctor.finding import Finding, Symptom
from optland.doctor.histories import Histories
from optland.doctor.rules.shape import Shape
from optland.doctor.rules.training import Rule, rate_action, stuck

__all__ = ["RULES"]

HIGH_BETA = 0.98
"""Momentum from here on remembers gradients of 50 updates and more."""

ADAM_RATE, SGD_RATE = 0.04, 1.5
"""Rates that no healthy run with Adam or with plain SGD has needed."""

USUAL_ADAM, USUAL_SGD = 0.005, 0.05
"""The most that is recommended in place of a rate that is far too high."""

MOVES_ADAM, MOVES_SGD = 0.02, 0.03
"""Share of the weights that an update at the start moves where the rate is a good one."""


def above_edge(run: Histories, shape: Shape) -> Finding | None:
    """A learning rate above the edge: the loss rises, jumps or dies after a start that was in order.

    Args:
        run: ``edge/ratio``, ``edge/not_descent``, ``lr/user`` (else the fact ``lr``), ``layer/dead_max`` and
            ``layer/rel_grad``; facts ``optimizer`` and ``paced``, with which it says nothing.
        shape: Of the training loss, which alone is enough where it rose.
    """
    if run.fact("paced", False):
        return None
    ratio, rises = run.median("edge/ratio"), _share(run.values("edge/not_descent"))
    rate = max(run.values("lr/user"), default=float(run.fact("lr")))
    adam = "Adam" in str(run.fact("optimizer", ""))
    huge = rate > (ADAM_RATE if adam else SGD_RATE)
    # A start above the loss of knowing nothing is no rise.
    rise = shape.highest / max(1.0, min(shape.first, shape.begin) / shape.chance) if shape.chance > 0 else 1.0
    worse = shape.gained < 0.5 and (rise > 1.3 or bool(shape.broken))
    killed = stuck(shape) and max(run.values("layer/dead_max"), default=0.0) > 0.5 and _moved_at_first(run)
    if worse and (rise > 3 or shape.broken):
        sure = 0.85
    elif worse or killed:
        sure = 0.75
    elif ratio > 1:
        sure = 0.62
    elif huge:
        sure = 0.6
    else:
        return None
    if huge:
        sure = max(sure, 0.78 if sure > 0.6 else 0.6)
    edge = f" The edge ratio is {ratio:.2g}." if ratio > 0 else ""
    what = (
        f"The loss is not finite from update {shape.broken} on." if shape.broken else
        f"The loss rose to {shape.highest * shape.chance:.3g}, from {shape.first:.3g}." if worse else
        f"Units died while the loss stayed at {shape.end:.3g}." if killed else
        f"Rate {rate:.3g}, and {100 * rises:.0f} % of the probes found no descent." if rises >= 0.4 else
        f"The rate is {rate:.3g}."
    )  # fmt: skip
    factor = min(0.1, 0.3 / ratio) if ratio > 0.55 else 0.03 if huge else 0.1
    return Finding(
        Symptom.RATE_ABOVE_EDGE,
        what + edge,
        "Steps are longer than the valley is wide, eta lambda > 2: each one lands higher on the opposite wall.",
        "Lower the learning rate, or let auto_lr set it.",
        rate_action(run, factor, USUAL_ADAM if adam else USUAL_SGD if huge else math.inf),
        confidence=sure,
    )


def _share(flags: list[float]) -> float:
    return sum(flags) / len(flags) if len(flags) >= 3 else 0.0


def _moved_at_first(run: Histories) -> bool:
    moved = run.values("layer/rel_grad", 0.0, 0.1)
    return bool(moved) and moved[0] > 1e-4


def below_edge(run: Histories, shape: Shape) -> Finding | None:
    """A learning rate so far below the edge that the run does not move.

    Args:
        run: ``edge/ratio``, ``update/rel``, ``layer/dead_max`` and ``layer/first_over_last``; facts ``optimizer`` and
            ``paced``, with which it says nothing. One of the first two is needed.
        shape: Of the training loss, from 30 updates on.
    """
    if run.fact("paced", False):
        return None
    ratio, moved = run.median("edge/ratio"), run.median("update/rel", 0.1)
    slow = shape.gained < 0.25 and shape.highest < 1.3 and shape.count >= 30
    alive = not max(run.values("layer/dead_max"), default=0.0) > 0.5
    far = ratio < 2.5e-3 or moved < 3e-5 or (math.isnan(ratio) and moved < 3e-4)
    if not (slow and alive and far) or run.median("layer/first_over_last", 0.0, 0.5) < 1e-3:
        return None
    edge = f"the edge ratio is {ratio:.2g}" if ratio < 2.5e-3 else f"an update is {moved:.2g} of the weights"
    # The probe of the edge has an end: of a rate far enough below it only the size of the updates says how far. Under
    # Adam that size is the rate itself, and the edge along its update is far off.
    adam = "Adam" in str(run.fact("optimizer", ""))
    by_size = [(MOVES_ADAM if adam else MOVES_SGD) / moved] if moved > 0 else []
    by_edge = [0.1 / ratio] if ratio > 0 and not (adam and by_size) else []
    needed = [*by_size, *by_edge]
    factor = min(3e4, max(needed, default=30.0))
    return Finding(
        Symptom.RATE_BELOW_EDGE,
        f"The loss went from {shape.begin:.3g} to {shape.end:.3g} in {run.step} updates, and {edge}.",
        "Steps are tiny beside the width of the valley: the run stands still on a slope.",
        "Raise the learning rate, or let auto_lr set it.",
        rate_action(run, factor),
        confidence=0.85 if moved < 5e-4 or ratio < 1e-3 else 0.65,
    )


def momentum(run: Histories, shape: Shape) -> Finding | None:
    """A momentum that remembers gradients of places long left.

    Args:
        run: The fact ``momentum``, Adam's first beta included, and ``edge/not_descent`` as evidence.
        shape: Of the training loss.
    """
    beta, rises = run.fact("momentum", 0.0), _share(run.values("edge/not_descent"))
    if not beta >= HIGH_BETA:
        return None
    seen = f"; {100 * rises:.0f} % of the probes found that the step leads uphill" if rises > 0.2 else ""
    return Finding(
        Symptom.STALE_MOMENTUM,
        f"Momentum {beta:g} averages over {1 / (1 - beta):.0f} updates{seen}.",
        "The step follows slopes of places that were left long ago, and swings from wall to wall of the valley.",
        "Use momentum 0.9.",
        "optimizer.momentum=0.9",
        confidence=0.88 if rises > 0.2 or shape.gained < 0.9 else 0.79,
    )


def small_batch(run: Histories, shape: Shape) -> Finding | None:
    """A batch so far below the noise scale that the gradient is noise.

    Args:
        run: The fact ``rows``, samples of an update (else ``noise/b_current``), and ``noise/b_simple`` as evidence.
        shape: Of the training loss, whose noise per nat gained makes the confidence.
    """
    rows, scale = run.fact("rows"), run.median("noise/b_simple", 0.3)
    batch = rows if rows > 0 else run.median("noise/b_current")
    per_nat = shape.noise / max(0.05, -math.log(max(1e-6, 1 - shape.gained)))
    if not batch <= 8:
        return None
    noisy = per_nat > 0.3
    known = f", and the noise scale is {scale:.3g}" if scale > 0 else ""
    return Finding(
        Symptom.BATCH_BELOW_NOISE,
        f"An update has {batch:.0f} samples{known}; the loss changes by {100 * shape.noise:.0f} % per update.",
        "Noise outweighs the gradient: the run ends in a ball around the minimum that grows with rate over batch.",
        "Use a larger batch, or accumulate; else a lower rate at the end.",
        "batch_size=64",
        confidence=0.84 if noisy else 0.7,
    )


def noise_floor(run: Histories, shape: Shape) -> Finding | None:
    """A loss that has stopped falling and jitters.

    Args:
        run: Only for the record.
        shape: Of the training loss, from 60 updates on; needs no other signal.
    """
    if shape.count < 60 or abs(shape.drift) > 0.1 or not shape.gained > 0.2 or not shape.noise > 0.4:
        return None
    return Finding(
        Symptom.NOISE_FLOOR,
        f"Over the last half the loss fell by {100 * shape.drift:.0f} % and changes by {100 * shape.noise:.0f} % per "
        "update.",
        "The noise floor: steps as long as these cannot come closer to the minimum.",
        "Let the rate decay to zero, or raise the batch.",
        "schedule=cosine",
        confidence=0.35,
    )


def large_batch(run: Histories, shape: Shape) -> Finding | None:
    """A batch far above the noise scale, which leaves few updates.

    Args:
        run: Facts ``rows``, ``batch``, ``total_steps``, ``batches_per_epoch`` and ``calls``, and ``noise/b_simple``.
            With micro-batches it says nothing.
        shape: Of the training loss; one that was learnt to 97 % asks for nothing.
    """
    batch, scale = run.fact("rows"), run.median("noise/b_simple")
    total, epoch = run.fact("total_steps", run.step), run.fact("batches_per_epoch")
    if not batch >= 256 or run.fact("calls", 1) > 1:
        return None
    samples = run.fact("batch", batch)
    over = samples > 4 * scale
    few = total <= 80 and epoch <= 12 and samples >= 256
    if not ((over and total <= 400) or few) or shape.gained > 0.97:
        return None
    known = f" (noise scale {scale:.3g})" if scale > 0 else ""
    return Finding(
        Symptom.BATCH_ABOVE_NOISE,
        f"An update has {samples:.0f} samples{known}, and the run has {total:.0f} updates.",
        "Beyond the noise scale more samples per update buy no better direction: the run is short of steps.",
        "Use a smaller batch, and with it more updates.",
        "batch_size=64",
        confidence=0.8,
    )


def sam(run: Histories, shape: Shape) -> Finding | None:
    """A perturbation of SAM that leaves the neighbourhood, or none to speak of.

    Args:
        run: ``sam/loss_gap``, ``sam/cos`` and ``sam/rho`` of a two-pass optimizer, after the first fifth.
        shape: Of the training loss, for the loss of knowing nothing.
    """
    gaps, losses = run.values("sam/loss_gap", 0.2), run.values("train/loss", 0.2)
    if not gaps or not losses:
        return None
    # Near the end of a run that fits its data the loss itself is next to nothing.
    gap = run.median("sam/loss_gap", 0.2) / max(1e-12, 0.1 * shape.chance, run.median("train/loss", 0.2))
    cosine, rho = run.median("sam/cos", 0.2), run.median("sam/rho")
    early = run.median("sam/loss_gap", 0.0, 0.3) / shape.chance
    if gap > 0.5 or cosine < 0.7 or early > 1 or (stuck(shape) and rho > 0.5):
        return Finding(
            Symptom.SAM_TOO_MUCH,
            f"At the perturbed weights the loss is higher by {100 * gap:.0f} %, and the gradients of both passes have "
            f"cosine {cosine:.2f}.",
            "The perturbation leaves the valley: the second gradient is that of another place.",
            "Lower rho.",
            f"optimizer.rho={_usual(rho)}",
            confidence=0.9,
        )
    if gap < 1e-3 and cosine > 0.9999:
        return Finding(
            Symptom.SAM_TOO_LITTLE,
            f"At the perturbed weights the loss is higher by {100 * gap:.1g} %, and the gradients of both passes are "
            f"equal (cosine {cosine:.5f}).",
            "The perturbation is far smaller than the valley is wide: plain descent at the price of two passes.",
            "Raise rho, or save the second pass.",
            f"optimizer.rho={_usual(rho)}",
            confidence=0.9,
        )
    return None


def _usual(rho: float) -> str:
    return "0.05" if math.isnan(rho) or not 0.03 < rho < 0.1 else f"{rho / 4:.2g}"


def conditioning(run: Histories, shape: Shape) -> Finding | None:
    """Steps near the edge that nevertheless make slow progress.

    Args:
        run: ``edge/ratio`` after the first fifth; ``curv/lambda_max`` as evidence.
        shape: Of the training loss, from 60 updates on.
    """
    ratio, top = run.median("edge/ratio", 0.2), run.median("curv/lambda_max", 0.2)
    if not (0.3 < ratio < 1.0 and 0.05 < shape.gained < 0.6 and shape.count >= 60):
        return None
    known = f" (largest eigenvalue {top:.3g})" if top > 0 else ""
    return Finding(
        Symptom.ILL_CONDITIONED,
        f"The edge ratio is {ratio:.2g}{known}, and still only {100 * shape.gained:.0f} % of the loss is gone.",
        "A narrow valley: the steep direction limits the rate, and the flat ones hardly move.",
        "Use Adam or more momentum, normalise inputs and layers.",
        "optimizer.base=adamw",
        confidence=0.4,
    )


RULES: tuple[Rule, ...] = (
    above_edge, below_edge, momentum, small_batch, noise_floor, large_batch, sam, conditioning,
)  # fmt: skip
