r"""The probe budget: never more than a stated share of the training's own gradient evaluations.

.. math:: \text{spent}_p \le \sigma_p \, f \, \min(H,\; T + a H)

for each probe p with share sigma_p of the budget fraction f, T the training cost so far, H the cost of the whole
run, and a small advance a so that the first probes need not wait. A probe declares the most it can cost before it
runs and is let through when that fits. Decisions rest on declared cost alone: the wall clock would make two runs of
one seed differ, break exact resume, and let ranks disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["ProbeBudget"]


class ProbeBudget:
    """Counts gradient evaluations and lets probes through while they fit.

    Args:
        fraction: Share of the training cost that probes may add, for example 0.05.
        shares: Share of the budget by probe; normalised to sum to one.
        horizon_ge: Cost H of the whole run in gradient evaluations; None when unknown (then no advance).
        advance: Part of the whole run's budget that may be spent ahead, for the burn-in; 0.05. Early in a run the
            probes can therefore be a larger share of the little training done so far; at its end they cannot.

    Raises:
        ValueError: ``fraction`` or a share is negative.

    Example:
        >>> budget = ProbeBudget(0.05, {"edge": 1.0})
        >>> budget.train(1000.0)
        >>> budget.affords("edge", 51.0), budget.affords("edge", 50.0)
        (False, True)
    """

    def __init__(
        self,
        fraction: float,
        shares: Mapping[str, float],
        *,
        horizon_ge: float | None = None,
        advance: float = 0.05,
    ) -> None:
        if fraction < 0:
            raise ValueError(f"budget {fraction} is negative; use a share such as 0.05")
        if any(share < 0 for share in shares.values()):
            raise ValueError(f"probe shares {dict(shares)} hold a negative one; use numbers of 0 or more")
        total = sum(shares.values())
        self.fraction = fraction
        self.shares = {name: share / total if total else 0.0 for name, share in shares.items()}
        self.horizon_ge = horizon_ge
        self.advance = advance
        self.train_ge = 0.0
        self.spent = dict.fromkeys(shares, 0.0)

    def train(self, ge: float) -> None:
        """Count the cost of one training step."""
        self.train_ge += ge

    def allowance(self, probe: str) -> float:
        """What ``probe`` may have spent in total by now."""
        base = self.train_ge
        if self.horizon_ge is not None:
            base = min(self.horizon_ge, self.train_ge + self.advance * self.horizon_ge)
        return self.fraction * self.shares[probe] * base

    def affords(self, probe: str, declared_ge: float) -> bool:
        """Whether a probe that declares this cost fits now."""
        return self.spent[probe] + declared_ge <= self.allowance(probe)

    def spend(self, probe: str, ge: float) -> None:
        """Count the real cost of a probe that ran."""
        self.spent[probe] += ge

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
        """What ``used`` may be by now: ``fraction``, and a little more while the advance is being spent."""
        total = sum(self.allowance(probe) for probe in self.shares)
        return total / self.train_ge if self.train_ge else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for the checkpoint."""
        return {"train_ge": self.train_ge, "spent": dict(self.spent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.train_ge = state["train_ge"]
        self.spent = dict(state["spent"])
