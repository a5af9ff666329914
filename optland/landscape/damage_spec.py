"""A damage in a word, as the command line and configurations take it: ``int4``, ``prune=0.8``, ``noise=0.2``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from optland.landscape.bits import MOST_BITS
from optland.landscape.damages import FEWEST_BITS, pruned, rounded, shaken

__all__ = ["DamageSpec"]

_FORMS = "int2 to int8, prune=0.8 (the share that goes) or noise=0.2 (relative to each matrix)"


@dataclass(frozen=True)
class DamageSpec:
    """What a net has to bear.

    Attributes:
        kind: ``int`` (rounded), ``prune`` or ``noise``.
        amount: Bits, share, or relative size.

    Example:
        >>> spec = DamageSpec.parse("prune=0.8")
        >>> spec.kind, spec.amount, str(spec)
        ('prune', 0.8, 'prune=0.8')
    """

    kind: Literal["int", "prune", "noise"]
    amount: float

    @classmethod
    def parse(cls, text: str) -> DamageSpec:
        """The damage that a word means.

        Raises:
            ValueError: It means none, or one out of range.
        """
        if found := re.fullmatch(r"int(\d+)", text):
            return cls._checked("int", int(found[1]), text)
        if found := re.fullmatch(r"(prune|noise)=([0-9.eE+-]+)", text):
            try:
                amount = float(found[2])
            except ValueError:
                amount = math.nan
            return cls._checked("prune" if found[1] == "prune" else "noise", amount, text)
        raise ValueError(f"{text!r} is no damage that is known; use {_FORMS}")

    @classmethod
    def _checked(cls, kind: Literal["int", "prune", "noise"], amount: float, text: str) -> DamageSpec:
        low, high = {"int": (FEWEST_BITS, MOST_BITS), "prune": (0.0, 1.0), "noise": (0.0, math.inf)}[kind]
        inside = low <= amount <= high if kind == "int" else low < amount < high
        if not inside:
            raise ValueError(f"{text!r} is out of range; use {_FORMS}")
        return cls(kind, amount)

    def weights(self, model: nn.Module, *, seed: int = 0) -> list[dict[str, Tensor]]:
        """The weights after it, by parameter name: one set, or four of noise.

        Args:
            model: The net; it stays as it is.
            seed: Of the first draw; the others have the numbers after it.

        Returns:
            Matrices and kernels alone; other parameters are not named, and stay.
        """
        if self.kind == "int":
            return [rounded(model, int(self.amount))]
        if self.kind == "prune":
            return [pruned(model, self.amount)]
        return [shaken(model, self.amount, seed=seed + k) for k in range(4)]

    def __str__(self) -> str:
        return f"int{int(self.amount)}" if self.kind == "int" else f"{self.kind}={self.amount:g}"
