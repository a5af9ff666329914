"""The state machine of a two-pass step: moves to w + eps and back, and the gradients of both passes.

The phases of a step, and the moves from one to the next:

=============  ==================================================  =================================================
phase          where the weights are                               what may come
=============  ==================================================  =================================================
``IDLE``       at w, nothing begun                                 the way up, or a plain step
``WAITING``    at w, the only pass of the step still to come       the plain step, or none
``PERTURBED``  at w + eps                                          w - eps, the way back, or the step is called off
``CROSSED``    at w - eps, h in hand                               the way back, or the step is called off
``READY``      at w, ``.grad`` is what the base receives           the update, or another step
=============  ==================================================  =================================================

Weights come back by copy, bit for bit: adding eps and subtracting it again would leave rounding behind, another on
every rank.

**Cost over the weights**, beside the gradients: the length of g; a copy of w and one sum on the way up; a copy on the
way back; the length of h, for the finite check. On the CPU the copies and the gradients whose length is taken lie in
the same memory, one after the other (:class:`optland.flat.FlatCopies`): it is laid out once, filled when a step needs
it and given back at the end of it, so that no step makes a tensor for each parameter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optland import vectors
from optland.failpoints import reach
from optland.flat import FlatCopies
from optland.optim.gradients import is_spent, own, present, require_dense
from optland.optim.guards import PassGuard
from optland.optim.memory import Memory
from optland.optim.method import Gradients, Method, divided
from optland.optim.notices import Notices
from optland.optim.replicas import Replicas
from optland.optim.selection import Selection, selected
from optland.optim.telemetry import Telemetry
from optland.optim.units import Units

__all__ = ["MOVES", "Ascent", "Flight", "Phase"]


class Phase(StrEnum):
    """Where a step is; see the module docstring."""

    IDLE = "idle"
    WAITING = "waiting"
    PERTURBED = "perturbed"
    CROSSED = "crossed"
    READY = "ready"


MOVES: Mapping[Phase, frozenset[Phase]] = {
    Phase.IDLE: frozenset({Phase.WAITING, Phase.PERTURBED, Phase.READY}),
    Phase.WAITING: frozenset({Phase.READY, Phase.IDLE}),
    Phase.PERTURBED: frozenset({Phase.CROSSED, Phase.READY, Phase.IDLE}),
    Phase.CROSSED: frozenset({Phase.READY, Phase.IDLE}),
    Phase.READY: frozenset({Phase.IDLE}),
}
"""From each phase, where a step may go; to stay is no move."""


@dataclass(slots=True)
class Ascent:
    """The values of pass one that the return to w needs.

    Attributes:
        moved: The perturbed parameters.
        weights: Their values at w, bit for bit.
        length: ||eps|| as asked for, where telemetry wants it.
        gradients: g of every parameter, None where there was none.
        beyond: h, once the weights have gone on to w - eps.
    """

    moved: list[Tensor]  # the perturbed parameters
    weights: list[Tensor]  # their values at w, bit for bit
    length: Tensor | None  # ||eps|| as asked for, where telemetry wants it
    gradients: list[Tensor | None]  # g of every parameter, None where there was none
    beyond: list[Tensor | None] | None = None  # h, once the weights have gone on to w - eps


class Flight:
    """The state machine: moves the weights, and keeps the gradients at w and at w + eps separate.

    Args:
        base: The optimizer that owns the parameters.
        method: What the perturbation is, and what becomes of the gradients.
        memory: Of the method.
        name: Of the optimizer, for words to the user.
        model: The module whose buffers and random numbers are guarded.
        only: Which parameters are perturbed.
        check_finite: Whether lengths of gradients are collected for it.
        telemetry_every: Updates from one measurement to the next.

    Attributes:
        telemetry: Scalars of the last step.
        measuring: Whether this step is measured.
        evaluations: Gradient evaluations per sample that the last step took.
        ascent: What is needed for the way back, while the weights are perturbed.
        g_norm: The length of g.
        apart: Whether what is in ``.grad`` is this rank's own.
    """

    def __init__(
        self,
        base: Optimizer,
        method: Method,
        memory: Memory,
        *,
        name: str,
        model: nn.Module | None,
        only: Selection,
        check_finite: bool,
        telemetry_every: int,
    ) -> None:
        self.base, self.method, self.memory, self.name = base, method, memory, name
        self.only, self.check_finite, self.telemetry_every = only, check_finite, telemetry_every
        self.telemetry, self.notices, self.units = Telemetry(), Notices(), Units()
        self.guard, self.replicas = PassGuard(model, self.notices), Replicas()
        self._copies = FlatCopies()
        self.phase = Phase.IDLE
        self.ascent: Ascent | None = None
        self.evaluations: float = 0
        self.measuring = self.apart = False
        self.g_norm = torch.zeros(())
        self._norms: list[Tensor] = []  # of all gradients of this step, for the finite check
        self._passes_apart: list[bool] = []  # of each pass of this step: its gradient is this rank's own
        self.look_again()
        self.replicas.find(self.params, model)

    def look_again(self) -> None:
        """Parameters were added: find those that are perturbed."""
        self._selected = selected(self.only, self.params, self.guard.model)

    def to(self, phase: Phase) -> None:
        """Go to another phase.

        Raises:
            RuntimeError: That is no move from here.
        """
        if phase is not self.phase and phase not in MOVES[self.phase]:
            raise RuntimeError(f"a step that is {self.phase.value} cannot become {phase.value}")
        self.phase = phase

    @property
    def params(self) -> list[Tensor]:
        """All parameters, group after group."""
        groups = self.base.param_groups
        return list(groups[0]["params"]) if len(groups) == 1 else [p for g in groups for p in g["params"]]

    @property
    def is_away(self) -> bool:
        """Whether the weights are elsewhere than at w."""
        return self.ascent is not None

    @property
    def period(self) -> int:
        """The ``telemetry_every`` updates that this one belongs to; the log's rows close one each."""
        return (self.memory.steps + 1) // self.telemetry_every

    # Beginning ---------------------------------------------------------------------------------------

    def next_step(self) -> None:
        """Nothing of an earlier step, taken or not, goes into the next one."""
        self.replicas.find(self.params, self.guard.model)
        self._norms, self.units.shared = [], 0.0
        self._passes_apart, self.apart = [], False
        self.telemetry.clear()
        every = self.telemetry_every
        self.measuring = every == 1 or (every > 1 and self.period != self.telemetry.period)

    def begin(self, loss_scale: float | Tensor | None = None, share: float = 1.0) -> None:
        """Begin a step, or its next micro-batch, with its first gradients in ``.grad``.

        Args:
            loss_scale: What a GradScaler has multiplied the loss by; None for 1, and for what was not told.
            share: The part of the batch that this micro-batch is, by which its loss was multiplied.

        Raises:
            TypeError: A gradient is sparse or complex.
            ValueError: ``share`` is not within (0, 1].
            RuntimeError: Pass one ran under ``no_sync()``, and the method remembers its gradients; or the shares of a
                step add up to more than 1, where they matter.
        """
        self.units.take(loss_scale, share, matters_to=self.name if self.method.shares_matter else "")
        self.to(Phase.IDLE)
        g = present(self.params)
        require_dense(g)
        self.g_norm = self.length_of(g)
        self._passes_apart = [self.replicas.apart]
        if not self._passes_apart[0]:  # else it is no matter of all ranks whether it is finite
            self._norms.append(self.g_norm)
        elif self.method.remembers:
            raise RuntimeError(
                f"pass one ran under no_sync(), so g is this rank's own, and so would be what {self.name} "
                "remembers of it: the replicas would drift apart. Leave no_sync() out of pass one"
            )

    @property
    def begun_apart(self) -> bool:
        """Whether the gradient of some pass of this step is this rank's own."""
        return any(self._passes_apart)

    @vectors.no_graph
    def length_of(self, x: list[Tensor | None]) -> Tensor:
        """The length of the tensors that are there, in memory that is there for the weights a moment later.

        Args:
            x: Gradients, None where a parameter has none.

        Returns:
            A 0-d tensor on the device of the first; of sharded gradients over all shards.
        """
        found = [t for t in x if t is not None]
        together = self._copies.norm(found)
        return vectors.norm(found) if together is None else together

    def at(self, g: list[Tensor | None], *, perturbed_only: bool = False) -> Gradients:
        """The parameters that have a gradient in this step, in the order of the groups.

        Args:
            g: For every parameter in the order of the groups, None where it has none.
            perturbed_only: Leave out those that are not perturbed.

        Returns:
            Entries of the same length, without the None.
        """
        params, groups = self.params, self.base.param_groups
        groups = groups * len(params) if len(groups) == 1 else [g for g in groups for _ in g["params"]]
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
        units = self.units
        return Gradients(
            params, groups, gradients, self.memory,
            loss_scale=units.loss_scale, share=units.share, perturbed=self._selected,
            unrecorded=self.guard.unrecorded,
        )  # fmt: skip

    @vectors.no_graph
    def single_pass(self) -> None:
        """Finish without a second pass: ``.grad`` becomes what the base then receives."""
        self.evaluations = 1
        self.apart = self.begun_apart
        self.telemetry.note(g_norm=self.g_norm, eps_norm=0.0, loss_scale=self.units.factor)
        at = self.at(present(self.params))
        at.g_norm = self.g_norm
        reused = self.method.reuse(at)
        if reused is not at.g:
            for p, gradient in zip(at.params, reused, strict=True):
                p.grad = gradient

    # Up ----------------------------------------------------------------------------------------------

    @vectors.no_graph
    def rise(self) -> None:
        """Move to w + eps; the gradients in ``.grad`` are taken for g."""
        g = present(self.params)
        self.guard.begin_second(self.params)
        try:
            self.ascent = self.climb(g, self.g_norm)
        except BaseException:
            self.guard.end_second()
            raise
        self.to(Phase.PERTURBED)
        self.ascent.gradients = own(self.params, g)
        if self.method.ascent_share == 1:
            self.telemetry.note(g_norm=self.g_norm)
        if self.ascent.length is not None:
            self.telemetry.note(eps_norm=self.ascent.length)
        reach("optim.between_passes")

    @vectors.no_graph
    def climb(self, g: list[Tensor | None], g_norm: Tensor | None = None) -> Ascent:
        """Move the weights to w + eps; ``g_norm`` is the length of all of g, where it is known.

        Args:
            g: For every parameter in the order of the groups, None where it has none.
            g_norm: Of all of g; None where it has to be taken.

        Returns:
            What the way back needs; the weights are there already.
        """
        at = self.at(g, perturbed_only=True)
        as_they_are = at.g
        if self.method.true_units or self.method.remembers:
            at.g = divided(at.g, self.units.factor)
        if self._selected is None and at.g is as_they_are:
            at.g_norm = g_norm
        factor = self.method.factor(at)
        step, eps = (1.0, self.method.perturbation(at)) if factor is None else (factor, at.g)
        length = abs(step) * vectors.norm(eps) if self.measuring else None
        weights = self._copies.take(at.params)
        ascent = Ascent(at.params, vectors.clone(at.params) if weights is None else weights, length, g)
        try:
            vectors.axpy_(step, eps, ascent.moved)
        except BaseException:  # an interrupt half way through must not leave some tensors perturbed
            vectors.copy_(ascent.moved, ascent.weights)
            self._copies.release()
            raise
        return ascent

    @contextmanager
    def visiting(self, g: list[Tensor | None], g_norm: Tensor, loss_scale: float | Tensor) -> Iterator[None]:
        """Run a block at w + eps that is part of no step, given the present gradients and their length.

        Args:
            g: For every parameter, None where it has none; put back into ``.grad`` at the end.
            g_norm: Their length.
            loss_scale: What a GradScaler has multiplied the loss by.
        """
        units, phase = self.units, self.phase
        told = units.loss_scale, units.share
        with self.guard.unrecorded():
            units.loss_scale, units.share = loss_scale, 1.0
            try:
                with self.memory.unchanged():
                    self.ascent = self.visit(g, g_norm)
            finally:
                units.loss_scale, units.share = told
            self.phase = Phase.PERTURBED
            for p in self.params:
                p.grad = None
            try:
                yield
            finally:
                self.land()
                self.phase = phase
                for p, x in zip(self.params, g, strict=True):
                    p.grad = x

    def visit(self, g: list[Tensor | None], g_norm: Tensor) -> Ascent:
        """Move the weights to where an evaluation at w + eps is meant to be.

        Args:
            g: The present gradients.
            g_norm: Their length.
        """
        return self.climb(g, g_norm)

    @property
    def may_cross(self) -> bool:
        """Whether pass two is done and a third, at w - eps, comes next."""
        return self.method.two_sided and self.phase is Phase.PERTURBED and self.seen()

    @vectors.no_graph
    def cross(self) -> None:
        """Move from w + eps, where h is known, to w - eps."""
        ascent = self._away()
        self._require_dense_pass()
        self._passes_apart.append(self.replicas.apart)
        ascent.beyond = own(self.params, present(self.params))
        eps = vectors.subtract(ascent.moved, ascent.weights)
        vectors.copy_(ascent.moved, ascent.weights)
        vectors.axpy_(-1.0, eps, ascent.moved)
        self.to(Phase.CROSSED)
        self.guard.repeat_second()

    # Back --------------------------------------------------------------------------------------------

    def seen(self) -> bool:
        """Whether a backward pass has been made since the weights were moved."""
        return any(not is_spent(g) for p in self.params if (g := p.grad) is not None)

    def come_back(self) -> None:
        """Return to w with the combined gradient, or cancel the step where a pass is missing.

        Raises:
            RuntimeError: The method takes three passes, and the third is missing.
        """
        if not self.seen():
            self.abandon()
            return
        if self.method.two_sided and self.phase is not Phase.CROSSED:
            self.abandon()
            raise RuntimeError(
                f"{self.name} takes three passes: backward, perturb(), backward, perturb(), backward, "
                "step(); the third is missing and the step was undone"
            )
        self._require_dense_pass()
        self._note_apart()
        self.descend()
        self.to(Phase.READY)
        self.evaluations = self.method.evaluations

    @vectors.no_graph
    def descend(self) -> None:
        """Return to w with all gradients known: take telemetry, and put the combined gradient into ``.grad``.

        The order matters. eps is taken from the weights while they are at w + eps; then they go back, buffers and
        random state with them; then the lengths for the finite check, in the memory that is free now; then the method
        combines. A method that hands over h, as SAM does, has nothing to put: ``.grad`` holds it.
        """
        ascent, params, last = self._away(), self.params, present(self.params)
        h, opposite = (last, None) if ascent.beyond is None else (ascent.beyond, last)
        eps = vectors.subtract(ascent.moved, ascent.weights) if self.measuring else []
        if eps and opposite is not None:  # h was taken at w + eps, the weights have gone on to the other side
            torch._foreach_neg_(eps)
        self.land()
        self.guard.end_second()
        if self._hands_over_h and not self.measuring:
            if self.check_finite:
                self._norms.append(self.length_of(h))
            return  # .grad holds h already
        seen = [g for g in (ascent.gradients, h, opposite) if g is not None]
        at = self.at(_filled(params, ascent.gradients, seen))
        at.g_norm = self.g_norm
        at.h = [x for x in _filled(params, h, seen) if x is not None]
        at.opposite = [x for x in _filled(params, opposite, seen) if x is not None] if opposite else []
        if self.check_finite or self.measuring:
            self._norms += [self.length_of([*x]) for x in (at.h, at.opposite) if x]
        if self.measuring:
            self._measure(at, dict(zip(ascent.moved, eps, strict=True)))
            eps = []  # frees them before the gradients are combined
        combined = self.method.combine(at)
        if combined is not at.h or opposite:  # else .grad holds it already
            for p, gradient in zip(at.params, combined, strict=True):
                p.grad = gradient

    @property
    def _hands_over_h(self) -> bool:
        return not (self.method.overrides("combine") or self.method.two_sided)

    def _measure(self, at: Gradients, eps: dict[Tensor, Tensor]) -> None:
        """Curvature along eps and the angle of the gradients, of the perturbed parameters and of all.

        Neither is known where both gradients are of other samples.
        """
        moved = [i for i, p in enumerate(at.params) if p in eps]
        realised = [eps[at.params[i]] for i in moved]
        if self.method.ascent_share == 1:
            change = vectors.subtract([at.h[i] for i in moved], [at.g[i] for i in moved])
            self.telemetry.note(g_dot_h=vectors.dot(at.g, at.h), eps_change=vectors.dot(realised, change))
        self.telemetry.note(
            h_norm=vectors.norm(at.h) if at.opposite else self._norms[-1],
            eps_norm_realised=vectors.norm(realised),
            loss_scale=self.units.factor,
        )

    def _require_dense_pass(self) -> None:
        """Call the step off where a pass at w + eps has brought a gradient that :func:`require_dense` refuses."""
        try:
            require_dense(present(self.params))
        except TypeError:
            self.abandon()
            raise

    def _note_apart(self) -> None:
        """The last pass is done: tell whether what it hands over is this rank's own, or part of it is."""
        passes = self._passes_apart = [*self._passes_apart, self.replicas.apart]
        if not self._hands_over_h and any(passes) != all(passes):
            self.abandon()
            raise RuntimeError(
                f"one pass ran under no_sync() and another did not, and {self.name} combines the gradients "
                "of both, of this rank's batch and of all; the step was undone. Put all passes of a micro-batch into "
                "no_sync(), or leave it out of the last micro-batch of each pass"
            )
        self.apart = passes[-1]

    def agree(self) -> None:
        """Make ``.grad`` the same on every rank, before the base or a GradScaler looks at it."""
        if not self.apart:
            return
        self.apart = False
        params, memory = self.params, self.memory
        for p, mean in zip(params, self.replicas.mean(params, present(params)), strict=True):
            p.grad = mean
        if memory.aside:
            means = self.replicas.mean(params, [memory.aside.get(p) for p in params])
            memory.aside = {p: mean for p, mean in zip(params, means, strict=True) if mean is not None}
        self._norms.append(vectors.norm([p.grad for p in params if p.grad is not None]))

    def abandon(self) -> None:
        """Return to w as if the second pass had not begun."""
        ascent = self.land()
        self.guard.end_second()
        for p, g in zip(self.params, ascent.gradients, strict=True):
            p.grad = g

    def land(self) -> Ascent:
        """Put back the weights, whatever the gradients are."""
        ascent, self.ascent = self._away(), None
        vectors.copy_(ascent.moved, ascent.weights)
        ascent.weights = []  # what comes now needs the room, and callers still hold the ascent
        self._copies.release()
        self.to(Phase.IDLE)
        return ascent

    def _away(self) -> Ascent:
        assert self.ascent is not None, "the weights are at w"
        return self.ascent

    # Finite or not -----------------------------------------------------------------------------------

    def finite(self) -> Tensor:
        """Whether all gradients of this step are finite, without waiting for the device.

        Returns:
            A 0-d boolean tensor; true where no pass has been measured.
        """
        norms = self._norms or [torch.zeros(())]
        return torch.stack([n.to(norms[0].device) for n in norms]).isfinite().all()

    def is_finite(self) -> bool:
        """The one place in a step where the host waits for the device; on the CPU it has not to wait."""
        norms = self._norms
        if {n.is_cpu for n in norms} <= {True}:
            return all(map(math.isfinite, [n.item() for n in norms]))
        return bool(self.finite())


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
