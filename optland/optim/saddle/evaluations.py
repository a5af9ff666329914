r"""Loss and gradient of a closure at any point, and Hessian products by differences of its gradients.

.. math:: H v \approx \frac{g(w + h v) - g(w - h v)}{2 h}, \qquad
          h = \epsilon^{1/3} \max(1, \lVert w \rVert) / \lVert v \rVert

The closure is the user's own (zero gradients, forward, backward, return the loss), so any model works, without double
backward. Products are exact up to rounding on quadratics and have an error of h^2 elsewhere. Every evaluation of a
step sees the same random state, so dropout masks agree; with ``model`` given, buffers such as BatchNorm's are put back
after every evaluation but the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from optland import vectors
from optland.context.modules import preserve_buffers
from optland.context.rng import load_rng_state, rng_state
from optland.objective import Objective
from optland.optim.gradients import present, require_dense
from optland.vectors import Vector

__all__ = ["Evaluations", "OnObjective", "loss_value"]


class Evaluations:
    """The evaluations of a closure in one step; counts every call.

    Args:
        closure: Zeroes gradients, runs forward and backward, returns the loss.
        params: The weights.
        model: Its module, for buffers; None if it has none that change.
    """

    def __init__(
        self, closure: Callable[[], Any], params: list[Tensor], model: nn.Module | None = None
    ) -> None:
        self.closure = closure
        self.params = [p for p in params if p.requires_grad]
        self.model = model
        self.calls = 0
        self.num_matvecs = 0
        self._rng = rng_state()

    def here(self) -> tuple[float, list[Tensor]]:
        """Loss and gradient at the present weights, as training sees them: buffers and random state move on.

        Returns:
            The loss, for which the host waits, and copies of the gradients.
        """
        return self._call(), self.gradients()

    def gradients(self) -> list[Tensor]:
        """Copies of what the last call left in ``.grad``; zero where a parameter has none.

        Raises:
            TypeError: A gradient is sparse or complex.
        """
        require_dense(present(self.params), "a look at the curvature")
        return [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in self.params]

    def at(self, point: Vector) -> tuple[float, list[Tensor]]:
        """Loss and gradient at ``point``; the weights are put back bit for bit.

        Args:
            point: In the shapes of the weights.

        Returns:
            With the random numbers of the first call, and buffers put back, so that every call sees one function.
        """
        with self._looking(), self._moved(point):
            return self._call(), self.gradients()

    def value(self, point: Vector) -> float:
        """Loss at ``point``. A closure always runs backward, so this costs as much as :meth:`at`."""
        return self.at(point)[0]

    def displaced(self, direction: Vector, t: float) -> list[Tensor]:
        """The point w + t d.

        Args:
            direction: d, in the shapes of the weights.
            t: How far, in multiples of it.
        """
        return [p.detach() + t * d for p, d in zip(self.params, direction, strict=True)]

    def doubt(self, v: Vector, curvature: float) -> float:
        """Error of a curvature v'Hv: what it changes by at twice the distance. Two calls.

        Args:
            v: Unit vector.
            curvature: v'Hv, as found at the usual distance.
        """
        return abs(float(vectors.dot(v, self.product(v, stretch=2.0))) - curvature)

    def product(self, v: Vector, stretch: float = 1.0) -> list[Tensor]:
        r"""H v by a central difference at ``stretch`` times the usual distance: two calls.

        .. math:: H v \approx \frac{\nabla L(w + h v) - \nabla L(w - h v)}{2 h}

        Args:
            v: Of any length; zero gives zeros, without a call.
            stretch: Factor on h.

        Returns:
            In the shapes of the weights; an error of order h^2.
        """
        h = stretch * self._distance(v, 1 / 3)
        if h == 0.0:
            return [torch.zeros_like(t) for t in v]
        self.num_matvecs += 1
        forth, back = self.at(self.displaced(v, h))[1], self.at(self.displaced(v, -h))[1]
        return vectors.scaled(0.5 / h, vectors.subtract(forth, back))

    def forward_product(self, v: Vector, g: Vector) -> list[Tensor]:
        """H v by a forward difference from the known gradient ``g``: one call, an error of order h.

        Args:
            v: Of any length; zero gives zeros, without a call.
            g: The gradient at the present weights.
        """
        h = self._distance(v, 1 / 2)
        if h == 0.0:
            return [torch.zeros_like(t) for t in v]
        self.num_matvecs += 1
        return vectors.scaled(1.0 / h, vectors.subtract(self.at(self.displaced(v, h))[1], g))

    def _distance(self, v: Vector, power: float) -> float:
        """eps^power max(1, ||w||) / ||v||, the step of a difference in units of v; 0 where v is zero."""
        length = float(vectors.norm(v))
        size = float(vectors.norm([p.detach() for p in self.params]))
        eps = max(torch.finfo(p.dtype).eps for p in self.params)
        return eps**power * max(1.0, size) / length if length > 0.0 else 0.0

    def _call(self) -> float:
        self.calls += 1
        with torch.enable_grad():
            loss = self.closure()
        return float(loss_value(loss))

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """The same random numbers as the first call; buffers put back."""
        state = rng_state()
        load_rng_state(self._rng)
        try:
            with preserve_buffers(self.model) if self.model is not None else nullcontext():
                yield
        finally:
            load_rng_state(state)

    @contextmanager
    def _moved(self, point: Vector) -> Iterator[None]:
        weights = [p.data for p in self.params]
        saved = vectors.clone(weights)
        try:
            vectors.copy_(weights, list(point))
            yield
        finally:
            vectors.copy_(weights, saved)

    def move(self, point: Vector) -> None:
        """Make ``point`` the weights."""
        vectors.copy_([p.data for p in self.params], list(point))

    @property
    def rounding(self) -> float:
        """Relative rounding of a loss."""
        return 8.0 * max(torch.finfo(p.dtype).eps for p in self.params)


class OnObjective(Evaluations):
    """The loss of an objective at any point, by forward passes and without a closure; its cost is the objective's."""

    def __init__(self, objective: Objective) -> None:
        super().__init__(lambda: None, objective.params)
        self.objective = objective

    def at(self, point: Vector) -> tuple[float, list[Tensor]]:
        """Loss and gradient at ``point``."""
        return self.objective.value_and_gradient(list(point))

    def value(self, point: Vector) -> float:
        """Loss at ``point``."""
        return self.objective.value(list(point))


def loss_value(loss: Any) -> float | Tensor:
    """The loss that a closure returned, as one number; on a GPU the host does not wait for it.

    Args:
        loss: A number, or a tensor of one entry.

    Returns:
        A float, or the tensor without its graph.

    Raises:
        ValueError: There is none, or there are several.

    Example:
        >>> loss_value(2)
        2.0
    """
    if loss is None:
        raise ValueError("the closure returned None; return the loss: def closure(): ...; return loss")
    if isinstance(loss, Tensor):
        if loss.numel() != 1 or loss.dtype.is_complex:
            raise ValueError(
                f"the closure returned a {loss.dtype} tensor of shape {tuple(loss.shape)}; return the loss as one real "
                "number, such as its mean"
            )
        return loss.detach()
    try:
        return float(loss)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the closure returned a {type(loss).__name__}; return the loss") from error


def is_lower(new: float, old: float, rounding: float) -> bool:
    """Whether a loss has fallen by more than rounding.

    Args:
        new: One that is not finite is never lower.
        old: Infinite for none.
        rounding: Relative.

    Example:
        >>> is_lower(0.9, 1.0, 1e-6), is_lower(1.0 - 1e-9, 1.0, 1e-6)
        (True, False)
    """
    return math.isfinite(new) and (old == math.inf or new < old - rounding * max(abs(old), 1e-300))
