"""Sum gradients of micro-batches that each had their own eps, and detect a backward pass that must not be there."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from optland import vectors
from optland.optim import misuse
from optland.optim.delegate import Closure
from optland.optim.gradients import is_shared, is_spent, require_dense

__all__ = ["BackwardWatch", "GradientSum"]


class GradientSum:
    """The sum of the combined gradients so far, kept out of ``.grad``, where the next micro-batch needs room."""

    def __init__(self) -> None:
        self._of: dict[Tensor, Tensor] = {}
        self._apart = False

    def __bool__(self) -> bool:
        return bool(self._of)

    @vectors.no_graph
    def take(self, params: list[Tensor], *, apart: bool = False) -> None:
        """Add what is in ``.grad``, and empty it; ``apart`` says whether it is this rank's own.

        Args:
            params: Whose ``.grad`` is taken.
            apart: Whether it was not averaged over the ranks; once that is so of a part, it is so of the sum.
        """
        self._apart = self._apart or apart
        for p in params:
            if p.grad is None:
                continue
            if p in self._of:
                self._of[p] = self._of[p] + p.grad
            else:  # memory that DDP or FSDP2 will write to again is copied
                self._of[p] = p.grad.detach().clone() if is_shared(p.grad) else p.grad
            p.grad = None

    def place(self, params: list[Tensor]) -> bool:
        """Put the sum into ``.grad`` and start again from nothing.

        Returns:
            Whether some part of it is this rank's own.

        Raises:
            RuntimeError: There are gradients that are not part of the sum.
        """
        require_dense(p.grad for p in params)
        if any(p.grad is not None and not is_spent(p.grad) and bool(p.grad.count_nonzero()) for p in params):
            raise RuntimeError(
                "gradients were made after accumulate() and are not part of its sum; finish their passes with "
                "perturb(), backward and accumulate(), or zero them, before step()"
            )
        for p in params:
            p.grad = self._of.get(p)
        apart, self._of, self._apart = self._apart, {}, False
        return apart


class BackwardWatch:
    """Notices a backward pass between a ``perturb()`` that said no and the step: it would add g to itself."""

    def __init__(self) -> None:
        self._handle: RemovableHandle | None = None
        self._seen = False

    def start(self, p: Tensor) -> None:
        """Watch for gradients that reach ``p``."""
        self.stop()

        def notice(_: Tensor) -> None:
            self._seen = True

        self._handle = p.register_post_accumulate_grad_hook(notice)

    def stop(self) -> bool:
        """Watch no longer; whether a backward pass was seen."""
        seen, self._seen = self._seen, False
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        return seen

    def during(self, closure: Closure, params: list[Tensor]) -> Any:
        """Call a closure that has nothing to do any more, as the gradient is in hand.

        Args:
            closure: The user's.
            params: Of which the first with a gradient is watched.

        Returns:
            What it returned.

        Raises:
            RuntimeError: It has zeroed the gradient, or run a backward pass.
        """
        if (first := next((p for p in params if p.grad is not None), None)) is None:
            return closure()
        self.start(first)
        try:
            loss = closure()
        finally:
            stopped = self._handle is None  # by zero_grad()
            disturbed = self.stop() or stopped
        if disturbed:
            raise RuntimeError(misuse.lost_in_hand())
        return loss

    def __getstate__(self) -> dict[str, Any]:
        return {"_handle": None, "_seen": False}
