"""The base class of the second-order solvers: a Krylov space per step, escape from critical points, resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optland import vectors
from optland.curvature.points.verdict import PointKind
from optland.optim.saddle.evaluations import Evaluations
from optland.optim.saddle.krylov import Krylov, explore
from optland.optim.saddle.saved import ENTRY, decoded, encoded, makes_room
from optland.optim.saddle.verdict import Event, judge
from optland.optim.saddle.way_off import ROUNDING, carry_out, outcome, require, way_off
from optland.optim.uncompiled import uncompiled

__all__ = ["KrylovSolver"]


class KrylovSolver(Optimizer):
    """Base class of the three second-order solvers.

    Args:
        params: Parameters, or groups of them; a group may have an ``lr`` that scales its part of the step.
        lr: Share of the model's step that is taken; 1.
        max_matvecs: Hessian products per step; 20.
        tol: The gradient counts as zero below this share of the largest met so far, or 1e-10; 1e-6.
        radius: First length tried when leaving a critical point.
        model: The module, where buffers change in a forward pass.
        seed: Of the random part of the space.

    Raises:
        ValueError: ``lr`` is outside (0, 1], ``max_matvecs`` below 2, or ``tol`` or ``radius`` not above 0.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 1.0,
        max_matvecs: int = 20,
        tol: float = 1e-6,
        radius: float = 1e-2,
        model: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 < lr <= 1:
            raise ValueError(f"lr {lr} is a share of the model's step; use a number in (0, 1], such as 1.0")
        require(max_matvecs)
        if not tol > 0 or not radius > 0:
            raise ValueError(f"tol {tol} and radius {radius} must be above 0")
        super().__init__(params, {"lr": lr})
        self.param_groups[0][ENTRY] = ""
        self.max_matvecs, self.tol, self.radius, self.model = max_matvecs, tol, radius, model
        self.generator = torch.Generator().manual_seed(seed)
        self.verdict: PointKind = PointKind.UNKNOWN
        self.events: list[Event] = []
        self.closure_calls = 0
        self.largest = 0.0
        self._step = 0

    needs_closure: ClassVar[bool] = True

    @property
    def last_evaluations(self) -> int:
        """Closure calls of the last step."""
        return self._last_calls

    _last_calls = 0

    @uncompiled
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the loss before it.

        Raises:
            TypeError: No closure.
        """
        if closure is None:
            if makes_room(self.param_groups):
                return None  # there is no state beside the groups
            raise TypeError(
                f"{type(self).__name__}.step() needs a closure that zeroes, runs backward and returns the loss"
            )
        self._step += 1
        params = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        seen = Evaluations(closure, params, self.model)
        loss, g = seen.here()
        if used := [i for i, p in enumerate(params) if p.grad is not None]:
            # The others are flat for this loss, and random directions would carry them about.
            params, g = [params[i] for i in used], [g[i] for i in used]
            seen.params = params
        if not (math.isfinite(loss) and all(bool(torch.isfinite(t).all()) for t in g)):
            self._end(seen)
            return torch.tensor(loss)  # nothing can be told here; the weights stay
        norm = float(vectors.norm(g))
        self.largest = max(self.largest, norm)
        dim = vectors.numel(params)
        space = self._explore(seen, g)
        critical = norm <= max(self.tol * self.largest, 1e-10)
        self.verdict = PointKind.NOT_CRITICAL
        # Where no step of the model lowers the loss beyond rounding, the gradient is zero for all that can be told.
        if (critical and self._judges) or not self._descend(seen, space, loss):
            self._at_critical_point(seen, space, dim, loss, g)
        self._end(seen)
        return torch.tensor(loss)

    @property
    def _judges(self) -> bool:
        """Whether a gradient that counts as zero makes a critical point."""
        return True

    def _explore(self, seen: Evaluations, g: list[Tensor]) -> Krylov:
        return explore(seen.product, g, budget=self.max_matvecs, generator=self.generator, doubt=seen.doubt)

    def _end(self, seen: Evaluations) -> None:
        self._last_calls = seen.calls
        self.closure_calls += seen.calls

    def _at_critical_point(
        self, seen: Evaluations, space: Krylov, dim: int, loss: float, g: list[Tensor]
    ) -> None:
        verdict = judge(space, dim, rounding=ROUNDING)
        start, generator = self.radius, self.generator
        move, against = way_off(seen, space, verdict, loss, g, start=start, check=None, generator=generator)
        kind = "probe" if move is None else outcome(verdict, move, against)[0]
        self.verdict = verdict
        if move is not None:
            self.largest = 0.0
        why = f"the gradient counts as zero: {verdict}"
        self.events.append(
            carry_out(
                seen, space, verdict, move, loss, kind=kind, step=self._step, calls=seen.calls, reason=why
            )
        )

    def _descend(self, seen: Evaluations, space: Krylov, loss: float) -> bool:
        """Move to a lower loss; False where no step of the model gives one."""
        raise NotImplementedError

    def _try(self, seen: Evaluations, space: Krylov, s: Tensor) -> tuple[list[Tensor], float]:
        """The point of a step in the space, and its loss."""
        point = self._point(seen, space, s)
        return point, seen.value(point)

    def _point(self, seen: Evaluations, space: Krylov, s: Tensor) -> list[Tensor]:
        """The point of a step in the space; groups take their share of it."""
        step = space.vector(s)
        share_of = {p: float(group["lr"]) for group in self.param_groups for p in group["params"]}
        shares = [share_of[p] for p in seen.params]
        return [
            p.detach() + share * d.to(p.dtype) for p, d, share in zip(seen.params, step, shares, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Groups, and in the first of them what was learnt."""
        known = {
            "generator": self.generator.get_state(), "verdict": self.verdict.value, "largest": self.largest,
            "events": [e.to_dict() for e in self.events], "calls": self.closure_calls, "step": self._step,
            "scale": self._scale,
        }  # fmt: skip
        self.param_groups[0][ENTRY] = encoded(known)
        try:
            return super().state_dict()
        finally:
            self.param_groups[0][ENTRY] = ""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned."""
        super().load_state_dict(state_dict)
        text = self.param_groups[0].get(ENTRY)
        self.param_groups[0][ENTRY] = ""
        if not text:
            return
        own = decoded(text)
        self.generator.set_state(own["generator"])
        self.verdict, self.largest, self._scale = PointKind(own["verdict"]), own["largest"], own["scale"]
        self.closure_calls, self._step = own["calls"], own["step"]
        self.events = [Event.of(e) for e in own["events"]]

    _scale: float = 1.0
    """Damping, sigma or radius."""

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        own = {k: v for k, v in self.__dict__.items() if k not in state and not k.startswith("_optimizer_")}
        own.pop("step", None)
        return {**own, **state, "generator": self.generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        given = state.pop("generator", None)
        super().__setstate__(state)
        if isinstance(given, Tensor):
            self.generator = torch.Generator()
            self.generator.set_state(given)
