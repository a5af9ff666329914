"""Cancel an update that is not finite, and rewind a run that has broken.

The two are different. One bad batch costs one update: its gradient is taken away before any optimizer sees it, so no
state moves, and buffers are as before its forward pass. A loss that is not finite though its gradient is, as the mean
over no sample or over masked labels alone, is left to itself. A rewind is for trouble that lasts: the loss guard, a
dead net, weights that are not finite, or gradients or losses that are not for ten updates in a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from optland.optim.two_pass import TwoPass
from optland.pilot.buffers import BuffersBefore
from optland.pilot.guards import FEW_SAMPLES, ClipWatch, CollapseGuard, RewindGuard
from optland.pilot.host import Host
from optland.pilot.notices import say_clipped, say_loss, say_not_finite
from optland.pilot.snapshots import Snapshots

__all__ = ["Trouble", "all_finite", "was_left_out"]

LASTING = 10
"""Updates in a row that were not finite after which the weights, and not the batches, are taken for damaged."""


class Trouble:
    """Detects broken updates and runs, and undoes them.

    Args:
        host: Whose weights, buffers and optimizer state go back.
        paces: Whether a policy answers for the learning rate; a user's own rate is touched for a wreck alone.

    Attributes:
        lost: Updates that were cancelled, for whatever reason.
        withdrawn: Whether the present one has.
        guard: Watches the loss.
        collapse: Watches for dead layers.
        clips: Watches for clipping by the user.
        snapshots: The states to go back to.
        buffers: Float buffers before the forward pass.
    """

    def __init__(self, host: Host, *, paces: bool) -> None:
        self.host, self.paces = host, paces
        self.guard = _guard(paces)
        self.collapse = CollapseGuard()
        self.clips = ClipWatch()
        self.snapshots = Snapshots()
        self.buffers = BuffersBefore()
        self.lost = 0
        self.withdrawn = False
        self._in_a_row = 0
        self._losses_in_a_row = 0
        self._said = self._said_clipped = self._said_loss = False

    # ------------------------------------------------------------------ one update

    def withdraw(self) -> None:
        """Cancel the present update: no optimizer sees a gradient, and buffers are as before the forward pass."""
        self.buffers.restore()
        self.withdrawn = True

    def take_gradient(self, optimizer: Optimizer) -> None:
        """Take away what an optimizer is about to use; at its own step, before which a scaler looks for it."""
        for p in self.host.parameters_of(optimizer):
            p.grad = None
        if isinstance(optimizer, TwoPass):
            optimizer.withdraw()

    def not_finite(self) -> str | None:
        """Withdraw an update whose gradient is not finite; returns why the run has to go back, where it has to.

        Returns:
            None for one bad batch; a reason where the weights themselves are not finite on some rank, or after ten
            updates in a row.
        """
        self.say_once()
        self.withdraw()
        self._in_a_row += 1
        if not self._weights_are_finite():
            return "the weights are not finite"
        if self._in_a_row >= LASTING:
            return f"the gradient was not finite {self._in_a_row} times in a row"
        return None

    def left_out(self, *, act: bool, first: bool = False) -> None:
        """The optimizer, or a GradScaler, has left the weights alone.

        Args:
            act: Whether buffers go back to before the forward pass.
            first: Whether no step was seen so far.
        """
        self.say_once()
        self.withdrawn = True
        if act:
            self.buffers.restore(broken=first)

    def say_once(self) -> None:
        """Warn of the first update that is not finite."""
        if not self._said:
            self._said = True
            say_not_finite(self.host.step + 1)

    def is_clipped(self, norm: float) -> bool:
        """Whether the user clips gradients, so that their norm hides what they were; says so once."""
        limit = self.clips.observe(norm)
        if limit is not None and not self._said_clipped:
            self._said_clipped = True
            say_clipped(limit, self.host.step + 1)
        return limit is not None

    def over(self, *, made: bool) -> None:
        """The present update is over, made or none."""
        self.withdrawn = False
        if made:
            self._in_a_row = 0
        else:
            self.lost += 1

    # ------------------------------------------------------------------ the run

    def seen(self, loss: float, norms: Mapping[str, float]) -> str | None:
        """Look at the last loss and at the present gradients of the weight matrices; the trouble in words.

        Args:
            loss: Of the update before, as a number.
            norms: Gradient norm of each weight matrix, by name.

        Returns:
            None where there is none.
        """
        if not math.isfinite(loss):
            return self._loss_not_finite(loss)
        self._losses_in_a_row = 0
        few = self.host.knows_batch_size and self.host.batch_size < FEW_SAMPLES
        return self.guard.observe(loss, few=few) or self.collapse.observe(loss, norms)

    def _loss_not_finite(self, loss: float) -> str | None:
        """One such loss is a batch's fault: the gradients that were used are finite, and so are the weights."""
        self._losses_in_a_row += 1
        if self._losses_in_a_row >= LASTING:
            return f"the loss was not finite {self._losses_in_a_row} times in a row"
        if not self._weights_are_finite():
            return f"the loss is {loss}, and the weights are not finite"
        if not self._said_loss:
            self._said_loss = True
            say_loss(loss, self.host.step)
        return None

    def _weights_are_finite(self) -> bool:
        weights = [p.detach() for p in self.host.parameters().values()]
        return not weights or not self.host.ranks.any(not all_finite(weights), weights[0].device)

    def begin_again(self) -> None:
        """Forget the losses, where a rewind is only said."""
        self.guard = _guard(self.paces)
        self.collapse.forget()
        self._losses_in_a_row = 0

    def begin(self) -> None:
        """Store the start, at the first step: a forward pass that has broken buffers may lie before it."""
        self.buffers.restore(broken=True)
        self.store()

    def store(self) -> None:
        """Take a snapshot."""
        host = self.host
        self.snapshots.take(host.step, self.guard.mark(), host.parameters(), host.buffers(), host.inner)
        self.buffers.take(host.buffers())

    def store_if_due(self, steps: int | None) -> None:
        """Take a snapshot every twentieth of a run of so many updates, and not more often than every fifth update.

        Args:
            steps: Updates of the whole run; None counts as 1000.
        """
        if self.host.step % max(5, (steps or 1000) // 20) == 0:
            self.store()

    def go_back(self) -> int:
        """Restore a snapshot, and cancel the present update: its gradient belongs to other weights.

        Returns:
            The update that the run went back to.
        """
        host = self.host
        snapshot = self.snapshots.choose(host.step, self.collapse.since)
        self.withdraw()
        self.snapshots.restore(snapshot, host.parameters(), host.buffers(), host.inner)
        host.say_loaded()
        self.buffers.take(host.buffers())
        self.guard.rewind(snapshot["mark"])
        self.collapse.forget()
        self._in_a_row = self._losses_in_a_row = 0
        return int(snapshot["step"])

    def state_dict(self) -> dict[str, Any]:
        """Guards, counts and the snapshots themselves."""
        return {
            "guard": self.guard.state_dict(),
            "collapse": self.collapse.state_dict(),
            "snapshots": self.snapshots.state_dict(),
            "lost": self.lost,
            "in_a_row": [self._in_a_row, self._losses_in_a_row],
            "said": [self._said, self._said_clipped, self._said_loss],
            "norms": list(self.clips.norms),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.guard.load_state_dict(state["guard"])
        self.collapse.load_state_dict(state["collapse"])
        self.snapshots.load_state_dict(state["snapshots"])
        self.lost = state["lost"]
        self._in_a_row, self._losses_in_a_row = state["in_a_row"]
        self._said, self._said_clipped, self._said_loss = state["said"]
        self.clips.norms = list(state["norms"])
        self.buffers.take(self.host.buffers())


def was_left_out(optimizer: Optimizer) -> bool:
    """Whether a step has left the weights alone: told so by a GradScaler, or since a gradient was not finite.

    Args:
        optimizer: After its ``step``.
    """
    if isinstance(optimizer, TwoPass) and optimizer.last_skipped:
        return True
    found = getattr(optimizer, "found_inf", None)  # of a fused one
    return found is not None and bool(found)


def all_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether every number in these tensors is finite.

    Args:
        tensors: Dense or sparse; None among them is skipped. One wait for the device each.

    Example:
        >>> all_finite([torch.ones(2), None]), all_finite([torch.tensor([1.0, float("inf")])])
        (True, False)
    """
    return all(
        bool(torch.isfinite(t.coalesce().values() if t.is_sparse else t).all())
        for t in tensors
        if t is not None
    )


def _guard(paces: bool) -> RewindGuard:
    """For a user's own rate: three quarters of all progress lost, or ten times the first loss.

    Batches of eight samples lose a quarter of the progress by chance, and halving a rate that was chosen is no repair.
    """
    return RewindGuard() if paces else RewindGuard(lost=0.75, slack=0.5, ceiling=10.0)
