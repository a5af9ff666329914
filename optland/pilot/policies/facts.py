"""Facts about the host and the run, given to policies before the first update."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["HostFacts"]


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The host and the run in numbers.

    Attributes:
        steps: Updates of the whole run at the present batch size; None when its length is unknown.
        has_length: Whether the length of the run is known, in updates or samples.
        passes: Passes over the data; None where nobody knows the size of the data.
        has_schedule: Whether a scheduler is attached to the optimizer.
        two_pass: Whether an update takes two passes (SAM).
        adam: Whether the optimizer divides by the root of a second moment.
        can: What this host can turn.
        lengths_set: Whether a policy sets the length of the updates, which then follow the batch by themselves.
        samples: Samples of the training set; None where nobody knows.
        open_ended: Whether the length is unknown on purpose.
    """

    steps: int | None = None
    has_length: bool = False
    passes: float | None = None
    has_schedule: bool = False
    two_pass: bool = False
    adam: bool = False
    can: frozenset[str] = frozenset()
    lengths_set: bool = False
    samples: int | None = None
    open_ended: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""
        return asdict(self) | {"can": sorted(self.can)}

    @classmethod
    def of(cls, state: dict[str, Any] | None) -> HostFacts | None:
        """The facts that :meth:`to_dict` was taken of."""
        return None if state is None else cls(**state | {"can": frozenset(state["can"])})
