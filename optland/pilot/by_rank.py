"""The state of a pilot for ``torch.distributed.checkpoint``: under a name of its own on every rank."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch

from optland.pilot.pilot import Pilot

__all__ = ["ByRank"]


class ByRank:
    """What ``torch.distributed.checkpoint`` is given in place of a pilot: ``{"model": ..., "pilot": ByRank(pilot)}``.

    Of a value that several ranks have under one name it keeps that of one rank. A pilot's snapshots of a sharded model
    are shards, and the loss that waits for the next update is that of a rank's own batch, so each state has a name.

    Args:
        pilot: The pilot of this rank.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> with Pilot(optimizer, net, lambda model, x: model(x).square().mean(), total_steps=10) as pilot:
        ...     [*ByRank(pilot).state_dict()]
        ['rank 0 of 1']
    """

    def __init__(self, pilot: Pilot) -> None:
        self.pilot = pilot

    @property
    def _name(self) -> str:
        ranks = self.pilot.host.ranks
        return f"rank {ranks.rank} of {ranks.size}"

    def state_dict(self) -> dict[str, Any]:
        """The state as bytes: what a pilot knows grows on the way, and is whole all the same."""
        content = io.BytesIO()
        torch.save(self.pilot.state_dict(), content)
        return {self._name: content.getvalue()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, on as many ranks."""
        self.pilot.load_state_dict(torch.load(io.BytesIO(state[self._name]), weights_only=True))
