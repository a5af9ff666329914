"""Small test problems with known gradients, which record the weights of every evaluation.

Every evaluation of the loss writes down the weights it was made at. That is how the checks see a
perturbation, with no help of the optimizer: it is the second point of a step minus the first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Problem",
    "Product",
    "Quadratic",
    "Slope",
    "Switch",
    "coupled_quadratic",
    "cross_entropy",
    "network",
    "total",
]


def total(outputs: Tensor, target: Tensor) -> Tensor:
    """The loss is the model's output.

    Args:
        outputs: Of any shape.
        target: Not used.
    """
    return outputs.sum()


def cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy of the batch.

    Args:
        outputs: Logits (n, classes).
        target: Classes (n,).
    """
    return nn.functional.cross_entropy(outputs, target)


class Problem:
    """A model, one batch, and a loss.

    Args:
        model: Takes ``x``.
        x: Inputs (n, ...).
        y: Targets (n, ...).
        criterion: (outputs, targets) -> mean loss.

    Attributes:
        scale: Constant factor of the loss; 1 at first.
        points: Flat weights (d,) in float64 at each evaluation of the loss so far.
        parts: Slices of the batch that a backward pass is made of, each weighted by its share.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        criterion: Callable[[Tensor, Tensor], Tensor] = total,
    ) -> None:
        self.model, self.x, self.y, self.criterion = model, x, y, criterion
        self.scale = 1.0
        self.points: list[Tensor] = []
        self.parts: list[slice] = [slice(None)]

    def judge(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The loss of these outputs; the weights are written down.

        Args:
            outputs: Of the model, for a part of the batch.
            target: The same part of ``y``.

        Returns:
            The mean loss times ``scale``, a scalar with its graph.
        """
        self.points.append(self.flat())
        return self.criterion(outputs, target) * self.scale

    def loss(self, part: slice = slice(None)) -> Tensor:
        """The mean loss of a part of the batch.

        Args:
            part: Samples of the batch.
        """
        return self.judge(self.model(self.x[part]), self.y[part])

    def backward(self, transform: Callable[[Tensor], Tensor] = lambda loss: loss) -> Tensor:
        """Add the gradient of the batch to ``.grad`` and return the loss, both as ``transform`` leaves them.

        Args:
            transform: What is done to each part's loss before its backward pass; ``scaler.scale`` under a
                ``GradScaler``.
        """
        losses = []
        for part in self.parts:
            loss = transform(self.loss(part) * (len(self.x[part]) / len(self.x)))
            loss.backward()
            losses.append(loss)
        return torch.stack(losses).sum()

    def flat(self) -> Tensor:
        """The weights now, (d,) in float64."""
        return torch.cat([p.detach().double().flatten() for p in self.model.parameters()])

    def bits(self) -> list[Tensor]:
        """Copies of weights in their own precision, for comparisons bit by bit."""
        return [p.detach().clone() for p in self.model.parameters()]

    def gradient(self, w: Tensor) -> Tensor:
        """The gradient at ``w`` in float64, taken on a copy by autograd; with dropout or batch norm, not defined.

        Args:
            w: Weights (d,), in the order of ``model.parameters()``.

        Returns:
            (d,) in float64; :attr:`points` does not grow.
        """
        values, offset = {}, 0
        for name, p in self.model.named_parameters():
            values[name] = w[offset : offset + p.numel()].reshape(p.shape).detach().requires_grad_()
            offset += p.numel()
        x = self.x.double() if self.x.is_floating_point() else self.x
        y = self.y.double() if self.y.is_floating_point() else self.y
        loss = self.criterion(self._call(values, x), y) * self.scale
        grads = torch.autograd.grad(loss, list(values.values()))
        return torch.cat([g.flatten() for g in grads]).detach()

    def _call(self, values: dict[str, Tensor], x: Tensor) -> Tensor:
        held = {
            **values,
            **{name: b.double() for name, b in self.model.named_buffers() if b.is_floating_point()},
        }
        out: Tensor = torch.func.functional_call(self.model, held, (x,))
        return out


class Quadratic(nn.Module):
    r"""The function w'Hw/2 over two tensors, (2, n/4) and the rest, so that norms for each tensor are seen.

    .. math:: f(w) = \tfrac12 w^\top H w, \qquad \nabla f(w) = H w

    Args:
        H: Symmetric (d, d).
        w: Start (d,), cut into a matrix of two rows and a vector.
    """

    H: Tensor

    def __init__(self, H: Tensor, w: Tensor) -> None:
        super().__init__()
        cut = 2 * (len(w) // 3)
        self.matrix = nn.Parameter(w[:cut].reshape(2, -1).clone())
        self.vector = nn.Parameter(w[cut:].clone())
        self.register_buffer("H", H)

    def forward(self, x: Tensor) -> Tensor:
        """The value, whatever x is."""
        w = torch.cat([self.matrix.flatten(), self.vector])
        return 0.5 * (w @ self.H @ w).reshape(1) * x.sum()


class Slope(nn.Module):
    """The function c'w, whose gradient is c everywhere, so that every SAM step is a step of the base optimizer.

    Args:
        dtype: Of weights and slope; d is 7.
    """

    c: Tensor

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[0.5, -1.0], [2.0, 0.25]], dtype=dtype))
        self.vector = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=dtype))
        self.register_buffer("c", torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0, -0.5, 1.0], dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """The value, whatever x is."""
        return (self.c @ torch.cat([self.matrix.flatten(), self.vector])).reshape(1) * x.sum()


class Product(nn.Module):
    """The function (w1 w2 - 1)^2, which does not see (c w1, w2 / c).

    Args:
        c: The rescaling: the start is (1.5 c, 0.4 / c), at which f is 0.16 for every c.
        dtype: Of the weights.
    """

    def __init__(self, c: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.tensor([[1.5 * c]], dtype=dtype))
        self.second = nn.Parameter(torch.tensor([[0.4 / c]], dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """The value, whatever x is."""
        return (self.first * self.second - 1.0).square().reshape(1) * x.sum()


class Switch(nn.Module):
    """A parameter that is used in every second evaluation only, the odd or the even ones.

    Args:
        used_in: 0 for the first, third, ... evaluation, 1 for the second, fourth, ...
        dtype: Of the weights.
    """

    def __init__(self, used_in: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.always = nn.Parameter(torch.tensor([3.0, 4.0], dtype=dtype))
        self.sometimes = nn.Parameter(torch.tensor([2.0, -1.0, 0.5], dtype=dtype))
        self.used_in, self.calls = used_in, 0

    def forward(self, x: Tensor) -> Tensor:
        """The value; the parameter ``sometimes`` takes part in evaluation ``used_in`` of two."""
        self.calls += 1
        value = 0.5 * self.always.square().sum()
        if (self.calls - 1) % 2 == self.used_in:
            value = value + 3.0 * self.sometimes.sum()
        return value.reshape(1) * x.sum()


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def coupled_quadratic(dtype: torch.dtype) -> Problem:
    """The quadratic w'Hw/2 with a full H, of eigenvalues up to about 3.

    Args:
        dtype: Of weights and H.

    Example:
        >>> problem = coupled_quadratic(torch.float64)
        >>> [tuple(p.shape) for p in problem.model.parameters()]
        [(2, 2), (3,)]
    """
    A = _random(7, 7, seed=0)  # one matrix (2, 2) and a vector of 3
    return on(Quadratic((A @ A.T / 7).to(dtype), _random(7, seed=1).to(dtype)), dtype)


def on(model: nn.Module, dtype: torch.dtype) -> Problem:
    """The problem of a model that is its own loss.

    Args:
        model: Takes one number and returns the loss times it.
        dtype: Of that number, 1.
    """
    return Problem(model, torch.ones(1, dtype=dtype), torch.ones(1, dtype=dtype))


def network(dtype: torch.dtype, *layers: Any) -> Problem:
    """A small net on twelve samples of three classes; ``layers`` go between its two linear maps.

    Args:
        dtype: Of weights and inputs.
        *layers: Modules that take and give (n, 8).

    Returns:
        The same net and data at every call; the random state of the caller is left alone.

    Example:
        >>> problem = network(torch.float64, nn.ReLU())
        >>> tuple(problem.model(problem.x).shape)
        (12, 3)
    """
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 8), *layers, nn.Tanh(), nn.Linear(8, 3)).to(dtype)
        y = torch.randint(3, (12,))
    return Problem(model, _random(12, 4, seed=2).to(dtype), y, cross_entropy)
