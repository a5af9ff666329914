r"""Ways to multiply a vector by the Hessian of an objective, without forming the Hessian.

.. math:: H v = \nabla_\theta \langle \nabla L(\theta), v \rangle
              = \frac{d}{dt} \nabla L(\theta + t v) \Big|_{t=0}

====================  ==========================================  ============================================
way                   needs                                       cost of a product
====================  ==========================================  ============================================
kept graph            all data in memory, double backward         one more backward through the kept graph
double backward       kernels that can be differentiated twice    forward, backward with graph, second backward
forward over reverse  kernels with forward-mode derivatives       forward and backward with tangents
finite difference     nothing                                     two gradients
====================  ==========================================  ============================================

Forward over reverse keeps no graph of the gradient: its memory is about two training steps, where the two ways above
it take two and a half. Finite differences are in :mod:`optland.curvature.operators.finite_difference`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from optland import vectors
from optland.context import exact_arithmetic
from optland.objective import Objective
from optland.vectors import Vector

__all__ = [
    "HVP_GE",
    "SETUP_GE",
    "DoubleBackward",
    "ForwardOverReverse",
    "KeptGraph",
    "Product",
    "counted_forwards",
    "dual_weights",
    "has_custom_backward",
    "kinks",
    "poisoned",
    "primal",
    "tangent",
    "with_weights",
]

T = TypeVar("T")

# Measured against one plain gradient of the same batch, on one CPU thread, medians of 25 interleaved repeats,
# taken twice: convolutional nets with BatchNorm, GroupNorm or none, a transformer layer and an MLP, batches
# of 64 to 256. A product through a kept graph took 1.3 to 2.0, by double backward 2.4 to 3.6, by finite
# difference 1.7 to 2.9 (the figures of an MLP under 1 ms a gradient, where the guards dominate, left out);
# building the graph 1.05 to 1.45. The constants lie above the medians of all but the smallest nets. They are
# declared, not measured at run time, because a decision that follows the clock could not be repeated.

HVP_GE = {"kept_graph": 2.5, "double_backward": 4.0, "forward_over_reverse": 4.0, "finite_difference": 2.5}
"""Cost of one product in gradient evaluations a sample."""

SETUP_GE = {"kept_graph": 1.5, "double_backward": 0.0, "forward_over_reverse": 0.0, "finite_difference": 8.0}
"""Cost in gradient evaluations a sample of what comes with the first product: the graph, or the search of a step."""


class Product:
    """One way to compute H v at the weights of an objective.

    Attributes:
        error: Size of the error of H v for a unit vector v; 0 where the product is exact to rounding.
        trusted: False once a backward written by hand was seen: PyTorch may differentiate such a one twice without
            an error and without its curvature (``once_differentiable``, or a detached tensor inside).
        note: What the record should say of the products, after the first of them.
    """

    error = 0.0
    trusted = True
    note = ""

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
            self.trusted = not has_custom_backward(mean)
            self._gradient = _gradient_with_graph(mean, objective.params)
        self._poison = _poison(mean)
        self._light = False

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
        if self._light:
            with exact_arithmetic():
                return self._second_backward(v)
        with self.objective.context(), counted_forwards() as forwards:
            product = self._second_backward(v)
        # A checkpointed or hand-written backward may run modules and draw numbers; any other only needs arithmetic.
        self._light = self.trusted and not forwards
        return product

    def _second_backward(self, v: Vector) -> list[Tensor]:
        product = _backward_again(self._gradient, self.objective.params, v, keep=True)
        return product if self._poison is None else [t + self._poison.to(t) for t in product]

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
                self.trusted = self.trusted and not has_custom_backward(loss)
                piece = _backward_again(gradient, params, v, keep=False)
                vectors.axpy_(1.0, poisoned(piece, loss.detach()), product)
                total += count
        return _cast(vectors.scaled(1.0 / total, product), params)


class ForwardOverReverse(Product):
    """Directional derivative of the gradient by forward-mode automatic differentiation; data can stream."""

    def __call__(self, v: Vector) -> list[Tensor]:
        """H v at the present weights.

        Raises:
            RuntimeError: An operation of the model has no forward-mode derivative.
        """
        params, total, product = self.objective.params, 0.0, vectors.accumulator(self.objective.params)
        with self.objective.context(), torch.enable_grad(), dual_weights(params, v) as duals:
            for batch in self.objective.batches:
                loss, count = with_weights(self.objective, duals, lambda b=batch: self.objective.loss(b))  # type: ignore[misc]
                if not (count > 0 or loss.requires_grad):
                    continue
                self.trusted = self.trusted and not has_custom_backward(loss)
                gradient = torch.autograd.grad(loss, duals, allow_unused=True, materialize_grads=True)
                piece = [tangent(g) for g in gradient]
                vectors.axpy_(1.0, poisoned(piece, primal(loss).detach()), product)
                total += count
        return _cast(vectors.scaled(1.0 / total, product), params)


class _Carrier(nn.Module):
    """Lets ``functional_call`` replace the weights of a model while any function of the model runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, evaluate: Callable[[], T]) -> T:
        return evaluate()


def with_weights(objective: Objective, weights: Vector, evaluate: Callable[[], T]) -> T:
    """``evaluate()`` while these tensors stand in the model for the parameters of the objective."""
    named = {f"model.{name}": w for name, w in zip(objective.names, weights, strict=True)}
    result: T = functional_call(_Carrier(objective.model), named, (evaluate,))
    return result


@contextmanager
def dual_weights(params: Vector, v: Vector) -> Iterator[list[Tensor]]:
    """Copies of the weights that carry ``v`` as their tangents."""
    with forward_ad.dual_level():
        with warnings.catch_warnings():
            # The first dual tensor loads torch's own rules, which torch compiles through an interface
            # it has deprecated.
            warnings.filterwarnings("ignore", message=".*torch.jit.*")
            duals = [
                forward_ad.make_dual(p.detach().requires_grad_(), t.detach().to(p.dtype))  # type: ignore[no-untyped-call]
                for p, t in zip(params, v, strict=True)
            ]
        yield duals


def tangent(t: Tensor) -> Tensor:
    """The tangent that a tensor carries; zero where it carries none."""
    found = forward_ad.unpack_dual(t).tangent  # type: ignore[no-untyped-call]
    return torch.zeros_like(primal(t)) if found is None else found.detach()


def primal(t: Tensor) -> Tensor:
    """The tensor without its tangent."""
    bare: Tensor = forward_ad.unpack_dual(t).primal  # type: ignore[no-untyped-call]
    return bare


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


def has_custom_backward(loss: Tensor) -> bool:
    """Whether the graph of ``loss`` holds a backward written by hand, in Python or C++."""
    return any(
        isinstance(node, torch.autograd.function.BackwardCFunction) or "CppNode" in node.name()
        for node in _graph(loss)
    )


KINKS = (
    "Relu", "LeakyRelu", "Prelu", "PreluKernel", "Rrelu", "RreluWithNoise", "Hardtanh", "Hardsigmoid", "Hardswish",
    "Hardshrink", "Softshrink", "Threshold", "Abs", "Clamp", "ClampMin", "ClampMax", "Max", "Min", "Maximum", "Minimum",
    "Amax", "Amin", "Median", "Topk", "Sort", "MaxPool", "AdaptiveMaxPool", "FractionalMaxPool",
)  # fmt: skip
"""Operations whose derivative jumps, by the names of their backward nodes without what follows a digit."""


def kinks(loss: Tensor) -> set[str]:
    """Operations in the graph of ``loss`` whose derivative jumps; not those inside a backward written by hand.

    Example:
        >>> sorted(kinks(nn.ReLU()(torch.ones(2, requires_grad=True)).sum()))
        ['Relu']
    """
    names = {re.sub(r"(Backward.*|\d.*)$", "", node.name()) for node in _graph(loss)}
    return names & set(KINKS)


def _graph(loss: Tensor) -> Iterator[torch.autograd.graph.Node]:
    """Every node behind ``loss``, once."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(parent for parent, _ in node.next_functions)


@contextmanager
def counted_forwards() -> Iterator[list[str]]:
    """Names the modules that are run inside the block."""
    seen: list[str] = []

    def note(module: nn.Module, inputs: object) -> None:
        seen.append(type(module).__name__)

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def _poison(loss: Tensor) -> Tensor | None:
    """NaN where the loss is not finite, else nothing: an overflowed loss can have a gradient that looks flat."""
    return None if bool(torch.isfinite(loss.detach())) else torch.full_like(loss.detach(), torch.nan)


def poisoned(product: list[Tensor], loss: Tensor) -> list[Tensor]:
    """The product, or NaN where the loss is not finite, decided on the device."""
    zero_or_nan = 0.0 * loss
    return [t + zero_or_nan.to(device=t.device, dtype=t.dtype) for t in product]


def _cast(x: Vector, like: Vector) -> list[Tensor]:
    return [t.to(p.dtype) for t, p in zip(x, like, strict=True)]
