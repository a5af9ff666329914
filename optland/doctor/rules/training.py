"""Faults of a training that its histories show, read by what they say of the landscape.

The constants were tuned on runs of other tasks and architectures than those that the doctor is measured on.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from optland.doctor.finding import Finding, Symptom
from optland.doctor.histories import Histories
from optland.doctor.rules.shape import Shape

__all__ = ["RULES", "Rule", "rate_action", "stuck"]

Rule = Callable[[Histories, Shape], Finding | None]

TINY = 5e-3
"""Norm of a gradient, beside the loss, below which it is next to nothing."""

DEEP = 6
"""Layers with weights from which on a gradient that shrinks on its way back has vanished; below it is a small start."""


def stuck(shape: Shape) -> bool:
    """Whether the loss is about where it began.

    Args:
        shape: Of the training loss; stuck with less than 6 % of the loss of knowing nothing gone.
    """
    return shape.gained < 0.06


def rate_action(run: Histories, factor: float, most: float = math.inf) -> str:
    """The learning rate given, times a factor, as something to type; empty where the rate is unknown.

    Args:
        run: What is known of it.
        factor: Times the rate given.
        most: No rate above this one.

    Example:
        >>> rate_action(Histories({"lr": 0.5}), 0.1), rate_action(Histories(), 0.1)
        ('optimizer.lr=0.05', '')
    """
    rates = run.values("lr/user") or run.values("lr/applied")
    rate = max(rates, default=float(run.fact("lr")))
    return f"optimizer.lr={min(most, rate * factor):.2g}" if rate > 0 else ""


def exploding(run: Histories, shape: Shape) -> Finding | None:
    """A first loss far above that of knowing nothing.

    Args:
        run: Has the fact ``chance``; without it the rule says nothing.
        shape: Of the training loss; its first one is judged, before any step.
    """
    known = run.fact("chance") > 0
    if not known or not (shape.first > _steep(shape.chance)):
        return None
    return Finding(
        Symptom.EXPLODING_GRADIENTS,
        f"The loss of the untrained net is {shape.first:.3g}, and that of knowing nothing is {shape.chance:.3g}.",
        "Signals and gradients grow from layer to layer: the landscape around the start is so steep that a usual rate "
        "is far above its edge.",
        "Initialise with gain 1 (nn.init.kaiming_normal_), normalise between the layers, and clip the gradient.",
        "clip=1",
        confidence=0.9,
    )


def _steep(chance: float) -> float:
    """The first loss from which on the start is at fault.

    A healthy net begins with scores of about unit variance, which adds half a nat to the loss of knowing nothing of
    few classes, and as much as the variance of the targets to that of numbers.
    """
    classes = round(math.exp(chance)) if chance < 20 else 0
    if classes > 1 and math.isclose(chance, math.log(classes), rel_tol=1e-9):
        return max(2 * chance, chance + 2)
    return 4 * chance


def _tiny(run: Histories, shape: Shape) -> bool:
    """Whether the gradient at the start is next to nothing beside a loss that has all to be learnt."""
    norm = run.median("update/grad_norm", 0.0, 0.2)
    return stuck(shape) and 0 < norm < TINY * shape.chance


def vanishing(run: Histories, shape: Shape) -> Finding | None:
    """Gradients that shrink from layer to layer of a deep net.

    Args:
        run: ``layer/first_over_last``, ``layer/depth`` and ``update/grad_norm`` of its first part.
        shape: Of the training loss; above half of it gone the finding is hardly an alarm.
    """
    ratio, depth = run.median("layer/first_over_last", 0.0, 0.5), run.median("layer/depth")
    norm, tiny = run.median("update/grad_norm", 0.0, 0.2), _tiny(run, shape)
    if not (depth >= DEEP and (ratio < 0.02 or tiny)):
        return None
    seen = (
        f"The gradient of the first layer is {ratio:.2g} times that of the last one, {depth:.0f} layers later."
        if ratio < 0.02 else f"The gradient of all {depth:.0f} layers is {norm:.2g} at a loss of {shape.begin:.3g}."
    )  # fmt: skip
    return Finding(
        Symptom.VANISHING_GRADIENTS,
        seen,
        "The first layers stand on a plateau: they hardly move, while the last ones train on random features.",
        "Add skip connections whose branches begin small (nn.init.kaiming_normal_, divided by the square root of the "
        "number of layers), and take ReLU or GELU for sigmoid and tanh.",
        confidence=0.9 if shape.gained < 0.5 else 0.5,
    )


def saddle(run: Histories, shape: Shape) -> Finding | None:
    """A loss that stays where it was because the weights are near zero: the saddle at the origin.

    Args:
        run: The same signals as for :func:`vanishing`, of fewer than six layers, and ``curv/ncr`` as evidence.
        shape: Of the training loss.
    """
    ratio, depth = run.median("layer/first_over_last", 0.0, 0.5), run.median("layer/depth")
    ncr = max(run.values("curv/ncr"), default=math.nan)
    small = depth < DEEP and ratio < 0.02 and shape.gained < 0.5
    tiny = not depth >= DEEP and _tiny(run, shape)
    if not (small or tiny) or _dead_from_the_start(run):
        return None
    curved = f" (negative-curvature ratio {ncr:.2g})" if ncr > 0.3 else ""
    seen = (
        f"the gradient of the first layer is {ratio:.2g} times that of the last" if small else
        f"the gradient began at {run.median('update/grad_norm', 0.0, 0.2):.2g}"
    )  # fmt: skip
    return Finding(
        Symptom.SADDLE_PLATEAU,
        f"The loss went from {shape.begin:.3g} to {shape.end:.3g}, and {seen}{curved}.",
        "A saddle: the products of small weights have almost no gradient; the way down is along negative curvature.",
        "Initialise larger (nn.init.kaiming_normal_), or leave it with NegativeCurvature or the policy plateau.",
        "policy plateau",
        confidence=0.9,
    )


def _dead_from_the_start(run: Histories) -> bool:
    moved = run.values("layer/rel_grad", 0.0, 0.1)
    return bool(moved) and moved[0] == 0.0


def dead(run: Histories, shape: Shape) -> Finding | None:
    """Units that never fire.

    Args:
        run: ``layer/dead_max``, and ``layer/rel_grad`` of the first tenth: 0 there is a net that was dead from the
            start.
        shape: Of the training loss.
    """
    most = (run.values("layer/dead_max") or [0.0])[-1]
    first = _dead_from_the_start(run)
    early = max(run.values("layer/dead_max", 0.0, 0.2), default=0.0)
    if not (most > 0.5 or first):
        return None
    return Finding(
        Symptom.DEAD_UNITS,
        f"{100 * most:.0f} % of the units of a layer had no gradient at all"
        + (", from the first update on." if first or early > 0.5 else ", though they had one at first."),
        "Where a unit never fires the loss is exactly flat in its weights: no rate and no momentum leads out.",
        "Start the biases at 0, take GELU or a leaky ReLU, normalise before the activation; and lower the rate where "
        "units die during training.",
        confidence=0.92 if first else 0.8 if early > 0.5 and not math.isfinite(shape.highest) else 0.6,
    )


def regularised(run: Histories, shape: Shape) -> Finding | None:
    """Weight decay or dropout that leaves nothing to learn with.

    Args:
        run: Facts ``weight_decay``, ``lr`` and ``dropout``; ``lr/user`` in place of the fact, and ``train/eval``, the
            training loss in eval mode, where they are logged.
        shape: Of the training loss, with dropout.
    """
    decay, rate, drop = run.fact("weight_decay", 0.0), run.fact("lr"), run.fact("dropout", 0.0)
    rates = run.values("lr/user")
    rate = max(rates) if rates else rate
    gap = shape.end / run.median("train/eval", 0.7)
    if decay * rate > 2e-3:
        return Finding(
            Symptom.OVER_REGULARISED,
            f"Weight decay takes {100 * decay * rate:.2g} % of the weights per update ({decay:g} at rate {rate:.2g}).",
            "The penalty's bowl is steeper than the loss: the minimum of the sum lies near zero weights.",
            "Lower the weight decay.",
            f"optimizer.weight_decay={decay / 1000:.1g}",
            confidence=0.82,
        )
    if drop > 0.6 or (drop > 0.3 and gap > 1.4):
        return Finding(
            Symptom.OVER_REGULARISED,
            f"Dropout {drop:.2g} leaves {100 * (1 - drop):.0f} % of the units"
            + (f"; without it the loss is {1 / gap:.2f} times that." if gap > 1 else "."),
            "The gradient is mostly that of the noise: the net that is trained is far smaller than the one that is "
            "meant.",
            "Lower the dropout to 0.1 or 0.2.",
            "model.dropout=0.1",
            confidence=0.82,
        )
    return None


def corrupt(run: Histories, shape: Shape) -> Finding | None:
    """Single batches that are not like the others.

    Args:
        run: ``data/input_max`` of each update, and the fact ``rows``: of batches below 8 samples jumps are usual.
        shape: Of the training loss, for its jumps.
    """
    sizes = run.values("data/input_max")
    usual = sorted(sizes)[len(sizes) // 2] if sizes else math.nan
    strange = sum(size > 12 * usual for size in sizes)
    rows = run.fact("rows")
    jumps = len(shape.jumps) if not rows < 8 else 0
    if strange:
        evidence = f"In {strange} of {len(sizes)} updates the largest input is over 12 times the usual ({usual:.3g})."
        sure = 0.93
    elif jumps >= 2 and shape.recovered >= 0.5:
        evidence = (
            f"In {jumps} single updates (the first: {shape.jumps[0]}) the loss was over 4 times that before."
        )
        sure = 0.8
    else:
        return None
    return Finding(
        Symptom.CORRUPT_BATCHES,
        evidence,
        "Each is a step in a landscape that is not the one of the data: one of them can undo an epoch.",
        "Look at the samples of those updates, leave out what is damaged; the policy spike_guard skips the rest.",
        "policy spike_guard",
        confidence=sure,
    )


def wrong_labels(run: Histories, shape: Shape) -> Finding | None:
    """Training data that are fitted far worse than clean ones that the net has not seen.

    Args:
        run: ``train/eval`` and ``val/loss`` at the end, and the fact ``chance``; the validation labels are taken for
            clean.
        shape: Of the training loss.
    """
    train, val = run.median("train/eval", 0.7), run.median("val/loss", 0.7)
    chance = shape.chance
    if not (run.fact("chance") > 0 and val < 0.9 * chance and train > val):
        return None
    share = (chance - train) / (chance - val)
    if not share < 0.68:
        return None
    return Finding(
        Symptom.WRONG_LABELS,
        f"The loss is {train:.3g} on the training data and {val:.3g} on validation data.",
        "What is left of the training loss cannot be learnt from the inputs: labels are wrong, and the sharp minima "
        "that memorise them generalise badly.",
        "Clean the labels; stop early, or use SAM with a larger rho, which fits wrong labels last.",
        "optimizer.rho=0.1",
        confidence=0.85 if val < 0.55 * chance else 0.5,
    )


def generalisation(run: Histories, shape: Shape) -> Finding | None:
    """A training loss far below the validation loss.

    Args:
        run: ``val/loss``, ``train/eval`` (else the training loss itself), and both accuracies in percent.
        shape: Of the training loss.
    """
    train, val = run.median("train/eval", 0.7), run.median("val/loss", 0.7)
    if math.isnan(train):
        train = shape.end
    best = min(run.values("val/loss"), default=math.nan)
    gap = run.median("train/acc", 0.8) - run.median("val/acc", 0.8)
    # A few confident errors make a loss large: where accuracy is known it has to fall behind too, and by more than
    # chance explains where the number of validation samples is known (a comparison with NaN is false).
    if gap <= 2 * run.median("val/acc_error", 0.8):
        return None
    wide = val - train > 0.12 * shape.chance and val > 1.7 * train and not gap < 5
    if not (wide or gap > 9):
        return None
    turned = f", and was {best:.3g} at its best" if best < 0.9 * val else ""
    return Finding(
        Symptom.POOR_GENERALISATION,
        f"The loss is {train:.3g} on the training data and {val:.3g} on validation data{turned}.",
        "A sharp minimum: it fits what is particular to these samples.",
        "More data or augmentation, weight decay, SAM; and stop at the best epoch.",
        "patience=3" if turned else "optimizer.rho=0.05",
        confidence=0.86 if wide else 0.6,
    )


def plateau(run: Histories, shape: Shape) -> Finding | None:
    """A loss that stays where it was, for no reason that another rule has.

    Args:
        run: Only for its number of updates.
        shape: Of the training loss, from 30 updates on. Rules with a cause have a higher confidence and stand first.
    """
    if shape.count < 30 or not stuck(shape) or shape.highest > 1.5:
        return None
    return Finding(
        Symptom.PLATEAU,
        f"The loss went from {shape.begin:.3g} to {shape.end:.3g} in {run.step} updates.",
        "A plateau or a saddle: the gradient has no direction that lasts.",
        "Try a rate ten times higher and lower; or let the policy plateau tell a saddle from a flat region.",
        "policy plateau",
        confidence=0.55,
    )


def not_finite(run: Histories, shape: Shape) -> Finding | None:
    """A loss that is not finite.

    Args:
        run: Its learning rate, for the action.
        shape: Of the training loss. The rule of the rate has a higher confidence where the loss was rising.
    """
    if not shape.broken:
        return None
    return Finding(
        Symptom.NOT_FINITE,
        f"The loss is not finite from update {shape.broken} on.",
        "A step left the region where the loss is defined: too long a step, or a sample that overflows.",
        "Lower the rate, clip the gradient, and look for damaged samples.",
        rate_action(run, 0.1),
        confidence=0.45,
    )


RULES: tuple[Rule, ...] = (
    exploding, vanishing, saddle, dead, regularised, corrupt, wrong_labels, generalisation, plateau, not_finite,
)  # fmt: skip
