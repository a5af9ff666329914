"""The base class of probes: measurements of the landscape with a declared cost, which leave no trace."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from optland.pilot.host import Host
from optland.pilot.signal import Signal

__all__ = ["Probe"]


class Probe(ABC):
    """Measures signals; it runs where a policy reads one of them, the mode shows it, or it was given to the pilot.

    Attributes:
        name: Of the probe, in the budget and the log.
        yields: Names of the signals that policies may read.
        every: Fewest updates between two runs, however large the budget.
        weight: Its part of the budget, relative to that of the other probes in use.
        ahead: Runs that may come before its part of the budget has grown to them.
        along_update: Whether it needs the weights before the update.
        joint: Whether it looks at the step's batch alone, by ``host.objective(..., joint=True)``, so that several ranks
            can measure it together, each on its own.
        reads_rate: Whether it needs the rate of the update just made, which the host then waits for.
        whole_batches: Whether it stays off the smaller batch at the end of an epoch, which is not comparable.
        spent: Cost of the last run, in gradient evaluations.
    """

    name: ClassVar[str]
    yields: ClassVar[frozenset[str]]
    every: int = 10
    weight: float = 1.0
    ahead: ClassVar[int] = 1
    along_update: ClassVar[bool] = False
    joint: ClassVar[bool] = False
    reads_rate: ClassVar[bool] = False
    whole_batches: ClassVar[bool] = True
    spent: float = 0.0

    @abstractmethod
    def cost(self, host: Host) -> float:
        """The most that a run can cost now, in gradient evaluations; infinite while there is nothing to look at.

        Args:
            host: What the run lets one see; its batch size and objective decide the cost.

        Returns:
            Gradient evaluations, declared from counts and never from the clock. The run is put off until the budget
            has them.
        """

    @abstractmethod
    def measure(self, host: Host) -> list[Signal]:
        """Look, at the weights and along the move of the update just made; sets ``spent``.

        Args:
            host: Gives the objective of the step's batch, the realised update, and the learning rate.

        Returns:
            Signals with errors, each under a name of ``yields``; what did not converge has ``valid=False`` and says
            why. An exception costs one warning and this probe, and never the run.
        """

    def see(self, host: Host) -> None:  # noqa: B027 - most probes need nothing beforehand
        """Called after every update, before anything is measured; nothing by default."""

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs to measure as an unbroken one would."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Continue where :meth:`state_dict` was taken."""
