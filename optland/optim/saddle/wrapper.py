"""What the saddle-escaping wrappers share: the base's own step until a sign shows, events, a verdict, resume."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optland.optim.delegate import Closure, Delegating
from optland.optim.saddle.trigger import Trigger
from optland.optim.saddle.verdict import Event, Verdict
from optland.optim.uncompiled import uncompiled

__all__ = ["SaddleWrapper"]


class SaddleWrapper(Delegating):
    """Steps as ``base`` does, bit for bit, until a sign shows; then :meth:`_act` looks or moves first.

    Attributes:
        verdict: Of the last point that was looked at.
        events: What was done, each with its reason.
        closure_calls: Calls of the closure by looks and moves, beyond the base's own.
    """

    def __init__(
        self, base: Optimizer, *, model: nn.Module | None, trigger: Trigger | None, seed: int
    ) -> None:
        super().__init__(base, {})
        self.model = model
        self.trigger = trigger or Trigger()
        self.generator = torch.Generator().manual_seed(seed)
        self.verdict: Verdict = "unknown"
        self.events: list[Event] = []
        self.closure_calls = 0
        self._step = 0

    @property
    def last_evaluations(self) -> int:
        """Closure calls of the last step, by this wrapper and its base: its cost in gradient evaluations a sample."""
        return self._last_calls + int(getattr(self.base, "last_evaluations", 1))

    _last_calls = 0

    @uncompiled
    def step(self, closure: Closure | None = None) -> Any:
        """One update; the closure zeroes the gradients, runs forward and backward, and returns the loss.

        Raises:
            TypeError: No closure.
        """
        if closure is None:
            raise TypeError(
                f"{type(self).__name__}.step() needs a closure that evaluates the loss anew: "
                "def closure(): optimizer.zero_grad(); loss = ...; loss.backward(); return loss"
            )
        return self._step_with_hooks(self._update, closure)

    def _update(self, closure: Closure | None) -> Any:
        assert closure is not None
        self._step += 1
        self._last_calls = 0
        if self.trigger.reason is not None:
            self._act(closure, self.trigger.reason)
        self._before_base(closure)
        loss = self.base.step(closure)
        calls = int(getattr(self.base, "last_evaluations", 1))
        self.trigger.observe(self._weights, float(loss.detach() if isinstance(loss, Tensor) else loss), calls)
        return loss

    def _act(self, closure: Closure, reason: str) -> None:
        """Look at the curvature, or move."""
        raise NotImplementedError

    def _before_base(self, closure: Closure) -> None:
        """Hook for a wrapper that changes every step."""

    @property
    def _weights(self) -> list[Tensor]:
        return [p for p in self._params if p.requires_grad]

    def _note(self, event: Event, verdict: Verdict) -> None:
        self.events.append(event)
        self.verdict = verdict
        self.closure_calls += event.calls
        self._last_calls += event.calls

    def state_dict(self) -> dict[str, Any]:
        """The base's state, and under ``saddle`` what this wrapper knows."""
        state = super().state_dict()
        state["saddle"] = {
            "trigger": self.trigger.state_dict(), "generator": self.generator.get_state(), "verdict": self.verdict,
            "events": [e.to_dict() for e in self.events], "calls": self.closure_calls, "step": self._step,
            **self._own_state(),
        }  # fmt: skip
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, or a plain base optimizer's."""
        own = state_dict.get("saddle")
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "saddle"})
        if own is None:
            return
        self.trigger.load_state_dict(own["trigger"])
        self.generator.set_state(own["generator"])
        self.verdict, self.closure_calls, self._step = own["verdict"], own["calls"], own["step"]
        self.events = [Event(**e) for e in own["events"]]
        self._load_own_state(own)

    def _own_state(self) -> dict[str, Any]:
        return {}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        """Load what :meth:`_own_state` returned."""

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["generator"] = self.generator.get_state()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        given = state.pop("generator", None)
        super().__setstate__(state)
        self.generator = torch.Generator()
        if given is not None:
            self.generator.set_state(given)
