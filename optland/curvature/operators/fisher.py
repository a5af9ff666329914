r"""Fisher matrices: exact and sampled from the model's own predictions.

.. math:: F = \frac{1}{C} \sum_n J_n^T \,\mathbb{E}_{y \sim p(\cdot \mid z_n)}\!\big[s s^T\big] J_n, \quad
          s = -\nabla_z \log p(y \mid z_n)

==============  ============================================================  ==========================
kind            labels                                                        it is
==============  ============================================================  ==========================
exact           summed over the model's predictive distribution               the Gauss-Newton matrix
monte_carlo     drawn once from it, with a seed                               unbiased, low rank
==============  ============================================================  ==========================

**How.** The expectation has a closed form: diag(p) - p p' for the categorical distribution of a softmax, p (1
- p) for the Bernoulli one, the identity for the Gaussian. How much each prediction weighs (class weights,
ignored labels, token weights, the factor of a mean squared error) is read off the loss, and a loss that is
not the negative log likelihood asked for is refused.

**Cost.** As for the Gauss-Newton matrix.

**Caveats.** The second moment of the gradients of the data, the "empirical Fisher", is another matrix: where the
data are fitted it vanishes before this one does (Kunstner, Hennig & Balles 2019, arXiv:1905.12558).

**References.** Amari 1998; Martens 2020, arXiv:1412.1193; Kunstner et al. 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from optland.curvature.operators.ggn import loss_hessian
from optland.curvature.operators.hessian import CurvatureOperator, Method
from optland.curvature.operators.linearised import Middle, linearised
from optland.curvature.operators.outputs import Piece, Split
from optland.objective import Objective

__all__ = ["Likelihood", "fisher"]

Likelihood = Literal["categorical", "bernoulli", "gaussian"]

MISMATCH = 1e-3
"""Relative distance between the loss's curvature and the likelihood's at which the loss is refused."""

DIFFERENCES = 30.0
"""Factor on it where the curvature comes from differences of gradients."""


def fisher(
    objective: Objective,
    likelihood: Likelihood = "categorical",
    *,
    num_draws: int | None = None,
    class_dim: int = -1,
    seed: int = 0,
    split: Split | None = None,
    method: Method = "auto",
) -> CurvatureOperator:
    """The Fisher matrix of the model's own predictive distribution.

    Args:
        objective: Model, loss and data; the loss is a weighted negative log likelihood of the outputs.
        likelihood: ``"categorical"`` for cross entropy of logits, ``"bernoulli"`` for binary cross entropy of logits,
            ``"gaussian"`` for squared error.
        num_draws: None sums over all labels in closed form. A number draws that many labels of every
        prediction, once, and
            the matrix is a Monte-Carlo estimate, labelled so.
        class_dim: Dimension of the outputs that holds the classes: -1, or 1 for dense predictions (n, classes, h, w).
        seed: Seed of the draws.
        split: How to take the loss apart; see :func:`~optland.curvature.operators.ggn.ggn`.
        method: How products are computed.

    Returns:
        An operator of kind "Fisher" or "Monte-Carlo Fisher".

    Raises:
        ValueError: Unknown likelihood, or fewer than 1 sample; at the first product, a loss that is not
        the negative log
            likelihood asked for.

    Example:
        >>> net = nn.Linear(2, 3, bias=False)
        >>> _ = nn.init.zeros_(net.weight)
        >>> x, y = torch.eye(2), torch.tensor([0, 1])
        >>> L = Objective(net, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), [(x, y)])
        >>> round(fisher(L).to_dense().trace().item(), 6)  # (1/2) 2 samples (1 - 1/3)
        0.666667
    """
    if likelihood not in LIKELIHOODS:
        raise ValueError(f"likelihood {likelihood!r} is not known; use {', '.join(map(repr, LIKELIHOODS))}")
    if num_draws is not None and num_draws < 1:
        raise ValueError(f"num_draws={num_draws} must be at least 1, or None for the sum over all labels")
    model = LIKELIHOODS[likelihood](class_dim)
    if num_draws is None:
        return CurvatureOperator(objective, linearised("Fisher", _exact(model), split), method)
    kind = f"Monte-Carlo Fisher ({num_draws} drawn labels a prediction, seed {seed})"
    return CurvatureOperator(objective, linearised(kind, _sampled(model, num_draws, seed), split), method)


class _Categorical:
    """The distribution over classes of a softmax."""

    def __init__(self, class_dim: int) -> None:
        self.dim = class_dim

    def row_sum(self, t: Tensor) -> Tensor:
        """Sum over the entries that belong to one prediction."""
        return t.sum(self.dim, keepdim=True)

    def covariance(self, z: Tensor, u: Tensor) -> Tensor:
        """E[s s'] u = (diag p - p p') u."""
        p = z.softmax(self.dim)
        return p * (u - self.row_sum(p * u))

    def score(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """The score s = p - e_y for a drawn label y."""
        p = z.detach().softmax(self.dim).movedim(self.dim, -1)
        # Drawn on the CPU, so that a seed gives the same labels on every device.
        rows = p.reshape(-1, p.shape[-1]).double().cpu()
        y = torch.multinomial(rows, 1, generator=generator).squeeze(1).to(z.device)
        hot = nn.functional.one_hot(y, p.shape[-1]).reshape(p.shape)
        return (p - hot).movedim(-1, self.dim)


class _Bernoulli:
    """Independent binary labels with logits z."""

    def __init__(self, class_dim: int) -> None:
        del class_dim  # every entry is a prediction of its own

    def row_sum(self, t: Tensor) -> Tensor:
        return t

    def covariance(self, z: Tensor, u: Tensor) -> Tensor:
        p = z.sigmoid()
        return p * (1 - p) * u

    def score(self, z: Tensor, generator: torch.Generator) -> Tensor:
        p = z.detach().sigmoid()
        draws = torch.rand(p.shape, generator=generator, dtype=torch.float64).to(p.device)
        return p - (draws < p).to(p.dtype)


class _Gaussian:
    """Normal labels with mean z; their variance is the inverse of the weight that the loss gives."""

    def __init__(self, class_dim: int) -> None:
        del class_dim

    def row_sum(self, t: Tensor) -> Tensor:
        return t

    def covariance(self, z: Tensor, u: Tensor) -> Tensor:
        return u

    def score(self, z: Tensor, generator: torch.Generator) -> Tensor:
        draws = torch.randn(z.shape, generator=generator, dtype=torch.float64)
        return draws.to(device=z.device, dtype=z.dtype)


Model = _Categorical | _Bernoulli | _Gaussian

LIKELIHOODS: dict[str, Callable[[int], Model]] = {
    "categorical": _Categorical,
    "bernoulli": _Bernoulli,
    "gaussian": _Gaussian,
}


def _exact(model: Model) -> Middle:
    def middle(number: int, piece: Piece) -> Callable[[list[Tensor]], list[Tensor]]:
        z, weights = piece.leaves, _weights(model, piece)

        def multiply(u: list[Tensor]) -> list[Tensor]:
            return [(w * model.covariance(t, x)).detach() for w, t, x in zip(weights, z, u, strict=True)]

        return multiply

    return middle


def _sampled(model: Model, samples: int, seed: int) -> Middle:
    def middle(number: int, piece: Piece) -> Callable[[list[Tensor]], list[Tensor]]:
        generator = torch.Generator().manual_seed(seed + 1_000_003 * number)
        drawn: list[_Draws] = [
            _Draws(w / samples, [model.score(z, generator) for _ in range(samples)])
            for w, z in zip(_weights(model, piece), piece.leaves, strict=True)
        ]

        def multiply(u: list[Tensor]) -> list[Tensor]:
            return [
                draws.weight * torch.stack([s * model.row_sum(s * x) for s in draws.scores]).sum(0)
                for draws, x in zip(drawn, u, strict=True)
            ]

        return multiply

    return middle


@dataclass(frozen=True, slots=True)
class _Draws:
    weight: Tensor
    scores: list[Tensor]


def _weights(model: Model, piece: Piece) -> list[Tensor]:
    """The weight of every prediction in the loss, which is then held against a second direction.

    Raises:
        ValueError: The loss is not a weighted negative log likelihood of this kind.
    """
    z = [t.detach() for t in piece.leaves]
    generator = torch.Generator().manual_seed(0)
    first, second = ([torch.randn(t.shape, generator=generator).to(t) for t in z] for _ in range(2))
    H_first, H_second = loss_hessian(piece, first), loss_hessian(piece, second)
    weights, apart, size = [], 0.0, 0.0
    for t, u, x, Hu, Hx in zip(z, first, second, H_first, H_second, strict=True):
        quadratic = model.row_sum(u * model.covariance(t, u))
        floor = torch.finfo(t.dtype).tiny
        w = torch.where(quadratic > floor, model.row_sum(u * Hu) / quadratic.clamp_min(floor), 0.0)
        apart += float((w * model.covariance(t, x) - Hx).square().sum())
        size += float(Hx.square().sum())
        weights.append(w)
    allowed = MISMATCH if piece.shifted is None else DIFFERENCES * MISMATCH
    wrong = next((float(w.min()) for w in weights if w.numel() and not float(w.min()) > -allowed), None)
    finite = bool(torch.isfinite(piece.loss.detach()))  # of another loss the product is not a number anyway
    if finite and (not apart <= allowed**2 * size or wrong is not None):
        name = type(model).__name__.removeprefix("_").lower()
        raise ValueError(
            f"the loss is not a negative log likelihood of a {name} distribution of the outputs: its "
            f"curvature in them is "
            f"{(apart / max(size, 1e-300)) ** 0.5:.3g} away, relatively. Choose another likelihood or class_dim, or "
            "use ggn(objective)"
        )
    return weights
