r"""Momentum SAM: perturb along the base's momentum, which is there already, and pay for one gradient only.

.. math:: \epsilon_t = -\rho \, \frac{v_{t-1}}{\|v_{t-1}\|}, \qquad
          w_{t+1} = \text{base}(w_t, \nabla L(w_t + \epsilon_t))

with v the momentum before this step's update: SGD's momentum buffer, or the first moment of Adam and its relatives. The
sign is intended: -v is where the base is about to go, and the momentum of many batches points up the sharp directions
less noisily than one gradient does.

**Cost.** 1 gradient evaluation per sample and step; one transient copy of the weights; no state.

**When.** Where SAM helps and its second pass costs too much. **When not.** A base without momentum.

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
from optland.optim import misuse
from optland.optim.delegate import Closure
from optland.optim.flight import Ascent, Flight, Phase
from optland.optim.gradients import call_alone, present, require_dense, spend
from optland.optim.keys import key, setting
from optland.optim.method import Method
from optland.optim.two_pass import EngineOptions, TwoPass
from optland.optim.uncompiled import uncompiled

__all__ = ["MSAM"]

_NORM = "gate_norm"
_VELOCITIES = ("momentum_buffer", "exp_avg")


class _Momentum(Method):
    """A method whose direction is down the momentum, which the engine is given instead of the gradient."""

    sign = -1.0

    def uphill(self, group: dict[str, Any]) -> float:
        """Along the base's next move, whichever way the base takes its gradients."""
        return self.sign

    @property
    def evaluations(self) -> float:
        """Gradient evaluations per sample of a step: one."""
        return 1


class _OnePass(Flight):
    """The state machine of a one-pass step: up along the momentum, then the only pass."""

    @vectors.no_graph
    def rise(self) -> None:
        """To w + eps."""
        self.ascent = self._climb_velocities()
        self.to(Phase.PERTURBED)
        self.ascent.gradients = [None] * len(self.params)

    def visit(self, g: list[Tensor | None], g_norm: Tensor) -> Ascent:
        """Along the momentum, whatever the gradients are."""
        return self._climb_velocities()

    @vectors.no_graph
    def descend(self) -> None:
        """Return to w; the base receives the gradient unchanged."""
        ascent = self._away()
        measured = vectors.norm(vectors.subtract(ascent.moved, ascent.weights)) if self.measuring else None
        self.land()
        self.note_norm()
        self.telemetry.note(g_norm=self.g_norm, loss_scale=self.units.factor)
        if measured is not None and ascent.length is not None:
            self.telemetry.note(eps_norm=ascent.length, eps_norm_realised=measured)

    @vectors.no_graph
    def flat_pass(self) -> None:
        """The only pass was made at w."""
        require_dense(present(self.params))
        self._passes_apart = [self.replicas.apart]
        self.note_norm()
        self.single_pass()

    def note_norm(self) -> None:
        """The length of the gradient in ``.grad``."""
        self.g_norm = self.length_of(present(self.params))
        self._norms.append(self.g_norm)

    def _climb_velocities(self) -> Ascent:
        v = self._velocities()
        return self.climb(v, self.length_of(v))

    def _velocities(self) -> list[Tensor | None]:
        states = list(map(self.base.state.get, self.params))
        found: list[Tensor | None] = []
        for state in states:
            velocity = None if state is None else state.get(_VELOCITIES[0])
            found.append(state.get(_VELOCITIES[1]) if state and velocity is None else velocity)
        if any(states) and all(v is None for v in found):
            raise ValueError(
                f"{self.memory.base} keeps no momentum under {' or '.join(_VELOCITIES)}, so MSAM cannot "
                "perturb along it; use SGD with momentum, AdamW, or a relative of theirs"
            )
        return found


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
        super().__init__(base, _Momentum(rho=rho, **norm), **engine)
        if not all(_has_momentum(group) for group in self.param_groups):
            raise ValueError(
                f"MSAM perturbs along the momentum of its base, and this {type(base).__name__} has none; "
                "use for example torch.optim.SGD(params, lr=0.1, momentum=0.9), or AdamW"
            )

    flight_class = _OnePass
    _flight: _OnePass

    def gradient_norm(self) -> float:
        """The length of the gradient of the last update."""
        group = self.param_groups[0]
        return float(setting(group, _NORM)) if key(_NORM) in group else super().gradient_norm()

    def _write_down(self) -> None:
        super()._write_down()
        for group in self.param_groups:
            if key(_NORM) in group:
                group[key(_NORM)] = super().gradient_norm()

    @vectors.no_graph
    def _passes(self, closure: Closure, share: float = 1.0) -> Any:
        flight = self._flight
        flight.guard.forget()
        flight.to(Phase.IDLE)
        if not (self._memory.has_radius and self._due()):
            loss = call_alone(closure, self._params)
            return self._flat_pass(loss, share)
        flight.units.take(None, share)
        flight.rise()
        try:
            loss = call_alone(closure, self._params)
        except BaseException:
            flight.land()
            raise
        flight.come_back()
        return loss if flight.phase is Phase.READY else self._flat_pass(loss, share)

    def _flat_pass(self, loss: Any, share: float) -> Any:
        """The gradient in ``.grad``, if any, is that of w."""
        misuse.note_no_gradient(self, self._params, self._flight.notices, meant=self._withdrawn)
        self._flight.begin(share=share)
        self._flight.single_pass()
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
        flight = self._flight
        self._refuse_in_flight("perturb()")
        self._refuse_untold()
        if not self._sum:
            self._forget_step()
        flight.units.take(loss_scale, share)
        flight.to(Phase.IDLE)
        flight.guard.forget()
        spend(self._params)
        if not self._due():
            flight.to(Phase.WAITING)
            return False
        flight.rise()
        assert flight.ascent is not None
        flight.ascent.gradients = present(self._params)  # in place again where the step is called off
        return True

    @uncompiled
    def restore(self) -> None:
        """Put back the weights bit for bit; ``.grad`` is what the base optimizer receives."""
        self._note_flat_pass()
        super().restore()

    @uncompiled
    def accumulate(self, closure: Closure | None = None, *, share: float = 1.0) -> Any:
        """Add the gradient of one micro-batch to a sum for :meth:`step`; see :meth:`TwoPass.accumulate`.

        Args:
            closure: Evaluated once, at w + eps; None takes what is in ``.grad``.
            share: The part of the batch that this micro-batch is.
        """
        if closure is None:
            self._note_flat_pass()
        return super().accumulate(closure, share=share)

    @uncompiled
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero the gradients; after a ``perturb()`` that returned False the step still goes on."""
        waiting = self._flight.phase is Phase.WAITING
        super().zero_grad(set_to_none=set_to_none)
        if waiting:
            self._flight.to(Phase.WAITING)

    @uncompiled
    def passes(self, *, loss_scale: float | Tensor | None = None, share: float = 1.0) -> Iterator[int]:
        """The one pass of a step, at w + eps.

        Args:
            loss_scale: What a GradScaler multiplies the loss by.
            share: The part of the batch that this micro-batch is.

        Yields:
            0, once: a forward and backward pass is wanted here.
        """
        self.perturb(loss_scale=loss_scale, share=share)
        yield 0

    def _update(self) -> None:
        self._note_flat_pass()
        super()._update()

    def _note_flat_pass(self) -> None:
        """In phase form a closed gate decides before the pass; this is after it, and before a scaler unscales."""
        flight = self._flight
        if flight.phase is not Phase.WAITING:
            return
        flight.to(Phase.IDLE)
        if not flight.seen():
            raise RuntimeError(
                "no backward pass after perturb(): MSAM perturbs before the only pass of a step, also where a gate "
                "leaves the weights where they are. Write: perturb(), backward, step()"
            )
        flight.flat_pass()
        flight.to(Phase.READY)


def _has_momentum(group: dict[str, Any]) -> bool:
    return group.get("momentum", 0.0) > 0 or "betas" in group or "beta1" in group
