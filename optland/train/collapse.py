"""Collapse without a loss rise: layers whose gradient has become exactly zero.

A step that is too long can push every unit of a ReLU layer below zero. The net then is a constant, its loss that of
the trivial predictor, and no gradient ever comes back; early in a run that loss is close to the first one, so a guard
on the loss sees little. What is plain is the gradient: exactly zero in a whole weight matrix, batch after batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["SilentLayers"]

PATIENCE = 10
"""Successive steps of silence that are a collapse; one batch may miss a layer by chance."""


class SilentLayers:
    """Counts the steps in a row in which a weight matrix that had a gradient has exactly none.

    Args:
        params: The weights; only those with two or more dimensions are watched. One that never had a gradient (unused,
            or behind a factor that starts at zero) is not counted.
    """

    def __init__(self, params: list[Tensor]) -> None:
        self.params = [p for p in params if p.ndim >= 2]
        self.alive = [False] * len(self.params)
        self.steps = 0
        self.layers = 0

    @torch.no_grad()
    def observe(self) -> None:
        """Look at the gradients that the step left."""
        known = [i for i, p in enumerate(self.params) if p.grad is not None and not p.grad.is_sparse]
        if not known:
            return
        gradients = [self.params[i].grad for i in known]
        largest = torch.stack([g.abs().amax().float() for g in gradients if g is not None]).tolist()
        silent = [i for i, size in zip(known, largest, strict=True) if size == 0.0 and self.alive[i]]
        for i, size in zip(known, largest, strict=True):
            self.alive[i] = self.alive[i] or size > 0.0
        self.layers = len(silent)
        self.steps = self.steps + 1 if silent else 0

    @property
    def trouble(self) -> str | None:
        """The collapse in words; None while there is none."""
        if self.steps < PATIENCE:
            return None
        return (
            f"the gradient of {self.layers} of {len(self.params)} weight matrices has been exactly zero for "
            f"{self.steps} steps: the net has collapsed"
        )

    def forget(self) -> None:
        """After a rewind the count begins again."""
        self.steps = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""
        return {"alive": list(self.alive), "steps": self.steps, "layers": self.layers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.alive, self.steps, self.layers = list(state["alive"]), state["steps"], state["layers"]
