r"""The gradient noise scale, the batch size up to which more samples pay, from gradients of parts of a batch.

.. math:: B_\mathrm{simple} = \frac{\mathrm{tr}\,\Sigma}{|G|^2}, \qquad
          \mathrm{tr}\,\Sigma = \frac{1}{k-1} \sum_{i=1}^{k} n_i\,|g_i - g_B|^2, \qquad
          |G|^2 = |g_B|^2 - \frac{\mathrm{tr}\,\Sigma}{N},

where g_i is the mean gradient of part i with n_i samples, g_B that of all N = sum n_i samples, G the true
gradient and Sigma the covariance of one sample's gradient. Both are unbiased. For equal parts they are the
estimator from two batch sizes of McCandlish et al.; this form is right for unequal parts too.

**Cost.** 1 gradient evaluation per sample, the same as one gradient, and k gradients in memory. Free where the
parts exist anyway (accumulation, several ranks): pass their squared norms to :func:`from_norms`.

**When.** To choose a batch size, or to see that the noise dominates the step. B_simple takes the Hessian for
a multiple of the identity; the scale that weighs noise by curvature needs Hessian products
(:func:`optland.curvature.noise.noise_scale.noise_scale`).

**Defaults.** ``parts`` 8: with k parts the relative error of tr Sigma is at best sqrt(2 / (k - 1)).

**Caveats.** |G|^2 is a small difference of large numbers near a minimum and can come out negative; then the
scale is *unresolved*, which is not the same as infinite: :func:`pooled` averages numerator and denominator
over several probes, never the ratio, whose mean is biased. Parts of a batch under batch statistics are not
parts of the same function, so a model in train mode with BatchNorm is refused. Dropout in train mode counts
as noise.

**References.** McCandlish et al. 2018, arXiv:1812.06162.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from optland import vectors
from optland.archive import Archived
from optland.curvature.cost import costs
from optland.curvature.operators.batchwise import cut, jackknife, refuse_batch_statistics
from optland.estimate import Estimate, Provenance
from optland.objective import Objective
from optland.vectors import Vector

__all__ = ["GradientNoise", "gradient_noise"]

SIGNIFICANCE = 2.0
"""|G|^2 has to exceed this many of its standard errors before a ratio is formed."""


@dataclass(frozen=True, slots=True)
class GradientNoise(Archived):
    """Noise and signal in the gradient, and their ratio where there is one.

    Attributes:
        trace_cov: tr Sigma, the variance of one sample's gradient summed over coordinates.
        grad_sq: |G|^2, the squared norm of the true gradient; may be negative.
        b_simple: tr Sigma / |G|^2 in samples; None when not resolved.
        resolved: Whether |G|^2 is significantly positive (by two standard errors).
        micro_batch: Mean number of samples in a part.
        large_batch: Number of samples in all parts.
        cost_ge: Gradient evaluations spent.
    """

    trace_cov: Estimate
    grad_sq: Estimate
    b_simple: float | None
    resolved: bool
    micro_batch: float
    large_batch: float
    cost_ge: float

    def __str__(self) -> str:
        ratio = "unresolved" if self.b_simple is None else f"{self.b_simple:.4g}"
        return f"B_simple {ratio} (tr Sigma {self.trace_cov}, |G|^2 {self.grad_sq})"


def _cost(objective: Objective) -> float:
    """Cost of :func:`gradient_noise` in gradient evaluations, known before it runs."""
    return float(objective.num_samples)


@costs(_cost)
def gradient_noise(
    objective: Objective, *, num_parts: int = 8, preconditioner: Vector | None = None
) -> GradientNoise:
    r"""Measure the noise from the gradients of parts of every batch.

    Args:
        objective: The loss; its samples should be drawn as the training batches are.
        num_parts: Number of parts each batch is cut into; a batch with fewer samples is cut into single samples.
        preconditioner: The diagonal P of an adaptive optimizer
            (:func:`~optland.curvature.operators.preconditioner.preconditioner`), in the shapes of the parameters. The
            noise is then that of P^{-1/2} g, the gradient in the coordinates where the optimizer descends plainly:
            tr(P^{-1} Sigma) over G'P^{-1}G. That is the scale to use with Adam.

    Returns:
        A :class:`GradientNoise` whose standard errors come from leaving out one part at a time (from three
        parts on).

    Raises:
        ValueError: Fewer than two parts in all, or BatchNorm with batch statistics, or a ``preconditioner`` of
            other shapes.

    Example:
        >>> from optland.problems import linear_regression
        >>> X = torch.tensor([[1.0], [1.0], [1.0], [1.0]], dtype=torch.float64)
        >>> Y = torch.tensor([[1.0], [2.0], [3.0], [2.0]], dtype=torch.float64)
        >>> noise = gradient_noise(linear_regression(X, Y), num_parts=4)      # gradients -2, -4, -6, -4
        >>> round(noise.trace_cov.value, 4), round(noise.grad_sq.value, 4)
        (2.6667, 15.3333)
    """
    refuse_batch_statistics(objective)
    cost_before = objective.cost_ge
    if num_parts < 1:
        raise ValueError(f"num_parts={num_parts} must be at least 1")
    gram, counts, samples = _parts(objective, num_parts, scales(objective, preconditioner))
    if len(counts) < 2:
        raise ValueError(
            "the objective holds a single part; noise needs at least two (more samples, or num_parts=2)"
        )
    objective.cost_ge += samples
    # A token-level loss weighs its parts by tokens; this puts the weights in units of samples.
    n = [count * samples / sum(counts) for count in counts]
    trace_cov, grad_sq = _with_errors(gram, torch.tensor(n, dtype=torch.float64))
    cost = objective.cost_ge - cost_before
    what = "gradients" if preconditioner is None else "preconditioned gradients"
    source = objective.provenance(f"{what} of {len(n)} parts", objective.seed)
    return from_terms(trace_cov, grad_sq, samples / len(n), samples, cost, source)


def scales(objective: Objective, preconditioner: Vector | None) -> list[Tensor] | None:
    """P^-1/2 in the shapes of the parameters; None for the identity.

    Args:
        objective: Gives the shapes.
        preconditioner: P, entries above 0; None for the identity.

    Raises:
        ValueError: ``preconditioner`` has other shapes than the parameters.
    """
    if preconditioner is None:
        return None
    return [p.rsqrt() for p in vectors.require_shapes(preconditioner, objective.params, "preconditioner")]


def part_gradients(
    objective: Objective, parts: int, scale: Vector | None
) -> Iterator[tuple[list[Tensor], float, int]]:
    """Mean gradient (times ``scale``), count and samples of every part of every batch, at one pass over the data.

    To be run inside the objective's context, where the random state goes on from part to part: parts with the same
    dropout masks would not be independent.

    Args:
        objective: Of which each own batch is cut.
        parts: Number of parts of each batch.
        scale: What :func:`scales` gave.

    Yields:
        The mean gradient of a part, the number of its losses, and that of its samples.
    """
    for batch in objective.own_batches:
        for part, size in cut(objective, batch, parts):
            _, count, total = objective.batch_gradient(part)
            if (
                objective.ranks is not None
            ):  # a sharded model, whose parts are those of all processes together
                size = round(objective.ranks.total([size], total[0].device)[0])
            pieces = [g / count for g in total]
            if scale is not None:
                pieces = [g * s for g, s in zip(pieces, scale, strict=True)]
            yield pieces, count, size


def _parts(objective: Objective, parts: int, scale: Vector | None) -> tuple[Tensor, list[float], int]:
    """<g_i, g_j> (k, k) and the counts of the parts of every batch, and the number of samples."""
    gradients: list[Tensor] = []
    products: list[Tensor] = []
    counts: list[float] = []
    samples = 0
    for gradient, (count, size) in flat_gradients(objective, parts, scale):
        gradients.append(gradient)
        products.append(torch.stack([gradient @ g for g in gradients]))  # row of the lower triangle
        counts.append(count)
        samples += size
    lower = nn.utils.rnn.pad_sequence(products, batch_first=True).to("cpu", torch.float64)
    return lower + lower.tril(-1).T, counts, samples


def flat_gradients(
    objective: Objective, parts: int, scale: Vector | None
) -> Iterator[tuple[Tensor, tuple[float, int]]]:
    """Flat gradient, count and samples of every part; of those of all processes, where each has its own batches.

    Args:
        objective: Outside of its context, which is entered here.
        parts: Number of parts of each batch.
        scale: What :func:`scales` gave.

    Yields:
        (d,) in the accumulation type, and the pair of counts.
    """

    def own(part: Objective) -> Iterator[tuple[Tensor, tuple[float, int]]]:
        with part.context(), torch.enable_grad():
            for pieces, count, size in part_gradients(part, parts, scale):
                yield vectors.flatten(pieces), (count, size)

    ranks = objective.ranks
    if ranks is None or ranks.sharded:
        yield from own(objective)
        return

    def rows() -> tuple[Tensor, list[tuple[float, int]]]:
        gradients, counts = zip(*own(objective.alone()), strict=True)
        return torch.stack(gradients), list(counts)

    yield from zip(*ranks.rows(rows, objective.params), strict=True)


def _estimators(gram: Tensor, n: Tensor) -> tuple[float, float]:
    """Unbiased (tr Sigma, |G|^2) from the inner products of the parts' gradients and their sizes."""
    total = n.sum()
    g_B_sq = n @ gram @ n / total**2
    trace_cov = (n @ gram.diagonal() - total * g_B_sq) / (len(n) - 1)
    return float(trace_cov), float(g_B_sq - trace_cov / total)


def _with_errors(gram: Tensor, n: Tensor) -> tuple[tuple[float, float], tuple[float, float]]:
    """Both estimates with jackknife standard errors; NaN errors when two parts leave nothing to leave out."""
    k = len(n)
    values = _estimators(gram, n)
    if k < 3:
        return (values[0], math.nan), (values[1], math.nan)
    kept = [[j for j in range(k) if j != i] for i in range(k)]
    left_out = torch.tensor(
        [_estimators(gram[rows][:, rows], n[rows]) for rows in kept], dtype=torch.float64
    )  # (k, 2)
    errors = jackknife(left_out)
    return (values[0], float(errors[0])), (values[1], float(errors[1]))


def from_terms(
    trace_cov: tuple[float, float],
    grad_sq: tuple[float, float],
    micro_batch: float,
    large_batch: float,
    cost: float,
    source: Provenance,
) -> GradientNoise:
    """Both terms, each a value with its standard error (NaN when unknown), and the scale where it is resolved.

    Args:
        trace_cov: tr Sigma of one sample's gradient, and its error.
        grad_sq: |G|^2 without bias, and its error.
        micro_batch: Samples of a part.
        large_batch: Samples of all.
        cost: Gradient evaluations.
        source: Of the numbers.

    Returns:
        ``b_simple`` is None unless |G|^2 is positive by two standard errors.
    """

    def estimate(value: float, error: float) -> Estimate:
        known = math.isfinite(error)
        return Estimate(value, error, "standard_error" if known else "none", known, cost, source)

    noise, signal = estimate(*trace_cov), estimate(*grad_sq)
    resolved = signal.converged and signal.value > SIGNIFICANCE * signal.error
    b_simple = max(noise.value, 0.0) / signal.value if resolved else None
    return GradientNoise(noise, signal, b_simple, resolved, float(micro_batch), float(large_batch), cost)
