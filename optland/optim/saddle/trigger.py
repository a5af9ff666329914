r"""Decide when to look at the curvature, by signs that training has stopped making progress.

=========  =============================================================================================
sign       holds when
=========  =============================================================================================
gradient   ||g|| is at most ``small`` times the largest so far (or zero)
still      the weights moved by less than 1 % of their norm over ``patience`` steps
circling   the weights go round one point of an exact loss (:mod:`~optland.optim.saddle.circling`)
plateau    the loss shows no significant fall over ``patience`` steps: the t statistic of a straight line
           through them is above -2
every      ``every`` steps have gone by
ncr        -lambda_min / lambda_max, which somebody else measures and ``ncr()`` tells, is above ``saddle``
=========  =============================================================================================

The gradient is that of the first pass of a step: of a base with two passes that at w, and not that at w + eps, which is
left in ``.grad`` and stays as long as rho times the curvature however near a critical point w is.

A look costs tens of closure calls, so looks are rationed: after one that changed nothing the next has to wait twice as
long, and all of them together may cost ``share`` of the calls that training made. Two things are free where training is
*steady*: looks that led off a point, which have paid for themselves, and an ``allowance``. Steady is a gradient of
exactly zero, a loss that goes smoothly from step to step, as it does on full batches near a critical point, or one that
is seen to be exact. On minibatches the loss jitters, the noise itself moves the weights, and a small gradient is mostly
the end of healthy training: there the share is all. Smooth is a von Neumann ratio of the last losses,

.. math:: \sum_t (\Delta^2 L_t)^2 \big/ \sum_t (\Delta L_t)^2 < 0.3,

which is near 3 for white noise (10 Gaussian losses fall below 0.3 less than once in a million) and near 0 where the
loss decays, rests or oscillates slowly.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from optland import vectors
from optland.optim.saddle.circling import Circling
from optland.statistics import slope_t

__all__ = ["SIGNS", "Trigger"]

SIGNS = ("gradient", "still", "circling", "plateau", "every", "ncr")
STILL = 0.01
SMOOTH, SMOOTH_STEPS = 0.3, 10


class Trigger:
    """Watches steps, says when to look, and keeps looks inside their ration.

    Args:
        signs: Which of the signs to heed.
        small: Of ``gradient``; 0.05.
        patience: Steps of ``still`` and ``plateau``; 20. ``circling`` needs 12 and sees rounds of up to so many steps.
        every: Of ``every``.
        ncr: Of ``ncr``: gives the latest negative-curvature ratio, None where it is unknown.
        saddle: Of ``ncr``; 0.3: nets measured 0.86 at the initial plateau and below 0.1 later.
        share: Closure calls of all booked looks, as a share of those of training; 0.02.
        allowance: Calls that need no saving up, where training is steady or ``every`` asks for them; 100.

    Raises:
        ValueError: An unknown sign, or a value outside its range.

    References: Alain et al. 2019, arXiv:1902.02366 (the ratio).
    """

    def __init__(
        self,
        signs: Sequence[str] = ("gradient", "still", "circling"),
        *,
        small: float = 0.05,
        patience: int = 20,
        every: int | None = None,
        ncr: Callable[[], float | None] | None = None,
        saddle: float = 0.3,
        share: float = 0.02,
        allowance: int = 100,
    ) -> None:
        unknown = [s for s in signs if s not in SIGNS]
        if unknown:
            raise ValueError(f"trigger {unknown[0]!r} is not known; choose from {', '.join(SIGNS)}")
        if not 0 < small < 1:
            raise ValueError(f"small {small} is not a share of the largest gradient; use for example 0.05")
        if patience < 3:
            raise ValueError(f"patience {patience} steps are too few to see a trend; use at least 3")
        if ("every" in signs) != (every is not None) or (every is not None and every < 1):
            raise ValueError(
                f"every={every}: give the trigger 'every' together with a number of steps of at least 1"
            )
        if ("ncr" in signs) != (ncr is not None) or not saddle > 0:
            raise ValueError(
                f"ncr={ncr}, saddle={saddle}: give the trigger 'ncr' together with a function that tells the ratio, "
                "and a ratio above 0"
            )
        if share < 0 or allowance < 0:
            raise ValueError(f"share {share} and allowance {allowance} must be at least 0")
        self.signs, self.small, self.patience, self.every = tuple(signs), small, patience, every
        self.ncr, self.saddle = ncr, saddle
        self.share, self.allowance = share, allowance
        self.step = 0
        self.largest = 0.0
        self.wait = 1
        self.ready_at = 0
        self.spent = 0
        self.calls = 0
        self.reason: str | None = None
        self.steady = False
        self.last_loss = math.inf
        self._losses: deque[float] = deque(maxlen=max(patience, SMOOTH_STEPS))
        self.circling = Circling()
        self._weights: list[Tensor] | None = None
        self._since = 0
        self._norm: Tensor | None = None

    def see(self, params: Sequence[Tensor]) -> None:
        """Take in the first pass of a step, as it has just been made: the weights where it was, with its gradients."""
        self._norm = vectors.norm([p.grad for p in params if p.grad is not None])
        if "circling" in self.signs:
            self.circling.see(self._weights, params)

    def observe(self, params: Sequence[Tensor], loss: float, calls: int) -> None:
        """Take in a step; where :meth:`see` was not told its first pass, the gradients are those in ``.grad``.

        Args:
            params: The weights after the step.
            loss: Of its first pass.
            calls: Closure calls that it took.
        """
        self.step += 1
        self.calls += calls
        if self._norm is None:
            self._norm = vectors.norm([p.grad for p in params if p.grad is not None])
        norm, self._norm = float(self._norm), None
        self._losses.append(loss)
        self.last_loss = loss
        self.circling.compare(loss)
        self.steady = norm == 0.0 or self._is_smooth() or self.circling.exact
        self.reason = self._sign(params, norm) if self.step >= self.ready_at else None
        self.largest = max(self.largest, norm) if math.isfinite(norm) else self.largest

    def affords(self, calls: int) -> bool:
        """Whether a look of this cost is within the ration."""
        free = self.allowance if self.steady or "every" in self.signs else 0
        return self.spent + calls <= free + self.share * self.calls

    def looked(self, calls: int, *, moved: bool) -> None:
        """Book a look, and double the wait for the next where it changed nothing.

        One that led off a point is free where training is steady. On minibatches each is booked: there an escape that
        holds on independent data may still gain little, and many of them would cost more than the training.

        Args:
            calls: Of the closure, that it took.
            moved: Whether it led off the point.
        """
        self.spent += 0 if moved and self.steady else calls
        self.wait = 1 if moved else min(2 * max(self.wait, self.patience // 2), 100_000)
        self.ready_at = self.step + self.wait
        self.reason = None
        self._weights = None
        self.circling.begin(None)
        self._losses.clear()
        if moved:
            self.largest = 0.0  # the next critical point has a scale of its own

    def _sign(self, params: Sequence[Tensor], norm: float) -> str | None:
        largest = max(self.largest, norm)
        if "gradient" in self.signs and norm <= self.small * largest:
            return f"the gradient norm {norm:.3g} is at most {self.small:g} of the largest, {largest:.3g}"
        if "every" in self.signs and self.every is not None and self.step % self.every == 0:
            return f"{self.every} steps have gone by"
        ratio = None if self.ncr is None else self.ncr()
        if ratio is not None and ratio > self.saddle:
            return f"the negative curvature is {ratio:.2f} of the largest, more than {self.saddle:g}"
        goes_round = self.circling.holds(self.step)
        is_still = self._is_still(params)
        if "still" in self.signs and is_still:
            return f"the weights moved by less than {STILL:.0%} of their norm in {self.patience} steps"
        if goes_round:
            return (
                f"the weights go round one point since step {self.circling.since}, and the loss does not fall"
            )
        if "plateau" in self.signs and len(self._losses) >= self.patience:
            _, t, _ = slope_t(list(self._losses)[-self.patience :])
            if t > -2.0:
                return f"the loss does not fall over {self.patience} steps (t = {t:.1f})"
        return None

    def _is_smooth(self) -> bool:
        losses = list(self._losses)[-SMOOTH_STEPS:]
        if len(losses) < SMOOTH_STEPS or not all(math.isfinite(x) for x in losses):
            return False
        first = [b - a for a, b in pairwise(losses)]
        second = [b - a for a, b in pairwise(first)]
        # Less than rounding is rest.
        rest = (1e-6 * max(abs(x) for x in losses)) ** 2
        return sum(x * x for x in second) <= SMOOTH * sum(x * x for x in first) + rest

    def _is_still(self, params: Sequence[Tensor]) -> bool:
        """Compare with the weights of ``patience`` steps ago, and begin anew from these."""
        if not {"still", "circling"} & set(self.signs):
            return False
        now = [p.detach() for p in params]
        before = self._weights
        if before is not None and self.step - self._since < self.patience:
            return False
        self._weights, self._since = vectors.clone(now), self.step
        self.circling.begin(self.step)
        if before is None or [t.shape for t in before] != [
            t.shape for t in now
        ]:  # unfrozen or added meanwhile
            return False
        return float(vectors.norm(vectors.subtract(now, before))) <= STILL * float(vectors.norm(now))

    def state_dict(self) -> dict[str, Any]:
        """Everything but :attr:`memory`, for an exact resume: plain numbers and text."""
        return {
            "step": self.step, "largest": self.largest, "wait": self.wait, "ready_at": self.ready_at,
            "spent": self.spent, "calls": self.calls, "reason": self.reason, "steady": self.steady,
            "last_loss": self.last_loss, "losses": list(self._losses), "since": self._since,
            "circling": self.circling.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.step, self.largest, self.wait = state["step"], state["largest"], state["wait"]
        self.ready_at, self.spent, self.calls = state["ready_at"], state["spent"], state["calls"]
        self.reason, self._since = state["reason"], state["since"]
        self.steady, self.last_loss = state["steady"], state["last_loss"]
        self._losses.clear()
        self._losses.extend(state["losses"])
        self.circling.load_state_dict(state["circling"])
        self._norm = None

    @property
    def memory(self) -> dict[str, list[Tensor] | None]:
        """The remembered tensors in the shapes of the weights, by name; None for one that is not in use now."""
        return {"still": self._weights, "slope": self.circling.slope}

    @memory.setter
    def memory(self, value: dict[str, list[Tensor] | None]) -> None:
        self._weights, self.circling.slope = value["still"], value["slope"]
