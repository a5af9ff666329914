"""Faults that no loss curve shows, from facts that are exact: a finding of these is hardly ever wrong."""

from __future__ import annotations

from collections.abc import Callable

from optland.doctor.finding import Finding, Symptom
from optland.doctor.histories import Histories

__all__ = ["RULES"]

Rule = Callable[[Histories], Finding | None]

LARGE, SMALL, SPREAD = 15.0, 0.05, 40.0
"""Inputs are far from unit scale above or below these, and features too far apart above the third."""

IN_ORDER, IN_TURN = 8.0, 4.0
"""Ratio of variances from which on samples are in order: of any loader, and of one that reads them in turn."""


def not_held(run: Histories) -> Finding | None:
    """Weights that require a gradient and are in no optimizer.

    Args:
        run: Facts ``not_held`` and ``not_held_share``; silent beside ``stale``, where the optimizer is that of another
            model.
    """
    names = run.fact("not_held", [])
    if not names or run.fact("stale", 0):
        return None
    shown, more = ", ".join(names[:3]), f" and {len(names) - 3} more" if len(names) > 3 else ""
    return Finding(
        Symptom.WEIGHTS_NOT_HELD,
        f"{len(names)} tensors ({100 * run.fact('not_held_share', 0.0):.0f} % of the trained weights) are in no "
        f"optimizer: {shown}{more}.",
        "They stay where they were initialised: the run moves in a subspace that was not chosen.",
        "Make the optimizer from all parameters, or set requires_grad=False on those that are meant to stay.",
        confidence=0.99,
    )


def stale_optimizer(run: Histories) -> Finding | None:
    """An optimizer that holds tensors which are not the model's.

    Args:
        run: Facts ``stale`` and ``held``, numbers of tensors.
    """
    stale, held = run.fact("stale", 0), run.fact("held", 0)
    if not stale:
        return None
    return Finding(
        Symptom.STALE_OPTIMIZER,
        f"{stale} of the {held} tensors that the optimizer holds are not in the model.",
        "The model's layers were replaced or copied after the optimizer was made: it steps what is not trained.",
        "Make the optimizer after the model has its last form.",
        confidence=0.995,
    )


def not_zeroed(run: Histories) -> Finding | None:
    """Updates that began with the gradient of the update before.

    Args:
        run: Facts ``kept`` and ``looked``, numbers of updates; from three that were looked at, and four of five of
            these (the first has none before it).
    """
    kept, looked = run.fact("kept", 0), run.fact("looked", 0)
    if looked < 3 or kept < 0.8 * (looked - 1):
        return None
    return Finding(
        Symptom.GRADIENTS_NOT_ZEROED,
        f"In {kept} of {looked} updates that were looked at, the gradient of the one before was still there.",
        "Each step goes along the sum of all gradients so far: an undamped momentum, which overshoots every valley.",
        "Call optimizer.zero_grad() once per update, before the backward pass.",
        confidence=0.98,
    )


def not_divided(run: Histories) -> Finding | None:
    """Several micro-batches, each with the weight of a whole batch.

    Args:
        run: Facts ``calls``, backward passes of an update, and ``loss_share``, the gradient at the outputs over that of
            a mean over all of them. It speaks where both are equal to a tenth.
    """
    calls, share = run.fact("calls"), run.fact("loss_share")
    if not (calls > 1 and abs(share / calls - 1) < 0.1):
        return None
    return Finding(
        Symptom.ACCUMULATION_NOT_DIVIDED,
        f"{calls:.0f} backward passes make an update, each of the full mean: a gradient {share:.3g} times too large.",
        "The learning rate is in effect that many times the one given, and clipping and decay are off by as much.",
        f"Divide the loss of each micro-batch by {calls:.0f}.",
        confidence=0.985,
    )


def reduction(run: Histories) -> Finding | None:
    """A loss that is no mean over the samples of an update, or one whose shapes do not fit.

    Args:
        run: Facts ``loss_share``, ``calls`` and ``rows``, samples of an update, and ``broadcast``. Silent where
            :func:`not_divided` speaks.
    """
    share, calls, rows = run.fact("loss_share"), run.fact("calls"), run.fact("rows")
    if run.fact("broadcast", 0) > 0:
        return Finding(
            Symptom.WRONG_REDUCTION,
            "Outputs and targets have different shapes, and the gradient is that of every output against every target.",
            "The loss has its minimum at the mean of the targets, whatever the inputs.",
            "Give both the same shape: targets.view_as(outputs).",
            confidence=0.985,
        )
    if not (share > 1.3 or share < 0.77) or abs(share / calls - 1) < 0.1:
        return None
    how = f"a sum over {rows:.0f} rows" if abs(share / rows - 1) < 0.1 else f"{share:.3g} times the mean"
    return Finding(
        Symptom.WRONG_REDUCTION,
        f"The gradient at the outputs is that of {how}, not of a mean over them.",
        "The scale of the loss is in the learning rate, in clipping and in weight decay, and changes with the batch.",
        "Take the mean: reduction='mean', and divide by the batch size once.",
        confidence=0.98,
    )


def softmax_twice(run: Histories) -> Finding | None:
    """A softmax before a loss that takes one itself.

    Args:
        run: The fact ``twice``, updates in which it was seen; from two on.
    """
    if not run.fact("twice", 0) >= 2:
        return None
    return Finding(
        Symptom.SOFTMAX_TWICE,
        "The scores that the loss gets are probabilities already: a softmax or sigmoid is taken twice.",
        "Scores between 0 and 1 cannot be told apart by a second softmax: the loss has a floor far above 0, and its "
        "gradient nearly vanishes.",
        "Give the loss the scores of the last linear layer, without a softmax.",
        confidence=0.985,
    )


def modes(run: Histories) -> Finding | None:
    """Training in eval mode, or evaluation in train mode, of a model to which that matters.

    Args:
        run: Facts ``has_modes``, ``trained_in_eval`` of ``looked`` updates, and ``tested_in_train`` of ``tested``
            passes without a gradient; from two on. Of the tests four of five have to be wrong.
    """
    if not run.fact("has_modes", False):
        return None
    trained, looked = run.fact("trained_in_eval", 0), run.fact("looked", 0)
    tested, wrong = run.fact("tested", 0), run.fact("tested_in_train", 0)
    if trained >= 2:
        what = f"{trained} of {looked} updates that were looked at were made in eval mode"
        fix = "Call model.train() after every evaluation."
    elif wrong >= 2 and wrong >= 0.8 * tested:
        what = f"{wrong} of {tested} forward passes without a gradient were made in train mode"
        fix = "Call model.eval() before an evaluation, and model.train() after it."
    else:
        return None
    return Finding(
        Symptom.MODES_MIXED_UP,
        f"{what}, and the model has dropout or batch normalisation.",
        "Statistics and dropout are those of the other mode: what is measured is not what is trained.",
        fix,
        confidence=0.97,
    )


def shuffled(run: Histories) -> Finding | None:
    """Batches whose labels are sorted, or whose samples are otherwise in order.

    Args:
        run: Facts ``labels_in_batch`` and ``labels_expected``, or ``order_ratio``, from ten batches on; ``sequential``,
            a loader in its own order, makes less of a ratio enough.
    """
    mixed, expected = run.fact("labels_in_batch"), run.fact("labels_expected")
    ratio, in_turn = run.fact("order_ratio"), bool(run.fact("sequential", False))
    labels = run.fact("batches_seen") >= 10 and mixed < 0.6 * expected
    ordered = run.fact("order_batches") >= 10 and ratio > (IN_TURN if in_turn else IN_ORDER)
    if labels:
        seen = f"A batch has {mixed:.1f} different labels on average, where a shuffled one would have {expected:.1f}."
    elif ordered:
        seen = f"The means of the batches vary {ratio:.3g} times as much as those of shuffled samples would."
    else:
        return None
    order = " The loader reads the data in their own order." if in_turn else ""
    return Finding(
        Symptom.DATA_NOT_SHUFFLED,
        f"{seen}{order}",
        "The gradient of a batch points to what was seen last: the weights go in circles instead of down.",
        "Shuffle: DataLoader(..., shuffle=True); of a stream, with a buffer of many batches.",
        confidence=0.97,
    )


def scheduler(run: Histories) -> Finding | None:
    """A schedule that is stepped twice per update, or never.

    Args:
        run: Facts ``scheduled``, steps of the schedule per update over ``scheduled_updates``; ``schedule_steps`` and
            ``total_steps``, which tell a schedule of updates from one of epochs, and ``batches_per_epoch``. A schedule
            by epoch may rest for one.
    """
    rate, updates = run.fact("scheduled"), run.fact("scheduled_updates")
    if updates >= 10 and rate > 1.5:
        return Finding(
            Symptom.SCHEDULER_OFF,
            f"The schedule has been stepped {rate:.2g} times per update.",
            f"It ends after 1/{rate:.2g} of the run; what follows has its last rate, or one that rises again.",
            "Step the schedule once per update.",
            confidence=0.97,
        )
    per_update = run.fact("schedule_steps") >= 0.5 * run.fact("total_steps")
    counted = per_update and run.fact("schedule_steps") > 1.5 * run.fact("batches_per_epoch", 0.0)
    epoch = run.fact("batches_per_epoch", 50.0)
    if rate == 0 and (updates >= 15 if counted else updates > 1.1 * epoch + 50):
        return Finding(
            Symptom.SCHEDULER_OFF,
            f"The schedule has not been stepped in {updates:.0f} updates.",
            "The learning rate stays where the schedule begins: the end of the run never settles into its valley.",
            "Call scheduler.step() after every update.",
            confidence=0.96,
        )
    return None


def symmetric(run: Histories) -> Finding | None:
    """Hidden layers all of whose units are equal.

    Args:
        run: The fact ``symmetric``, names of hidden layers.
    """
    names = run.fact("symmetric", [])
    if not names:
        return None
    return Finding(
        Symptom.SYMMETRIC_WEIGHTS,
        f"All units of {', '.join(names[:3])} are equal in weights and gradients.",
        "A saddle by symmetry: equal units get equal gradients and stay equal, so the layer has the width of one.",
        "Initialise at random: keep PyTorch's default, or nn.init.kaiming_normal_.",
        confidence=0.98,
    )


def inputs(run: Histories) -> Finding | None:
    """Inputs far from unit scale, or features of very different scales.

    Args:
        run: Facts ``input_rms``, ``input_mean``, ``input_spread`` and ``rows``, of the first updates.
    """
    size, mean, spread = run.fact("input_rms"), run.fact("input_mean"), run.fact("input_spread")
    if size > LARGE or size < SMALL:
        evidence = f"The inputs have a root mean square of {size:.3g} (mean {mean:.3g})."
    elif spread > SPREAD and not run.fact("rows") < 16:  # of fewer samples a spread is chance
        evidence = (
            f"The features of the inputs differ in scale by a factor of {spread:.3g} (10 % against 90 %)."
        )
    else:
        return None
    return Finding(
        Symptom.INPUTS_OFF_SCALE,
        evidence,
        "The curvature along the first layer grows with the square of its inputs, so no one rate suits all layers.",
        "Normalise the inputs: subtract the mean and divide by the standard deviation of the training set.",
        confidence=0.95,
    )


def replicas(run: Histories) -> Finding | None:
    """Replicas whose weights differ.

    Args:
        run: The fact ``replicas_apart``, the largest so far; missing unless the watch was asked to compare.
    """
    apart = run.fact("replicas_apart")
    if not apart > 1e-6:
        return None
    return Finding(
        Symptom.REPLICAS_DRIFT,
        f"The weights of the processes differ by {apart:.2g} of their norm.",
        "Every process descends in a landscape of its own; the checkpoint is that of one of them alone.",
        "Wrap the model in DistributedDataParallel, and leave no_sync() before the last micro-batch.",
        confidence=0.99,
    )


def frozen(run: Histories) -> Finding | None:
    """Frozen layers: a note.

    Args:
        run: The fact ``frozen``, names of tensors.
    """
    names = run.fact("frozen", [])
    if not names:
        return None
    return Finding(
        Symptom.FROZEN_LAYERS,
        f"{len(names)} tensors are frozen: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}.",
        "They are held on purpose where requires_grad was set to False.",
        "Nothing, where that is meant.",
        confidence=0.0,
        alarm=False,
    )


RULES: tuple[Rule, ...] = (
    stale_optimizer, not_held, not_zeroed, softmax_twice, not_divided, reduction, symmetric, modes, shuffled, scheduler,
    inputs, replicas, frozen,
)  # fmt: skip
