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
from optland.optim.gates import Gate, as_gate, gate_state
from optland.optim.gradients import own, require_dense, spend
from optland.optim.guards import PassGuard
from optland.optim.method import Gradients
from optland.optim.selection import Selection, selected
from optland.optim.telemetry import Telemetry

__all__ = ["Climber"]


@dataclass(slots=True)
class Ascent:
    """A step in flight: what pass one leaves for the way back."""

    moved: list[Tensor]  # the perturbed parameters
    weights: list[Tensor]  # their values at w, bit for bit
    length: Tensor | None  # ||eps|| as asked for, where telemetry wants it
    gradients: dict[Tensor, Tensor]  # g of every parameter that had one
    beyond: dict[Tensor, Tensor] | None = None  # h, once the weights have gone on to w - eps


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
            base, {**hyperparameters, **gate_state(self.gate)}, counts=counts or gate is not None
        )
        self.check_finite, self.only, self.telemetry_every = check_finite, only, telemetry_every
        self.telemetry = Telemetry()
        self.last_evaluations = 0
        self._guard = PassGuard(model)
        self._ascent: Ascent | None = None
        self._loss_scale: float | Tensor = 1.0
        self._g_norm = torch.zeros(())
        self._norms: list[Tensor] = []  # of all gradients of this step, for the finite check
        self._selected = selected(only, self._params, model)
        self._until_measured = 0
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
            {key: group[key] for key in gate_state(self.gate)} for group in self.param_groups
        ]
        return bool(self.gate(self))  # type: ignore[arg-type]  # always a TwoPass

    def gradient_norm(self) -> float:
        """The length of g, in the units of the unscaled loss; the host waits for it."""
        return float(self._g_norm) / float(self._loss_scale)

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

    def _begin(self, loss_scale: float | Tensor | None = None) -> None:
        """A step, or its next micro-batch, has its first gradients in ``.grad``."""
        self._pending = False
        self._scale_told = loss_scale is not None
        self._loss_scale = 1.0 if loss_scale is None else loss_scale
        self._g_norm = vectors.norm([g for _, g in self._gradients()])
        self._norms.append(self._g_norm)

    def _forget_step(self) -> None:
        """Nothing of an earlier step, taken or not, goes into the next one."""
        self._norms = []
        self._drop_proposals()
        self.telemetry.clear()
        self._until_measured -= 1
        if self._until_measured < 0:
            self._until_measured = self.telemetry_every - 1

    @property
    def _measuring(self) -> bool:
        return self.telemetry_every > 0 and self._until_measured == self.telemetry_every - 1

    def _gradients(self) -> list[tuple[Tensor, Tensor]]:
        """All (parameter, gradient) pairs there are now."""
        return [(p, require_dense(p.grad)) for p in self._params if p.grad is not None]

    def _at(self, g: dict[Tensor, Tensor], *, perturbed_only: bool = False) -> Gradients:
        """The entries of a step, in the order of the groups."""
        at = Gradients([], [], [], [], [], self._loss_scale)
        for group in self.param_groups:
            for p in group["params"]:
                if p in g and not (perturbed_only and self._selected is not None and p not in self._selected):
                    at.params.append(p)
                    at.groups.append(group)
                    at.g.append(g[p])
        return at

    # Up ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _ascend(self) -> None:
        g = dict(self._gradients())
        self._guard.begin_second()
        try:
            self._ascent = self._climb(g)
        except BaseException:
            self._guard.end_second()
            raise
        self._ascent.gradients = own(g)
        spend(self._params)
        self.telemetry.note(g_norm=self._g_norm)
        if self._ascent.length is not None:
            self.telemetry.note(eps_norm=self._ascent.length)
        reach("optim.between_passes")

    def _climb(self, g: dict[Tensor, Tensor]) -> Ascent:
        """Move the weights to w + eps."""
        at = self._at(g, perturbed_only=True)
        if self.true_units or self.remembers:
            at.g = self._unscaled(at.g)
        eps = self.perturbation(at)
        length = vectors.norm(eps) if self._measuring else None
        ascent = Ascent(at.params, vectors.clone(at.params), length, g)
        try:
            vectors.axpy_(1.0, eps, ascent.moved)
        except BaseException:  # an interrupt half way through must not leave some tensors perturbed
            vectors.copy_(ascent.moved, ascent.weights)
            raise
        return ascent

    def _visit(self, g: dict[Tensor, Tensor]) -> Ascent:
        """The ascent of :meth:`perturbed`, given the present gradients."""
        return self._climb(g)

    def _unscaled(self, g: list[Tensor]) -> list[Tensor]:
        scale = self._loss_scale
        return g if isinstance(scale, float) and scale == 1.0 else [x / scale for x in g]

    @torch.no_grad()
    def _cross(self, ascent: Ascent) -> None:
        """From w + eps, where h is known, to w - eps."""
        ascent.beyond = own(dict(self._gradients()))
        eps = vectors.subtract(ascent.moved, ascent.weights)
        vectors.copy_(ascent.moved, ascent.weights)
        vectors.axpy_(-1.0, eps, ascent.moved)
        self._guard.repeat_second()
        spend(self._params)

    # Back --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _descend(self, ascent: Ascent) -> None:
        """Back to w with all gradients in hand: telemetry, and the combined gradient into ``.grad``."""
        last = dict(self._gradients())
        h, opposite = (last, {}) if ascent.beyond is None else (ascent.beyond, last)
        eps = vectors.subtract(ascent.moved, ascent.weights) if self._measuring else []
        self._land()
        self._guard.end_second()
        at = self._at(_filled(ascent.gradients, h | opposite))
        at.h = [h[p] if p in h else torch.zeros_like(p) for p in at.params]
        at.opposite = (
            [opposite[p] if p in opposite else torch.zeros_like(p) for p in at.params] if opposite else []
        )
        if self.check_finite or self._measuring:
            self._norms += [vectors.norm(x) for x in (at.h, at.opposite) if x]
        if self._measuring:
            # h was taken at w + eps, also where the weights have gone on to the other side since.
            signed = eps if ascent.beyond is None else [-e for e in eps]
            self._measure(at, dict(zip(ascent.moved, signed, strict=True)))
        combined = self.combine(at)
        if combined is not at.h or opposite:  # else .grad holds it already
            for p, gradient in zip(at.params, combined, strict=True):
                p.grad = gradient

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
            loss_scale=self._loss_scale,
        )

    def _abandon(self) -> None:
        """Back to w as if the second pass had not begun."""
        ascent = self._land()
        self._guard.end_second()
        for p in self._params:
            p.grad = ascent.gradients.get(p)

    def _land(self) -> Ascent:
        ascent, self._ascent = self._ascent, None
        assert ascent is not None
        vectors.copy_(ascent.moved, ascent.weights)
        return ascent

    def _finite(self) -> Tensor:
        return torch.stack([n.to(self._norms[0].device) for n in self._norms]).isfinite().all()

    def _is_finite(self) -> bool:
        """The one place in a step where the host waits for the device; on the CPU it has not to wait."""
        if all(n.device.type == "cpu" for n in self._norms):
            return all(math.isfinite(n.item()) for n in self._norms)
        return bool(self._finite())


def _filled(g: dict[Tensor, Tensor], h: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
    """G of every parameter that either pass used; zero where only the later one did."""
    return g | {p: torch.zeros_like(p) for p in h if p not in g}
