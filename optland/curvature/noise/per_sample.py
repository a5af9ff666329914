r"""The gradient of every sample: its length, and the noise of the gradient from batches of one.

.. math:: |g_i|, \qquad \mathrm{tr}\,\Sigma = \frac{1}{N - 1} \sum_i |g_i - g_B|^2, \qquad
          |G|^2 = |g_B|^2 - \frac{\mathrm{tr}\,\Sigma}{N}

**How.** ``vmap`` of the gradient over chunks of samples; where the model or loss cannot be mapped (a value read back
to Python, a batch type that holds no tensors by sample) one backward pass per sample, and the result says why.

**Cost.** 2 gradient evaluations per sample: g_B first, so that no more than a chunk of gradients is ever held
(``chunk`` times the parameters in memory) and still <g_i, g_B> is known for the standard errors.

**When.** To see which samples pull hardest (mislabelled, broken, rare ones), to set a clipping bound, and for the
noise with the smallest variance there is: the standard error of tr Sigma falls with the number of samples, not parts.

**Defaults.** ``chunk`` 64, fewer where 64 gradients exceed 2^27 numbers (half a GiB in float32).

**Caveats.** In train mode each sample has its own dropout mask, and BatchNorm with batch statistics is refused. A loss
that returns a mean needs no count; one that returns ``(sum, count)`` gives each sample's gradient per count, so per
token, and weighs samples by their counts.

**References.** Goodfellow 2015, arXiv:1510.01799 (norms of the gradients of single samples).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from optland import vectors
from optland.archive import Archived
from optland.batches import holds_packed, map_tensors, num_samples, split
from optland.curvature.cost import costs
from optland.curvature.noise.gradient_noise import GradientNoise, from_terms, scales
from optland.curvature.operators.batchwise import jackknife, refuse_batch_statistics
from optland.estimate import Provenance
from optland.losses import mean_or_pair
from optland.objective import Objective
from optland.vectors import Vector

__all__ = ["PerSample", "PerSampleMethod", "per_sample_gradients"]

PerSampleMethod = Literal["auto", "vmap", "loop"]

CHUNK = 64
CHUNK_NUMBERS = 2**27
"""Most numbers in the gradients of a default chunk."""

SUM_APART = 1e-2
"""Relative distance of the sum of mapped gradients from the gradient at which the mapping is refused."""

ROUNDING = 100.0
"""Units in the last place of the single gradients, by which their sum may be off."""

Chunk = tuple[Tensor, Tensor, Tensor]
"""|s_i|^2, <s_i, g_B> and the count of each sample, with s_i the gradient of its loss sum."""


@dataclass(frozen=True, slots=True)
class PerSample(Archived):
    """Lengths of the gradients of single samples.

    Attributes:
        norms: |g_i| in the order of the data, float64 on the CPU; 0 for a sample without a count. (N,)
        alignments: <g_i, g_B>, how far the sample's own step lowers the loss of all. (N,)
        counts: Weight of each sample in the mean; 1, or its tokens. (N,)
        grad_norm: |g_B| of the mean over all samples.
        method: ``vmap`` or ``loop``.
        reason: Why that method.
        cost_ge: Gradient evaluations spent.
        provenance: Method, data, mode and seed.
    """

    norms: Tensor
    alignments: Tensor
    counts: Tensor
    grad_norm: float
    method: str
    reason: str
    cost_ge: float
    provenance: Provenance

    def noise(self) -> GradientNoise:
        """The noise scale from batches of one, with standard errors over samples.

        Raises:
            ValueError: Fewer than three samples.
        """
        N = len(self.norms)
        if N < 3:
            raise ValueError(f"{N} samples have no spread to speak of; pass at least three")
        n = self.counts * N / self.counts.sum()  # as in the noise from parts: weights in units of samples
        values = _terms(n, self.norms.square(), self.grad_norm**2)
        errors = jackknife(_leave_one_out(n, self.norms.square(), self.alignments, self.grad_norm**2))
        trace_cov, grad_sq = zip(values.tolist(), errors.tolist(), strict=True)
        return from_terms(trace_cov, grad_sq, 1.0, N, self.cost_ge, self.provenance)

    def __str__(self) -> str:
        quantiles = torch.quantile(self.norms, torch.tensor([0.5, 0.9, 1.0], dtype=torch.float64)).tolist()
        return (
            f"gradients of {len(self.norms)} samples: median {quantiles[0]:.4g}, 90 % {quantiles[1]:.4g}, largest "
            f"{quantiles[2]:.4g}; of the mean {self.grad_norm:.4g} [{self.method}: {self.reason}]"
        )


def _cost(objective: Objective) -> float:
    """Cost of :func:`per_sample_gradients` in gradient evaluations, a fallback to the loop included."""
    return 3.0 * objective.num_samples


@costs(_cost)
def per_sample_gradients(
    objective: Objective,
    *,
    method: PerSampleMethod = "auto",
    chunk_size: int | None = None,
    preconditioner: Vector | None = None,
) -> PerSample:
    """Measure the length of every sample's gradient, and its product with the mean gradient.

    Args:
        objective: Model, loss and data.
        method: ``"vmap"``, ``"loop"``, or the first with the second to fall back on.
        chunk_size: Samples whose gradients are held at once (vmap).
        preconditioner: The diagonal P of an adaptive optimizer; gradients are then P^-1/2 g.

    Returns:
        A :class:`PerSample`. The model and the random state are as before.

    Raises:
        ValueError: ``chunk_size`` or ``method`` out of range, BatchNorm with batch statistics, or a
            ``preconditioner`` of other shapes.

    Example:
        >>> from optland.problems import linear_regression
        >>> X = torch.tensor([[1.0], [1.0], [1.0], [1.0]], dtype=torch.float64)
        >>> Y = torch.tensor([[1.0], [2.0], [3.0], [2.0]], dtype=torch.float64)
        >>> found = per_sample_gradients(linear_regression(X, Y))
        >>> found.norms.tolist(), round(found.noise().trace_cov.value, 4)
        ([2.0, 4.0, 6.0, 4.0], 2.6667)
    """
    _check(objective, method, chunk_size)
    spent, scale = objective.cost_ge, scales(objective, preconditioner)
    mean = _scaled(objective.gradient(), scale)
    ways = {"vmap": _mapped(objective, mean, scale, chunk_size), "loop": _looped(objective, mean, scale)}
    chosen, reason = (
        ("vmap", "the loss can be mapped over samples") if method == "auto" else (method, "asked for")
    )
    try:
        chunks = _run(objective, ways[chosen])
        if chosen == "vmap":
            _require_sum(objective, chunks, mean)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        if method != "auto":
            raise
        chosen, reason = "loop", f"vmap failed: {str(error).strip().splitlines()[0]}"
        chunks = _run(objective, ways["loop"])
    sums_sq, products, counts = (torch.cat(column) for column in zip(*chunks, strict=True))
    weight = torch.where(counts > 0, counts, 1.0)  # a sample without a count has a zero gradient
    what = f"gradients of single samples by {chosen} ({reason})"
    return PerSample(
        norms=sums_sq.sqrt() / weight,
        alignments=products / weight,
        counts=counts,
        grad_norm=float(vectors.norm(mean)),
        method=chosen,
        reason=reason,
        cost_ge=objective.cost_ge - spent,
        provenance=objective.provenance(what, objective.seed),
    )


def _require_sum(objective: Objective, chunks: Sequence[Chunk], mean: Vector) -> None:
    """Raise where the mapped gradients do not add up to that of all: along it, sum_i <s_i, g_B> = C |g_B|^2.

    A penalty on weights that the loss reads itself is not seen through the mapped model. In train mode every sample has
    its own dropout mask, and the sum is another.
    """
    if objective.mode == "train":
        return
    squares, products, counts = (torch.cat(column) for column in zip(*chunks, strict=True))
    length, C = float(vectors.norm(mean)), float(counts.sum())
    apart = abs(float(products.sum()) - C * length**2)
    rounding = ROUNDING * torch.finfo(objective.params[0].dtype).eps * float(squares.sqrt().sum()) * length
    if math.isfinite(length) and apart > SUM_APART * C * length**2 + rounding:
        raise RuntimeError("the mapped gradients do not add up to the gradient of the loss")


def _run(objective: Objective, chunks: Iterator[Chunk]) -> list[Chunk]:
    """The chunks, float64 on the CPU, paid for as one pass also when it fails."""
    objective.cost_ge += objective.num_samples
    with objective.context():
        return [(a.cpu().double(), b.cpu().double(), c.cpu().double()) for a, b, c in chunks]


class _Loss(nn.Module):
    """The loss as the output of a module, so that a functional call can replace the weights."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.model = objective.model
        self.loss_fn = objective.loss_fn

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Sum and count of a batch of one sample."""
        loss = mean_or_pair(self.loss_fn(self.model, batch))
        total, count = (loss, 1.0) if isinstance(loss, Tensor) else loss
        return total, torch.as_tensor(count, device=total.device)


def _mapped(objective: Objective, mean: Vector, scale: Vector | None, chunk: int | None) -> Iterator[Chunk]:
    """The chunks by vmap over samples."""
    names = [f"model.{name}" for name in objective.names]
    # Copies, which the forward may write.
    weights = dict(zip(names, (p.detach().clone() for p in objective.params), strict=True))
    objective.notes.replaced = True
    loss = _Loss(objective)
    d = vectors.numel(objective.params)
    size = chunk or max(1, min(CHUNK, CHUNK_NUMBERS // d))

    for batch in objective.batches:
        by_sample = _by_sample(objective, batch)
        for part in split(batch, math.ceil(num_samples(batch) / size)):
            leaves = [t for t, own in zip(_tensors(part), by_sample, strict=True) if own]
            gradient = torch.func.grad(_of_one_sample(loss, part, by_sample), has_aux=True)
            per_sample = torch.func.vmap(gradient, (None, *([0] * len(leaves))), randomness="different")
            gradients, counts = per_sample(weights, *leaves)
            yield _reduced([gradients[name] for name in names], counts, mean, scale)


def _of_one_sample(loss: _Loss, part: Any, by_sample: list[bool]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Sum and count of one sample as a function of the weights and of the sample's own tensors."""

    def one(weights: dict[str, Tensor], *leaves: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor]
        found = torch.func.functional_call(loss, weights, (_rebuilt(part, by_sample, leaves),))
        return found

    return one


def _tensors(batch: Any) -> list[Tensor]:
    """The tensors of a batch, in the order in which they are mapped."""
    found: list[Tensor] = []

    def collect(t: Tensor) -> Tensor:
        found.append(t)
        return t

    map_tensors(batch, collect)
    return found


def _by_sample(objective: Objective, batch: Any) -> list[bool]:
    """Which tensors hold an entry for each sample.

    A cut of the batch can no longer tell: a table of class weights may be as long as the cut.

    Raises:
        TypeError: Samples are no entries of tensors.
    """
    if not objective.kind.by_rows or holds_packed(batch):
        raise TypeError("samples of these batches are no rows of tensors")
    count = num_samples(batch)
    return [t.ndim > 0 and t.shape[0] == count for t in _tensors(batch)]


def _rebuilt(part: Any, by_sample: list[bool], leaves: Sequence[Tensor]) -> Any:
    """The part as a batch of the one sample whose entries are ``leaves``."""
    flags, entries = iter(by_sample), iter(leaves)
    return map_tensors(part, lambda t: next(entries).unsqueeze(0) if next(flags) else t)


def _reduced(gradients: list[Tensor], counts: Tensor, mean: Vector, scale: Vector | None) -> Chunk:
    """|s_i|^2 and <s_i, g_B> from stacked gradients, each of shape (n, ...)."""
    wide = [g.flatten(1).to(vectors.accumulator([g[:0]])[0].dtype) for g in _scaled(gradients, scale)]
    squares = sum(g.square().sum(dim=1) for g in wide)
    products = sum(g @ m.flatten().to(g.dtype) for g, m in zip(wide, mean, strict=True))
    return torch.as_tensor(squares), torch.as_tensor(products), counts


def _looped(objective: Objective, mean: Vector, scale: Vector | None) -> Iterator[Chunk]:
    """The same, with one backward pass per sample."""
    for batch in objective.batches:
        for sample in objective.kind.cut(batch, objective.kind.count(batch)):
            with torch.enable_grad():
                loss, count, pieces = objective.batch_gradient(sample)
            stacked = [g.unsqueeze(0) for g in pieces]
            yield _reduced(stacked, torch.full((1,), count, device=loss.device), mean, scale)


def _scaled(gradient: Vector, scale: Vector | None) -> list[Tensor]:
    return list(gradient) if scale is None else [g * s for g, s in zip(gradient, scale, strict=True)]


def _terms(n: Tensor, squares: Tensor, mean_sq: float) -> Tensor:
    """Unbiased (tr Sigma, |G|^2) from the lengths of all samples."""
    N = n.sum()
    trace_cov = ((n * squares).sum() - N * mean_sq) / (len(n) - 1)
    return torch.stack([trace_cov, mean_sq - trace_cov / N])


def _leave_one_out(n: Tensor, squares: Tensor, products: Tensor, mean_sq: float) -> Tensor:
    """:func:`_terms` with each sample left out in turn, (N, 2), in one sweep."""
    N, k = n.sum(), len(n)
    # g_B without sample i is (N g_B - n_i g_i) / (N - n_i).
    rest = N - n
    mean_sq_rest = (N**2 * mean_sq - 2 * N * n * products + n**2 * squares) / rest**2
    trace_cov = ((n * squares).sum() - n * squares - rest * mean_sq_rest) / (k - 2)
    return torch.stack([trace_cov, mean_sq_rest - trace_cov / rest], dim=1)


def _check(objective: Objective, method: str, chunk: int | None) -> None:
    refuse_batch_statistics(objective)
    if method not in ("auto", "vmap", "loop"):
        raise ValueError(f"method {method!r} is not known; use 'auto', 'vmap' or 'loop'")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk_size={chunk} must be at least 1")
