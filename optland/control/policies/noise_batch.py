r"""``noise_batch``: the batch grows when the gradient noise scale says that it is too small.

.. math:: B_\mathrm{simple} = \mathrm{tr}(\Sigma) / \lvert G\rvert^2

Sigma is the covariance of per-sample gradients, G the true gradient. While B is far below B_simple a step is mostly
noise and a larger batch gives proportionally more progress a step. The batch doubles when the averaged noise scale
has been above ``margin`` times the batch in ``patience`` successive probes; it never shrinks.

Cost: none beyond the noise probe. What it buys: fewer steps for the same samples, and less noise at the end, like a
decay of the learning rate. On two data sets co-scaling ended nearer to the small batch's loss than a rate left as it
was (benchmarks/batch.py). When: larger batches are (nearly) free. When not: on one device, where it does not save
gradient evaluations, or with ``seesaw``.

Defaults: margin 2, patience 3, at most one doubling in ``interval`` probes' worth of steps, batch at most an eighth
of the training set (beyond that, small sets give too few steps).

Reference: McCandlish et al. 2018, arXiv:1812.06162; Smith et al. 2018, arXiv:1711.00489.
"""

from __future__ import annotations

from typing import Any

__all__ = ["NoiseBatch"]


class NoiseBatch:
    """Doubles the batch when the noise scale stays well above it.

    Args:
        margin: The noise scale must exceed this multiple of the batch; 2.
        patience: Successive probes that must say so; 3.
        interval: Fewest steps between two doublings; 50.
        max_batch: Largest batch; None takes an eighth of the training set.
        scale_lr: Whether the learning rate follows the batch (:func:`optland.control.batch_gain`). None, the default,
            does so unless ``auto_lr`` sets the rate: its steps are measured, and follow by themselves. False lets the
            batch grow in place of a decay.

    Raises:
        ValueError: A value outside its range.
    """

    name = "noise_batch"
    probes = frozenset({"noise"})

    def __init__(
        self,
        *,
        margin: float = 2.0,
        patience: int = 3,
        interval: int = 50,
        max_batch: int | None = None,
        scale_lr: bool | None = None,
    ) -> None:
        if not margin >= 1:
            raise ValueError(
                f"margin: {margin} is below 1, which would grow the batch past the noise scale; use 2"
            )
        if patience < 1 or interval < 1:
            raise ValueError(f"patience {patience} and interval {interval} must be at least 1")
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch: {max_batch} must be at least 1")
        self.margin = margin
        self.patience = patience
        self.interval = interval
        self.max_batch = max_batch
        self.scale_lr = scale_lr
        self.votes = 0
        self.last_change = 0

    def propose(
        self, scale: float | None, step: int, batch_size: int, dataset_size: int | None
    ) -> tuple[int, str] | None:
        """After a noise probe: the new batch size with its reason, or None.

        Args:
            scale: The averaged noise scale; None while it is unresolved, which counts as no vote.
            step: Present training step.
            batch_size: Present batch size.
            dataset_size: Size of the training set, for the default limit.

        Example:
            >>> policy = NoiseBatch(patience=1, interval=1)
            >>> policy.propose(1000.0, step=50, batch_size=64, dataset_size=1200)[0]
            128
        """
        if scale is None or scale <= self.margin * batch_size:
            self.votes = 0
            return None
        self.votes += 1
        limit = self.max_batch or (max(dataset_size // 8, 1) if dataset_size else 2 * batch_size)
        new = 2 * batch_size
        if self.votes < self.patience or step - self.last_change < self.interval or new > limit:
            return None
        self.votes, self.last_change = 0, step
        return new, (
            f"the noise scale {scale:.0f} was above {self.margin:g} x batch {batch_size} "
            f"in {self.patience} successive probes; steps are noise-limited"
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for the checkpoint."""
        return {"votes": self.votes, "last_change": self.last_change}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.votes, self.last_change = state["votes"], state["last_change"]
