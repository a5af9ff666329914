r"""``NegativeCurvature``: any optimizer, with an escape from saddles along the most negative curvature.

.. math:: w \leftarrow w \pm t\, v, \qquad v = \arg\min_{\lVert u \rVert = 1} u^\top H u

While a sign of a standstill is missing (:mod:`~optland.optim.saddle.trigger`) each step is the base's own, bit for bit.
When one shows, the curvature is explored in a Krylov space that starts at the gradient *and* at a random vector, so it
works at an exactly zero gradient and on a stable ridge. A negative direction beyond its residual is a strict saddle:
the length t is found by doubling while the loss falls, and the move is kept only if it does. A point whose curvature
cannot be told from zero is degenerate and left by a random kick where the loss falls along one; a minimum is left
alone. Where the budget was too small to tell, the verdict is ``unknown``.

**Minibatches.** The most negative eigenvector of a minibatch is mostly noise. Give ``probe``, an objective over several
batches, to look at and to search the length on, and ``check``, one over other data: an escape then needs the two-batch
certificate (negative curvature along v on the independent batches, at 99 %) and a lower loss there.

**Cost.** Two closure calls a product (a central difference of gradients), or one Hessian product with ``probe``;
looks are rationed to 2 % of the training's calls; where training is steady, 100 more and all that led off a point.

References: Carmon et al. 2018, arXiv:1611.00756; Liu et al. 2018, arXiv:1709.08571 (negative curvature descent); Xu et
al. 2018, arXiv:1711.01944 and Allen-Zhu & Li 2018, arXiv:1711.06673 (products from gradients alone).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from optland import vectors
from optland.curvature import hessian
from optland.objective import Objective
from optland.optim.delegate import Closure
from optland.optim.saddle.evaluations import Evaluations, OnObjective
from optland.optim.saddle.krylov import Krylov, explore
from optland.optim.saddle.neon import neon
from optland.optim.saddle.trigger import Trigger
from optland.optim.saddle.verdict import judge
from optland.optim.saddle.way_off import ROUNDING, carry_out, first_length, outcome, require, way_off
from optland.optim.saddle.wrapper import SaddleWrapper

__all__ = ["NegativeCurvature"]


class NegativeCurvature(SaddleWrapper):
    """Steps as ``base`` does and escapes from its saddles along negative curvature.

    Args:
        base: Any optimizer, also of the SAM family.
        model: Its module; needed where buffers change in a forward pass (BatchNorm).
        trigger: When to look; default: the gradient is small, or the weights stand still.
        max_matvecs: Hessian products of a look; 20. In d dimensions d of them see everything.
        radius: First length tried along a direction; None takes 1 % of the weights' norm, at least 1e-3.
        probe: Objective over batches to look at instead of the closure's own.
        check: Objective over independent batches that has to agree; with ``probe``. What both cost counts as closure
            calls, one for each of their batches, which should be of the training's size.
        search: ``lanczos``, or ``neon``, the power method by gradients alone, for comparison
            (:mod:`~optland.optim.saddle.neon`); its steps are ``2 * max_matvecs``, of one call each.
        seed: Of the random parts.

    Raises:
        TypeError: ``base`` is not an optimizer instance.
        ValueError: ``max_matvecs`` below 2, a radius that is not positive, an unknown search, ``check`` without
            ``probe``, ``probe`` with ``neon``, or a base that maximizes.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))        # the saddle of x^2 - y^2 + y^4
        >>> optimizer = NegativeCurvature(torch.optim.SGD([w], lr=0.1))
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = w[0] ** 2 - w[1] ** 2 + w[1] ** 4
        ...     loss.backward()
        ...     return loss
        >>> for _ in range(30):
        ...     _ = optimizer.step(closure)
        >>> round(closure().item(), 3), optimizer.events[0].verdict
        (-0.25, 'strict saddle')
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        model: nn.Module | None = None,
        trigger: Trigger | None = None,
        max_matvecs: int = 20,
        radius: float | None = None,
        probe: Objective | None = None,
        check: Objective | None = None,
        search: Literal["lanczos", "neon"] = "lanczos",
        seed: int = 0,
    ) -> None:
        if search not in ("lanczos", "neon"):
            raise ValueError(f"search={search!r} is not known; use 'lanczos' or 'neon'")
        if search == "neon" and probe is not None:
            raise ValueError("search='neon' takes differences of the closure's gradients; leave probe out")
        require(max_matvecs, radius)
        if check is not None and probe is None:
            raise ValueError("check has to agree with a look at other data; give probe as well")
        super().__init__(base, model=model, trigger=trigger, seed=seed)
        self._require_minimizing()
        self.max_matvecs = max_matvecs
        self.radius = radius
        self.probe = probe
        self.check = check
        self.search = search

    def _require_minimizing(self) -> None:
        if any(group.get("maximize") for group in self.param_groups):
            raise ValueError(
                f"NegativeCurvature leaves a saddle downwards, and this {type(self.base).__name__} has maximize=True; "
                "minimize the negated loss instead"
            )

    def _act(self, closure: Closure, reason: str) -> None:
        self._require_minimizing()
        dim = vectors.numel(self._weights)
        max_matvecs = min(self.max_matvecs, dim)
        if not self.trigger.affords(self._expected(max_matvecs)):
            return
        before = self._aside()
        # With ``probe`` the closure's one batch has no say: along a direction its slope is mostly noise.
        seen = (
            Evaluations(closure, self._weights, self.model) if self.probe is None else OnObjective(self.probe)
        )
        here = [p.detach().clone() for p in seen.params]
        loss, g = seen.at(here)
        if not (math.isfinite(loss) and math.isfinite(float(vectors.norm(g)))):
            self.trigger.looked(seen.calls, moved=False)
            return  # training has diverged; there is no curvature to look at
        space = self._explore(seen, g, max_matvecs)
        verdict = judge(space, dim, rounding=ROUNDING)
        start = first_length(self._weights, self.radius)
        move, against = way_off(
            seen, space, verdict, loss, g, start=start, check=self.check, generator=self.generator
        )
        kind, why = outcome(verdict, move, against)
        calls = seen.calls + math.ceil(self._aside() - before)
        self.trigger.looked(calls, moved=move is not None)
        event = carry_out(
            seen,
            space,
            verdict,
            move,
            loss,
            kind=kind,
            step=self._step,
            calls=calls,
            reason=f"{reason}; {why}",
        )
        self._note(event, verdict)

    def _expected(self, max_matvecs: int) -> int:
        """Estimated closure calls of a look: with ``probe``, of batches of the training's size."""
        if self.probe is None:
            return 2 * max_matvecs + 10
        return math.ceil(2.5 * max_matvecs * len(list(self.probe.batches)))

    def _aside(self) -> float:
        """Cost of the objectives so far, in closure calls of one of their batches each."""
        return sum(
            o.cost_ge * len(list(o.batches)) / o.num_samples
            for o in (self.probe, self.check)
            if o is not None
        )

    def _explore(self, seen: Evaluations, g: list[Any], max_matvecs: int) -> Krylov:
        if self.search == "neon":
            product = partial(seen.forward_product, g=g)
            return neon(product, g, steps=2 * max_matvecs, generator=self.generator)
        if self.probe is None:
            return explore(
                seen.product,
                g,
                budget=max_matvecs,
                generator=self.generator,
                until_negative=True,
                doubt=seen.doubt,
            )
        with hessian(self.probe) as H:
            return explore(
                H.matvec,
                g,
                budget=max_matvecs,
                generator=self.generator,
                until_negative=True,
            )
