"""Run an optimizer's gate once per step, and undo what it has recorded when the step is cancelled."""

from __future__ import annotations

from typing import Any

from optland.optim.gates import Gate, StepState, as_gate, gate_state
from optland.optim.keys import key

__all__ = ["Gating"]


class Gating:
    """Asks the gate of an optimizer.

    Args:
        gate: The gate, or its call as text; None is always open.
    """

    def __init__(self, gate: Gate | str | None) -> None:
        self.gate = as_gate(gate)
        self._before: list[dict[str, Any]] = []  # what the gate remembered before this step asked it
        self._norm_asked = False

    @property
    def state(self) -> dict[str, float]:
        """The gate's state in the groups, with its values at the start."""
        return gate_state(self.gate)

    def is_open(self, optimizer: StepState, *, apart: bool) -> bool:
        """Whether this step takes its second pass.

        Args:
            optimizer: What the gate may look at.
            apart: Whether the gradient of pass one is this rank's own.

        Raises:
            RuntimeError: The gate asks for the length of a gradient that is this rank's own.
        """
        if self.gate is None:
            return True
        names = [key(name) for name in self.state]
        self._before = self._before or [
            {name: group[name] for name in names} for group in optimizer.param_groups
        ]
        self._norm_asked = False
        decision = bool(self.gate(optimizer))
        if self._norm_asked and apart:
            raise RuntimeError(
                f"pass one ran under no_sync(), so g is this rank's own, and gate={self.gate!r} asks for its length: "
                "the ranks would decide apart. Leave no_sync() out of pass one, or take a gate that counts, as every(5)"
            )
        return decision

    def norm_asked(self) -> None:
        """The gate has asked for the length of the gradient."""
        self._norm_asked = True

    def drop(self, groups: list[dict[str, Any]]) -> None:
        """The step was called off: the gate remembers what it did before."""
        for group, before in zip(groups, self._before, strict=False):
            group.update(before)
        self._before = []

    def keep(self) -> None:
        """The step was made, or other groups were loaded."""
        self._before = []
