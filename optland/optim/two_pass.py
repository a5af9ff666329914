r"""The engine of every method that takes its gradient away from the weights, as SAM does.

.. math::
    \epsilon = \rho \, \frac{T^2 d}{\|T d\|}, \qquad g = \nabla L(w), \quad h = \nabla L(w + \epsilon), \qquad
    w \leftarrow \text{base}(w, \text{combine}(g, h))

A method is a small object of choices (:mod:`optland.optim.method`), which knows no optimizer. Everything that is hard
is here and in :mod:`optland.optim.flight`, once.

**Cost.** 2 gradient evaluations per sample; two transient copies (weights, g) during the second pass, one more for a
moment where telemetry is measured, none between steps, none in a checkpoint but what a method remembers.

**Two forms, equal numbers.** The closure form, ``optimizer.step(closure)``, for plain loops, Lightning and
Fabric. The phase form, for loss scaling, accumulation and trainers that own the backward pass::

    loss_fn(model, batch).backward()      # g; any number of micro-batches
    optimizer.perturb()                   # to w + eps; the gradients are zeroed
    loss_fn(model, batch).backward()      # h; the same micro-batches
    optimizer.step()                      # back to w exactly, then the update

``perturb()`` returns False where a gate leaves out the second pass; go to ``step()`` then.

Micro-batches have two meanings. Several backward passes before ``perturb()`` and again after it share one eps: the
same numbers as their batch in one piece. An eps for each of them is *m-sharpness*, and streams::

    for part in parts:                        # each loss divided by len(parts)
        optimizer.accumulate(closure_of(part), share=1 / len(parts))
    optimizer.step()

or, instead of ``accumulate(closure)``: backward, perturb(share=...), backward, accumulate(). The share is for
methods whose perturbation depends on the length of the gradient: it is that of the micro-batch's own mean loss.

With a GradScaler: ``scaler.scale(loss).backward()``, ``perturb(loss_scale=scaler.get_scale())``,
``scaler.scale(loss).backward()``, ``restore()``, ``scaler.step(optimizer)``, ``scaler.update()``. The scale
cancels in the perturbation, so pass one is never unscaled; clip, if at all, after ``restore()`` and
``scaler.unscale_``.

**Caveats.** Without ``model=`` the second pass updates BatchNorm statistics again (one warning, where a layer's scale
or shift is among the parameters), and in the phase form it draws new dropout masks. Weights stored in bfloat16 realise
only part of a small perturbation: watch ``sam/rho_realised``. The norm is one over all parameters, also where they are
sharded. Gradients have to be dense and real. Under ``torch.compile`` of a function that holds a step, the step runs as
it is written and what is around it is compiled; compile the model (or the closure) and not the step.

**Elsewhere.** Bases that read the loss: :mod:`optland.optim.base_step`. Processes: :mod:`optland.optim.replicas`.

Reference: Foret, Kleiner, Mobahi & Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving
Generalization", 2021, arXiv:2010.01412.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optland import vectors
from optland.optim import misuse
from optland.optim.base_step import UNTOLD, BaseStep, total
from optland.optim.delegate import Closure, Delegating
from optland.optim.flight import Flight, Phase
from optland.optim.gates import Gate
from optland.optim.gating import Gating
from optland.optim.gradients import call_alone, present, recorded, require_dense, spend
from optland.optim.memory import STEPS, Memory
from optland.optim.method import Method
from optland.optim.micro_batches import BackwardWatch, GradientSum
from optland.optim.selection import Selection
from optland.optim.telemetry import Telemetry, largest
from optland.optim.uncompiled import uncompiled, uncompiled_block

__all__ = ["EngineOptions", "TwoPass"]


class EngineOptions(TypedDict, total=False):
    """The options of every method; see :class:`TwoPass`."""

    model: nn.Module | None
    check_finite: bool
    gate: Gate | str | None
    only: Selection
    telemetry_every: int


class TwoPass(Delegating):
    """SAM-type steps around any optimizer instance; see the module docstring.

    Args:
        base: The optimizer that makes the update. It owns groups and state; schedulers may attach to it or to
            this.
        method: Where a step looks, and what becomes of what it sees. Its hyper-parameters go into the parameter groups.
        model: The module that the loop calls (its compiled or DDP wrapper, if any). With it, buffers such as
            BatchNorm statistics keep the values of pass one, and pass two repeats the dropout masks of pass
            one in both forms. Without it the closure form still repeats all random draws; buffers are written
            twice.
        check_finite: Leave weights and state untouched when a gradient of either pass is not finite. This is
            the one place in a step where the host waits for the device; False removes it, and a non-finite
            gradient then reaches the base optimizer.
        gate: Which steps take the second pass (:mod:`optland.optim.gates`); the others are plain steps of the base.
        only: Which parameters are perturbed (:mod:`optland.optim.selection`); all are updated.
        telemetry_every: Updates from one measurement of curvature and angle to the next; 0 for none. The reductions
            of one take 5 to 20 % of a step, the more the smaller the net; at 10, the default, that is lost in the
            noise, and a log has a new value in each of its rows.

    Attributes:
        last_skipped: Whether the last step has left everything as it was, since a gradient was not finite.

    Raises:
        TypeError: ``base`` is not an optimizer instance, or is a two-pass optimizer already.
        ValueError: A hyper-parameter out of range, or a base that evaluates closures by itself or is differentiable.
    """

    flight_class: ClassVar[type[Flight]] = Flight
    """How a step goes up and comes back."""

    def __init__(
        self,
        base: Optimizer,
        method: Method,
        *,
        model: nn.Module | None = None,
        check_finite: bool = True,
        gate: Gate | str | None = None,
        only: Selection = "all",
        telemetry_every: int = 10,
    ) -> None:
        name = type(self).__name__
        if isinstance(base, TwoPass):
            raise TypeError(
                f"{type(base).__name__} takes two passes already; wrap its base optimizer instead"
            )
        misuse.refuse_base(name, base, model)
        if telemetry_every < 0:
            raise ValueError(f"telemetry_every={telemetry_every} is negative; 1 measures every step, 0 none")
        self.method = method
        self._gating = Gating(gate)
        counts = {STEPS: 0} if method.counts or gate is not None or telemetry_every > 1 else {}
        super().__init__(base, {**method.hyperparameters, **self._gating.state, **counts})
        self.check_finite, self.only, self.telemetry_every = check_finite, only, telemetry_every
        self.last_skipped = False
        self._memory = Memory(base, method.remembers)
        self._flight = self.flight_class(
            base, method, self._memory, name=name, model=model, only=only, check_finite=check_finite,
            telemetry_every=telemetry_every,
        )  # fmt: skip
        self._sum, self._watch = GradientSum(), BackwardWatch()
        self._base_step = BaseStep(base)
        self._losses: list[Any] = []  # of this step's micro-batches
        self._withdrawn = False

    def _validate(self, values: dict[str, Any]) -> None:
        super()._validate(values)
        self.method.check(values)

    # What others may ask ---------------------------------------------------------------------------

    @property
    def model(self) -> nn.Module | None:
        """The guarded module."""
        return self._flight.guard.model

    @property
    def gate(self) -> Gate | None:
        """Which steps take the second pass; None is all."""
        return self._gating.gate

    @gate.setter
    def gate(self, gate: Gate | None) -> None:
        self._gating.gate = gate

    @property
    def telemetry(self) -> Telemetry:
        """Scalars of the last step."""
        return self._flight.telemetry

    @property
    def evaluations(self) -> float:
        """Gradient evaluations per sample that a full step costs."""
        return self.method.evaluations

    @property
    def last_evaluations(self) -> float:
        """Gradient evaluations per sample that the last step took."""
        return self._flight.evaluations

    @property
    def steps(self) -> int:
        """Updates made so far, of the first group; 0 where nothing counts them."""
        return self._memory.steps

    @property
    def beginnings(self) -> int:
        """A counter that changes whenever a pass one begins, or may begin."""
        return self._flight.guard.beginnings

    @property
    def is_perturbed(self) -> bool:
        """Whether the weights are at w + eps now."""
        return self._flight.is_away

    def gradient_norm(self) -> float:
        """The length of g, in the units of the mean loss of its samples; the host waits for it."""
        self._gating.norm_asked()
        return float(self._flight.g_norm) / float(self._flight.units.factor)

    def withdraw(self) -> None:
        """Cancel this update: its gradient was removed on purpose, inside a closure or before ``step()``.

        Neither the base's state nor that of the method moves.
        """
        self._withdrawn = True

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """The answer to a GradScaler, which asks it before it steps.

        No once the gradient is in hand; see :mod:`optland.optim.misuse`.

        Raises:
            RuntimeError: The perturbation of this method depends on the length of the gradient, and the scaler's scale
                is not known.
        """
        if self._in_hand and self.method.true_units and not self._flight.units.told:
            raise RuntimeError(misuse.unknown_scale(self))
        return not self._in_hand

    @property
    def _in_hand(self) -> bool:
        """Whether the update comes next, and not the move to w + eps."""
        return self._flight.phase in (Phase.READY, Phase.WAITING)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; hyper-parameters it does not name take their defaults."""
        super().add_param_group(param_group)
        self._flight.look_again()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, or a plain base optimizer's; rho then keeps its default."""
        super().load_state_dict(state_dict)
        self._gating.keep()
        self._memory.drop()

    def _rename_state(self) -> None:
        self._memory.rename()

    # Closure form ----------------------------------------------------------------------------------

    @uncompiled
    def step(self, closure: Closure | None = None) -> Any:
        """Make one update.

        Args:
            closure: Zeroes the gradients, runs forward and backward, returns the loss; called as often as the
                method needs; after :meth:`restore` once, for trainers that always hand one over, and it leaves the
                gradient alone. None completes a step in phase form or of micro-batches, restoring weights first.

        Returns:
            What the closure returned at the unperturbed weights; None without one.

        Raises:
            RuntimeError: Used in a way that would train with the plain gradient, a scaled one or an
                accumulated one.
        """
        if closure is None or self._flight.phase is Phase.READY:
            self._prepare_phase_step()
        else:
            self._refuse_in_flight("step(closure)")
            misuse.refuse_closure(self)
            if self._sum:
                raise RuntimeError(
                    "step(closure) after accumulate() would lose what was accumulated; use step()"
                )
        return self._step_with_hooks(self._advance, closure)

    # Keeps torch from wrapping step() in the hooks: they have to see w, never w + eps.
    step.hooked = True  # type: ignore[attr-defined]

    def _advance(self, closure: Closure | None) -> Any:
        if closure is not None and self._flight.phase is not Phase.READY:
            return self._closure_step(closure)
        loss = None if closure is None else self._watch.during(closure, self._params)
        if self._in_hand:
            self._update()
            spend(self._params)
        else:
            self._forget_step()
            self.base.step()  # all gradients are zero: a checkpointer materialises the state
            self._memory.materialise(self._params)
        return loss

    def _closure_step(self, closure: Closure) -> Any:
        self._forget_step()
        try:
            loss = self._passes(closure)
            self._losses = [loss]
        except BaseException:
            self._drop()
            raise
        self._update()
        spend(self._params)
        return loss

    @vectors.no_graph
    def _passes(self, closure: Closure, share: float = 1.0) -> Any:
        """Evaluate the closure as often as the method wants; ``.grad`` is then what the base receives."""
        flight = self._flight
        twice = self._memory.has_radius and self.method.due(self.steps)
        flight.guard.begin_closure(repeated=twice)
        try:
            loss = call_alone(closure, params := self._params)
            misuse.note_no_gradient(self, params, flight.notices, meant=self._withdrawn)
            flight.begin(share=share)
            if twice and self._gating.is_open(self, apart=flight.begun_apart) and self._has_gradients:
                loss_up = self._call_perturbed(closure)
                if loss is not None and loss_up is not None and self.method.ascent_share == 1:
                    self.telemetry.note(loss=loss, loss_up=loss_up, share=flight.units.share)
            else:
                flight.single_pass()
        finally:
            flight.guard.end_second()
        return loss

    def _due(self) -> bool:
        """Whether this step takes its second pass: what the method and the gate say."""
        return self.method.due(self.steps) and self._gating.is_open(self, apart=self._flight.begun_apart)

    def _call_perturbed(self, closure: Closure) -> Any:
        """Call the closure at w + eps (and at w - eps), and be back at w whatever happens in it."""
        flight = self._flight
        flight.rise()
        try:
            loss = recorded(closure)
            if flight.may_cross:
                flight.cross()
                recorded(closure)
        except BaseException:
            if flight.is_away:
                flight.abandon()
            raise
        if flight.is_away:  # a closure of the phase form has come back by itself
            flight.come_back()
        self._require_ready()
        return loss

    def _require_ready(self) -> None:
        """Refuse a closure at w + eps that brought no gradients."""
        if self._flight.phase is not Phase.READY:
            raise RuntimeError(
                "the closure ran no backward pass when it was called at w + eps; the step was undone"
            )

    # Either form -----------------------------------------------------------------------------------

    def _forget_step(self) -> None:
        """Nothing of an earlier step, taken or not, goes into the next one."""
        self._keys.refuse_short(self.param_groups)
        self._losses = []
        self._drop()
        self._flight.next_step()

    def _drop(self) -> None:
        """Discard what this step proposed to remember."""
        self._memory.drop()
        self._gating.drop(self.param_groups)

    def _update(self) -> None:
        losses, self._losses = self._losses, []  # and with them their graphs
        flight = self._flight
        flight.agree()
        flight.to(Phase.IDLE)
        withdrawn, self._withdrawn = self._withdrawn, False
        self.last_skipped = withdrawn or (self.check_finite and not flight.is_finite())
        if self.last_skipped:
            self.telemetry.note(skipped=1.0)
            self._drop()
            return
        of_sgd = isinstance(self.base, torch.optim.SGD)
        rate = {"lr": largest([group["lr"] for group in self.base.param_groups])} if of_sgd else {}
        self.telemetry.note(skipped=0.0, **rate)
        if flight.measuring and self.telemetry.has_measurement:
            self.telemetry.keep(flight.period)
        self._base_step(total(losses), self._params)
        self.method.after_update(self._memory)
        self._write_down()

    def _write_down(self) -> None:
        self.method.settle(self._memory)
        self._memory.write_down()
        self._gating.keep()

    # Phase form ------------------------------------------------------------------------------------

    @uncompiled
    def perturb(self, *, loss_scale: float | Tensor | None = None, share: float = 1.0) -> bool:
        """Go from w to w + eps with the gradients in ``.grad``; keep them as g and empty ``.grad`` for pass two.

        A method with a third pass (``evaluations`` 3) is called again after the second: to w - eps.

        Args:
            loss_scale: The factor that the loss was multiplied by (``scaler.get_scale()``). It cancels in the
                step of most methods (the others insist on it); telemetry needs it for true units.
            share: Of a micro-batch with an eps of its own: the part of the batch that it is, by which its loss was
                multiplied besides.

        Returns:
            Whether the weights were moved. Where a gate leaves out the second pass they were not, and the next
            call is ``step()`` (with a GradScaler, ``scaler.step(optimizer)``).

        Raises:
            RuntimeError: The weights are perturbed already, or there is no gradient yet.
        """
        flight = self._flight
        if flight.may_cross:
            flight.cross()
            return True
        self._refuse_in_flight("perturb()")
        if not self._has_gradients:
            raise RuntimeError(
                "perturb() found no gradient; run the first backward pass before it. " + misuse.USAGES
            )
        if not self._sum:
            self._forget_step()
        self._refuse_untold()
        flight.begin(loss_scale, share)
        if not self._due():
            flight.single_pass()
            flight.guard.forget()
            flight.agree()
            flight.to(Phase.READY)
            self._watch.start(next(p for p in self._params if p.grad is not None))
            return False
        flight.rise()
        return True

    @uncompiled
    def passes(self, *, loss_scale: float | Tensor | None = None, share: float = 1.0) -> Iterator[int]:
        """Go through the passes of one step in phase form, whatever the method and its gate ask for.

        Written like this, a loop serves every method::

            optimizer.zero_grad()
            for _ in optimizer.passes():
                loss_fn(model, batch).backward()
            optimizer.step()

        Args:
            loss_scale: As for :meth:`perturb`.
            share: As for :meth:`perturb`.

        Yields:
            The number of the pass, from 0; the weights are where its gradient has to be taken.
        """
        yield 0
        if self.perturb(loss_scale=loss_scale, share=share):
            yield 1
            if self.method.two_sided:
                self.perturb()
                yield 2

    @uncompiled
    def restore(self) -> None:
        """Put back the weights bit for bit; ``.grad`` becomes what the base optimizer receives.

        Without a backward pass since :meth:`perturb` this calls the step off: ``.grad`` is that of pass one
        again. After :meth:`accumulate` it puts the sum into ``.grad``.

        Raises:
            RuntimeError: The weights are not perturbed, and nothing was accumulated.
        """
        flight = self._flight
        if not flight.is_away and self._sum:
            self._place_sum()
        if not flight.is_away and self._in_hand:  # or a closed gate left the weights where they are
            flight.agree()
            return
        if not flight.is_away:
            raise RuntimeError("restore() without perturb(): the weights are not perturbed. " + misuse.USAGES)
        flight.come_back()
        flight.agree()
        if flight.phase is Phase.READY:  # a GradScaler leaves step() out where this says so
            self.telemetry.note(skipped=1.0 - flight.finite().to(torch.float32))

    @uncompiled
    def accumulate(self, closure: Closure | None = None, *, share: float = 1.0) -> Any:
        """Finish the passes of one micro-batch, with an eps of its own, and add its gradient to a sum for :meth:`step`.

        Args:
            closure: The closure of this micro-batch, its loss multiplied by its share; None after ``perturb()``
                and a second backward pass.
            share: The part of the batch that this micro-batch is, 1 / k of k equal ones; in phase form
                ``perturb()`` is told.

        Returns:
            What the closure returned at the unperturbed weights; None in phase form.

        Raises:
            RuntimeError: In phase form, without ``perturb()`` before; or the shares of a step add up to more than 1,
                where they matter.
            ValueError: The share is not within (0, 1], or told too late.
        """
        loss, flight = None, self._flight
        if closure is None and share != 1.0:
            raise ValueError(f"share={share} comes too late here; in phase form, use perturb(share={share})")
        if closure is not None:
            self._refuse_in_flight("accumulate(closure)")
            if not self._sum:
                self._forget_step()
            loss = self._passes(closure, share)
        elif flight.is_away:
            flight.come_back()
            self._require_ready()
        elif not self._in_hand:
            raise RuntimeError(
                "accumulate() comes after perturb() and a second backward pass. " + misuse.USAGES
            )
        self._require_unwatched("accumulate()")
        flight.to(Phase.IDLE)
        self._sum.take(self._params, apart=flight.apart)
        flight.apart = False
        flight.units.shared += flight.units.share
        loss_of_it = loss.detach() if isinstance(loss, Tensor) else loss
        self._losses.append(UNTOLD if closure is None else loss_of_it)
        return loss

    @uncompiled_block
    @contextmanager
    def perturbed(self, *, loss_scale: float | Tensor | None = None) -> Iterator[None]:
        """Run a block at w + eps of the present gradients: an evaluation of the perturbed model.

        Weights, gradients, random state and (with ``model=``) buffers are what they were afterwards, also
        when the block raises.

        Args:
            loss_scale: The factor that the present gradients are too large by.

        Raises:
            RuntimeError: The weights are perturbed already, or there is no finite gradient.
        """
        self._refuse_in_flight("perturbed()")
        self._keys.refuse_short(self.param_groups)
        g = present(self._params)
        require_dense(g)
        length = self._flight.length_of(g)  # as in a step: the place is the same to the last bit
        if not any(x is not None for x in g) or not bool(length.isfinite()):
            raise RuntimeError("perturbed() needs finite gradients in .grad; run a backward pass before it")
        with self._flight.visiting(g, length, 1.0 if loss_scale is None else loss_scale):
            yield

    @uncompiled
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero the gradients of the base optimizer's parameters."""
        if not self.is_perturbed:
            self._flight.to(Phase.IDLE)
            self._watch.stop()
            self._flight.guard.forget_forwards()
        self.base.zero_grad(set_to_none=set_to_none)

    # Misuse ----------------------------------------------------------------------------------------

    @property
    def _has_gradients(self) -> bool:
        params = self._params
        return (bool(params) and params[0].grad is not None) or any(p.grad is not None for p in params)

    def _require_unwatched(self, action: str) -> None:
        if self._watch.stop():
            self._flight.to(Phase.IDLE)
            raise RuntimeError(misuse.unwanted_pass(action))

    def _refuse_in_flight(self, action: str) -> None:
        if self.is_perturbed:
            raise RuntimeError(misuse.in_flight(action))

    def _refuse_untold(self) -> None:
        if self._base_step.needs_closure:
            raise RuntimeError(misuse.needs_loss(self, self.base))

    def _place_sum(self) -> None:
        self._flight.apart = self._sum.place(self._params)
        self._flight.to(Phase.READY)

    def _prepare_phase_step(self) -> None:
        """Bring the weights back, and refuse a step whose gradients never saw the second pass."""
        if self.is_perturbed:
            misuse.refuse_scaler(self, "scaler.step(optimizer) while perturbed would unscale h but not g.")
            self.restore()
        self._require_unwatched("step()")
        if self._sum:
            misuse.refuse_scaler(self, "scaler.step(optimizer) after accumulate() needs restore() before it.")
            self._place_sum()
        if self._in_hand:
            return
        require_dense(present(self._params))
        if any(p.grad is not None and bool(p.grad.count_nonzero()) for p in self._params):
            misuse.refuse_scaler(self, "scaler.step(optimizer) without a second pass.")
            raise RuntimeError(misuse.plain_step(self, self.base))
