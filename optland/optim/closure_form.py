"""The closure form of a two-pass step, and what ends a step in either form."""

from __future__ import annotations

from typing import Any

import torch

from optland import vectors
from optland.optim.ascent import Ascent, Climber
from optland.optim.base_step import total
from optland.optim.delegate import Closure
from optland.optim.gradients import call_alone, is_spent, present, spend
from optland.optim.keys import setting
from optland.optim.telemetry import largest

__all__ = ["ClosureForm"]


class ClosureForm(Climber):
    """Evaluates a closure at each place that a step looks at, and makes the update."""

    _withdrawn = False

    def withdraw(self) -> None:
        """The gradient was taken away on purpose, inside a closure or before ``step()``: this update shall be none.

        Neither the base's state nor that of the method moves.
        """
        self._withdrawn = True

    def _closure_step(self, closure: Closure) -> Any:
        self._forget_step()
        try:
            loss = self._passes(closure)
            self._losses = [loss]
        except BaseException:
            self._drop_proposals()
            raise
        self._update()
        spend(self._params)
        return loss

    def _passes(self, closure: Closure, share: float = 1.0) -> Any:
        """Evaluate the closure as often as the method wants; ``.grad`` is then what the base shall receive."""
        self._guard.begin_closure()
        try:
            loss = call_alone(closure, self._params)
            self._note_backward()
            self._begin(share=share)
            if self._worthwhile() and self.due() and any(p.grad is not None for p in self._params):
                self._second_pass(closure, loss)
            else:
                self._single_pass()
        finally:
            self._guard.end_second()
        return loss

    def _note_backward(self) -> None:
        """A closure that brings no gradient makes a step of nothing, as with PyTorch's optimizers; say so once.

        Raises:
            RuntimeError: The parameters are sharded, and FSDP2 has kept the gradient back.
        """
        if self._withdrawn or any(p.grad is not None for p in self._params):
            return
        if any(hasattr(p, "to_local") for p in self._params):
            raise RuntimeError(
                "the closure brought no gradient to the sharded parameters. Under set_requires_gradient_sync(False) "
                "FSDP2 keeps gradients back and would mix those of both passes. For an eps of each micro-batch leave "
                "that out; for one of them all: for _ in optimizer.passes(): backward over all micro-batches, the last "
                "one synchronised; then step()"
            )
        self._notices.once(
            "backward",
            f"the closure brought no gradient to any parameter of {type(self).__name__}, so nothing is trained; it has "
            "to call loss.backward(), on a loss of these parameters, after zero_grad()",
        )

    def _worthwhile(self) -> bool:
        """With every rho at 0 a second pass would only find h = g."""
        return any(setting(group, "rho") != 0 for group in self.param_groups)

    def _second_pass(self, closure: Closure, loss: Any) -> None:
        loss_up = self._call_perturbed(closure)
        if loss is not None and loss_up is not None:
            self.telemetry.note(loss=loss, loss_up=loss_up, share=self._share)

    def _call_perturbed(self, closure: Closure) -> Any:
        """Call the closure at w + eps (and at w - eps), and be back at w whatever happens in it."""
        self._ascend()
        try:
            with torch.enable_grad():
                loss = closure()
            if self.two_sided and self._ascent is not None and self._seen():
                self._cross(self._ascent)
                with torch.enable_grad():
                    closure()
        except BaseException:
            if self._ascent is not None:
                self._abandon()
            raise
        if self._ascent is not None:  # a closure of the phase form has come back by itself
            self._return(self._ascent)
        self._require_pending()
        return loss

    @vectors.no_graph
    def _single_pass(self) -> None:
        self.last_evaluations = 1
        self._apart = any(self._passes_apart)
        self.telemetry.note(g_norm=self._g_norm, eps_norm=0.0, loss_scale=self._unit)
        at = self._at(present(self._params))
        at.g_norm = self._g_norm
        reused = self.reuse(at)
        if reused is not at.g:
            for p, gradient in zip(at.params, reused, strict=True):
                p.grad = gradient

    def _seen(self) -> bool:
        """Whether a backward pass has been made since the weights were moved."""
        return any(g is not None and not is_spent(g) for g in present(self._params))

    def _return(self, ascent: Ascent) -> None:
        """Back to w: with the combined gradient, or calling the step off where a pass is missing."""
        if not self._seen():
            self._abandon()
            return
        if self.two_sided and ascent.beyond is None:
            self._abandon()
            raise RuntimeError(
                f"{type(self).__name__} takes three passes: backward, perturb(), backward, perturb(), backward, "
                "step(); the third is missing and the step was undone"
            )
        self._require_dense_pass()
        self._note_apart()
        self._descend(ascent)
        self._pending, self.last_evaluations = True, self.evaluations

    def _require_pending(self) -> None:
        """After a closure at w + eps; it must have brought gradients."""
        if not self._pending:
            raise RuntimeError(
                "the closure ran no backward pass when it was called at w + eps; the step was undone"
            )
        self._pending = False

    def _update(self) -> None:
        losses, self._losses = self._losses, []  # and with them their graphs
        self._agree()
        withdrawn, self._withdrawn = self._withdrawn, False
        self.last_skipped = withdrawn or (self.check_finite and not self._is_finite())
        if self.last_skipped:
            self.telemetry.note(skipped=1.0)
            self._drop_proposals()
            return
        if isinstance(self.base, torch.optim.SGD):
            self.telemetry.note(skipped=0.0, lr=largest([group["lr"] for group in self.param_groups]))
        else:
            self.telemetry.note(skipped=0.0)
        if self._measuring and self.telemetry.has_measurement:
            self.telemetry.keep(self._period)
        self._base_step(total(losses), self._params)
        self.after_update()
        self._write_down()
