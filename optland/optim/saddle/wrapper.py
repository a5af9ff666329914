"""The base class of the saddle-escaping wrappers: the base's own step until a sign shows, events, verdict, resume.

**Checkpoints.** What a wrapper knows lies in the first parameter group and, in the shapes of the weights, in the state
of each parameter, so it travels through ``torch.distributed.checkpoint`` too. Both are filled in when a state dict is
made: between, the entries are empty, for a checkpointer to see that they exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optland.curvature.points.verdict import PointKind
from optland.optim.ascent_share import refuse_part
from optland.optim.delegate import Closure, Delegating
from optland.optim.gradients import is_spent, present, require_dense, spend
from optland.optim.saddle.evaluations import loss_value
from optland.optim.saddle.saved import ENTRY, decoded, encoded, makes_room
from optland.optim.saddle.trigger import Trigger
from optland.optim.saddle.verdict import Event
from optland.optim.two_pass import TwoPass
from optland.optim.uncompiled import uncompiled

__all__ = ["SaddleWrapper"]


class SaddleWrapper(Delegating):
    """Steps as ``base`` does, bit for bit, until a sign shows; then :meth:`_act` looks or moves first.

    Args:
        base: Any optimizer, a two-pass one included.
        model: The module, where buffers change in a forward pass; None for none.
        trigger: Says when to look; None for the default.
        seed: Of looks and kicks.

    Attributes:
        verdict: Of the last point that was looked at.
        events: What was done, each with its reason.
        closure_calls: Calls of the closure by looks and moves, beyond the base's own.
    """

    needs_closure: ClassVar[bool] = True
    passes_closure_on: ClassVar[bool] = True

    def __init__(
        self, base: Optimizer, *, model: nn.Module | None, trigger: Trigger | None, seed: int
    ) -> None:
        super().__init__(base, {})
        if isinstance(base, TwoPass):
            refuse_part(base, f"{type(self).__name__}, which looks for saddles in the loss of all of it,")
        self.model = model
        self.trigger = trigger or Trigger()
        self.generator = torch.Generator().manual_seed(seed)
        self.verdict: PointKind = PointKind.UNKNOWN
        self.events: list[Event] = []
        self.closure_calls = 0
        self._step = 0
        self._seen: float | Tensor | None = None  # loss of this step's first pass
        self._marked = False
        self._clear_entry()

    @property
    def last_evaluations(self) -> int:
        """Closure calls of the last step, by this wrapper and its base: its cost in gradient evaluations per sample."""
        return self._last_calls + self._base_calls

    _last_calls, _base_calls = 0, 1

    @uncompiled
    def step(self, closure: Closure | None = None) -> Any:
        """One update; the closure zeroes the gradients, runs forward and backward, and returns the loss.

        Raises:
            TypeError: No closure, or gradients that are sparse or complex.
            ValueError: The closure returned no loss.
            RuntimeError: The closure ran no backward pass, and gradients of before it are there.
        """
        if closure is None and not makes_room(self.param_groups):
            raise TypeError(
                f"{type(self).__name__}.step() needs a closure that evaluates the loss anew: "
                "def closure(): optimizer.zero_grad(); loss = ...; loss.backward(); return loss"
            )
        return self._step_with_hooks(self._update if closure is not None else self._make_room, closure)

    def _update(self, closure: Closure | None) -> Any:
        assert closure is not None
        self._step += 1
        self._last_calls, self._base_calls, self._seen = 0, 0, None
        if self.trigger.reason is not None:
            self._act(closure, self.trigger.reason)
        with nullcontext() if self._marked else self._watching():
            loss = self.base.step(lambda: self._pass(closure))
        if self._seen is not None:
            self.trigger.observe(self._weights, float(self._seen), self._base_calls)
        return loss

    def _pass(self, closure: Closure) -> Any:
        """A call of the closure by the base; the first of a step is refused here, if at all: nothing has moved yet."""
        self._base_calls += 1
        if self._base_calls > 1:
            return closure()
        loss = self._checked(closure)
        if any(p.grad is not None for p in self._weights):
            self._seen = loss_value(loss)
            self.trigger.see(self._weights)
        return loss

    def _checked(self, closure: Closure) -> Any:
        """Call the closure and refuse gradients that no norm can be taken of, and those that it has not made."""
        spend(self._weights)
        loss = closure()
        gradients = [g for g in present(self._weights) if g is not None]
        require_dense(gradients, type(self).__name__)
        if gradients and all(is_spent(g) for g in gradients):
            raise RuntimeError(
                f"the closure of {type(self).__name__}.step() ran no backward pass, and the gradients are those of "
                "before it: def closure(): optimizer.zero_grad(); loss = ...; loss.backward(); return loss"
            )
        return loss

    def _make_room(self, closure: Closure | None) -> None:
        """A checkpointer's step on gradients of zero: it creates the state, and nothing else."""
        self.base.step()
        self._marked = True
        self._mark()

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Mark the state once the optimizer that owns it has made an update; a two-pass step may leave it out.

        Until then an entry of this wrapper would be taken for the state that an Adam has yet to make.
        """
        owner: Optimizer = self.base
        while isinstance(owner, Delegating):
            owner = owner.base
        made: list[Any] = []
        handle = owner.register_step_post_hook(lambda *_: made.append(True))
        try:
            yield
        finally:
            handle.remove()
        self._marked = bool(made)
        self._mark()

    def _act(self, closure: Closure, reason: str) -> None:
        """Look at the curvature, or move."""
        raise NotImplementedError

    @property
    def _weights(self) -> list[Tensor]:
        return [p for p in self._params if p.requires_grad]

    def _note(self, event: Event, verdict: PointKind) -> None:
        self.events.append(event)
        self.verdict = verdict
        self.closure_calls += event.calls
        self._last_calls += event.calls

    # Saving and loading ----------------------------------------------------------------------------

    @property
    def _entry(self) -> str:
        """Key of what this wrapper knows; one of the same kind inside it has another."""
        inner, depth = self.base, 0
        while isinstance(inner, Delegating):
            depth += isinstance(inner, SaddleWrapper)
            inner = inner.base
        return f"{ENTRY}_{depth}" if depth else ENTRY

    def _names(self) -> dict[str, str]:
        """Keys in the state of a parameter, for what the trigger remembers in its shape."""
        return {name: f"{self._entry}_{name}" for name in self.trigger.memory}

    def _clear_entry(self) -> None:
        self.param_groups[0][self._entry] = ""

    def _mark(self) -> None:
        """Let a checkpointer see which entries the state has: those of parameters that the base has a state of.

        All parameters, where the base has stepped and keeps none at all.
        """
        if not self._marked:
            return
        stateless = all(key.startswith(ENTRY) for entry in self.state.values() for key in entry)
        for p in self._weights:
            if stateless or self.state.get(p):
                for key in self._names().values():
                    self.state[p].setdefault(key, torch.empty(0, dtype=p.dtype, device=p.device))

    def state_dict(self) -> dict[str, Any]:
        """The base's state dict, with what this wrapper knows in it; the base alone can go on from it too."""
        self._mark()
        return super().state_dict()

    def _with_own_state(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        groups, state = list(state_dict["param_groups"]), dict(state_dict["state"])
        groups[0] = {**groups[0], self._entry: encoded(self._known())}
        memory, order = self.trigger.memory, {p: i for i, p in enumerate(self._weights)}
        for i, p in enumerate(self._params):
            if p not in order or not self.state.get(p):
                continue
            state[i] = dict(state[i])
            for name, key in self._names().items():
                kept = memory[name]
                state[i][key] = torch.zeros_like(p.detach()) if kept is None else kept[order[p]]
        return {**state_dict, "param_groups": groups, "state": state}

    def _take_own_state(self) -> None:
        text = self.param_groups[0].get(self._entry)
        self._clear_entry()
        if not text:  # a plain base optimizer's
            self._marked = bool(self.state)
            self._mark()
            return
        own = decoded(text)
        self.trigger.load_state_dict(own["trigger"])
        memory: dict[str, list[Tensor] | None] = {}
        for name, key in self._names().items():
            found = [self.state.get(p, {}).pop(key, None) for p in self._weights]
            # A parameter without a state has had no gradient: it is where it was.
            otherwise = torch.clone if name == "still" else torch.zeros_like
            memory[name] = None
            if own["remembers"][name]:
                memory[name] = [
                    otherwise(p.detach()) if x is None else x
                    for x, p in zip(found, self._weights, strict=True)
                ]
        self.trigger.memory = memory
        self._marked = own["marked"]
        self._mark()
        self.generator.set_state(own["generator"])
        self.verdict, self.closure_calls, self._step = PointKind(own["verdict"]), own["calls"], own["step"]
        self.events = [Event.of(e) for e in own["events"]]
        self._load_own_state(own)

    def _known(self) -> dict[str, Any]:
        return {
            "trigger": self.trigger.state_dict(), "generator": self.generator.get_state(),
            "verdict": self.verdict.value, "events": [e.to_dict() for e in self.events],
            "calls": self.closure_calls, "step": self._step, "marked": self._marked,
            "remembers": {name: kept is not None for name, kept in self.trigger.memory.items()},
            **self._own_state(),
        }  # fmt: skip

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
