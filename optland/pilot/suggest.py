r"""``suggest_lr``: a peak learning rate from the critical step along a short ramp.

.. math:: \eta = c \exp\bigl(\mathrm{mean} \log \eta_c\bigr)

The optimizer makes a few dozen real updates whose length relative to the weights rises by decades, as in a warm-up, and
the critical rate eta_c, the largest that does not raise the loss of the update's own batch, is measured along the way.
What the last third of the ramp has shown is averaged in logarithms. Then everything is put back: weights, buffers,
optimizer state, random state, gradients.

Cost: ``steps`` updates, each with five forward passes every third time. When: to have a peak rate to start from, for a
schedule with a warm-up. When not: where ``auto_lr`` may set the rate, which follows the run; a rate from its first
updates is known within a factor of three at best, and on a plateau not even that (benchmarks/suggest.py).

Defaults: c = 0.35 as ``safe_lr`` has it, 48 updates from a relative length of 1e-4 to 0.03.

Reference: critical learning rate of Kalra et al. 2026, arXiv:2601.16979.
"""

from __future__ import annotations

import copy
import itertools
import math
import statistics
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from torch import nn
from torch.optim import Optimizer

from optland.batches import portion
from optland.context.rng import preserve_rng
from optland.estimate import Estimate, Provenance
from optland.losses import mean_of
from optland.objective import LossFn
from optland.pilot.decision import Proposal
from optland.pilot.history import Reader
from optland.pilot.host import Host
from optland.pilot.pilot import Pilot
from optland.pilot.policies.base import Policy
from optland.pilot.snapshots import Snapshots

__all__ = ["suggest_lr"]

FRACTION = 0.35
SHORTEST, LONGEST = 1e-4, 0.03


class _Ramp(Policy):
    """Updates whose relative length rises by decades; keeps the critical rates that were met."""

    name = "ramp"
    reads = frozenset({"edge/eta_c"})
    turns = frozenset({"step_length"})

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.met: list[tuple[int, float]] = []

    def decide(self, history: Reader) -> list[Proposal]:
        edge = history.new("edge/eta_c")
        if edge is not None and edge.valid and edge.why != "unbounded":
            self.met.append((edge.step, edge.value))
        share = min(history.step / self.steps, 1.0)
        return [Proposal("step_length", SHORTEST * (LONGEST / SHORTEST) ** share, "the ramp")]

    def late(self) -> list[float]:
        """Critical rates of the last third."""
        return [eta for step, eta in self.met if step > 2 * self.steps / 3]


def suggest_lr(
    model: nn.Module,
    loss_fn: LossFn,
    loader: Iterable[Any],
    optimizer: Optimizer,
    *,
    num_steps: int = 48,
    num_samples: Callable[[Any], int] | None = None,
    seed: int = 0,
) -> Estimate:
    """Suggest a peak learning rate for this optimizer on this model and data.

    Args:
        model: The module, as it stands: freshly initialised, or loaded for fine-tuning.
        loss_fn: ``loss_fn(model, batch)``, the training loss.
        loader: Training batches; ``num_steps`` of them are used, again from the start where there are fewer.
        optimizer: The optimizer that will train the model; groups keep the ratios of their rates.
        num_steps: Updates of the ramp; 48.
        num_samples: As for :class:`~optland.pilot.pilot.Pilot`, which counts batches of your own type.
        seed: Of the probes' own randomness.

    Returns:
        The rate for the group with the largest one, as an :class:`~optland.estimate.Estimate`: ``error`` is the
        spread of what was measured, in the unit of the rate, and the cost is in gradient evaluations.

    Raises:
        ValueError: Fewer than 12 updates, an empty loader, or an optimizer whose move is not linear in its rate.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> X = torch.randn(256, 4); Y = X @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]])
        >>> net = nn.Linear(4, 1)
        >>> batches = list(zip(X.split(32), Y.split(32)))
        >>> mse = lambda model, batch: (model(batch[0]) - batch[1]).pow(2).mean()
        >>> found = suggest_lr(net, mse, batches, torch.optim.SGD(net.parameters(), lr=1.0))
        >>> 0.05 < found.value < 1.0                        # the Hessian is 2 X'X / n, about 2: critical rate about 1
        True
    """
    if num_steps < 12:
        raise ValueError(f"num_steps {num_steps} are too few for a ramp; use 12 or more, for example 48")
    ramp = _Ramp(num_steps)
    with _everything_back(model, loss_fn, optimizer), preserve_rng(seed):
        cost, reached = _climb(model, loss_fn, loader, optimizer, ramp, seed, num_samples)
    source = Provenance(
        "critical step along a ramp of real updates", data="training batches", mode="train", seed=seed
    )
    late = ramp.late()
    if len(late) < 2:
        note = "No critical rate was met: updates descend further than the ramp goes, so this is a bound from below."
        return Estimate(reached, math.nan, "none", False, cost, source, note)
    logs = [math.log(eta) for eta in late]
    rate, spread = FRACTION * math.exp(statistics.fmean(logs)), math.expm1(statistics.stdev(logs))
    note = (
        ""
        if spread < 1
        else "The critical rates along the ramp differ by factors, as on a plateau; try a lower one too."
    )
    return Estimate(rate, rate * spread, "standard_error", not note, cost, source, note)


def _climb(
    model: nn.Module,
    loss_fn: LossFn,
    loader: Iterable[Any],
    optimizer: Optimizer,
    ramp: _Ramp,
    seed: int,
    num_samples: Callable[[Any], int] | None,
) -> tuple[float, float]:
    """Make the updates of the ramp; returns their cost with that of the probes, and the rate at its end."""
    with closing(_endless(loader)) as batches, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a ramp that meets no end is told by the result
        with Pilot(
            optimizer, model, loss_fn, policies=[ramp], total_steps=ramp.steps, budget=1.0, seed=seed,
            num_samples=num_samples,
        ) as pilot:  # fmt: skip
            for batch in itertools.islice(batches, ramp.steps):

                def closure(share: float = 1.0, batch: Any = batch) -> Any:
                    optimizer.zero_grad()
                    loss = mean_of(loss_fn(model, portion(batch, share)))
                    loss.backward()
                    return loss

                pilot.after_step(batch, optimizer.step(closure))
            return pilot.budget.train_ge + pilot.budget.probe_ge, pilot.steering.applied()


def _endless(loader: Any) -> Generator[Any, None, None]:
    """Batches again and again; a loader that knows its position is left where it was."""
    position = copy.deepcopy(loader.state_dict()) if hasattr(loader, "load_state_dict") else None
    try:
        while True:
            empty = True
            for batch in loader:
                empty = False
                yield batch
            if position is not None:
                loader.load_state_dict(copy.deepcopy(position))
            if empty:
                raise ValueError("the loader is empty; give batches of the training data")
    finally:
        if position is not None:
            loader.load_state_dict(position)


@contextmanager
def _everything_back(model: nn.Module, loss_fn: LossFn, optimizer: Optimizer) -> Iterator[None]:
    """Restore weights, buffers, optimizer state and gradients, bit for bit."""
    host, kept = Host([optimizer], model, loss_fn), Snapshots()
    buffers = dict(host.model.named_buffers())
    kept.take(0, {}, host.parameters(), buffers, host.inner)
    gradients = {p: None if p.grad is None else p.grad.clone() for p in host.model.parameters()}
    try:
        yield
    finally:
        assert kept.old is not None
        kept.restore(kept.old, host.parameters(), buffers, host.inner)
        for p, g in gradients.items():
            p.grad = g
