"""The names of logged values: one vocabulary for console, JSONL and wandb.

A key is ``group/name``. The axis is our own key ``step``, the count of optimizer updates. A measured value
comes with ``<key>_error`` and ``<key>_converged``, in the row of the step at which it was measured; how old
it is at later steps is logged under ``probe/age_<probe>``.
"""

from __future__ import annotations

from optland.estimate import Estimate

Scalar = float | int | str | bool

STEP = "step"

GROUPS = {
    "lr": "learning rate: user (the schedule's), ceiling, applied, binding (which of them decided)",
    "edge": "ratio (lr over the critical step), ratio_ema (averaged), eta_c, lambda_c, batch_sharpness, resolved, "
    "not_descent",
    "curv": "lambda_max, lambda_max_precond, lambda_min, ncr, trace, eta_lambda, products (HVPs spent)",
    "noise": "b_simple, b_simple_precond, b_curvature (weighted by the curvature), b_current (batch size in use), "
    "trace_cov, grad_sq, resolved, efficiency, coherence (averaged cosine of successive gradients)",
    "train": "loss, loss_ema, acc; at the end: epochs, steps, seconds",
    "val": "loss, acc (bpc, perplexity for text) on the validation split",
    "test": "as val: loss, acc (bpc, perplexity); slope and sasa_stat of the tests of plateau",
    "update": "rel (lr times update norm over weight norm), grad_norm, cos_gu, clip_frac",
    "sam": "rho, rho_realised, active, loss_gap, curvature, stability, cos, grad_norm, skipped",
    "ctl": "events (the decision table), lr_factor (on the schedule), lr_factor_would_be and lr_would_be (in shadow "
    "mode), pace (the relative step that auto_lr aims at), lost (updates cancelled); at the end: "
    "decisions, rewinds",
    "budget": "ge (gradient evaluations so far), probe_frac, allowed, probe_ms",
    "probe": "age_<probe>: steps since the probe last ran",
    "landscape": "slices, paths and other pictures of the loss",
    "data": "tokens, fingerprint: what a text model was trained on, written once at the end",
    "time": "wall-clock readings, for display only",
    "summary": "robust_ok, max_edge_ratio, probe_frac, advice, curves (a picture), comparison (a table), "
    "gain and chosen (of a method against its base): the outcome, written once at the "
    "end; error or stopped where the run broke off",
}
"""Every group of keys, with the names it holds. :data:`PLANNED` says which of them nothing measures yet."""

PLANNED = frozenset({
    "edge/batch_sharpness", "curv/lambda_max_precond", "curv/trace", "noise/b_simple_precond", "train/acc",
    "update/cos_gu", "update/clip_frac", "sam/active", "summary/robust_ok", "summary/max_edge_ratio",
    "summary/probe_frac",
})  # fmt: skip
"""Keys whose name is settled and that no run writes so far."""

BINDING = {0: "user", 1: "edge", 2: "ratio", 3: "guard"}
"""What the number under ``lr/binding`` means."""


def estimate_row(key: str, estimate: Estimate) -> dict[str, Scalar]:
    """An estimate as scalars of a row: the value, its error, and whether it converged.

    Args:
        key: The ``group/name`` key of the value.
        estimate: What a probe returned.

    Example:
        >>> from optland.estimate import Provenance
        >>> estimate_row("curv/trace", Estimate(7.25, 0.02, "standard_error", True, 96.0, Provenance("trace")))
        {'curv/trace': 7.25, 'curv/trace_error': 0.02, 'curv/trace_converged': True}
    """
    return {key: estimate.value, f"{key}_error": estimate.error, f"{key}_converged": estimate.converged}
