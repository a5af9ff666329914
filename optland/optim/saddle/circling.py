r"""Detect weights that circle one point of an exact loss, as a two-pass method does at a saddle.

Within rho of a saddle the gradient at w + eps points back across it, so that SAM steps over it again and again. The
gradient at w then need not be small for its history, nor do the weights rest; but they get nowhere, and the loss does
not fall. Noise looks the same, so the sign is for a loss that is the *same function* in every step. That is read from
what first passes give anyway, by the trapezoid rule around an anchor w_0:

.. math:: \Bigl| L(w) - L(w_0) - \tfrac12 (g_0 + g)^\top (w - w_0) \Bigr|
          \le 0.1 \cdot \tfrac12 \bigl( |g_0^\top (w - w_0)| + |g^\top (w - w_0)| \bigr)

Exact on a quadratic and wrong by the third order in the distance elsewhere; the losses of two minibatches differ by
more than that. After ten comparisons that agree, the weights go round when the largest distance from the anchor is not
much larger in the later half of the steps than in the earlier one (it would be twice as large for a drift) and the loss
has no significant fall. To last a tenth of the steps made so far makes the sign rarer as training goes on: at the edge
of stability healthy full batches go round for a while, too.

**Cost.** One copy of the gradient while comparisons agree, three inner products per step; on minibatches the first
comparison ends it until the next anchor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from optland import vectors
from optland.statistics import slope_t

__all__ = ["Circling"]

AGREES = 0.1
REST = 1e-6
"""Relative differences of losses below this are rounding."""

SEEN, EXACT = 10, 5
"""Comparisons before the weights may be said to go round, and the loss to be exact."""

GROWS = 1.5
LASTS = 0.1
FALLS = -2.0


class Circling:
    """Compares first passes with an anchor that the trigger sets.

    Attributes:
        slope: Gradient at the anchor, None where nothing is compared.
        since: Step of the anchor since which the weights go round, None where they do not.
    """

    def __init__(self) -> None:
        self.slope: list[Tensor] | None = None
        self.since: int | None = None
        self._agreed = 0
        self._anchor: int | None = None  # its step
        self._waits = False  # for the first pass at the anchor
        self._losses: list[float] = []  # at the anchor, and since
        self._distances: list[float] = []
        self._seen: Tensor | None = None

    @property
    def exact(self) -> bool:
        """Whether the loss is the same function in every step, for all that the last comparisons can tell."""
        return self._agreed >= EXACT

    def begin(self, step: int | None) -> None:
        """A new anchor, set after this step; None where no anchor is wanted: the weights have been moved off."""
        if not self._goes_round():
            self.since = None
        self._anchor, self._waits = step, step is not None
        self.slope, self._seen = None, None
        self._losses, self._distances = [], []

    def see(self, anchor: Sequence[Tensor] | None, params: Sequence[Tensor]) -> None:
        """Take in a first pass, given the weights at the anchor and now, without making the host wait.

        Args:
            anchor: Weights at the anchor, None where the trigger has none.
            params: The weights now, whose ``.grad`` is that of the first pass.
        """
        if anchor is None or not (self._waits or self.slope is not None):
            return
        g = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        if self._waits:
            self.slope, self._waits = vectors.clone(g), False
            return
        assert self.slope is not None
        if [t.shape for t in anchor] != [t.shape for t in g] or len(self.slope) != len(g):
            self._drop()
            return
        way = vectors.subtract([p.detach() for p in params], anchor)
        found = vectors.norm(way), vectors.dot(self.slope, way), vectors.dot(g, way)
        self._seen = torch.stack([x.to(found[0]) for x in found])

    def compare(self, loss: float) -> None:
        """Hold the loss of the pass that was seen against its expansion from the anchor."""
        if self.slope is None:
            return
        if self._seen is None:
            self._losses = [loss]
            return
        (distance, before, after), self._seen = self._seen.tolist(), None
        missed = abs(loss - self._losses[0] - 0.5 * (before + after))
        scale = AGREES * 0.5 * (abs(before) + abs(after)) + REST * max(abs(loss), abs(self._losses[0]))
        if not missed <= scale:
            self._drop()
            return
        self._agreed += 1
        self._losses.append(loss)
        self._distances.append(distance)
        if self.since is None and self._goes_round():
            self.since = self._anchor

    def holds(self, step: int) -> bool:
        """Whether the weights go round, and have for long enough to be asked why."""
        return self.since is not None and self._goes_round() and step - self.since >= max(SEEN, LASTS * step)

    def _goes_round(self) -> bool:
        made = len(self._distances)
        if made < SEEN:
            return False
        early, late = self._distances[: made // 2], self._distances[made // 2 :]
        return max(late) <= GROWS * max(early) and not slope_t(self._losses[1:])[1] < FALLS

    def _drop(self) -> None:
        self.slope, self._seen, self.since, self._agreed = None, None, None, 0
        self._losses, self._distances = [], []

    def state_dict(self) -> dict[str, Any]:
        """Everything but :attr:`slope`."""
        return {
            "since": self.since, "agreed": self._agreed, "anchor": self._anchor, "waits": self._waits,
            "losses": list(self._losses), "distances": list(self._distances), "compares": self.slope is not None,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken; :attr:`slope` comes by itself."""
        self.since, self._agreed, self._anchor = state["since"], state["agreed"], state["anchor"]
        self._waits, self._seen = state["waits"], None
        self._losses, self._distances = list(state["losses"]), list(state["distances"])
