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
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from optland import vectors
from optland.context.precision import exact_arithmetic
from optland.derivatives import Leaves, custom_functions, derivative, graph_of, require_grad
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
    "kinks",
    "poisoned",
    "primal",
    "refuse_writes",
    "tangent",
]

# Measured against one plain gradient of the same batch, on one CPU thread, medians of 25 interleaved repeats,
# taken twice: convolutional nets with BatchNorm, GroupNorm or none, a transformer layer and an MLP, batches
# of 64 to 256. A product through a kept graph took 1.3 to 2.0, by double backward 2.4 to 3.6, by finite
# difference 1.7 to 2.9 (the figures of an MLP under 1 ms per gradient, where the guards dominate, left out);
# building the graph 1.05 to 1.45. The constants lie above the medians of all but the smallest nets. They are
# declared, not measured at run time, because a decision that follows the clock could not be repeated.

HVP_GE = {"kept_graph": 2.5, "double_backward": 4.0, "forward_over_reverse": 4.0, "finite_difference": 2.5}
"""Cost of one product in gradient evaluations per sample."""

SETUP_GE = {"kept_graph": 1.5, "double_backward": 0.0, "forward_over_reverse": 0.0, "finite_difference": 8.0}
"""Cost in gradient evaluations per sample of what comes with the first product: the graph, or the search of a step."""


class Product:
    """One way to compute H v at the weights of an objective.

    Attributes:
        error: Size of the error of H v for a unit vector v; 0 where the product is exact to rounding.
        derived: Which second derivatives it takes, ``"reverse"`` or ``"forward"``; empty where it takes none.
        graphs: Names of what the graphs are made of, from the first product on: backward kernels, and functions written
            by hand. PyTorch may differentiate one twice without an error and without its curvature
            (``once_differentiable``, a detached tensor inside), and some kernels of its own have wrong derivatives.
        note: What the record should say of the products, after the first of them.
    """

    error = 0.0
    derived = ""
    note = ""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.graphs: set[str] = set()
        self._seen = False

    def __call__(self, v: Vector) -> list[Tensor]:
        """H v, a new vector."""
        raise NotImplementedError

    def _look(self, *outputs: Tensor) -> None:
        """Take the names of a graph, in the first product."""
        if not self._seen:
            self.graphs |= {node.name() for node in graph_of(*outputs)} | custom_functions(graph_of(*outputs))


class KeptGraph(Product):
    """Second backward through the graph of the gradient over all data, built once."""

    derived = "reverse"

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective)
        self._weights = self._fingerprint()
        self._light = False
        _, total = objective.summed(self._build)
        self._share = 1.0 if objective.ranks is None else 1.0 / total  # of a product of this process's sum

    def _build(self) -> tuple[list[Tensor], float]:
        objective = self.objective
        with objective.context(), torch.enable_grad():
            self._standing = objective.notes.standing
            loss, count = self._loss()
            self._look(loss)
            require_grad(objective, loss, lambda: self._loss()[0])
            self._leaves = objective.leaves()
            self._gradient = self._leaves.derivative(loss, create_graph=True)
        self._custom = bool(custom_functions(graph_of(loss)))
        self._poison = _poison(loss)
        return [], count

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
        if self.objective.ranks is None:
            return self._product(v)
        product, _ = self.objective.summed(lambda: (self._product(v), 1.0))
        return vectors.scaled(self._share, product)

    def _product(self, v: Vector) -> list[Tensor]:
        if self._light:
            with exact_arithmetic():
                return self._second_backward(v)
        with self.objective.context(self._standing), counted_forwards() as forwards:
            product = self._second_backward(v)
        # A checkpointed or hand-written backward may run modules and draw numbers; any other only needs arithmetic.
        self._light = not (self._custom or forwards)
        return product

    def _loss(self) -> tuple[Tensor, float]:
        """The mean over all batches, or the sum over those of this process, and the count."""
        losses, counts = zip(*self.objective.losses(), strict=True)
        total: Tensor = torch.stack(losses).sum()
        return total / sum(counts) if self.objective.ranks is None else total, sum(counts)

    def _second_backward(self, v: Vector) -> list[Tensor]:
        product = _backward_again(self._gradient, self._leaves, v, keep=True)
        return product if self._poison is None else [t + self._poison.to(t) for t in product]

    def _fingerprint(self) -> list[tuple[int, int, int]]:
        """Where the weights lie, how often they were written, and whether a probe has displaced them."""
        return [(p.data_ptr(), p._version, self.objective.location) for p in self.objective.params]


class DoubleBackward(Product):
    """A fresh graph for every batch of every product, so that data can stream and weights may move."""

    derived = "reverse"

    def __call__(self, v: Vector) -> list[Tensor]:
        """H v at the present weights."""
        product, total = self.objective.summed(lambda: self._sum(v))
        self._seen = True
        return _cast(vectors.scaled(1.0 / total, product), self.objective.params)

    def _sum(self, v: Vector) -> tuple[list[Tensor], float]:
        total, product = 0.0, vectors.accumulator(self.objective.params)
        with self.objective.context(), torch.enable_grad():
            for batch in self.objective.own_batches:
                loss, count = self.objective.loss(batch)
                total += count
                if not loss.requires_grad:
                    continue
                self._look(loss)
                require_grad(self.objective, loss, lambda b=batch: self.objective.loss(b)[0])  # type: ignore[misc]
                leaves = self.objective.leaves()
                piece = _backward_again(leaves.derivative(loss, create_graph=True), leaves, v, keep=False)
                vectors.axpy_(1.0, poisoned(piece, loss.detach()), product)
        return product, total


class ForwardOverReverse(Product):
    """Directional derivative of the gradient by forward-mode automatic differentiation; data can stream."""

    derived = "forward"

    def __call__(self, v: Vector) -> list[Tensor]:
        """H v at the present weights.

        Raises:
            RuntimeError: An operation of the model has no forward-mode derivative.
        """
        product, total = self.objective.summed(lambda: self._sum(v))
        self._seen = True
        return _cast(vectors.scaled(1.0 / total, product), self.objective.params)

    def _sum(self, v: Vector) -> tuple[list[Tensor], float]:
        L, total, product = self.objective, 0.0, vectors.accumulator(self.objective.params)
        with L.context(), torch.enable_grad(), dual_weights(L.params, v) as duals:
            for batch in L.own_batches:
                loss, count = L.replacing(duals, lambda b=batch: L.loss(b))  # type: ignore[misc]
                total += count
                if not loss.requires_grad:
                    continue
                self._look(loss)
                piece = [tangent(g) for g in derivative(loss, duals)]
                vectors.axpy_(1.0, poisoned(piece, primal(loss).detach()), product)
        return product, total


@contextmanager
def dual_weights(params: Vector, v: Vector) -> Iterator[list[Tensor]]:
    """Copies of the weights that carry ``v`` as their tangents.

    Args:
        params: The weights; they themselves carry nothing.
        v: In their shapes, cast to their types.

    Yields:
        Dual tensors of leaves that record a graph, in the order of the weights; of no use outside of the block.
    """
    with forward_ad.dual_level():
        with warnings.catch_warnings():
            # The first dual tensor loads torch's own rules, which torch compiles through an interface
            # it has deprecated.
            warnings.filterwarnings("ignore", message=".*torch.jit.*")
            duals = [
                forward_ad.make_dual(p.detach().clone().requires_grad_(), t.detach().to(p.dtype))
                for p, t in zip(params, v, strict=True)
            ]
        yield duals


def tangent(t: Tensor) -> Tensor:
    """The tangent that a tensor carries; zero where it carries none.

    Example:
        >>> with dual_weights([torch.ones(1)], [torch.full((1,), 2.0)]) as (w,):
        ...     tangent(w * w), tangent(torch.ones(1))
        (tensor([4.]), tensor([0.]))
    """
    found = forward_ad.unpack_dual(t).tangent
    return torch.zeros_like(primal(t)) if found is None else found.detach()


def primal(t: Tensor) -> Tensor:
    """The tensor without its tangent."""
    bare: Tensor = forward_ad.unpack_dual(t).primal
    return bare


def _backward_again(gradient: Vector, leaves: Leaves, v: Vector, *, keep: bool) -> list[Tensor]:
    """H v from the graph of the gradient; a piece of it without a graph is constant and adds nothing."""
    live = [(g, x.to(g.dtype)) for g, x in zip(gradient, v, strict=True) if g.requires_grad]
    if not live:
        return [torch.zeros_like(p) for p in leaves.params]
    outputs, seeds = zip(*live, strict=True)
    return leaves.derivative(outputs, seeds, retain_graph=keep)


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
    names = {re.sub(r"(Backward.*|\d.*)$", "", node.name()) for node in graph_of(loss)}
    return names & set(KINKS)


@contextmanager
def counted_forwards() -> Iterator[list[str]]:
    """Names the modules that are run inside the block.

    Yields:
        A list that grows, names of classes in the order of their calls; of every model, since the hook is a global one.

    Example:
        >>> with counted_forwards() as seen:
        ...     _ = nn.Sequential(nn.ReLU())(torch.ones(1))
        >>> seen
        ['Sequential', 'ReLU']
    """
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
    """The product; NaN where the loss is not finite, decided on the device.

    Args:
        product: In the shapes of the parameters.
        loss: A scalar.

    Example:
        >>> poisoned([torch.ones(1)], torch.tensor(float("inf")))
        [tensor([nan])]
    """
    zero_or_nan = 0.0 * loss
    return [t + zero_or_nan.to(device=t.device, dtype=t.dtype) for t in product]


def refuse_writes(objective: Objective) -> None:
    """Raise where displaced weights were rewritten: a difference between them is one between other points.

    Raises:
        ValueError: The forward of the last evaluation changed a parameter.
    """
    if objective.rewritten:
        raise ValueError(
            f"the forward rewrites {objective.rewritten} (a bound on its norm, a clamp), so that differences of "
            "displaced weights are between other points than meant; products here need double backward, or this "
            "parameter frozen"
        )


def _cast(x: Vector, like: Vector) -> list[Tensor]:
    return [t.to(p.dtype) for t, p in zip(x, like, strict=True)]
