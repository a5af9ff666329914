"""The scalars of an update, which wait on the device and reach the host in one transfer.

A training loop that reads one number per step from a GPU waits for all that was queued before it, so everything that
the pilot measures of an update (its loss, length, rate, coherence) is kept where it was made and fetched when the next
gradient is there, together with that gradient's norms: one wait per update, however many policies read. On the CPU
there is nothing to wait for, and norms may be given as numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optland import processes
from optland.pilot.ranks import Ranks

__all__ = ["Scalars"]

SHARED = (
    "train/loss", "lr/applied", "update/speed", "update/rel", "update/w_dot_d", "update/d_sq", "noise/coherence",
    "ctl/lr_would_be",
)  # fmt: skip
"""Everything that may wait, in the order in which ranks tell it to each other."""


class Scalars:
    """Numbers by name, on the device until somebody fetches them.

    Args:
        ranks: The processes that share them.
        device: Where the processes meet.

    Attributes:
        samples: Of this rank's last batch, the weight of its loss.
        delivered: What the last :meth:`fetch` brought, as numbers.

    Example:
        >>> from optland.pilot.ranks import Ranks
        >>> scalars = Scalars(Ranks(torch.nn.Linear(1, 1)), torch.device("cpu"))
        >>> scalars.put(train__loss=torch.tensor(2.5), lr__applied=0.1)
        >>> scalars.fetch(torch.tensor([3.0, 4.0]))
        ([3.0, 4.0], [])
        >>> scalars.delivered["train/loss"], scalars.delivered["lr/applied"]
        (2.5, 0.1)
    """

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        self.ranks, self.ranks_device = ranks, device
        self.samples = 0
        self._met = processes.size() > 1  # whether the ranks are known to make the same calls
        self._waiting: dict[str, Tensor | float] = {}
        self.delivered: dict[str, float] = {}

    def put(self, **scalars: Tensor | float) -> None:
        """Let these wait, under names with ``__`` for the slash.

        Args:
            **scalars: Numbers or tensors of one entry; a name that waits already is overwritten.
        """
        for name, value in scalars.items():
            self._waiting[_keyed(name)] = value

    def flush(self) -> None:
        """Turn what waits into numbers, where it goes on waiting, in one transfer."""
        tensors = {name: v for name, v in self._waiting.items() if isinstance(v, Tensor)}
        if tensors:
            values = _together([v.reshape(1) for v in tensors.values()]).tolist()
            self._waiting |= dict(zip(tensors, values, strict=True))

    def fetch(
        self, gradients: Tensor | list[float] | None = None, extra: Sequence[float] = ()
    ) -> tuple[list[float], list[float]]:
        """Deliver what waits, with the norms of the gradients, in one transfer.

        Where there are several ranks, all of them get the same: the loss as a mean over their samples, norms that are
        not finite where they are not on any of them, everything else as rank 0 has it.

        Args:
            gradients: Norms of the gradients, as numbers where the host knows them.
            extra: Numbers of rank 0 to give to all ranks.

        Returns:
            The norms of the gradients, and ``extra``.
        """
        if self.ranks.several:
            if isinstance(gradients, list):
                gradients = torch.tensor(gradients, dtype=torch.float64, device="cpu")
            return self._agreed(gradients, extra)
        if isinstance(gradients, list):  # on the CPU nothing has to wait for anything
            self._deliver()
            return gradients, list(extra)
        waiting = {name: v for name, v in self._waiting.items() if isinstance(v, Tensor)}
        parts = ([] if gradients is None else [gradients]) + [v.reshape(1) for v in waiting.values()]
        values = _together(parts).tolist() if parts else []
        split = 0 if gradients is None else len(gradients)
        self._waiting |= dict(zip(waiting, values[split:], strict=True))
        self._deliver()
        return values[:split], list(extra)

    def _agreed(self, gradients: Tensor | None, extra: Sequence[float]) -> tuple[list[float], list[float]]:
        self._met = True
        device = self.ranks_device if gradients is None else gradients.device
        norms = torch.zeros(0, device=device) if gradients is None else gradients
        # A place for each, NaN where rank 0 has none: the weights before an update are copied where they are looked at.
        waiting = [
            torch.as_tensor(self._waiting.get(name, math.nan), device=device, dtype=torch.float64).reshape(1)
            for name in SHARED
        ]
        told = torch.tensor([*extra], device=device, dtype=torch.float64)
        bad = (~norms.isfinite()).any().double().reshape(1)
        counted = self.samples if "train/loss" in self._waiting else 0
        samples = torch.tensor([float(counted)], device=device, dtype=torch.float64)
        loss = torch.as_tensor(self._waiting.get("train/loss", 0.0), device=device, dtype=torch.float64)
        weighted = loss.reshape(1) * samples
        mine = torch.cat([norms.double(), *waiting, told])
        numbers, sums = self.ranks.agree(mine, torch.cat([bad, weighted, samples]))
        values, (flag, total, count) = numbers.tolist(), sums.tolist()
        n, w = len(norms), len(waiting)
        shared = dict(zip(SHARED, values[n : n + w], strict=True))
        self._waiting = {name: value for name, value in shared.items() if not math.isnan(value)}
        if count > 0:
            self._waiting["train/loss"] = total / count
        self._deliver()
        return [math.nan] * n if flag > 0 else values[:n], values[n + w :]

    def of_all(self, loss: float | Tensor) -> float:
        """The loss of the present update, of the samples of all ranks, for the log; waits for them.

        Args:
            loss: Of this rank, a mean over its ``samples``.
        """
        here = float(loss)
        if not (self.ranks.several and self._met):
            return here
        device = self.ranks_device
        weighed = torch.tensor([here * self.samples, self.samples], device=device, dtype=torch.float64)
        total, count = self.ranks.agree(weighed[:0], weighed)[1].tolist()
        return total / count if count > 0 else here

    def _deliver(self) -> None:
        self.delivered = {name: float(value) for name, value in self._waiting.items()}
        self._waiting = {}

    def known(self) -> dict[str, float]:
        """Everything of the last update and the one before; waits for the device.

        Returns:
            By ``group/name``; where both updates have a number, that of the last.
        """
        self.flush()
        return self.delivered | {name: float(value) for name, value in self._waiting.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for the checkpoint.

        The loss that waits is that of this rank. Where a launcher's processes save together, those of all are held.
        """
        self.flush()
        waiting = {k: float(v) for k, v in self._waiting.items()}
        state = {"waiting": waiting, "delivered": dict(self.delivered), "samples": self.samples}
        if processes.size() > 1:
            state["ranks"] = processes.gathered([waiting.get("train/loss", math.nan), self.samples])
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self._waiting, self.delivered = dict(state["waiting"]), dict(state["delivered"])
        self.samples = state.get("samples", 0)
        held = state.get("ranks", [])
        if "train/loss" not in self._waiting or not held:
            return
        if len(held) == processes.size():
            self._waiting["train/loss"], self.samples = held[processes.rank()]
        else:  # other processes go on: with the loss that they would have been told
            self._waiting["train/loss"] = sum(loss * n for loss, n in held) / sum(n for _, n in held)


@functools.cache
def _keyed(name: str) -> str:
    return name.replace("__", "/")


def _together(parts: list[Tensor]) -> Tensor:
    """One vector of them all, on the device of the first."""
    device, kind = parts[0].device, parts[0].dtype
    if any(v.dtype != kind for v in parts):
        kind = torch.float64 if device.type in ("cpu", "cuda") else torch.float32
    if any(v.device != device or v.dtype != kind for v in parts):
        parts = [v.to(device=device, dtype=kind) for v in parts]
    return torch.cat(parts)
