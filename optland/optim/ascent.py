"""The way up to w + eps and the way back: what every form of a two-pass step is made of.

Weights come back by copy, bit for bit: adding eps and subtracting it again would leave rounding behind, another on
every rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optland import vectors
from optland.failpoints import reach
from optland.optim.amp import ScalerAware
from optland.optim.base_step import BaseStep
from optland.optim.gates import Gate, as_gate, gate_state
from optland.optim.gradients import own, present, require_dense
from optland.optim.guards import PassGuard
from optland.optim.keys import key
from optland.optim.method import Gradients, Method
from optland.optim.notices import Notices
from optland.optim.replicas import Replicas
from optland.optim.selection import Selection, selected
from optland.optim.telemetry import Telemetry

__all__ = ["Climber"]


@dataclass(slots=True)
class Ascent:
    """A step in flight: what pass one leaves for the way back."""

    moved: list[Tensor]  # the perturbed parameters
    weights: list[Tensor]  # their values at w, bit for bit
    length: Tensor | None  # ||eps|| as asked for, where telemetry wants it
    gradients: list[Tensor | None]  # g of every parameter, None where there was none
    beyond: list[Tensor | None] | None = None  # h, once the weights have gone on to w - eps


class Climber(ScalerAware):
    """Moves the weights and keeps the gradients of both places apart."""

    def __init__(
        self,
        base: Optimizer,
        hyperparameters: dict[str, Any],
        *,
        model: nn.Module | None,
        check_finite: bool,
        gate: Gate | str | None,
        only: Selection,
        telemetry_every: int,
        counts: bool,
    ) -> None:
        if telemetry_every < 0:
            raise ValueError(f"telemetry_every={telemetry_every} is negative; 1 measures every step, 0 none")
        self.gate = as_gate(gate)
        super().__init__(
            base,
            {**hyperparameters, **gate_state(self.gate)},
            counts=counts or gate is not None or telemetry_every > 1,
        )
        self.check_finite, self.only, self.telemetry_every = check_finite, only, telemetry_every
        self.telemetry = Telemetry()
        self.last_evaluations = 0
        self.last_skipped = False
        self._notices = Notices()
        self._guard = PassGuard(model, self._notices)
        self._replicas = Replicas()
        self._replicas.find(self._params, model)
        self._passes_apart: list[bool] = []  # of each pass of this step: its gradient is this rank's own
        self._apart = False  # what is in .grad is this rank's own
        self._norm_asked = False  # by the gate, for this step
        self._aside: dict[
            Tensor, Tensor
        ] = {}  # what after_update() adds, and adds up over micro-batches like .grad
        self._base_step = BaseStep(base)
        self._losses: list[Any] = []  # of this step's micro-batches, as their closures told them
        self._ascent: Ascent | None = None
        self._loss_scale: float | Tensor = 1.0
        self._share = 1.0  # of this micro-batch in the mean loss
        self._shares = 0.0  # of the micro-batches that are in the sum
        self._g_norm = torch.zeros(())
        self._norms: list[Tensor] = []  # of all gradients of this step, for the finite check
        self._selected = selected(only, self._params, model)
        self._measuring = False
        self._gate_before: list[dict[str, Any]] = []  # what the gate remembered before this step asked it

    @property
    def model(self) -> nn.Module | None:
        """The guarded module."""
        return self._guard.model

    @property
    def beginnings(self) -> int:
        """A number that changes whenever a pass one begins, or may begin."""
        return self._guard.beginnings

    @property
    def is_perturbed(self) -> bool:
        """Whether the weights are at w + eps now."""
        return self._ascent is not None

    def due(self) -> bool:
        """Whether this step takes its second pass: what the gate says."""
        if self.gate is None:
            return True
        self._gate_before = self._gate_before or [
            {key(name): group[key(name)] for name in gate_state(self.gate)} for group in self.param_groups
        ]
        self._norm_asked = False
        decision = bool(self.gate(self))
        if self._norm_asked and any(self._passes_apart):
            raise RuntimeError(
                f"pass one ran under no_sync(), so g is this rank's own, and gate={self.gate!r} asks for its length: "
                "the ranks would decide apart. Leave no_sync() out of pass one, or take a gate that counts, as every(5)"
            )
        return decision

    def gradient_norm(self) -> float:
        """The length of g, in the units of the mean loss of its samples; the host waits for it."""
        self._norm_asked = True
        return float(self._g_norm) / float(self._unit)

    @property
    def _unit(self) -> float | Tensor:
        """What the gradients are too large by: the loss scale, and the share where a micro-batch's loss has one."""
        return self._loss_scale * self._share

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; hyper-parameters it does not name take their defaults."""
        super().add_param_group(param_group)
        self._selected = selected(self.only, self._params, self.model)

    def _drop_proposals(self) -> None:
        super()._drop_proposals()
        for i, before in enumerate(self._gate_before):
            self.param_groups[i].update(before)
        self._gate_before = []

    def _write_down(self) -> None:
        super()._write_down()
        self._gate_before = []

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, or a plain base optimizer's; rho then keeps its default."""
        super().load_state_dict(state_dict)
        self._gate_before = []
        self._drop_proposals()

    # Beginning ---------------------------------------------------------------------------------------

    def _begin(self, loss_scale: float | Tensor | None = None, share: float = 1.0) -> None:
        """A step, or its next micro-batch, has its first gradients in ``.grad``."""
        self._share = self._checked_share(share)
        self._pending = False
        self._scale_told = loss_scale is not None
        self._loss_scale = 1.0 if loss_scale is None else loss_scale
        g = present(self._params)
        require_dense(g)
        self._g_norm = vectors.norm([x for x in g if x is not None])
        self._passes_apart = [self._replicas.apart]
        if not self._passes_apart[0]:  # else it is no matter of all ranks whether it is finite
            self._norms.append(self._g_norm)
        elif self.remembers:
            raise RuntimeError(
                f"pass one ran under no_sync(), so g is this rank's own, and so would be what {type(self).__name__} "
                "remembers of it: the replicas would drift apart. Leave no_sync() out of pass one"
            )

    def _checked_share(self, share: float) -> float:
        if not 0.0 < share <= 1.0:
            raise ValueError(
                f"share={share} is not possible; use what the loss was multiplied by, 1 / k for k parts"
            )
        if self.shares_matter and self._shares + share > 1.0 + 1e-6:
            raise RuntimeError(
                f"the perturbation of {type(self).__name__} depends on the length of the gradient, and the shares of "
                f"the micro-batches of this step add up to {self._shares + share:g}; tell each one the factor of its "
                "loss: accumulate(closure, share=1 / k), or perturb(share=1 / k), for k equal parts"
            )
        return share

    def _forget_step(self) -> None:
        """Nothing of an earlier step, taken or not, goes into the next one."""
        self._keys.refuse_short(self.param_groups)
        self._replicas.find(self._params, self.model)
        self._norms, self._shares, self._losses = [], 0.0, []
        self._passes_apart, self._apart, self._aside = [], False, {}
        self._drop_proposals()
        self.telemetry.clear()
        every = self.telemetry_every
        self._measuring = every == 1 or (every > 1 and self._period != self.telemetry.period)

    @property
    def _period(self) -> int:
        """The ``telemetry_every`` updates that this one belongs to; the log's rows close one each."""
        return (self.steps + 1) // self.telemetry_every

    def _gradients(self) -> list[tuple[Tensor, Tensor]]:
        """All (parameter, gradient) pairs there are now."""
        return [(p, p.grad) for p in self._params if p.grad is not None]

    def _at(self, g: list[Tensor | None], *, perturbed_only: bool = False) -> Gradients:
        """The entries of a step, those with a gradient, in the order of the groups."""
        params = self._params
        groups = [group for group in self.param_groups for _ in group["params"]]
        gradients = [x for x in g if x is not None]
        only = self._selected if perturbed_only else None
        if only is not None or len(gradients) < len(params):
            kept = [
                i
                for i, (p, x) in enumerate(zip(params, g, strict=True))
                if x is not None and (only is None or p in only)
            ]
            params, groups = [params[i] for i in kept], [groups[i] for i in kept]
            gradients = [x for i in kept if (x := g[i]) is not None]
        return Gradients(params, groups, gradients, [], [], self._unit)

    # Up ----------------------------------------------------------------------------------------------

    @vectors.no_graph
    def _ascend(self) -> None:
        g = present(self._params)
        self._guard.begin_second(self._params)
        try:
            self._ascent = self._climb(g, self._g_norm)
        except BaseException:
            self._guard.end_second()
            raise
        self._ascent.gradients = own(self._params, g)
        self.telemetry.note(g_norm=self._g_norm)
        if self._ascent.length is not None:
            self.telemetry.note(eps_norm=self._ascent.length)
        reach("optim.between_passes")

    def _climb(self, g: list[Tensor | None], g_norm: Tensor | None = None) -> Ascent:
        """Move the weights to w + eps; ``g_norm`` is the length of all of g, where it is known."""
        at = self._at(g, perturbed_only=True)
        as_they_are = at.g
        if self.true_units or self.remembers:
            at.g = _divided(at.g, self._unit)
        if self._selected is None and at.g is as_they_are:
            at.g_norm = g_norm
        factor = self.factor(at)
        step, eps = (1.0, self.perturbation(at)) if factor is None else (factor, at.g)
        length = abs(step) * vectors.norm(eps) if self._measuring else None
        ascent = Ascent(at.params, vectors.clone(at.params), length, g)
        try:
            vectors.axpy_(step, eps, ascent.moved)
        except BaseException:  # an interrupt half way through must not leave some tensors perturbed
            vectors.copy_(ascent.moved, ascent.weights)
            raise
        return ascent

    def _visit(self, g: list[Tensor | None], g_norm: Tensor) -> Ascent:
        """The ascent of :meth:`perturbed`, given the present gradients and their length."""
        return self._climb(g, g_norm)

    def _unscaled(self, g: list[Tensor]) -> list[Tensor]:
        """Without the loss scale, but with the share: what adds up to the whole batch's."""
        return _divided(g, self._loss_scale)

    @vectors.no_graph
    def _cross(self, ascent: Ascent) -> None:
        """From w + eps, where h is known, to w - eps."""
        self._require_dense_pass()
        self._passes_apart.append(self._replicas.apart)
        ascent.beyond = own(self._params, present(self._params))
        eps = vectors.subtract(ascent.moved, ascent.weights)
        vectors.copy_(ascent.moved, ascent.weights)
        vectors.axpy_(-1.0, eps, ascent.moved)
        self._guard.repeat_second()

    # Back --------------------------------------------------------------------------------------------

    @vectors.no_graph
    def _descend(self, ascent: Ascent) -> None:
        """Back to w with all gradients in hand: telemetry, and the combined gradient into ``.grad``."""
        params, last = self._params, present(self._params)
        h, opposite = (last, None) if ascent.beyond is None else (ascent.beyond, last)
        eps = vectors.subtract(ascent.moved, ascent.weights) if self._measuring else []
        if (
            eps and ascent.beyond is not None
        ):  # h was taken at w + eps, the weights have gone on to the other side
            torch._foreach_neg_(eps)
        self._land()
        self._guard.end_second()
        if self._hands_over_h and not self._measuring:
            if self.check_finite:
                self._norms.append(vectors.norm([x for x in h if x is not None]))
            return  # .grad holds h already
        seen = [g for g in (ascent.gradients, h, opposite) if g is not None]
        at = self._at(_filled(params, ascent.gradients, seen))
        at.h = [x for x in _filled(params, h, seen) if x is not None]
        at.opposite = [x for x in _filled(params, opposite, seen) if x is not None] if opposite else []
        if self.check_finite or self._measuring:
            self._norms += [vectors.norm(x) for x in (at.h, at.opposite) if x]
        if self._measuring:
            self._measure(at, dict(zip(ascent.moved, eps, strict=True)))
            eps = []  # frees them before the gradients are combined
        combined = self.combine(at)
        if combined is not at.h or opposite:  # else .grad holds it already
            for p, gradient in zip(at.params, combined, strict=True):
                p.grad = gradient

    @property
    def _hands_over_h(self) -> bool:
        return type(self).combine is Method.combine and not self.two_sided

    def _measure(self, at: Gradients, eps: dict[Tensor, Tensor]) -> None:
        """Curvature along eps and the angle of the gradients, of the perturbed parameters and of all."""
        moved = [i for i, p in enumerate(at.params) if p in eps]
        change = vectors.subtract([at.h[i] for i in moved], [at.g[i] for i in moved])
        realised = [eps[at.params[i]] for i in moved]
        self.telemetry.note(
            h_norm=vectors.norm(at.h) if at.opposite else self._norms[-1],
            g_dot_h=vectors.dot(at.g, at.h),
            eps_change=vectors.dot(realised, change),
            eps_norm_realised=vectors.norm(realised),
            loss_scale=self._unit,
        )

    def _require_dense_pass(self) -> None:
        """Call the step off where a pass at w + eps has brought a gradient that :func:`require_dense` refuses."""
        try:
            require_dense(present(self._params))
        except TypeError:
            self._abandon()
            raise

    def _note_apart(self) -> None:
        """The last pass is done: tell whether what it hands over is this rank's own, or part of it is."""
        passes = self._passes_apart = [*self._passes_apart, self._replicas.apart]
        if not self._hands_over_h and any(passes) != all(passes):
            self._abandon()
            raise RuntimeError(
                f"one pass ran under no_sync() and another did not, and {type(self).__name__} combines the gradients "
                "of both, of this rank's batch and of all; the step was undone. Put all passes of a micro-batch into "
                "no_sync(), or leave it out of the last micro-batch of each pass"
            )
        self._apart = passes[-1]

    def _agree(self) -> None:
        """Before the base or a GradScaler looks at ``.grad``: the same on every rank."""
        if self._apart:
            self._apart = False
            params = self._params
            for p, mean in zip(params, self._replicas.mean(params, present(params)), strict=True):
                p.grad = mean
            if self._aside:
                means = self._replicas.mean(params, [self._aside.get(p) for p in params])
                self._aside = {p: mean for p, mean in zip(params, means, strict=True) if mean is not None}
            self._norms.append(vectors.norm([g for _, g in self._gradients()]))

    def _abandon(self) -> None:
        """Back to w as if the second pass had not begun."""
        ascent = self._land()
        self._guard.end_second()
        for p, g in zip(self._params, ascent.gradients, strict=True):
            p.grad = g

    def _land(self) -> Ascent:
        ascent, self._ascent = self._ascent, None
        assert ascent is not None
        vectors.copy_(ascent.moved, ascent.weights)
        ascent.weights = []  # what comes now needs the room, and callers still hold the ascent
        return ascent

    def _finite(self) -> Tensor:
        norms = self._norms or [torch.zeros(())]
        return torch.stack([n.to(norms[0].device) for n in norms]).isfinite().all()

    def _is_finite(self) -> bool:
        """The one place in a step where the host waits for the device; on the CPU it has not to wait."""
        if all(n.is_cpu for n in self._norms):
            return all(math.isfinite(n.item()) for n in self._norms)
        return bool(self._finite())


def _divided(x: list[Tensor], scale: float | Tensor) -> list[Tensor]:
    return x if isinstance(scale, float) and scale == 1.0 else [t / scale for t in x]


def _filled(
    params: list[Tensor], gradients: list[Tensor | None], passes: list[list[Tensor | None]]
) -> list[Tensor | None]:
    """Gradients of one pass, zero where only another of the passes used the parameter."""
    if all(g is not None for g in gradients):
        return gradients
    used = [any(x is not None for x in of_passes) for of_passes in zip(*passes, strict=True)]
    return [
        torch.zeros_like(p) if g is None and is_used else g
        for p, g, is_used in zip(params, gradients, used, strict=True)
    ]
