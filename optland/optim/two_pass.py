r"""The engine of every method that takes its gradient somewhere else than at the weights.

.. math::
    \epsilon = \rho \, \frac{T^2 d}{\|T d\|}, \qquad g = \nabla L(w), \quad h = \nabla L(w + \epsilon), \qquad
    w \leftarrow \text{base}(w, \text{combine}(g, h))

A method is six small choices (:mod:`optland.optim.method`). Everything that is hard is here, once.

**Cost.** 2 gradient evaluations a sample; two transient copies (weights, g) during the second pass and two more
(eps, h - g) for a moment after it, none between steps, none in a checkpoint.

**Two forms, equal numbers.** The closure form, ``optimizer.step(closure)``, for plain loops, Lightning and
Fabric. The phase form, for loss scaling, accumulation and trainers that own the backward pass::

    loss_fn(model, batch).backward()      # g; any number of micro-batches
    optimizer.perturb()                   # to w + eps; the gradients are zeroed
    loss_fn(model, batch).backward()      # h; the same micro-batches
    optimizer.step()                      # back to w exactly, then the update

With a GradScaler: ``scaler.scale(loss).backward()``, ``perturb(loss_scale=scaler.get_scale())``,
``scaler.scale(loss).backward()``, ``restore()``, ``scaler.step(optimizer)``, ``scaler.update()``. The scale
cancels in the perturbation, so pass one is never unscaled; clip, if at all, after ``restore()`` and
``scaler.unscale_``.

**Caveats.** Without ``model=`` the second pass updates BatchNorm statistics again, and in the phase form it
draws new dropout masks. Weights stored in bfloat16 realise only part of a small perturbation: watch
``sam/rho_realised``. The norm is one over all parameters, also where they are sharded.

Reference: Foret, Kleiner, Mobahi & Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving
Generalization", 2021, arXiv:2010.01412.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optland import vectors
from optland.failpoints import reach
from optland.optim.amp import USAGES, ScalerAware
from optland.optim.delegate import Closure
from optland.optim.gradients import call_alone, is_spent, require_dense, spend
from optland.optim.guards import PassGuard
from optland.optim.telemetry import Telemetry, largest

__all__ = ["TwoPass"]


@dataclass(slots=True)
class _Ascent:
    """A step in flight: what pass one leaves for the way back."""

    moved: list[Tensor]  # the perturbed parameters
    weights: list[Tensor]  # their values at w, bit for bit
    length: Tensor  # ||eps|| as asked for
    gradients: dict[Tensor, Tensor] = field(default_factory=dict)  # g of every parameter that had one


class TwoPass(ScalerAware):
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

    Attributes:
        telemetry: Scalars of the last step; ``telemetry.read()``.
        last_evaluations: Gradient evaluations a sample that the last step took.

    Raises:
        TypeError: ``base`` is not an optimizer instance, or is a two-pass optimizer already.
        ValueError: A hyper-parameter out of range, or a base that evaluates closures by itself.
    """

    def __init__(
        self,
        base: Optimizer,
        hyperparameters: dict[str, Any],
        *,
        model: nn.Module | None = None,
        check_finite: bool = True,
    ) -> None:
        if isinstance(base, TwoPass):
            raise TypeError(
                f"{type(base).__name__} takes two passes already; wrap its base optimizer instead"
            )
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; pass the nn.Module that the loop calls")
        super().__init__(base, hyperparameters)
        self.check_finite = check_finite
        self.telemetry = Telemetry()
        self.last_evaluations = 0
        self._guard = PassGuard(model)
        self._ascent: _Ascent | None = None
        self._norms: list[Tensor] = []  # of the gradients of this step, for the finite check

    @property
    def model(self) -> nn.Module | None:
        """The guarded module."""
        return self._guard.model

    @property
    def is_perturbed(self) -> bool:
        """Whether the weights are at w + eps now."""
        return self._ascent is not None

    # Closure form ----------------------------------------------------------------------------------

    def step(self, closure: Closure | None = None) -> Any:
        """Make one update.

        Args:
            closure: Zeroes the gradients, runs forward and backward, returns the loss; called as often as the
                method needs. None completes a step in phase form, restoring the weights first where that was
                not done.

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
        return self._step_with_hooks(self._advance, closure)

    # Keeps torch from wrapping step() in the hooks: they have to see w, never w + eps.
    step.hooked = True  # type: ignore[attr-defined]

    def _advance(self, closure: Closure | None) -> Any:
        if closure is not None:
            return self._closure_step(closure)
        if self._pending:
            self._pending = False
            self._update()
        else:
            self.telemetry.clear()
            self.base.step()  # all gradients are zero: a checkpointer materialises the state
        return None

    def _closure_step(self, closure: Closure) -> Any:
        self._pending = False
        self.telemetry.clear()
        self._guard.begin_closure()
        try:
            loss = call_alone(closure, self._params)
            if self.due() and self._gradients():
                self._second_pass(closure, loss)
            else:
                self._single_pass()
        finally:
            self._guard.end_second()
        self._update()
        spend(self._params)
        return loss

    def _second_pass(self, closure: Closure, loss: Any) -> None:
        loss_up = self._call_perturbed(closure)
        if loss is not None and loss_up is not None:
            self.telemetry.note(loss=loss, loss_up=loss_up)

    def _call_perturbed(self, closure: Closure) -> Any:
        """Call the closure at w + eps, and be back at w whatever happens in it."""
        self._ascend()
        try:
            with torch.enable_grad():
                loss = closure()
        except BaseException:
            self._abandon()
            raise
        self.restore()
        self._require_pending()
        return loss

    def _single_pass(self) -> None:
        self._norms, self.last_evaluations = [vectors.norm([g for _, g in self._gradients()])], 1
        self.telemetry.note(g_norm=self._norms[0], eps_norm=0.0)

    # Phase form ------------------------------------------------------------------------------------

    def perturb(self, *, loss_scale: float | Tensor = 1.0) -> None:
        """Go from w to w + eps with the gradients in ``.grad``; keep them as g and zero them for pass two.

        Args:
            loss_scale: The factor that the loss was multiplied by (``scaler.get_scale()``). It cancels in the
                step; it is needed for telemetry in true units.

        Raises:
            RuntimeError: The weights are perturbed already, or there is no gradient yet.
        """
        self._refuse_in_flight("perturb()")
        if not self._gradients():
            raise RuntimeError(
                "perturb() found no gradient; run the first backward pass before it. " + USAGES
            )
        self._pending = False
        self.telemetry.clear()
        self.telemetry.note(loss_scale=loss_scale)
        self._ascend()

    def restore(self) -> None:
        """Put back the weights bit for bit; ``.grad`` becomes what the base optimizer shall receive.

        Without a backward pass since :meth:`perturb` this calls the step off: ``.grad`` is that of pass one
        again.

        Raises:
            RuntimeError: The weights are not perturbed.
        """
        if self._ascent is None:
            raise RuntimeError("restore() without perturb(): the weights are not perturbed. " + USAGES)
        if all(is_spent(g) for _, g in self._gradients()):
            self._abandon()
            return
        self._descend(self._ascent)
        self._pending, self.last_evaluations = True, self.evaluations

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Run a block at w + eps of the present gradients: an evaluation of the perturbed model.

        Weights, gradients, random state and (with ``model=``) buffers are what they were afterwards, also
        when the block raises.

        Raises:
            RuntimeError: The weights are perturbed already, or there is no finite gradient.
        """
        self._refuse_in_flight("perturbed()")
        g = dict(self._gradients())
        if not g or not bool(vectors.norm(list(g.values())).isfinite()):
            raise RuntimeError("perturbed() needs finite gradients in .grad; run a backward pass before it")
        with self._guard.unrecorded():
            self._ascent = self._climb()
            for p in g:
                p.grad = None
            try:
                yield
            finally:
                self._land()
                for p in self._params:
                    p.grad = g.get(p)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero the gradients of the base optimizer's parameters."""
        if not self.is_perturbed:
            self._pending = False
            self._guard.forget_forwards()
        self.base.zero_grad(set_to_none=set_to_none)

    # The way up and the way back -------------------------------------------------------------------

    def _gradients(self) -> list[tuple[Tensor, Tensor]]:
        """All (parameter, gradient) pairs there are now."""
        return [(p, require_dense(p.grad)) for p in self._params if p.grad is not None]

    @torch.no_grad()
    def _ascend(self) -> None:
        pairs = self._gradients()
        g = [gradient for _, gradient in pairs]
        # Copies, because DDP may reuse the memory of .grad in the second pass.
        copies = dict(zip((p for p, _ in pairs), vectors.clone(g), strict=True))
        self._norms = [vectors.norm(g)]
        self._guard.begin_second()
        try:
            self._ascent = self._climb()
        except BaseException:
            self._guard.end_second()
            raise
        self._ascent.gradients = copies
        self.telemetry.note(g_norm=self._norms[0], eps_norm=self._ascent.length)
        torch._foreach_zero_(g)
        spend(self._params)
        reach("optim.between_passes")

    def _climb(self) -> _Ascent:
        """Move the weights to w + eps."""
        entries = [
            (p, p.grad, group)
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None and self.selects(p, group)
        ]
        eps = self.perturbation(entries)
        ascent = _Ascent(
            [p for p, _, _ in entries], vectors.clone([p for p, _, _ in entries]), vectors.norm(eps)
        )
        try:
            vectors.axpy_(1.0, eps, ascent.moved)
        except BaseException:  # an interrupt half way through must not leave some tensors perturbed
            vectors.copy_(ascent.moved, ascent.weights)
            raise
        return ascent

    @torch.no_grad()
    def _descend(self, ascent: _Ascent) -> None:
        """Back to w with both gradients in hand: telemetry, and the combined gradient into ``.grad``."""
        h_of = dict(self._gradients())
        eps = vectors.subtract(ascent.moved, ascent.weights)  # as realised in the weights' own precision
        self._land()
        self._guard.end_second()
        params = list(h_of | ascent.gradients)
        g = [ascent.gradients[p] if p in ascent.gradients else torch.zeros_like(p) for p in params]
        h = [h_of[p] if p in h_of else torch.zeros_like(p) for p in params]
        change = dict(zip(params, vectors.subtract(h, g), strict=True))
        self._norms.append(vectors.norm(h))
        self.telemetry.note(
            h_norm=self._norms[1],
            g_dot_h=vectors.dot(g, h),
            eps_change=vectors.dot(eps, [change[p] for p in ascent.moved]),
            eps_norm_realised=vectors.norm(eps),
        )
        # A GradScaler leaves step() out where this says so.
        self.telemetry.note(skipped=1.0 - self._finite().to(torch.float32))
        combined = self.combine(g, h)
        if combined is not h:
            for p, gradient in zip(params, combined, strict=True):
                p.grad = gradient

    def _abandon(self) -> None:
        """Back to w as if the second pass had not begun."""
        ascent = self._land()
        self._guard.end_second()
        for p in self._params:
            p.grad = ascent.gradients.get(p)

    def _land(self) -> _Ascent:
        """Restore by copy: adding and then subtracting would leave rounding behind, other on every rank."""
        ascent, self._ascent = self._ascent, None
        assert ascent is not None
        vectors.copy_(ascent.moved, ascent.weights)
        return ascent

    # The update ------------------------------------------------------------------------------------

    def _finite(self) -> Tensor:
        return torch.stack(self._norms).isfinite().all()

    def _update(self) -> None:
        if self.check_finite and not bool(self._finite()):
            self.telemetry.note(skipped=1.0)
            return
        self.telemetry.note(skipped=0.0)
        if isinstance(self.base, torch.optim.SGD):
            self.telemetry.note(lr=largest([group["lr"] for group in self.param_groups]))
        self.base.step()

    # Misuse ----------------------------------------------------------------------------------------

    def _refuse_in_flight(self, action: str) -> None:
        if self.is_perturbed:
            raise RuntimeError(
                f"{action} while the weights are perturbed (between perturb() and restore() or step()). "
                "Finish the step first, or call restore(), also where a GradScaler may skip the step."
            )

    def _require_pending(self) -> None:
        """After a closure at w + eps; it must have brought gradients."""
        if not self._pending:
            raise RuntimeError(
                "the closure ran no backward pass when it was called at w + eps; the step was undone"
            )
        self._pending = False

    def _prepare_phase_step(self) -> None:
        """Bring the weights back, and refuse a step whose gradients never saw the second pass."""
        if self.is_perturbed:
            self._refuse_scaler("scaler.step(optimizer) while perturbed would unscale h but not g.")
            self.restore()
        if not self._pending and any(bool(g.count_nonzero()) for _, g in self._gradients()):
            self._refuse_scaler("scaler.step(optimizer) without a second pass.")
            raise RuntimeError(
                f"{type(self).__name__}.step() without a second pass would be a plain step of "
                f"{type(self.base).__name__}. {USAGES}"
            )
