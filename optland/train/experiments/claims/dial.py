"""How large the experiments are: one dial for all claims."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Dial"]


@dataclass(frozen=True)
class Dial:
    """Sizes of all experiments.

    Attributes:
        data: Data sets; a claim about nets is decided on all of them together.
        samples: Training samples of each.
        seeds: Seeds of every cell, from 0 on.
        deep_seeds: Seeds of the cells of greatest depth.
        net: Net of the claims that name none.
        units: Units of each of the two hidden layers, where that is ``mlp``.
        epochs: Passes over the data of that net.
        deep_epochs: Passes of the convolutional nets with blocks, which take longer for each.
        depth: Greatest depth, in weight layers.
        level: Training loss at which nets are compared where a claim says "at equal loss".
        probed: Training samples that curvature is measured on.
        checks: Looks at the training loss along a run.
        gradients: Gradients kept of a run, evenly spaced: the effective dimension cannot exceed their number.
        curve_steps: Steps of training of a curve between two minima.
        searches: Starts of the search for critical points, for each seed.
        draws: Random Hessians for each dimension of the Gaussian landscapes.

    Raises:
        ValueError: A value that cannot be.
    """

    data: tuple[Literal["digits", "mnist1d", "mnist", "fashion_mnist"], ...] = ("digits", "mnist1d")
    samples: int = 1000
    seeds: int = 3
    deep_seeds: int = 3
    net: Literal["mlp", "cnn"] = "mlp"
    units: int = 64
    epochs: int = 30
    deep_epochs: int = 8
    depth: int = 14
    level: float = 0.5
    probed: int = 128
    checks: int = 30
    gradients: int = 100
    curve_steps: int = 200
    searches: int = 8
    draws: int = 300_000

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data: no data set is given; use for example [digits, mnist1d]")
        for name in (
            "samples",
            "seeds",
            "deep_seeds",
            "epochs",
            "deep_epochs",
            "probed",
            "checks",
            "searches",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.samples < 64:
            raise ValueError(f"samples: {self.samples} are too few to compare batch sizes; use at least 64")
        if self.depth < 8 or self.depth % 2:
            raise ValueError(f"depth: {self.depth} must be even and at least 8, for example 14 or 56")
        if not self.level > 0:
            raise ValueError(f"level: a training loss of {self.level} is never reached; use for example 0.5")
        if self.gradients < 4 or self.draws < 100:
            raise ValueError(
                f"gradients: {self.gradients} must be at least 4, and draws: {self.draws} at least 100"
            )
