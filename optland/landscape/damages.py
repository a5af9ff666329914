r"""What a trained net has to bear after training: its weights rounded, pruned, or shaken by noise.

Each function gives the damaged weights v, by parameter name, and changes nothing; :func:`damaged` puts them in for a
block. Only matrices are damaged (weights of linear and convolution layers, embeddings): biases and the gains of
normalisation layers are few, and kept in full precision by everybody.

.. math::
    \text{rounded} &: v_c = s_c \operatorname{round}(w_c / s_c), \qquad s_c = \frac{\max |w_c|}{2^{b-1} - 1} \\
    \text{pruned} &: v_i = 0 \text{ where } |w_i| \text{ is among the smallest share of all matrices together} \\
    \text{shaken} &: v_l = w_l + \sigma \operatorname{rms}(w_l)\, u, \qquad u \sim N(0, I)

Rounding is to nearest, symmetric, with one step s for each output channel c: no data and no retraining, the plainest of
all ways. b bits hold :math:`2^b - 1` values, so that 0 stays 0; 2 bits are the values -s, 0, s. A step is as if uniform
noise of variance :math:`s^2 / 12` were added.

References: Nagel et al. 2021, arXiv:2106.08295 (rounding); Han et al. 2015, arXiv:1506.02626 (pruning by magnitude).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from optland import vectors
from optland.landscape.filters import matrices

__all__ = ["FEWEST_BITS", "damaged", "pruned", "rounded", "rounding_steps", "shaken"]

FEWEST_BITS = 2
"""One bit leaves no value beside 0 in a symmetric range."""

MOST_BITS = 16


def rounded(model: nn.Module, bits: int | Mapping[str, int]) -> dict[str, Tensor]:
    """The weights with each output channel rounded to nearest.

    Args:
        model: The net; it stays as it is.
        bits: Bits per weight, 2 to 16: one number, or by parameter name; a matrix that is not named stays as it is.

    Returns:
        By parameter name, the matrices only, in the type of the weights.

    Raises:
        ValueError: Bits out of range, a name that is no matrix of the net, or weights that are not finite.

    Example:
        >>> net = nn.Linear(3, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, -0.4, 0.3]]))
        >>> rounded(net, 2)["weight"].tolist(), rounded(net, 3)["weight"].tolist()
        ([[1.0, 0.0, 0.0]], [[1.0, -0.3333333432674408, 0.3333333432674408]])
    """
    weights = {}
    for name, step in rounding_steps(model, bits).items():
        w = model.get_parameter(name).detach()
        levels = torch.round(w.double() / torch.where(step > 0, step, 1.0).double())
        weights[name] = (levels * step.double() + 0.0).to(w.dtype)  # not -0
    return weights


def rounding_steps(model: nn.Module, bits: int | Mapping[str, int]) -> dict[str, Tensor]:
    r"""The step s of every output channel, in a shape that spreads over its matrix; 0 for a channel of zeros.

    .. math:: s = \max_j |w_j| \,/\, (2^{b - 1} - 1)

    Args:
        model: The net.
        bits: As for :func:`rounded`.

    Returns:
        By parameter name, in the type of the weights, with 1 in every dimension but that of the channels.

    Raises:
        ValueError: As for :func:`rounded`.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0, -3.0], [0.0, 0.0]]))
        >>> rounding_steps(net, 3)["weight"].tolist()
        [[1.0], [0.0]]
    """
    chosen = dict.fromkeys(matrices(model), bits) if isinstance(bits, int) else dict(bits)
    known = _finite_matrices(model)
    steps = {}
    for name, b in chosen.items():
        if name not in known:
            raise ValueError(f"{name!r} is no matrix of the net; those are {', '.join(known)}")
        if not FEWEST_BITS <= b <= MOST_BITS or b != int(b):
            raise ValueError(f"bits {b} of {name!r}: use a whole number from {FEWEST_BITS} to {MOST_BITS}")
        w, axis = known[name]
        others = [i for i in range(w.ndim) if i != axis]
        steps[name] = w.abs().amax(dim=others, keepdim=True) / (2 ** (int(b) - 1) - 1)
    return steps


def pruned(model: nn.Module, share: float) -> dict[str, Tensor]:
    """The weights with the smallest of all matrices together set to 0.

    Args:
        model: The net; it stays as it is.
        share: Share of the weights of its matrices that goes, from 0 to 1; of equal ones the first go.

    Returns:
        By parameter name, the matrices only.

    Raises:
        ValueError: A share out of range, or weights that are not finite.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Linear(1, 2, bias=False))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[3.0, -1.0]])), net[1].weight.data.fill_(-2.0)
        >>> {name: v.flatten().tolist() for name, v in pruned(net, 0.5).items()}
        {'0.weight': [3.0, 0.0], '1.weight': [0.0, -2.0]}
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share {share} of the weights: use a number from 0 to 1, such as 0.7")
    found = _finite_matrices(model)
    flat = torch.cat([w.reshape(-1) for w, _ in found.values()])
    going = torch.argsort(flat.abs(), stable=True)[: round(share * flat.numel())]
    flat[going] = 0.0
    cut = vectors.unflatten(flat, [w for w, _ in found.values()])
    return dict(zip(found, cut, strict=True))


def shaken(model: nn.Module, sigma: float, *, seed: int = 0) -> dict[str, Tensor]:
    """The weights with Gaussian noise, of ``sigma`` times the root mean square of each matrix in each weight of it.

    Args:
        model: The net; it stays as it is.
        sigma: Relative size, 0.2 for a fifth.
        seed: The noise depends on it and on the shapes alone.

    Returns:
        By parameter name, the matrices only.

    Raises:
        ValueError: A size that is negative or not finite, or weights that are not finite.

    Example:
        >>> net = nn.Linear(100, 100)
        >>> d = shaken(net, 0.2, seed=1)["weight"] - net.weight
        >>> round((d.square().mean() / net.weight.square().mean()).sqrt().item(), 2)
        0.2
    """
    if not 0.0 <= sigma < float("inf"):
        raise ValueError(f"sigma {sigma}: use a relative size from 0, such as 0.2")
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, (w, _) in _finite_matrices(model).items():
        u = torch.randn(w.shape, generator=generator, dtype=torch.float64)
        rms = float(w.double().square().mean().sqrt())
        weights[name] = w + vectors.beside(sigma * rms * u, w)
    return weights


@contextmanager
def damaged(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """A block in which the net has these weights; its own are put back by copy, bit for bit.

    Args:
        model: The net.
        weights: The damaged ones, by parameter name; all others stay.

    Example:
        >>> net = nn.Linear(2, 1, bias=False)
        >>> before = net.weight.tolist()
        >>> with damaged(net, {"weight": torch.zeros(1, 2)}):
        ...     net(torch.ones(2)).item()
        0.0
        >>> net.weight.tolist() == before
        True
    """
    own = [model.get_parameter(name).data for name in weights]
    others = vectors.require_shapes(list(weights.values()), own, "what the weights are to be")
    saved = vectors.clone(own)
    try:
        vectors.copy_(own, others)
        yield
    finally:
        vectors.copy_(own, saved)


def _finite_matrices(model: nn.Module) -> dict[str, tuple[Tensor, int]]:
    found = matrices(model)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no weight of two or more dimensions; there is nothing to damage"
        )
    for name, (w, _) in found.items():
        bad = int((~torch.isfinite(w)).sum())
        if bad:
            raise ValueError(f"{bad} weights of {name!r} are not finite; damage a net that has not diverged")
    return found
