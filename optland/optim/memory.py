"""Values that a method keeps from step to step, stored in the base optimizer's own state.

Tensors lie beside the base's own (``state[p]["sam_ema"]``), counts in the parameter groups, so that both travel in
every checkpoint, also in a sharded one, without a second state dict. Two rules make that safe. A method *proposes* what
to remember while a step is in flight, and it is written down only when the base has stepped: a step that is skipped or
called off leaves nothing behind. And nothing is written before the base's own first step, because many optimizers take
an empty ``state[p]`` for the sign that theirs has to be made.

Tensors are kept in the type of their parameter, which is what ``load_state_dict`` would make of them anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optland import vectors
from optland.optim.keys import key

__all__ = ["STEPS", "Memory", "dated"]

_RHO = key("rho")

STEPS = "sam_step"
"""Key in the parameter groups of the number of updates made; only where a method or its gate counts."""


def dated(name: str) -> str:
    """Name in the parameter groups of the update that made what is remembered under a name, counted from 1."""
    return f"{name}_made"


class Memory:
    """The values that a base and a method keep for each parameter.

    Args:
        base: The optimizer that owns groups and state.
        names: Of the tensors that the method keeps.

    Attributes:
        scratch: What the method notes during a step; gone with it.
        aside: What ``after_update`` adds to the weights; it adds up over micro-batches as ``.grad`` does, and is
            averaged over ranks where that is.
    """

    def __init__(self, base: Optimizer, names: Sequence[str] = ()) -> None:
        self._base, self.names = base, frozenset(names)
        self._proposed: dict[str, dict[Tensor, Tensor]] = {}
        self.scratch: dict[str, Any] = {}
        self.aside: dict[Tensor, Tensor] = {}

    @property
    def base(self) -> str:
        """Name of the base, for words to the user."""
        return type(self._base).__name__

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the base."""
        return self._base.param_groups

    @property
    def has_radius(self) -> bool:
        """Whether some rho is not 0; with none a second pass would only find h = g."""
        return bool([group for group in self._base.param_groups if group[_RHO] != 0])

    @property
    def steps(self) -> int:
        """Updates made so far, of the first group; 0 where nothing counts them."""
        return int(self._base.param_groups[0].get(STEPS, 0))

    def state_of(self, p: Tensor) -> dict[str, Any]:
        """The state of a parameter, the base's own included; empty where nothing is kept yet."""
        # Not state[p]: reading would make an entry.
        found: dict[str, Any] = self._base.state.get(p, {})
        return found

    def recall(self, name: str, params: Sequence[Tensor]) -> list[Tensor]:
        """The remembered value of each parameter, zeros where nothing was; never write into it.

        Args:
            name: One of ``names``.
            params: In any order.

        Returns:
            In the shapes and types of the parameters. What this step proposes goes before what was written down.
        """
        proposed, its = self._proposed.get(name, {}), key(name)
        if proposed:
            found = [proposed[p] if p in proposed else self.state_of(p).get(its) for p in params]
        else:
            state_of = self._base.state.get
            found = [(state_of(p) or {}).get(its) for p in params]
        return [torch.zeros_like(p) if x is None else x for x, p in zip(found, params, strict=True)]

    def is_new(self, name: str, group: dict[str, Any]) -> bool:
        """Whether no update has written anything down under this name in this group; the name has to be dated.

        Args:
            name: One of ``names``.
            group: A parameter group of the base.
        """
        return int(group[key(dated(name))]) == 0

    def is_stale(self, name: str, updates: int) -> bool:
        """Whether what is remembered under this name is this many updates old, or was never made in some group.

        The name has to be dated: a hyper-parameter :func:`dated` of it, 0 at the start. Counting from the last time,
        and not in multiples of ``updates``, is right also where a gate leaves out just that step.

        Args:
            name: One of ``names``.
            updates: Age from which on it is, the ``k`` or ``refresh`` of a method.

        Returns:
            False once this step has proposed a value, so that all micro-batches of a step share one answer.
        """
        if self._proposed.get(name):
            return False
        made = min(int(group[key(dated(name))]) for group in self.groups)
        return made == 0 or self.steps + 1 - made >= updates

    def proposed(self, name: str) -> dict[Tensor, Tensor]:
        """The values that this step proposes to remember under a name, by parameter."""
        return self._proposed.get(name, {})

    def remember(self, name: str, params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Propose values, which the next update writes down.

        Args:
            name: One of ``names``.
            params: The parameters.
            values: In their shapes; kept as they are, not copied.
        """
        assert name in self.names, f"{name!r} is not among the names that the method says it remembers"
        self._proposed.setdefault(name, {}).update(zip(params, values, strict=True))

    def add(self, name: str, params: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Propose values that add up over the micro-batches of a step, where each has an eps of its own.

        Args:
            name: One of ``names``.
            params: The parameters.
            values: In their shapes; added to what this step has proposed so far.
        """
        known = self._proposed.get(name, {})
        self.remember(
            name, params, [known[p] + x if p in known else x for p, x in zip(params, values, strict=True)]
        )

    def rename(self) -> None:
        """A checkpoint had short names in its groups, and has them in its state too."""
        for entry in self._base.state.values():
            for name in self.names & entry.keys():
                entry[key(name)] = entry.pop(name)

    def drop(self) -> None:
        """The step was called off, or another begins."""
        self._proposed, self.scratch, self.aside = {}, {}, {}

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Run a block that is part of no step: what it proposes is not proposed."""
        proposed = {name: dict(values) for name, values in self._proposed.items()}
        try:
            yield
        finally:
            self._proposed = proposed

    @vectors.no_graph
    def write_down(self) -> None:
        """After an update of the base: keep what was proposed, and count the update."""
        for name, values in self._proposed.items():
            for group in self.groups:
                if key(dated(name)) in group:
                    group[key(dated(name))] = group[STEPS] + 1
            for p, value in values.items():
                if p.grad is not None:  # the base has left the others out, and may have no state for them yet
                    self._base.state[p][key(name)] = value.to(p.dtype)
        self.drop()
        for group in self.groups:
            if STEPS in group:
                group[STEPS] += 1

    @vectors.no_graph
    def materialise(self, params: Sequence[Tensor]) -> None:
        """Make room for everything there will be: a checkpointer reads back only what it has seen."""
        for p in params:
            if p.grad is not None:
                for name in self.names:
                    self._base.state[p].setdefault(key(name), torch.zeros_like(p))
