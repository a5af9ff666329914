"""Collect the gradients of a pass, and distinguish leftovers of the last update from new contributions.

Before pass one of a closure, ``.grad`` may hold the gradients of the last update (leftovers, to be dropped)
or a contribution that someone accumulated outside the closure (which a second pass would silently lose or
count twice).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from optland import vectors
from optland.optim.delegate import Closure

__all__ = ["call_alone", "is_shared", "is_spent", "own", "present", "recorded", "require_dense", "spend"]

_MARK = "_optland_spent"


def require_dense(gradients: Iterable[Tensor | None], what: str = "a two-pass step") -> None:
    """Refuse gradients that a global norm cannot be taken over, for ``what`` needs it.

    Args:
        gradients: None among them is skipped.
        what: For the message.

    Raises:
        TypeError: A gradient is sparse or complex.
    """
    for g in gradients:
        if g is not None and (g.layout is not torch.strided or g.dtype.is_complex):
            kind = "complex" if g.is_complex() else str(g.layout)
            raise TypeError(
                f"{what} needs dense real gradients and found a {kind} one, of shape {tuple(g.shape)}; "
                "use sparse=False in embeddings, or real and imaginary parts as separate parameters"
            )


def is_shared(gradient: Tensor) -> bool:
    """Whether someone else may write to the memory of this gradient: it is a view, or a shard."""
    return gradient._is_view() or (type(gradient) is not Tensor and hasattr(gradient, "to_local"))


def present(params: list[Tensor]) -> list[Tensor | None]:
    """The gradient of each parameter, None where it has none.

    Args:
        params: In the order of the groups.

    Returns:
        The tensors themselves, not copies.
    """
    return [p.grad for p in params]


@vectors.no_graph
def own(params: list[Tensor], gradients: list[Tensor | None]) -> list[Tensor | None]:
    """Gradients to keep, and ``.grad`` emptied for the next pass, with what is left there marked as spent.

    They are taken rather than copied where nobody else writes to their memory. DDP's may be views of its buckets, and
    FSDP2's are shards that it may reduce into again: of these, copies are kept, and the originals zeroed.

    Args:
        params: Whose ``.grad`` is emptied.
        gradients: What :func:`present` gave for them.

    Returns:
        For every parameter, None where it had none; nobody else writes to their memory.
    """
    kept: list[Tensor | None] = []
    for p, g in zip(params, gradients, strict=True):
        if g is None or (type(g) is Tensor and not g._is_view()) or not is_shared(g):
            kept.append(g)
            p.grad = None
            continue
        kept.append(g.detach().clone())
        g.zero_()
        spend([p])
    return kept


def _version(gradient: Tensor) -> int:
    """Number of in-place writes so far; FSDP2 writes to the local shard and not to the DTensor around it."""
    if type(gradient) is not Tensor and hasattr(gradient, "to_local"):
        with torch.no_grad():
            return int(gradient.to_local()._version)
    return gradient._version


def spend(params: Iterable[Tensor]) -> None:
    """Mark the present gradients as used up: what is added to them from now on is a new contribution.

    The mark sits on the tensor and not in a table of this package, so it neither keeps memory alive nor can be taken
    for that of a later tensor at the same address.
    """
    for p in params:
        if (g := p.grad) is not None:
            setattr(g, _MARK, g._version if type(g) is Tensor else _version(g))


def is_spent(gradient: Tensor) -> bool:
    """Whether nobody wrote to this gradient since it was marked."""
    mark = getattr(gradient, _MARK, None)
    return mark is not None and mark == _version(gradient)


def recorded(closure: Closure) -> Any:
    """Call a closure with its graph recorded, as ``torch.enable_grad`` does; what it returned."""
    if torch.is_grad_enabled():
        return closure()
    torch.set_grad_enabled(True)
    try:
        return closure()
    finally:
        torch.set_grad_enabled(False)


def call_alone(closure: Closure, params: list[Tensor]) -> Any:
    """Call the closure of pass one, and make sure that ``.grad`` then holds its gradient and nothing else.

    Args:
        closure: Zeroes gradients, runs forward and backward, returns the loss.
        params: Whose ``.grad`` is looked at.

    Returns:
        What the closure returned.

    Raises:
        RuntimeError: Others had contributed gradients, and the closure added to them instead of zeroing first.
            The contributions are put back.
    """
    contributions = _drop_leftovers(params)
    try:
        loss = recorded(closure)
        if contributions and not _zeroed(contributions, loss):
            raise RuntimeError(
                "gradients existed before step(closure) and the closure did not zero them, so the second pass "
                "would not see the same loss as the first. Either zero the gradients first thing in the "
                "closure, or, when accumulating micro-batches, use the phase form: backward over all "
                "micro-batches, perturb(), backward over all of them again, step(). In Lightning, add "
                "optland.integrations.lightning.SAMModule to the bases of the module."
            )
    except BaseException:
        for p, g in contributions:
            p.grad = g
        raise
    return loss


@vectors.no_graph
def _drop_leftovers(params: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Prepare ``.grad`` for a closure; return what others contributed, as (parameter, gradient) pairs.

    Leftovers are dropped, those in shared memory zeroed there, which is right whether the closure zeroes to None, in
    place, or not at all. Where a contribution is found, ``.grad`` becomes NaN, so that one can tell afterwards
    whether the closure zeroed it. The host looks at values only in this second case.
    """
    foreign: list[tuple[Tensor, Tensor]] = []
    for p in params:
        if (g := p.grad) is None:
            continue
        if type(g) is Tensor and not g._is_view() and getattr(g, _MARK, None) == g._version:
            p.grad = None  # what the two questions below come to for nearly every gradient
        elif not is_spent(g):
            foreign.append((p, g))
        elif is_shared(g):
            g.zero_()
        else:
            p.grad = None
    if not foreign:
        return []
    require_dense(g for _, g in foreign)
    if not any(bool(g.count_nonzero()) for _, g in foreign):
        return []
    for p, g in foreign:
        p.grad = torch.full_like(g, math.nan)
    return foreign


@vectors.no_graph
def _zeroed(contributions: list[tuple[Tensor, Tensor]], loss: Any) -> bool:
    """Whether the NaN is gone; with a loss that is not finite there is no telling, and the step is skipped."""
    if isinstance(loss, Tensor) and not bool(loss.isfinite().all()):
        return True
    return not any(p.grad is not None and bool(p.grad.isnan().all()) for p, _ in contributions)
