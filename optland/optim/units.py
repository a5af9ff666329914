"""The units of a step's gradients: the scale of a GradScaler, and the share of a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Units"]


@dataclass(slots=True)
class Units:
    """The factors by which the gradients are too large.

    Attributes:
        loss_scale: What a GradScaler has multiplied the loss by.
        share: The part of the batch that this micro-batch is.
        told: Whether the loss scale was given.
        shared: The shares of the micro-batches of this step that are done.
    """

    loss_scale: float | Tensor = 1.0
    share: float = 1.0
    told: bool = False
    shared: float = 0.0

    @property
    def factor(self) -> float | Tensor:
        """Loss scale times share."""
        return self.loss_scale * self.share

    def take(self, loss_scale: float | Tensor | None, share: float, *, matters_to: str = "") -> None:
        """The units of the gradients that come now.

        Args:
            loss_scale: As it was told; None where it was not.
            share: Of a micro-batch.
            matters_to: Name of a method whose perturbation depends on them.

        Raises:
            ValueError: The share is not within (0, 1].
            RuntimeError: The shares of a step add up to more than 1, where they matter.
        """
        if not 0.0 < share <= 1.0:
            raise ValueError(
                f"share={share} is not possible; use what the loss was multiplied by, 1 / k for k parts"
            )
        if matters_to and self.shared + share > 1.0 + 1e-6:
            raise RuntimeError(
                f"the perturbation of {matters_to} depends on the length of the gradient, and the shares of "
                f"the micro-batches of this step add up to {self.shared + share:g}; tell each one the factor of its "
                "loss: accumulate(closure, share=1 / k), or perturb(share=1 / k), for k equal parts"
            )
        self.told = loss_scale is not None
        self.loss_scale, self.share = 1.0 if loss_scale is None else loss_scale, share
