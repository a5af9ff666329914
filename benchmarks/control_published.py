"""Published rules that take the learning rate from the curvature, as methods of ``control.py`` under SGD.

Each is an optimizer that gets all it needs from further calls of its closure: the gradient at a displaced point is a
Hessian product by one finite difference. Their cost counts, a forward as a third, and the run is shortened by it.

==========  ==========================================================================================================
rule        the rate
==========  ==========================================================================================================
lecun       1 / lambda_max by an online power iteration, plain SGD (LeCun, Simard & Pearlmutter 1993)
lambda cap  0.1 under a cosine, capped at 2 (1 - beta) / lambda_max of the same iteration, momentum 0.9
cdat        2 n / d with n and d running averages of -g'u and |u'Hu| along the update (Roulet et al. 2024, 2407.06183)
gen         the vertex of a parabola through three losses along the update, each eighth step, at most doubled or halved
            (Bu & Xu 2024, 2407.02772; here on the step's own batch), times a linear decay
==========  ==========================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from control_runs import Cell, Setup
from control_tasks import TASKS, Problem
from torch import Tensor, nn

from optland import vectors

__all__ = ["PUBLISHED"]

MOMENTUM, DECAY, DISTANCE, FORWARD = 0.9, 5e-4, 0.01, 1 / 3
EVERY = 8
"""Steps between two parabolas of GeN."""


class Ruled(torch.optim.SGD):
    """SGD whose rate is set anew before each step; what more it evaluates is in ``last_evaluations``."""

    def __init__(self, model: nn.Module, lr: float, momentum: float, steps: float) -> None:
        super().__init__(model.parameters(), lr, momentum=momentum, weight_decay=DECAY)
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.last_evaluations = 1.0
        self.steps, self.made = max(steps, 1.0), 0

    def rate(self, closure: Callable[[], Any], loss: float) -> float:
        """The rate of this step; the gradients are those of the present weights when it returns."""
        raise NotImplementedError

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        assert closure is not None
        self.last_evaluations = 1.0
        with torch.enable_grad():
            loss = closure()
        self.param_groups[0]["lr"] = self.rate(closure, float(loss.detach()))
        self.made += 1
        super().step()
        return loss

    def gradient(self) -> list[Tensor]:
        """The present gradients, copied."""
        return [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in self.weights]

    def update(self) -> list[Tensor]:
        """What the step moves by per unit of rate: the negative of the momentum after this gradient."""
        beta = self.param_groups[0]["momentum"]
        found = []
        for p, g in zip(self.weights, self.gradient(), strict=True):
            buffer = self.state.get(p, {}).get("momentum_buffer")
            d = g + DECAY * p.detach()
            found.append(-(d if buffer is None else beta * buffer + d))
        return found

    def displaced(
        self, closure: Callable[[], Any], by: list[Tensor], cost: float
    ) -> tuple[float, list[Tensor]]:
        """Loss and gradient at w + ``by``; weights and gradients are as before."""
        before, kept = vectors.clone(self.weights), self.gradient()
        with torch.no_grad():
            vectors.axpy_(1.0, by, self.weights)
        with torch.enable_grad():
            loss = float(closure().detach())
        found = self.gradient()
        with torch.no_grad():
            vectors.copy_(self.weights, before)
            for p, g in zip(self.weights, kept, strict=True):
                p.grad = g
        self.last_evaluations += cost
        return loss, found

    def product(self, closure: Callable[[], Any], u: list[Tensor]) -> list[Tensor]:
        """H u, by the difference of two gradients."""
        length = float(vectors.norm(u))
        h = DISTANCE / length if length > 0 else 0.0
        _, there = self.displaced(closure, vectors.scaled(h, u), 1.0)
        here = self.gradient()
        return [(a - b) / h for a, b in zip(there, here, strict=True)] if h else here


class LeCun(Ruled):
    """psi <- (1 - gamma) psi + gamma H psi / |psi|; |psi| goes to lambda_max."""

    gamma = 0.05

    def start(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.psi = [torch.randn(p.shape, generator=draw) for p in self.weights]

    def sharpness(self, closure: Callable[[], Any]) -> float:
        if not hasattr(self, "psi"):
            self.start()
        unit = vectors.scaled(1.0 / float(vectors.norm(self.psi)), self.psi)
        product = self.product(closure, unit)
        gamma = max(self.gamma, 1.0 / (1 + self.made))
        self.psi = [(1 - gamma) * a + gamma * b for a, b in zip(self.psi, product, strict=True)]
        return max(float(vectors.norm(self.psi)), 1e-12)

    def rate(self, closure: Callable[[], Any], loss: float) -> float:
        return 1.0 / self.sharpness(closure)


class LambdaCap(LeCun):
    """A usual rate and schedule, under the edge of small batches."""

    def rate(self, closure: Callable[[], Any], loss: float) -> float:
        shape = 0.5 * (1 + math.cos(math.pi * min(1.0, self.made / self.steps)))
        return min(0.1 * shape, 2 * (1 - MOMENTUM) / self.sharpness(closure))


class Cdat(Ruled):
    """On the edge of the quadratic along the update."""

    n, d = 0.0, 0.0

    def rate(self, closure: Callable[[], Any], loss: float) -> float:
        u = self.update()
        slope = max(-float(vectors.dot(self.gradient(), u)), 0.0)
        curvature = abs(float(vectors.dot(u, self.product(closure, u))))
        self.n, self.d = 0.9 * self.n + 0.1 * slope, 0.9 * self.d + 0.1 * curvature
        return 2.0 * self.n / (self.d + 1e-12)


class GeN(Ruled):
    """The parabola's vertex, smoothed."""

    height = 1e-3

    def rate(self, closure: Callable[[], Any], loss: float) -> float:
        if self.made % EVERY == 0:
            u = self.update()
            high, low = (
                self.displaced(closure, vectors.scaled(x * self.height, u), FORWARD)[0] for x in (1.0, -1.0)
            )
            curvature = high - 2 * loss + low
            if curvature > 0 and low > high:
                vertex = 0.5 * self.height * (low - high) / curvature
                self.height *= (min(max(vertex / self.height, 0.5), 2.0)) ** 0.5
            elif low > high:
                self.height *= 2.0**0.5
        return self.height * max(1.0 - self.made / self.steps, 0.0)


def _method(
    kind: type[Ruled], lr: float, momentum: float, evaluations: float
) -> Callable[[Cell, Problem], Setup]:
    def method(cell: Cell, problem: Problem) -> Setup:
        samples = int(cell.samples / evaluations)
        steps = samples / (cell.batch or TASKS[cell.task].batch)
        return Setup(kind(problem.model, lr, momentum, steps), samples=samples)

    return method


PUBLISHED = {
    "lecun": _method(LeCun, 1e-3, 0.0, 2.0),
    "lambda cap": _method(LambdaCap, 0.1, MOMENTUM, 2.0),
    "cdat": _method(Cdat, 1e-3, MOMENTUM, 2.0),
    "gen": _method(GeN, 1e-3, MOMENTUM, 1.0 + 2 * FORWARD / EVERY),
}
