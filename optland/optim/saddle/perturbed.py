r"""``PerturbedGradient`` and ``NoisyGradient``: leave a saddle by noise alone, without any curvature.

.. math:: w \leftarrow w + \xi, \quad \xi \sim \mathrm{Uniform}(\mathrm{Ball}_r)
          \qquad \text{or, every step,} \qquad g \leftarrow g + \xi, \quad \xi \sim N(0, \tfrac{r^2}{d} I)

After a kick from a strict saddle the part along the negative direction grows by 1 + lr |lambda| per step; it takes
about ln(sqrt(d) / r) / ln(1 + lr |lambda|) steps to length one, so the dimension costs a logarithm. The radius is that
of a ball: a Gaussian of that standard deviation is sqrt(d) times longer.

**Verdict.** Neither knows the Hessian, so what it stands on is always ``unknown``. Use ``NegativeCurvature`` to know.

**Cost.** None, beyond random numbers; a kick where training has only come to rest does no more harm than its radius.

References: Jin et al. 2017, arXiv:1703.00887 (kick when the gradient is small); Jin et al. 2019, arXiv:1902.04811
(noise in every step); Ge et al. 2015, arXiv:1503.02101.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from optland import vectors
from optland.curvature.points.verdict import PointKind
from optland.optim.delegate import Closure
from optland.optim.saddle.evaluations import is_lower
from optland.optim.saddle.moves import uniform_in_ball
from optland.optim.saddle.trigger import Trigger
from optland.optim.saddle.verdict import Event
from optland.optim.saddle.wrapper import SaddleWrapper
from optland.optim.two_pass import TwoPass

__all__ = ["NoisyGradient", "PerturbedGradient"]


class PerturbedGradient(SaddleWrapper):
    """Steps as ``base`` does and kicks the weights by a random vector where it stands still.

    Args:
        base: Any optimizer.
        radius: Of the ball that kicks are drawn from; 0.01.
        wait: Fewest steps between two kicks, in which the negative direction can grow; 50.
        trigger: When to kick; default: the gradient is small, or the weights stand still.
        model: Kept for symmetry with ``NegativeCurvature``; kicks need no forward pass.
        seed: Of the kicks.

    Raises:
        ValueError: A radius that is not positive, or a wait below 1.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        >>> optimizer = PerturbedGradient(torch.optim.SGD([w], lr=0.1))
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = w[0] ** 2 - w[1] ** 2 + w[1] ** 4
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(100):
        ...     _ = optimizer.step(closure)
        >>> round(closure().item(), 3), optimizer.verdict
        (-0.25, 'unknown')
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        radius: float = 0.01,
        wait: int = 50,
        trigger: Trigger | None = None,
        model: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        if not radius > 0 or not math.isfinite(radius):
            raise ValueError(f"radius {radius} must be above 0, for example 0.01")
        if wait < 1:
            raise ValueError(f"wait {wait} steps must be at least 1")
        super().__init__(base, model=model, trigger=trigger, seed=seed)
        self.radius = radius
        self.wait = wait
        self._last_kick = -wait
        self._loss_at_kick = math.inf

    def _act(self, closure: Closure, reason: str) -> None:
        if self._step - self._last_kick < self.wait:
            return
        kick = uniform_in_ball(self._weights, self.radius, self.generator)
        vectors.axpy_(1.0, kick, [p.data for p in self._weights])
        self._last_kick = self._step
        # A kick after which the loss fell has helped; where kicks change nothing they become rarer.
        loss = self.trigger.last_loss
        self.trigger.looked(0, moved=is_lower(loss, self._loss_at_kick, 1e-6))
        self._loss_at_kick = loss
        length = float(vectors.norm(kick))
        why = f"{reason}; kicked by {length:.3g}, the curvature is not known"
        nan = math.nan
        self._note(
            Event(self._step, "kick", PointKind.UNKNOWN, nan, nan, nan, length, 0, why), PointKind.UNKNOWN
        )

    def _own_state(self) -> dict[str, Any]:
        return {"last_kick": self._last_kick, "loss_at_kick": self._loss_at_kick}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self._last_kick, self._loss_at_kick = state["last_kick"], state["loss_at_kick"]


class NoisyGradient(SaddleWrapper):
    """Adds Gaussian noise of expected length ``radius`` to every gradient that ``base`` gets.

    Args:
        base: Any optimizer that takes one gradient per step.
        radius: Root mean square length of the noise, in the units of the gradient.
        seed: Of the noise.

    Raises:
        ValueError: A radius that is not positive, or a base that needs the closure: put it outside, as in
            ``NegativeCurvature(NoisyGradient(...))``.
        TypeError: A base that evaluates its closure more than once (the SAM family): noise would have to go into each.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        >>> optimizer = NoisyGradient(torch.optim.SGD([w], lr=0.1), radius=0.01)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = w[0] ** 2 - w[1] ** 2 + w[1] ** 4
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(100):
        ...     _ = optimizer.step(closure)
        >>> round(closure().item(), 2)
        -0.25
    """

    passes_closure_on = False

    def __init__(self, base: Optimizer, *, radius: float = 0.01, seed: int = 0) -> None:
        if not radius > 0 or not math.isfinite(radius):
            raise ValueError(f"radius {radius} must be above 0, in the units of the gradient")
        if isinstance(base, TwoPass):
            raise TypeError(
                f"NoisyGradient adds noise to the one gradient of a step, and {type(base).__name__} takes two; use "
                "PerturbedGradient(SAM(...))"
            )
        super().__init__(base, model=None, trigger=Trigger(()), seed=seed)
        self.radius = radius

    def _update(self, closure: Closure | None) -> Any:
        assert closure is not None
        self._step += 1
        with torch.enable_grad():
            loss = self._checked(closure)
        params = [p for p in self._weights if p.grad is not None]
        scale = self.radius / math.sqrt(max(vectors.numel(params), 1))
        for p in params:
            noise = torch.randn(p.shape, generator=self.generator, dtype=torch.float64)
            assert p.grad is not None
            p.grad.add_((scale * noise).to(p.grad))
        self.base.step()
        return loss

    def _act(self, closure: Closure, reason: str) -> None:
        """Nothing to look at: noise is in every step."""
