"""Every logged key: its meaning, where its value is good, and what to do about one that is not.

The texts of ``optland explain`` and of docs/charts.md, and what wandb draws: a key without a chart is in the run's
table and its record, and in no chart of its own. The order is that of importance.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GROUPS", "VOCABULARY", "Key"]

GROUPS = {
    "val": "the validation split, at the end of every epoch",
    "test": "the test split, at the end of every epoch",
    "train": "the loss that is trained on",
    "lr": "the learning rate, and what decided it",
    "edge": "how far the learning rate is from the one that raises the loss of its own batch",
    "curv": "the ends of the Hessian's spectrum on a fixed set of samples",
    "noise": "gradient noise, and the batch size that it asks for",
    "layer": "gradients of the layers against each other, for the doctor",
    "sam": "the two passes of a SAM step",
    "update": "the size of updates",
    "ctl": "what the pilot did",
    "budget": "what training and probes cost",
    "probe": "the age of what probes measured",
    "landscape": "slices, paths and other pictures of the loss",
    "data": "what a text model was trained on, written once at the end",
    "summary": "the outcome, written once at the end",
}
"""Every group of keys, the most important first, with what it is about."""


@dataclass(frozen=True, slots=True)
class Key:
    """One logged key.

    Attributes:
        name: ``group/name``; a part in angle brackets stands for any word.
        meaning: What the number is, with its unit.
        good: Where it should be.
        remedy: What to do about a value outside.
        chart: Whether it has a chart of its own.
        estimated: Whether ``<key>_error`` may come with it, its standard error or residual.
    """

    name: str
    meaning: str
    good: str = "no range: it describes"
    remedy: str = "nothing"
    chart: bool = False
    estimated: bool = False


_OVERFIT = "falls while validation worsens: stop early (patience=), or use SAM with a larger rho"

VOCABULARY = (
    # ------------------------------------------------------------------ accuracy and loss
    Key("val/acc", "share of the validation split that is classified right, in percent", "rises, then stays",
        "below its best by more than 3 and by more than its error: the run is overfitting; stop early, or use SAM "
        "with a larger rho", True, True),
    Key("val/loss", "mean loss on the validation split", "falls, then stays",
        "rises while train/loss falls: stop early, or use SAM with a larger rho", True),
    Key("val/bpc", "bits per token (in the recipe a character) on the validation split", "falls, then stays",
        "more than 3 % above its best: stop early, or use SAM with a larger rho", True),
    Key("val/perplexity", "exp of the mean loss per token on the validation split", "as val/bpc", "as val/bpc"),
    Key("test/acc", "share of the test split that is classified right, in percent", "close to val/acc",
        "far below val/acc: something was chosen on the validation split too often; choose on a fresh one", True, True),
    Key("test/loss", "mean loss on the test split", "close to val/loss", "as val/loss"),
    Key("test/bpc", "bits per token (in the recipe a character) on the test split", "close to val/bpc",
        "as val/bpc", True),
    Key("test/perplexity", "exp of the mean loss per token on the test split", "as test/bpc", "as test/bpc"),
    Key("test/acc_<i>", "test accuracy of one of several nets, in percent", "close to each other",
        "far apart: train the weaker one for longer before they are joined"),
    Key("test/slope", "slope of the loss per update over the last window of the policy plateau",
        "below 0: the loss falls",
        "near 0 for several windows: the loss is flat; see curv/ncr for whether a saddle or noise holds it"),
    Key("test/sasa_stat", "plateau's statistic of stationarity, the mean of <w, d> - eta |d|^2 / 2 over the window",
        "far from 0 while training moves",
        "near 0: the length of the weights no longer changes; a lower learning rate is due"),
    Key("train/loss", "loss of the batch at the weights before the update", "falls",
        "ends where it began: lower the learning rate (rho, under SAM), or let auto_lr set it; not finite: look at "
        "ctl/lost and at the batches", True),
    Key("train/loss_ema", "the same, averaged over recent updates", "falls", _OVERFIT),
    Key("train/loss_<name>", "last loss of one of several runs", "low", "look at that run"),
    Key("train/epochs", "epochs made, at the end"),
    Key("train/steps", "updates made, at the end"),
    Key("train/seconds", "wall time of training, at the end, in seconds"),
    # ------------------------------------------------------------------ learning rate and edge
    Key("lr/applied", "learning rate that the update was made with", "close to lr/user, or what auto_lr finds",
        "far below lr/user for long: the rate in your schedule is too high; lower its peak or keep the pilot", True),
    Key("lr/user", "learning rate that your schedule asked for", "close to lr/applied", "as lr/applied"),
    Key("lr/ceiling", "the most that safe_lr allows", "above lr/user after the warm-up",
        "below lr/user after the warm-up: lower the peak of the schedule"),
    Key("lr/binding", "what set the rate: 0 your schedule, 1 the edge, 2 the relative step, 3 a guard",
        "0, or 2 under auto_lr", "1 or 3 for long after the warm-up: lower the rate; always 0: it could go higher"),
    Key("edge/ratio", "learning rate over the critical one along the realised update", "0.1 to 0.7, and 1 is the edge",
        "above 1 again and again: each step raises the loss of its own batch; lower the peak rate, or let auto_lr set "
        "it. Below 0.1: a rate twice as high may train faster", True, True),
    Key("edge/ratio_ema", "edge/ratio averaged over about ten probes", "0.1 to 0.7", "as edge/ratio"),
    Key("edge/eta_c", "critical learning rate: at it the update no longer lowers the loss of its own batch",
        "above lr/applied", "below lr/applied: as edge/ratio above 1", False, True),
    Key("edge/lambda_c", "sharpness along the update, 2 / eta_c", "rises early in training, then stays",
        "rises without end: the minimum gets sharper; use SAM, a larger rate or a smaller batch", False, True),
    Key("edge/ratio_precond", "largest eigenvalue of the Hessian in Adam's metric over the largest that is stable",
        "below 1, where full-batch Adam settles", "above 1 for long: as edge/ratio; rising before a spike: lower the "
        "rate, or warm it up for longer", False, True),
    Key("edge/ratio_precond_ema", "edge/ratio_precond averaged over about ten probes", "below 1",
        "as edge/ratio_precond"),
    Key("edge/resolved", "1 where the probe found eta_c between two trials, 0 where it ran out of forward passes",
        "1", "0 for long: the loss hardly depends on the step; edge/ratio is then only a bound"),
    Key("edge/not_descent", "1 where the update did not lead downhill on its own batch", "0",
        "1 for long: stale momentum or far too high a rate; lower one of them"),
    # ------------------------------------------------------------------ curvature
    Key("curv/lambda_max", "largest eigenvalue of the Hessian: the sharpness", "rises, then stays near 2 / rate",
        "rises without end, or test accuracy falls with it: use SAM with a larger rho. Where _converged is 0 it is a "
        "lower bound", True, True),
    Key("curv/lambda_max_precond", "largest eigenvalue of the Hessian in Adam's metric, P^-1/2 H P^-1/2",
        "near 38 / rate or below it, with beta1 0.9", "as edge/ratio_precond", False, True),
    Key("curv/lambda_min", "most negative eigenvalue of the Hessian", "small beside lambda_max",
        "as curv/ncr", False, True),
    Key("curv/ncr", "negative-curvature ratio, -lambda_min / lambda_max", "below 0.1 late in training",
        "above 0.3 while the loss is flat: a saddle holds the run; use NegativeCurvature or the policy plateau", True),
    Key("curv/eta_lambda", "learning rate times lambda_max",
        "2 with plain gradient descent, 2 (1 + beta) with momentum beta: the edge of stability, where training settles",
        "far above with a loss that jumps: lower the rate; far below: the rate could go higher"),
    Key("curv/<end>_converged", "1 where the eigenvalue's residual is within its tolerance", "1",
        "0: give the probes a larger budget"),
    Key("curv/products", "Hessian products that the last probe took", "at most 16"),
    # ------------------------------------------------------------------ noise
    Key("noise/b_simple", "noise scale tr(Sigma) / |G|^2 in samples: the batch at which noise equals signal",
        "within a factor of 4 of noise/b_current",
        "far above the batch: steps are noise-limited; a larger batch or a longer decay pays. Far below: samples are "
        "wasted; use a smaller batch", True, True),
    Key("noise/b_current", "samples of an update, over all processes", "as noise/b_simple", "as noise/b_simple"),
    Key("noise/b_curvature", "noise scale weighted by the curvature, tr(H Sigma) / G'HG, in samples",
        "as noise/b_simple", "as noise/b_simple", False, True),
    Key("noise/efficiency", "worth of one more sample in the batch, 1 / (1 + B / B_simple)", "0.2 to 0.8",
        "as noise/b_simple"),
    Key("noise/coherence", "averaged cosine of the gradients of successive updates", "0 to 0.5",
        "near 1: the batches say the same; the rate could go higher. Well below 0: the weights bounce; lower it"),
    Key("noise/trace_cov", "trace of the covariance of one sample's gradient", estimated=True),
    Key("noise/grad_sq", "squared norm of the expected gradient", "falls to noise/trace_cov / B",
        "below 0: it is lost in the noise, and b_simple is only a lower bound", False, True),
    Key("noise/resolved", "1 where signal and noise could be told apart", "1",
        "0: the batch cannot be parted, or it is too noisy; read nothing from b_simple"),
    # ------------------------------------------------------------------ layers
    Key("layer/first_over_last", "root-mean-square gradient of the first weight matrix over that of the last",
        "0.05 to 20", "far below: gradients vanish; add skips or normalisation, take ReLU for sigmoid. Far above: they "
        "explode; initialise with gain 1, clip"),
    Key("layer/depth", "number of weight matrices that have a gradient"),
    Key("layer/grad_q<percent>", "of the entries of a layer's gradient, the size that so many percent stay below",
        "the same for all layers, within a factor of 20", "falling towards the first layers: as layer/first_over_last; "
        "0 from q50 on: half of the entries have no gradient; see layer/dead_max"),
    Key("layer/dead_max", "largest share of dead units in a layer: units whose weights had no gradient for 256 samples",
        "below 0.3", "above 0.5: lower the rate, start biases at 0, take GELU for ReLU"),
    # ------------------------------------------------------------------ SAM
    Key("sam/loss_gap", "L(w + eps) - L(w): the rise of the loss along the perturbation",
        "above 0, well below the loss",
        "above the loss itself: lower rho. Near 0: rho is too small to do anything", True),
    Key("sam/stability", "stability ratio of a SAM step, eta lambda (1 + |eps| lambda / |g|), with SGD as the base",
        "below 2", "above 2 in more than a tenth of the rows: lower rho or the rate", True),
    Key("sam/curvature", "curvature along the perturbation, eps'(h - g) / |eps|^2", "falls under SAM",
        "rises without end: a larger rho"),
    Key("sam/cos", "cosine of the gradients of both passes", "0.5 to 1",
        "below 0: the perturbation leaves the neighbourhood; lower rho. Always 1: rho does nothing"),
    Key("sam/rho", "norm of the perturbation that was asked for", "as sam/rho_realised", "as sam/rho_realised"),
    Key("sam/rho_realised", "norm of the perturbation that the weights' precision let through",
        "within a percent of sam/rho", "well below sam/rho: bfloat16 weights swallow it; keep a float32 copy"),
    Key("sam/grad_norm", "norm of the gradient at the perturbed weights", "near update/grad_norm",
        "many times update/grad_norm: lower rho"),
    Key("sam/skipped", "1 where a step was left out because a gradient was not finite", "0",
        "1 again and again: look for damaged samples, or for numbers that overflow"),
    # ------------------------------------------------------------------ updates and control
    Key("update/rel", "norm of the update over the norm of the weights", "1e-4 to 1e-2",
        "above 0.05: lower the rate. Below 1e-5 in mid-run: training stands still", True),
    Key("update/grad_norm", "norm of the gradient that came to the step", "falls slowly",
        "jumps: the policy spike_guard skips such updates. Exactly constant: it is clipped all the time"),
    Key("ctl/pace", "relative step that auto_lr aims at; a rewind halves it", "stays",
        "halved again and again: start with the last value as tau, or look for damaged samples", True),
    Key("ctl/lr_factor", "factor of the policies on your schedule", "1",
        "far below 1: start with that share of the rate"),
    Key("ctl/lr_factor_would_be", "the same in shadow mode, where it is not applied", "1", "as ctl/lr_factor"),
    Key("ctl/lr_would_be", "learning rate that the policies would have set, in shadow mode", "as lr/applied",
        "far from lr/applied for long: try control mode"),
    Key("ctl/lost", "updates cancelled so far: not finite, skipped, or undone by a rewind", "0, or a few",
        "grows: look for damaged samples, or for numbers that overflow"),
    Key("ctl/events", "the table of decisions, each with its reason", chart=True),
    Key("ctl/events_text", "the last decisions in words"),
    Key("ctl/decisions", "decisions made, at the end"),
    Key("ctl/rewinds", "times that the run went back, at the end", "0", "above 0: as ctl/pace"),
    # ------------------------------------------------------------------ cost
    Key("budget/probe_frac", "cost of probes as a share of the cost of training", "at most budget/allowed",
        "above: it is paid back by later probes; at the end above 1.1 times the budget is a defect", True),
    Key("budget/allowed", "share that the budget allows by now, with its small advance"),
    Key("budget/ge", "gradient evaluations so far: one forward and backward pass of one sample"),
    Key("budget/probe_ms", "wall time of probes so far, in milliseconds", "a small part of the run's time",
        "a large part: lower budget="),
    Key("probe/age_<probe>", "updates since the probe last ran", "below the length of a phase of training",
        "grows without end: the budget is too small for it, or the probe is off, with a warning that says why"),
    # ------------------------------------------------------------------ once
    Key("landscape/<name>", "a picture, a table or a number of the loss around the weights", chart=True),
    Key("data/tokens", "tokens trained on"),
    Key("data/fingerprint", "hash of the text"),
    Key("summary/verdict", "how the run ended, what the policies did and what the probes cost, in words",
        "nothing asks for a change", "read it"),
    Key("summary/advice", "what to add to the command, such as patience=5; one thing, and the most costly",
        "absent", "run the same command with it"),
    Key("summary/curves", "a picture of the run", chart=True),
    Key("summary/comparison", "a table of the methods that were compared", chart=True),
    Key("summary/chosen <what>", "setting that the validation split chose"),
    Key("summary/gain <what>", "a method against its base, with its interval", "above 0, interval without 0",
        "an interval that holds 0: undecided; more seeds"),
    Key("summary/error", "why the run broke off", "absent", "the traceback is in the console's output"),
    Key("summary/stopped", "that the run was stopped, and where", "absent", "go on with --resume"),
)  # fmt: skip
"""Every key that a run can write."""
