r"""The engine of every method that takes its gradient somewhere else than at the weights.

.. math::
    \epsilon = \rho \, \frac{T^2 d}{\|T d\|}, \qquad g = \nabla L(w), \quad h = \nabla L(w + \epsilon), \qquad
    w \leftarrow \text{base}(w, \text{combine}(g, h))

A method is six small choices (:mod:`optland.optim.method`). Everything that is hard is here, once.

**Cost.** 2 gradient evaluations a sample; two transient copies (weights, g) during the second pass, one more for a
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

or, in the place of ``accumulate(closure)``: backward, perturb(share=...), backward, accumulate(). The share is for
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

A base that reads the loss in ``step(closure)`` is told that of pass one, in the closure form; one that evaluates the
closure at other weights is refused (:mod:`optland.optim.base_step`).

**Several processes.** Under DistributedDataParallel both forms give the numbers of the large batch in one process, and
under FSDP2 too. Under ``no_sync()``, around forward *and* backward, a gradient is this rank's own, and with it eps:
m-sharpness, and a synchronisation less. What is still this rank's own when the base is to have it is averaged over the
ranks first, once an update, so that all micro-batches of ``accumulate()`` may run without synchronisation, or pass one
alone in phase form. Replicas never drift apart; refused are pass one alone for methods that combine both gradients, and
any pass one of this rank's own for methods that remember something of it (F-SAM, VaSSO, LookSAM, sparse SAM) and for
gates that ask for its length. The wrapper is found in ``model=``, or among all live objects (but for those that
``gc.freeze`` has put away). Under FSDP2 ``set_requires_gradient_sync(False)`` is for micro-batches that share one eps.

Reference: Foret, Kleiner, Mobahi & Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving
Generalization", 2021, arXiv:2010.01412.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optland import vectors
from optland.optim.amp import USAGES
from optland.optim.base_step import UNTOLD
from optland.optim.closure_form import ClosureForm
from optland.optim.delegate import Closure
from optland.optim.gates import Gate
from optland.optim.gradients import present, require_dense, spend
from optland.optim.micro_batches import BackwardWatch, GradientSum
from optland.optim.selection import Selection
from optland.optim.uncompiled import uncompiled, uncompiled_block

__all__ = ["EngineOptions", "TwoPass"]


class EngineOptions(TypedDict, total=False):
    """What every method takes; see :class:`TwoPass`."""

    model: nn.Module | None
    check_finite: bool
    gate: Gate | str | None
    only: Selection
    telemetry_every: int


class TwoPass(ClosureForm):
    """SAM-type steps around any optimizer instance; see the module docstring.

    Args:
        base: The optimizer that makes the update. It owns groups and state; schedulers may attach to it or to
            this.
        hyperparameters: Defaults of the method, ``rho`` among them, that go into the parameter groups.
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
        counts: Whether the method counts its updates.

    Attributes:
        telemetry: Scalars of the last step; ``telemetry.read()``.
        last_evaluations: Gradient evaluations a sample that the last step took.
        last_skipped: Whether the last step has left everything as it was, since a gradient was not finite.

    Raises:
        TypeError: ``base`` is not an optimizer instance, or is a two-pass optimizer already.
        ValueError: A hyper-parameter out of range, or a base that evaluates closures by itself or is differentiable.
    """

    def __init__(
        self,
        base: Optimizer,
        hyperparameters: dict[str, Any],
        *,
        model: nn.Module | None = None,
        check_finite: bool = True,
        gate: Gate | str | None = None,
        only: Selection = "all",
        telemetry_every: int = 10,
        counts: bool = False,
    ) -> None:
        if isinstance(base, TwoPass):
            raise TypeError(
                f"{type(base).__name__} takes two passes already; wrap its base optimizer instead"
            )
        if isinstance(base, Optimizer) and base.defaults.get("differentiable"):
            raise ValueError(
                f"{type(base).__name__} has differentiable=True, and no graph goes through the perturbation of "
                f"{type(self).__name__}: the derivative of its step would be another one's; use differentiable=False"
            )
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; pass the nn.Module that the loop calls")
        super().__init__(
            base,
            hyperparameters,
            model=model,
            check_finite=check_finite,
            gate=gate,
            only=only,
            telemetry_every=telemetry_every,
            counts=counts,
        )
        self._sum = GradientSum()
        self._watch = BackwardWatch()

    # Closure form ----------------------------------------------------------------------------------

    @uncompiled
    def step(self, closure: Closure | None = None) -> Any:
        """Make one update.

        Args:
            closure: Zeroes the gradients, runs forward and backward, returns the loss; called as often as the
                method needs. None completes a step in phase form or of micro-batches, restoring the weights
                first where that was not done.

        Returns:
            What the closure returned at the unperturbed weights; None in phase form.

        Raises:
            RuntimeError: Used in a way that would train with the plain gradient, a scaled one or an
                accumulated one.
        """
        if closure is None:
            self._prepare_phase_step()
        else:
            self._refuse_in_flight("step(closure)")
            self._refuse_scaler("GradScaler.step(optimizer, closure) would apply loss-scaled gradients.")
            if self._sum:
                raise RuntimeError(
                    "step(closure) after accumulate() would lose what was accumulated; use step()"
                )
        return self._step_with_hooks(self._advance, closure)

    # Keeps torch from wrapping step() in the hooks: they have to see w, never w + eps.
    step.hooked = True  # type: ignore[attr-defined]

    def _advance(self, closure: Closure | None) -> Any:
        if closure is not None:
            return self._closure_step(closure)
        if self._pending:
            self._pending = False
            self._update()
            spend(self._params)
        else:
            self._forget_step()
            self.base.step()  # all gradients are zero: a checkpointer materialises the state
            self._materialise()
        return None

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
        if self.two_sided and self._ascent is not None and self._ascent.beyond is None and self._seen():
            self._cross(self._ascent)
            return True
        self._refuse_in_flight("perturb()")
        if not self._gradients():
            raise RuntimeError(
                "perturb() found no gradient; run the first backward pass before it. " + USAGES
            )
        if not self._sum:
            self._forget_step()
        self._refuse_untold()
        self._begin(loss_scale, share)
        if not self.due():
            self._single_pass()
            self._guard.forget()
            self._agree()
            self._pending = True
            self._watch.start(self._gradients()[0][0])
            return False
        self._ascend()
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
            if self.two_sided:
                self.perturb()
                yield 2

    @uncompiled
    def restore(self) -> None:
        """Put back the weights bit for bit; ``.grad`` becomes what the base optimizer shall receive.

        Without a backward pass since :meth:`perturb` this calls the step off: ``.grad`` is that of pass one
        again. After :meth:`accumulate` it puts the sum into ``.grad``.

        Raises:
            RuntimeError: The weights are not perturbed, and nothing was accumulated.
        """
        if self._ascent is None and self._sum:
            self._place_sum()
        if self._ascent is None and self._pending:  # or a closed gate left the weights where they are
            self._agree()
            return
        if self._ascent is None:
            raise RuntimeError("restore() without perturb(): the weights are not perturbed. " + USAGES)
        self._return(self._ascent)
        self._agree()
        if self._pending:  # a GradScaler leaves step() out where this says so
            self.telemetry.note(skipped=1.0 - self._finite().to(torch.float32))

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
        loss = None
        if closure is None and share != 1.0:
            raise ValueError(f"share={share} comes too late here; in phase form, use perturb(share={share})")
        if closure is not None:
            self._refuse_in_flight("accumulate(closure)")
            if not self._sum:
                self._forget_step()
            loss = self._passes(closure, share)
        elif self._ascent is not None:
            self._return(self._ascent)
            self._require_pending()
        elif not self._pending:
            raise RuntimeError("accumulate() comes after perturb() and a second backward pass. " + USAGES)
        self._require_unwatched("accumulate()")
        self._pending = False
        self._sum.take(self._params, apart=self._apart)
        self._apart = False
        self._shares += self._share
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
        length = vectors.norm([x for x in g if x is not None])
        if not any(x is not None for x in g) or not bool(length.isfinite()):
            raise RuntimeError("perturbed() needs finite gradients in .grad; run a backward pass before it")
        with self._guard.unrecorded():
            proposed = {name: dict(values) for name, values in self._proposed.items()}
            units = self._loss_scale, self._share
            self._loss_scale, self._share = 1.0 if loss_scale is None else loss_scale, 1.0
            try:
                self._ascent = self._visit(g, length)
            finally:
                self._proposed, (self._loss_scale, self._share) = proposed, units
            for p in self._params:
                p.grad = None
            try:
                yield
            finally:
                self._land()
                for p, x in zip(self._params, g, strict=True):
                    p.grad = x

    @uncompiled
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero the gradients of the base optimizer's parameters."""
        if not self.is_perturbed:
            self._pending = False
            self._watch.stop()
            self._guard.forget_forwards()
        self.base.zero_grad(set_to_none=set_to_none)

    # Misuse ----------------------------------------------------------------------------------------

    def _require_unwatched(self, action: str) -> None:
        if self._watch.stop():
            self._pending = False
            raise RuntimeError(
                f"{action}: perturb() returned False, as the gate leaves out the second pass of this step, and a "
                "backward pass after it has added to the gradient. Write: if optimizer.perturb(): loss.backward()"
            )

    def _refuse_in_flight(self, action: str) -> None:
        if self.is_perturbed:
            raise RuntimeError(
                f"{action} while the weights are perturbed (between perturb() and restore() or step()). "
                "Finish the step first, or call restore(), also where a GradScaler may skip the step."
            )

    def _refuse_untold(self) -> None:
        if self._base_step.needs_closure:
            raise RuntimeError(
                f"{type(self.base).__name__}.step() needs a closure, which tells it the loss, and the phase form has "
                f"none to give; use {type(self).__name__}.step(closure), or accumulate(closure) and step()"
            )

    def _place_sum(self) -> None:
        self._apart = self._sum.place(self._params)
        self._pending = True

    def _prepare_phase_step(self) -> None:
        """Bring the weights back, and refuse a step whose gradients never saw the second pass."""
        if self.is_perturbed:
            self._refuse_scaler("scaler.step(optimizer) while perturbed would unscale h but not g.")
            self.restore()
        self._require_unwatched("step()")
        if self._sum:
            self._refuse_scaler("scaler.step(optimizer) after accumulate() needs restore() before it.")
            self._place_sum()
        if self._pending:
            return
        require_dense(present(self._params))
        if any(bool(g.count_nonzero()) for _, g in self._gradients()):
            self._refuse_scaler("scaler.step(optimizer) without a second pass.")
            raise RuntimeError(
                f"{type(self).__name__}.step() without a second pass would be a plain step of "
                f"{type(self.base).__name__}. {USAGES}"
            )
