r"""Ways to multiply a vector by the Hessian of an objective, without forming the Hessian.

.. math:: H v = \nabla_\theta \langle \nabla L(\theta), v \rangle
              \approx \frac{\nabla L(\theta + h v) - \nabla L(\theta - h v)}{2h}

===================  ==========================================  ============================================
way                  needs                                       cost of a product
===================  ==========================================  ============================================
kept graph           all data in memory, double backward         one more backward through the kept graph
double backward      kernels that can be differentiated twice    forward, backward with graph, second backward
finite difference    nothing                                     two gradients
===================  ==========================================  ============================================
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from optland import vectors
from optland.objective import Objective
from optland.vectors import Vector

__all__ = ["HVP_GE", "SETUP_GE", "DoubleBackward", "FiniteDifference", "KeptGraph", "Product"]

# Measured against one plain gradient of the same batch, on one CPU thread, medians of 25 interleaved repeats,
# taken twice: convolutional nets with BatchNorm, GroupNorm or none, a transformer layer and an MLP, batches
# of 64 to 256. A product through a kept graph took 1.3 to 2.0, by double backward 2.4 to 3.6, by finite
# difference 1.7 to 2.9 (the figures of an MLP under 1 ms a gradient, where the guards dominate, left out);
# building the graph 1.05 to 1.45. The constants lie above the medians of all but the smallest nets. They are
# declared, not measured at run time, because a decision that follows the clock could not be repeated.

HVP_GE = {"kept_graph": 2.5, "double_backward": 4.0, "finite_difference": 2.5}
"""Cost of one product in gradient evaluations a sample."""

SETUP_GE = {"kept_graph": 1.5, "double_backward": 0.0, "finite_difference": 2.5}
"""Cost in gradient evaluations a sample of what comes with the first product: the graph, or the check with 2h."""

STEP_SCALE = 0.1
"""c in the finite-difference step c (1 + |theta|) eps^(1/3): small against the weights, large against rounding."""


class Product:
    """One way to compute H v at the weights of an objective.

    Attributes:
        error: Size of the error of H v for a unit vector v; 0 where the product is exact to rounding.
        trusted: False once a backward written by hand was seen: PyTorch may differentiate such a one twice without
            an error and without its curvature (``once_differentiable``, or a detached tensor inside).
    """

    error = 0.0
    trusted = True

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __call__(self, v: Vector) -> list[Tensor]:
        """H v, a new vector."""
        raise NotImplementedError


class KeptGraph(Product):
    """Second backward through the graph of the gradient over all data, built once."""

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective)
        self._weights = self._fingerprint()
        with objective.context(), torch.enable_grad():
            losses, counts = zip(*objective.losses(), strict=True)
            mean = torch.stack(losses).sum() / sum(counts)
            self.trusted = not _has_custom_backward(mean)
            self._gradient = _gradient_with_graph(mean, objective.params)
            self._loss = mean.detach()

    def __call__(self, v: Vector) -> list[Tensor]:
        """H v at the weights the graph was built at.

        Raises:
            RuntimeError: The weights have been written, replaced or displaced since.
        """
        if self._fingerprint() != self._weights:
            raise RuntimeError(
                "the weights have changed since this operator kept its graph; make a new one, or use "
                "method='double_backward', which reads the weights at every product"
            )
        with self.objective.context():
            product = _backward_again(self._gradient, self.objective.params, v, keep=True)
        return _poisoned(product, self._loss)

    def _fingerprint(self) -> list[tuple[int, int, int]]:
        """Where the weights lie, how often they were written, and whether a probe has displaced them."""
        return [(p.data_ptr(), p._version, self.objective.location) for p in self.objective.params]


class DoubleBackward(Product):
    """A fresh graph for every batch of every product, so that data can stream and weights may move."""

    def __call__(self, v: Vector) -> list[Tensor]:
        """H v at the present weights."""
        params, total, product = self.objective.params, 0.0, vectors.accumulator(self.objective.params)
        with self.objective.context(), torch.enable_grad():
            for loss, count in self.objective.losses():
                gradient = _gradient_with_graph(loss, params)
                self.trusted = self.trusted and not _has_custom_backward(loss)
                piece = _backward_again(gradient, params, v, keep=False)
                vectors.axpy_(1.0, _poisoned(piece, loss.detach()), product)
                total += count
        return _cast(vectors.scaled(1.0 / total, product), params)


class FiniteDifference(Product):
    """Central difference of gradients, for kernels without a double backward.

    The first product is taken with 2h too, and the distance of the two is kept as ``error``: it bounds what
    the curvature of the gradient contributes (three times over) and shows what rounding does.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective)
        self._checked = False

    def __call__(self, v: Vector) -> list[Tensor]:
        """H v at the present weights, with a step chosen for v / |v|."""
        length = float(vectors.norm(v))
        if length == 0.0:
            return [torch.zeros_like(p) for p in self.objective.params]
        u = vectors.scaled(1.0 / length, v)
        h = self._step()
        product = self._difference(u, h)
        if not self._checked:
            self.error = float(vectors.norm(vectors.subtract(product, self._difference(u, 2 * h))))
            self._checked = True
        return vectors.scaled(length, product)

    def _step(self) -> float:
        params = self.objective.params
        eps: float = torch.finfo(params[0].dtype).eps
        size = float(vectors.norm([p.detach() for p in params]))
        return STEP_SCALE * (1.0 + size) * math.pow(eps, 1 / 3)

    def _difference(self, u: Vector, h: float) -> list[Tensor]:
        L = self.objective
        loss_ahead, ahead = L.value_and_gradient(L.displaced(u, h))
        loss_behind, behind = L.value_and_gradient(L.displaced(u, -h))
        product = vectors.scaled(1.0 / (2 * h), vectors.subtract(ahead, behind))
        return _poisoned(product, torch.tensor(loss_ahead + loss_behind, device=ahead[0].device))


def _gradient_with_graph(loss: Tensor, params: Vector) -> list[Tensor]:
    return list(
        torch.autograd.grad(loss, list(params), create_graph=True, allow_unused=True, materialize_grads=True)
    )


def _backward_again(gradient: Vector, params: Vector, v: Vector, *, keep: bool) -> list[Tensor]:
    """H v from the graph of the gradient; a piece of it without a graph is constant and adds nothing."""
    live = [(g, x.to(g.dtype)) for g, x in zip(gradient, v, strict=True) if g.requires_grad]
    if not live:
        return [torch.zeros_like(p) for p in params]
    outputs, seeds = zip(*live, strict=True)
    second = torch.autograd.grad(
        outputs, list(params), seeds, retain_graph=keep, allow_unused=True, materialize_grads=True
    )
    return list(second)


def _has_custom_backward(loss: Tensor) -> bool:
    """Whether the graph of ``loss`` holds a backward written by hand, in Python or C++."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, torch.autograd.function.BackwardCFunction) or "CppNode" in node.name():
            return True
        seen.add(node)
        waiting.extend(parent for parent, _ in node.next_functions)
    return False


def _poisoned(product: list[Tensor], loss: Tensor) -> list[Tensor]:
    """The product, or NaN where the loss is not finite: an overflowed loss can have a gradient that looks flat."""
    zero_or_nan = 0.0 * loss  # stays on the device
    return [t + zero_or_nan.to(device=t.device, dtype=t.dtype) for t in product]


def _cast(x: Vector, like: Vector) -> list[Tensor]:
    return [t.to(p.dtype) for t, p in zip(x, like, strict=True)]
