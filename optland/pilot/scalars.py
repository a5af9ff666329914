"""The scalars of an update: they wait on the device, and reach the host together, in one transfer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Scalars"]


class Scalars:
    """Numbers by name, on the device until somebody fetches them.

    Attributes:
        delivered: What the last :meth:`fetch` brought, as numbers.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, Tensor | float] = {}
        self.delivered: dict[str, float] = {}

    def put(self, **scalars: Tensor | float) -> None:
        """Let these wait, under names with ``__`` for the slash."""
        self._waiting |= {name.replace("__", "/"): value for name, value in scalars.items()}

    def flush(self, more: Tensor | None = None) -> list[float]:
        """Turn what waits into numbers, which go on waiting, and return those of ``more``; one transfer for all."""
        tensors = {name: v for name, v in self._waiting.items() if isinstance(v, Tensor)}
        parts = ([] if more is None else [more]) + [v.reshape(1) for v in tensors.values()]
        if not parts:
            return []
        device, kind = parts[0].device, parts[0].dtype
        if any(v.dtype != kind for v in parts):
            kind = torch.float64 if device.type in ("cpu", "cuda") else torch.float32
        if any(v.device != device or v.dtype != kind for v in parts):
            parts = [v.to(device=device, dtype=kind) for v in parts]
        values = torch.cat(parts).tolist()
        split = 0 if more is None else len(more)
        self._waiting |= dict(zip(tensors, values[split:], strict=True))
        return values[:split]

    def fetch(self, more: Tensor | None = None) -> list[float]:
        """Deliver what waits, with the numbers of ``more``."""
        found = self.flush(more)
        self.delivered = {name: float(value) for name, value in self._waiting.items()}
        self._waiting = {}
        return found

    def known(self) -> dict[str, float]:
        """Everything of the last update and the one before; waits for the device."""
        self.flush()
        return self.delivered | {name: float(value) for name, value in self._waiting.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for the checkpoint."""
        self.flush()
        return {"waiting": {k: float(v) for k, v in self._waiting.items()}, "delivered": dict(self.delivered)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self._waiting, self.delivered = dict(state["waiting"]), dict(state["delivered"])
