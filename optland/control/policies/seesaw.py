r"""``seesaw``: where the schedule would cut the learning rate by a, cut it by sqrt(a) and grow the batch by a.

.. math:: (\eta / a,\ B) \;\to\; (\eta / \sqrt a,\ a B) \quad\text{(Adam)}, \qquad (\eta,\ a B) \quad\text{(SGD)}

For SGD the noise floor is eta tr(Sigma) / (2 B (2 - eta lambda)) to first order in eta, so (eta / a, B) and (eta, a B)
end at the same loss. Under Adam's normalised step the equivalent cut is sqrt(a). The batch doubles each time that the
schedule has halved the rate (a = 2); the factor on the rate makes up the difference, so the same data take fewer steps.

Cost: none. When: a decaying schedule and hardware on which a larger batch takes no longer. When not: on one device the
same gradients are computed either way; a batch beyond the critical one (twice the noise scale) buys nothing, so it
stops growing there where the noise scale is known.

Defaults: doubling (a = 2), batch at most an eighth of the training set, exponent 1/2.

Reference: Meterez et al. 2025, arXiv:2510.14717; growth in place of decay: Smith et al. 2018, arXiv:1711.00489.
"""

from __future__ import annotations

from optland.control.view import Proposal, StepPolicy, StepView

__all__ = ["Seesaw"]


class Seesaw(StepPolicy):
    """Trades the schedule's decay for batch growth.

    Args:
        exponent: The rate falls by ``a ** exponent`` for a batch growth of a: 0.5 for Adam, 0 for SGD.
        max_batch: Largest batch; None takes an eighth of the training set.

    Example:
        >>> policy = Seesaw(max_batch=64)
        >>> policy.propose(StepView(1, 2.0, shape=1.0, batch=32))
        []
        >>> [(p.actuator, round(p.new, 3)) for p in policy.propose(StepView(9, 1.0, shape=0.5, batch=32))]
        [('batch_size', 64), ('lr_factor', 1.414)]
    """

    name = "seesaw"
    needs = frozenset({"batch_size", "lr_factor"})
    _kept = ("grown", "peaked")

    def __init__(self, *, exponent: float = 0.5, max_batch: int | None = None) -> None:
        if not 0 <= exponent < 1:
            raise ValueError(f"exponent: {exponent} is not in [0, 1); use 0.5 for Adam, 0 for SGD")
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch: {max_batch} must be at least 1")
        self.exponent, self.max_batch = exponent, max_batch
        self.grown = 0
        self.peaked = 0.0

    def propose(self, view: StepView) -> list[Proposal]:
        """One doubling where the schedule has halved once more since its peak."""
        if view.shape is None:
            return []
        # A rising warm-up is its own peak so far, and so no decay.
        self.peaked = max(self.peaked, view.shape)
        height = view.shape / self.peaked if self.peaked > 0 else 1.0
        wanted = 2.0 ** (self.grown + 1)
        limit = self.max_batch or (
            max((view.dataset_size or 0) // 8, 1) if view.dataset_size else 2 * view.batch
        )
        beyond = view.noise_scale is not None and view.batch > 2 * view.noise_scale
        if not 0 < height <= 1 / wanted or 2 * view.batch > limit or beyond:
            return []
        self.grown += 1
        factor = view.factor * 2.0 ** (1 - self.exponent)
        reason = f"the schedule halved the rate to {height:.2g} of its peak; the batch doubles in its place"
        signals = {"lr/shape": view.shape}
        return [
            Proposal("batch_size", view.batch, 2 * view.batch, reason, signals),
            Proposal("lr_factor", view.factor, factor, f"{reason}, and the rate falls by sqrt", signals),
        ]

    def refused(self, proposal: Proposal) -> None:
        """A batch that did not grow is asked for again."""
        if proposal.actuator == "batch_size":
            self.grown -= 1
