r"""The probe budget: never more than a stated share of the training's own gradient evaluations.

.. math:: \text{spent}_p \le s_p \max\bigl(f\,T,\ \min(A_p / s_p,\ \tfrac14 T,\ \tfrac45 f\,W)\bigr)

for a probe p with its part s_p of the whole, T the training cost so far, f the share, and a small advance A_p: one run
of the probe, or the few that it says it needs, so that the first need not wait. The advance does not come on top:
nothing more is spent until f T has grown past it. It is less than what a whole run, of cost W, may spend on the probe,
so it is paid back before the run ends, and a long run does not begin with a burst of probes: one that costs more than
ten updates waits for its turn where that comes within the first twentieth of the run. What is spent on no probe,
such as the first look at ``loss_fn``, comes out of the parts of all.

Each probe has its part of the whole, in proportion to its weight among the probes that are in use. A probe declares the
most it can cost before it runs and is let through when that fits. Decisions rest on declared cost alone: the wall clock
would make two runs of one seed differ, break exact resume, and let ranks disagree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["Budget"]

SPREAD = 0.25
"""Share of the training cost that the advance may be at first: it is spread over the first updates."""

CHEAP = 10.0
"""Cost of a run of a probe, in updates, up to which it has an advance in runs of any length."""

SOON = 0.05
"""Share of the run within which a dearer probe is waited for: f T has then grown past its first run by itself."""

EARLY = 0.8
"""Share of the whole run's budget that may be spent in advance: W is known roughly, and there is to be a late look."""


class Budget:
    """Counts gradient evaluations and lets probes through while they fit.

    Args:
        fraction: Share f of the training cost that probes may add, for example 0.05.
        weights: Probes in use, with their weights.

    Attributes:
        train_ge: Gradient evaluations of training so far, T.
        shares: Part s_p of the whole of each probe in use; they sum to 1.
        spent: Gradient evaluations of each probe so far, also of those no longer in use, and of ``loss_fn``.
        advances: A_p of each probe, fixed when it declares its first finite cost.

    Raises:
        ValueError: ``fraction`` is negative or above 1, or a weight is not positive.

    Example:
        >>> budget = Budget(0.05, {"edge": 1.0})
        >>> budget.train(1000.0)
        >>> budget.affords("edge", 60.0, ahead=4), budget.affords("edge", 300.0)  # four runs of 60, at most T / 4
        (True, False)
        >>> budget.spend("edge", 240.0)
        >>> budget.train(4000.0)
        >>> budget.affords("edge", 60.0), budget.allowance("edge"), budget.used
        (False, 250.0, 0.048)
    """

    def __init__(self, fraction: float, weights: Mapping[str, float] | None = None) -> None:
        if not isinstance(fraction, (int, float)) or not 0 <= fraction <= 1:
            raise ValueError(
                f"budget {fraction!r} is not a share of the training cost; use a number from 0 to 1, "
                "such as 0.05 for 5 %"
            )
        self.fraction = fraction
        self.train_ge = 0.0
        self._update_ge = 0.0  # of the last update
        self.whole = math.inf
        """W, the training cost of the whole run as far as it is known."""
        self.shares: dict[str, float] = {}
        self.spent: dict[str, float] = {}
        self.advances: dict[str, float] = {}
        self.use(weights or {})

    def use(self, weights: Mapping[str, float]) -> None:
        """Divide the budget among these probes.

        Args:
            weights: Of each probe in use, relative to one another; what others have spent stays spent.

        Raises:
            ValueError: A weight is not above 0.
        """
        if any(not weight > 0 for weight in weights.values()):
            raise ValueError(f"probe weights {dict(weights)} must all be above 0")
        total = sum(weights.values())
        self.shares = {name: weight / total for name, weight in weights.items()}
        self.spent = {name: self.spent.get(name, 0.0) for name in weights} | self.spent

    def train(self, ge: float) -> None:
        """Count the cost of one update."""
        self.train_ge += ge
        self._update_ge = ge

    @property
    def advance(self) -> float:
        """Gradient evaluations that may be spent ahead of f T: all A_p, and the first look at ``loss_fn``.

        The A_p are known once the probes have declared their costs.
        """
        return sum(self.advances.values()) + self.elsewhere

    def allowance(self, probe: str) -> float:
        """The most that ``probe`` may have spent in total by now.

        Args:
            probe: Its name.

        Returns:
            Gradient evaluations; 0 for a probe that is not in use, or where the budget is 0.
        """
        share, f = self.shares.get(probe, 0.0), self.fraction
        ahead = min(
            self.advances.get(probe, 0.0), SPREAD * share * self.train_ge, EARLY * f * share * self.whole
        )
        return max(self._grown(share, self.train_ge), ahead if f > 0 else 0.0)

    def _grown(self, share: float, train_ge: float) -> float:
        """What that much training has allowed a share of the probes, without any advance."""
        return share * (self.fraction * train_ge - self.elsewhere)

    @property
    def elsewhere(self) -> float:
        """Gradient evaluations spent on anything that is not a probe in use."""
        return sum(ge for name, ge in self.spent.items() if name not in self.shares)

    def affords(self, probe: str, declared_ge: float, *, ahead: int = 1) -> bool:
        """Whether a probe that declares this cost fits now; ``ahead`` runs of its first cost are its advance.

        Args:
            probe: Its name.
            declared_ge: The most that a run of it may cost now; infinite never fits.
            ahead: Runs that may come before the share of training has grown to them.
        """
        if probe not in self.advances and self.train_ge > 0 and declared_ge < float("inf"):
            self.advances[probe] = 0.0 if self._comes_soon(probe, declared_ge) else ahead * declared_ge
        return self.spent.get(probe, 0.0) + declared_ge <= self.allowance(probe)

    def _comes_soon(self, probe: str, declared_ge: float) -> bool:
        """Whether a dear probe needs no advance, since the run is so long."""
        share = self.fraction * self.shares.get(probe, 0.0)
        dear = declared_ge > CHEAP * self._update_ge > 0
        return dear and share > 0 and math.isfinite(self.whole) and declared_ge / share <= SOON * self.whole

    def why_not(self, probe: str, declared_ge: float) -> str:
        """Why a probe had no room up to the last update, and what gives it some.

        Args:
            probe: Its name.
            declared_ge: The most that a run of it may cost.

        Returns:
            Words with the smallest share of the training cost that holds one run of it, or how much longer a run has to
            be where no share up to 1 does; empty where it had room, or where its cost is not known.

        Example:
            >>> budget = Budget(0.05, {"edge": 1.0, "own": 1.0})
            >>> budget.train(900.0)
            >>> budget.train(100.0)
            >>> budget.why_not("own", 100.0)
            'which may cost 100 gradient evaluations and had 22.5 of the budget: it takes a budget of 0.23'
            >>> budget.why_not("own", 20.0)
            ''
        """
        share = self.shares.get(probe, 0.0)
        trained = self.train_ge - self._update_ge  # as the last update found it
        room = max(self._grown(share, trained), 0.0)
        if not (room < declared_ge < math.inf and share > 0 and trained > 0):
            return ""
        needed = (declared_ge / share + self.elsewhere) / trained
        fits = math.ceil(100 * needed - 1e-9) / 100
        longer = f"a run {math.ceil(needed / max(self.fraction, 0.01))} times as long"
        way = f"a budget of {fits:g}" if fits <= 1 else longer
        return f"which may cost {declared_ge:.3g} gradient evaluations and had {room:.3g} of the budget: it takes {way}"

    def spend(self, probe: str, ge: float) -> None:
        """Count the real cost of a probe that ran.

        Args:
            probe: Its name, or that of anything else that costs passes, which then comes out of the parts of all.
            ge: Gradient evaluations, as they were counted and not as declared.
        """
        self.spent[probe] = self.spent.get(probe, 0.0) + ge

    def interval(self, probe: str, declared_ge: float, update_ge: float) -> float:
        """Updates between two runs of the probe that the budget allows, at this cost of an update.

        Args:
            probe: Its name.
            declared_ge: Cost of a run of it.
            update_ge: Training cost of an update, samples times evaluations.

        Returns:
            A real number; infinite where it has no part of the budget.
        """
        rate = self.fraction * self.shares.get(probe, 0.0) * update_ge
        return declared_ge / rate if rate > 0 else float("inf")

    @property
    def probe_ge(self) -> float:
        """Gradient evaluations spent on probes so far."""
        return sum(self.spent.values())

    @property
    def used(self) -> float:
        """Probe cost as a share of training cost so far; compare with ``fraction``."""
        return self.probe_ge / self.train_ge if self.train_ge else 0.0

    @property
    def allowed(self) -> float:
        """The most that ``used`` may be by now: ``fraction``, and more only while the advance is being paid back."""
        total = max(self.fraction * self.train_ge, self.elsewhere + sum(map(self.allowance, self.shares)))
        return total / self.train_ge if self.train_ge else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for the checkpoint."""
        return {
            "train_ge": self.train_ge,
            "whole": self.whole,
            "spent": dict(self.spent),
            "advances": dict(self.advances),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.train_ge, self.whole = state["train_ge"], state["whole"]
        self.spent, self.advances = dict(state["spent"]), dict(state["advances"])
