r"""Eigen-SAM: turn the ascent toward the sharpest direction.

.. math:: \epsilon = \rho \, \frac{u}{\|u\|}, \qquad
          u = \hat g + \alpha \, \mathrm{sign}\langle \hat g, v \rangle \, v_\perp, \qquad v_\perp = v - \langle v,
          \hat g \rangle \hat g

with g-hat = g / ||g|| and v the eigenvector of the Hessian's largest eigenvalue, from Lanczos runs that start at the
last one. SAM reduces the largest eigenvalue only so far as g points along v; this makes it point there.

**Cost.** 2 gradient evaluations per sample and step, and a Lanczos run of at most ``max_matvecs`` products every
``refresh`` steps (3 to 10 at its default accuracy); one copy of the weights in the state.

**When.** When the sharpest direction is what is to be flattened, and alignment of g with it is low.

**Defaults.** ``alpha=0.2`` and ``refresh=100``, the authors'. ``rtol=0.1``: v is a direction, not a number to report.

**Caveats.** The objective should be a fixed sample in evaluation mode; v of one batch is mostly that batch's. The cost
of the products is on the objective's meter (``objective.cost_ge``).

Reference: Luo, Truong, Pham, Tran & Bui, "Explicit Eigenvalue Regularization Improves Sharpness-Aware Minimization",
2024, arXiv:2501.12666.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from optland import vectors
from optland.curvature import hessian, lanczos
from optland.objective import Objective
from optland.optim.memory import dated
from optland.optim.method import Gradients, Method
from optland.optim.two_pass import EngineOptions, TwoPass

__all__ = ["EigenSAM"]

_VECTOR = "top_eigenvector"


class _Eigen(Method):
    remembers = (_VECTOR,)
    counts = True

    def __init__(
        self, objective: Objective, refresh: int, rtol: float, max_matvecs: int, **hyperparameters: float
    ) -> None:
        super().__init__(**hyperparameters, **{dated(_VECTOR): 0})
        self.objective, self.refresh, self.rtol, self.max_matvecs = objective, refresh, rtol, max_matvecs

    def direction(self, at: Gradients) -> list[Tensor]:
        """The ascent direction u."""
        if any(group.get("maximize") for group in at.groups):
            raise ValueError(
                "Eigen-SAM looks for the sharpest direction of a loss that is minimized, and its base has "
                "maximize=True; minimize the negated loss instead"
            )
        v = self._eigenvector(at)
        length = vectors.norm(at.g)
        g_hat = vectors.scaled(torch.where(length > 0, 1.0 / length, torch.zeros_like(length)), at.g)
        along = vectors.dot(g_hat, v)
        # u = (1 - alpha |<g, v>|) g + alpha sign(<g, v>) v, coordinate by coordinate
        return [
            g + alpha * along.sign().to(g.dtype) * (x - along.to(g.dtype) * g)
            for g, x, alpha in zip(g_hat, v, at.of("alpha"), strict=True)
        ]

    def _eigenvector(self, at: Gradients) -> list[Tensor]:
        memory = at.memory
        if memory.is_stale(_VECTOR, self.refresh):
            params = list(self.objective.sources)
            last = memory.recall(_VECTOR, params)
            with at.unrecorded(), hessian(self.objective) as H:
                found = lanczos(
                    H,
                    ends="top",
                    rtol=self.rtol,
                    start=[last] if bool(vectors.norm(last) > 0) else None,
                    max_matvecs=self.max_matvecs,
                    seed=memory.steps,
                )
            if not found.vectors:  # the objective is not finite here: climb as SAM until it is
                return memory.recall(_VECTOR, at.params)
            # The objective may see parameters that another optimizer trains.
            mine = {p for group in memory.groups for p in group["params"]}
            kept = [(p, v) for p, v in zip(params, found.vectors[0], strict=True) if p in mine]
            memory.remember(_VECTOR, [p for p, _ in kept], [v for _, v in kept])
        return memory.recall(_VECTOR, at.params)


class EigenSAM(TwoPass):
    """Eigen-SAM around any optimizer.

    Args:
        base: The optimizer that makes the update.
        objective: The loss whose sharpest direction is meant: the model that is trained, on a fixed sample.
        rho: Radius ||eps||.
        alpha: Weight of the eigenvector.
        refresh: Updates from one Lanczos run to the next.
        rtol: Wanted residual relative to the eigenvalue.
        max_matvecs: Most products of one run.
        **engine: Options of :class:`~optland.optim.two_pass.TwoPass`.

    Raises:
        TypeError: ``base`` is not an optimizer instance, or ``objective`` is not an objective.
        ValueError: ``rho`` or ``alpha`` is negative or not finite, or ``refresh`` is not positive.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(net, lambda m, x: m(x).square().mean(), [torch.tensor([[1.0, 0.0], [0.0, 2.0]])])
        >>> EigenSAM(torch.optim.SGD(net.parameters(), lr=0.1), objective).param_groups[0]["sam_alpha"]
        0.2
    """

    def __init__(
        self,
        base: Optimizer,
        objective: Objective,
        rho: float = 0.05,
        alpha: float = 0.2,
        *,
        refresh: int = 100,
        rtol: float = 0.1,
        max_matvecs: int = 20,
        **engine: Unpack[EngineOptions],
    ) -> None:
        if not isinstance(objective, Objective):
            raise TypeError(
                f"objective is a {type(objective).__name__}; pass Objective(model, loss_fn, [batch]) on a fixed sample"
            )
        if refresh < 1:
            raise ValueError(f"refresh={refresh} is not possible; use 1 for every step, or more")
        method = _Eigen(objective, refresh, rtol, max_matvecs, rho=rho, alpha=alpha)
        super().__init__(base, method, **engine)
