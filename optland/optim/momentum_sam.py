r"""Momentum SAM: perturb along the base's momentum, which is there already, and pay for one gradient only.

.. math:: \epsilon_t = -\rho \, \frac{v_{t-1}}{\|v_{t-1}\|}, \qquad
          w_{t+1} = \text{base}(w_t, \nabla L(w_t + \epsilon_t))

with v the momentum before this step's update: SGD's momentum buffer, or the first moment of Adam and its relatives. The
sign is intended: -v is where the base is about to go, and the momentum of many batches points up the sharp directions
less noisily than one gradient does.

**Cost.** 1 gradient evaluation a sample and step; one transient copy of the weights; no state.

**When.** Where SAM helps and its second pass is too dear. **When not.** A base without momentum.

**Defaults.** ``rho=0.3``, the authors' class default; their runs use 3 for CIFAR with SGD, so it has to be searched,
and over larger values than SAM's. They leave rho at 0 while the learning rate warms up (``gate=``, or the group's
``rho``).

**Caveats.** There is no clean pass: the loss that ``step(closure)`` returns, and BatchNorm statistics, are those of
w + eps. Weight decay acts at w, where the authors' code applies it at w + eps. A gate that asks for the gradient norm
sees that of the step before.

Reference: Becker, Altrock & Risse, "Momentum-SAM: Sharpness Aware Minimization without Computational Overhead", 2024,
arXiv:2401.12033.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Unpack

from torch import Tensor
from torch.optim import Optimizer

from optland import vectors
from optland.optim.ascent import Ascent
from optland.optim.delegate import Closure
from optland.optim.gradients import call_alone, present, require_dense, spend
from optland.optim.keys import key, setting
from optland.optim.two_pass import EngineOptions, TwoPass
from optland.optim.uncompiled import uncompiled

__all__ = ["MSAM"]

_NORM = "gate_norm"
_VELOCITIES = ("momentum_buffer", "exp_avg")


class MSAM(TwoPass):
    """Momentum SAM around an optimizer that has momentum.

    In phase form ``perturb()`` comes first: ``perturb()``, forward and backward, ``step()``.

    Args:
        base: The optimizer that makes the update, with momentum (SGD) or a first moment (Adam and relatives).
        rho: Radius ||eps||, in units of the weights.
        **engine: Options of :class:`~optland.optim.two_pass.TwoPass`.

    Raises:
        TypeError: ``base`` is not an optimizer instance.
        ValueError: ``rho`` is negative or not finite, or ``base`` has no momentum.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = MSAM(torch.optim.SGD([w], lr=0.1, momentum=0.5), rho=0.5)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = 0.5 * w.square().sum()
        ...     loss.backward()
        ...     return loss
        >>> _ = optimizer.step(closure)  # no momentum yet: w = 2 - 0.1 * 2, v = 2
        >>> _ = optimizer.step(closure)  # gradient at 1.8 - 0.5: v = 0.5 * 2 + 1.3
        >>> round(w.item(), 4)
        1.57
    """

    def __init__(self, base: Optimizer, rho: float = 0.3, **engine: Unpack[EngineOptions]) -> None:
        # A gate decides before the pass, by the norm of the update before, which a checkpoint has to hold.
        norm = {} if engine.get("gate") is None else {_NORM: 0.0}
        super().__init__(base, {"rho": rho, **norm}, **engine)
        if not all(_has_momentum(group) for group in self.param_groups):
            raise ValueError(
                f"MSAM perturbs along the momentum of its base, and this {type(base).__name__} has none; "
                "use for example torch.optim.SGD(params, lr=0.1, momentum=0.9), or AdamW"
            )

    sign = -1.0  # the engine is given the momentum in the place of the gradient

    def uphill(self, group: dict[str, Any]) -> float:
        """Along the base's next move, whichever way the base takes its gradients."""
        return self.sign

    _waiting = False
    """In phase form a gate has left the weights at w, and the only pass is still to come."""

    @property
    def evaluations(self) -> int:
        """One gradient a sample."""
        return 1

    def gradient_norm(self) -> float:
        """The length of the gradient of the last update."""
        group = self.param_groups[0]
        return float(setting(group, _NORM)) if key(_NORM) in group else super().gradient_norm()

    def _write_down(self) -> None:
        super()._write_down()
        for group in self.param_groups:
            if key(_NORM) in group:
                group[key(_NORM)] = super().gradient_norm()

    def _passes(self, closure: Closure, share: float = 1.0) -> Any:
        self._guard.forget()
        self._waiting = False
        if not (self._worthwhile() and self.due()):
            loss = call_alone(closure, self._params)
            return self._flat_pass(loss, share)
        self._loss_scale, self._share = 1.0, self._checked_share(share)
        ascent = self._rise()
        try:
            loss = call_alone(closure, self._params)
        except BaseException:
            self._land()
            raise
        self._return(ascent)
        if not self._pending:
            return self._flat_pass(loss, share)
        self._pending = False
        return loss

    def _flat_pass(self, loss: Any, share: float) -> Any:
        """The gradient in ``.grad``, if any, is that of w."""
        self._note_backward()
        self._begin(share=share)
        self._single_pass()
        return loss

    @uncompiled
    def perturb(self, *, loss_scale: float | Tensor | None = None, share: float = 1.0) -> bool:
        """Go from w to w + eps, before the only forward and backward pass of the step.

        Args:
            loss_scale: The factor that the loss will be multiplied by, for telemetry.
            share: The part of the batch that a micro-batch is, by which its loss will be multiplied besides.

        Returns:
            Whether the weights were moved; either way the pass and ``step()`` follow.

        Raises:
            RuntimeError: The weights are perturbed already.
        """
        self._refuse_in_flight("perturb()")
        self._refuse_untold()
        if not self._sum:
            self._forget_step()
        self._loss_scale, self._pending = 1.0 if loss_scale is None else loss_scale, False
        self._share = self._checked_share(share)
        self._guard.forget()
        self._waiting = False
        spend(self._params)
        if not self.due():
            self._pending = self._waiting = True
            return False
        ascent = self._rise()
        ascent.gradients = present(self._params)  # in place again where the step is called off
        return True

    @uncompiled
    def restore(self) -> None:
        """Put back the weights bit for bit; ``.grad`` is what the base optimizer shall receive."""
        self._note_flat_pass()
        super().restore()

    @uncompiled
    def accumulate(self, closure: Closure | None = None, *, share: float = 1.0) -> Any:
        """Add the gradient of one micro-batch to a sum for :meth:`step`; see :meth:`TwoPass.accumulate`."""
        if closure is None:
            self._note_flat_pass()
        return super().accumulate(closure, share=share)

    @uncompiled
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero the gradients; after a ``perturb()`` that returned False the step still goes on."""
        waiting = self._waiting
        super().zero_grad(set_to_none=set_to_none)
        self._pending = self._pending or waiting

    @uncompiled
    def passes(self, *, loss_scale: float | Tensor | None = None, share: float = 1.0) -> Iterator[int]:
        """The one pass of a step, at w + eps."""
        self.perturb(loss_scale=loss_scale, share=share)
        yield 0

    @vectors.no_graph
    def _rise(self) -> Ascent:
        self._ascent = ascent = self._climb_velocities()
        ascent.gradients = [None] * len(self._params)
        return ascent

    def _velocities(self) -> list[Tensor | None]:
        found = [self._velocity(p) for p in self._params]
        if all(v is None for v in found) and any(self._state_of(p) for p in self._params):
            raise ValueError(
                f"{type(self.base).__name__} keeps no momentum under {' or '.join(_VELOCITIES)}, so MSAM cannot "
                "perturb along it; use SGD with momentum, AdamW, or a relative of theirs"
            )
        return found

    def _climb_velocities(self) -> Ascent:
        v = self._velocities()
        return self._climb(v, vectors.norm([x for x in v if x is not None]))

    def _visit(self, g: list[Tensor | None], g_norm: Tensor) -> Ascent:
        return self._climb_velocities()

    def _velocity(self, p: Tensor) -> Tensor | None:
        state = self._state_of(p)
        return next((state[key] for key in _VELOCITIES if state.get(key) is not None), None)

    def _update(self) -> None:
        self._note_flat_pass()
        super()._update()

    @vectors.no_graph
    def _note_flat_pass(self) -> None:
        """In phase form a closed gate decides before the pass; this is after it, and before a scaler unscales."""
        if not self._waiting:
            return
        self._waiting = False
        if not self._seen():
            self._pending = False
            raise RuntimeError(
                "no backward pass after perturb(): MSAM perturbs before the only pass of a step, also where a gate "
                "leaves the weights where they are. Write: perturb(), backward, step()"
            )
        require_dense(present(self._params))
        self._passes_apart = [self._replicas.apart]
        self._norms.append(self._note_norm())
        self._single_pass()

    def _note_norm(self) -> Tensor:
        self._g_norm = vectors.norm([g for _, g in self._gradients()])
        return self._g_norm

    @vectors.no_graph
    def _descend(self, ascent: Ascent) -> None:
        measured = vectors.norm(vectors.subtract(ascent.moved, ascent.weights)) if self._measuring else None
        self._land()
        self._norms.append(self._note_norm())
        self.telemetry.note(g_norm=self._g_norm, loss_scale=self._unit)
        if measured is not None and ascent.length is not None:
            self.telemetry.note(eps_norm=ascent.length, eps_norm_realised=measured)


def _has_momentum(group: dict[str, Any]) -> bool:
    return group.get("momentum", 0.0) > 0 or "betas" in group or "beta1" in group
