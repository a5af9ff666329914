"""Set the learning rate before an update, and measure and correct its length after it, on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from optland import vectors
from optland.pilot.controls import Controls
from optland.pilot.host import Host
from optland.pilot.length import Lengths
from optland.pilot.linear import has_to_be_tried, tried
from optland.pilot.measure import Coherence
from optland.pilot.scalars import Scalars

__all__ = ["BINDING", "Steering"]

FIRST_TRIAL = 1e-3
"""Learning rate of the first update under a policy that sets lengths, before its length is known."""

BINDING = {"user": 0.0, "edge": 1.0, "ratio": 2.0, "guard": 3.0}
"""Codes of ``lr/binding``: what the learning rate of an update was set by."""


class Steering:
    """Sets rates and lengths, and measures what costs no gradient.

    Where a policy sets the length, the update is made at a *trial* rate, close to the last one that was right, and
    then rescaled: near the end of a schedule the step is so small that w_after - w_before would lose its digits, so
    the trial keeps the longest length that was asked for.

    Args:
        host: What is turned.
        controls: Whose caps and factor hold.
        scalars: Where what is measured waits.
        act: Whether rates and lengths are set; else they are only worked out.

    Attributes:
        rate: The learning rate that the present update is made at.
        binding: What it was set by, a key of :data:`BINDING`.
    """

    def __init__(self, host: Host, controls: Controls, scalars: Scalars, *, act: bool) -> None:
        self.host, self.controls, self.scalars, self.act = host, controls, scalars, act
        self.rate = math.nan
        self.binding = "user"
        self.coherence = Coherence()
        self._lengths = Lengths()
        self._trial, self._longest = FIRST_TRIAL, 0.0

    @property
    def factor(self) -> float:
        """The factor on the learning rate in force."""
        return min(self.host.factor, self.controls.cap("lr_factor"))

    @property
    def sets_lengths(self) -> bool:
        """Whether a policy sets the length of the updates."""
        return "step_length" in self.controls.turns

    def needs_weights_before(self) -> bool:
        """Whether anybody but a probe reads the weights before the update."""
        return self.sets_lengths or bool(self.controls.reads & _ALONG)

    def set_rate(self, optimizer: Optimizer) -> None:
        """Give one optimizer the rate of this update, its gradient being there.

        Args:
            optimizer: One of the host's, just before its step. It keeps its rate where that is the user's own.

        Raises:
            ValueError: Lengths are to be set, and a trial shows that its move is not linear in the learning rate.
        """
        host = self.host
        unknown = host.step == 0 and self.sets_lengths and has_to_be_tried(optimizer)
        if unknown and (why := tried(optimizer, host.parameters_of(optimizer))) is not None:
            raise ValueError(
                f"the length of an update of {type(optimizer).__name__} cannot be set afterwards, since its move is "
                f"not linear in the learning rate: {why}; use safe_lr, or an optimizer such as SGD or AdamW"
            )
        user = host.rate
        cap = self.controls.cap("lr")
        self.rate = self._trial if self.sets_lengths else min(user * self.factor, cap)
        self.binding = "user" if self.rate == user else "edge" if self.rate == cap else "guard"
        if self.rate != user:
            host.hold_rate(optimizer, self.rate, user)

    def measure(self) -> None:
        """Measure what costs no gradient and is read, before the update is given another length."""
        reads, host = self.controls.reads, self.host
        if "noise/coherence" in reads and self.coherence.concerns(host.step):
            params = [p for o in host.inner for p in host.parameters_of(o)]
            cosine = self.coherence.observe(host.step, params, host.inner)
            if cosine is not None:
                self.scalars.put(noise__coherence=cosine)
        if host.before and reads & {"update/w_dot_d", "update/d_sq"} and self.rate > 0:
            copies = host.before.copies
            back = vectors.subtract(copies, [p.detach() for p in host.before.params])
            self.scalars.put(
                update__w_dot_d=vectors.dot(copies, back) / self.rate,
                update__d_sq=vectors.dot(back, back) / self.rate**2,
            )

    def set_length(self, asked: float | None) -> None:
        """Give the update the relative length that was asked for; without one, only note how long it is.

        Args:
            asked: What a policy asks for, a relative length R; the factor on the rate applies to it too.
        """
        target = None if asked is None else asked * self.factor
        if target is not None and self.act:
            self._rescale(target)
            return
        host, cap, user = self.host, self.controls.cap("lr"), self.host.rate
        host.applied = self.rate
        would_be: Tensor | float | None = (
            None if self.act or not self.controls.policies else min(user * self.factor, cap)
        )
        if host.before and self.rate > 0:
            speed, relative = self._lengths.measure(host.before)
            self.scalars.put(update__speed=speed / self.rate, update__rel=relative)
            would_be = would_be if target is None else target * self.rate / speed
        if would_be is not None:
            self.scalars.put(ctl__lr_would_be=would_be)

    def _rescale(self, target: float) -> None:
        self._longest = max(self._longest, target)
        speed, relative, applied = self._lengths.rescale(
            self.host.before, target, self.rate, self.controls.cap("lr")
        )
        self.scalars.put(update__speed=speed, update__rel=relative, lr__applied=applied)
        self.binding = "ratio"

    def delivered(self) -> None:
        """The scalars of the last update have come to the host: the next trial is made at the rate that was right."""
        found = self.scalars.delivered
        self.host.applied = found.get("lr/applied", self.host.applied)
        speed = found.get("update/speed", math.nan)
        if self._longest > 0 and speed > 0 and math.isfinite(speed):
            self._trial = self._longest / speed

    def applied(self) -> float:
        """Learning rate of the last update; waits for the device."""
        self.host.applied = self.scalars.known().get("lr/applied", self.host.applied)
        return self.host.applied

    def rewound(self) -> None:
        """After a rewind trials are half as long, and the next gradient belongs to other weights."""
        self._longest /= 2
        self.coherence.forget()

    def state_dict(self) -> dict[str, Any]:
        """Plain values; the gradients of the coherence travel by name, with the pilot."""
        return {"trial": self._trial, "longest": self._longest, "binding": self.binding, "rate": self.rate}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self._trial, self._longest = state["trial"], state["longest"]
        self.binding, self.rate = state["binding"], state["rate"]


_ALONG = frozenset({"update/w_dot_d", "update/d_sq", "update/rel", "update/speed"})
"""Signals that need the weights before the update."""
