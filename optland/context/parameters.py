"""Protect a model's parameters during a probe, by stand-ins for those that it could write.

**Writes.** ``nn.Embedding(max_norm=...)`` renormalises its weight in the forward; models clamp weights, or move an
average of them (a momentum encoder, a codebook) there. A probe must leave every parameter as it was, trainable or
frozen, in its bits and in its version counter, on which a graph that the caller keeps depends. So copies stand in the
model for the parameters that are written. Every graph has copies of its own, which stay as the forward left them.

**Which.** The first block of a model in a mode puts copies of all trainable parameters in place and compares them
afterwards with the originals: writes to ``.data`` advance no version counter, so this once only the bits tell. Frozen
ones, which may be a thousand times as many, are copied where a layer says that it writes them (``max_norm``) or is
about to (:mod:`optland.context.writes`). From then on those parameters alone are copied, and the others are watched by
their version counters; one written for the first time later is an error, not a silent change.

**Hooks.** A gradient that a probe takes must reach no hook on a parameter, and no ``.grad``. Leaves of the probe's own,
on the same memory, stand for parameters with hooks, and for all of them where a graph runs backward passes of its own.

**Cost.** One copy of the trainable weights at the first evaluation in a mode, then some tenths of a microsecond per
parameter. (With copies at every evaluation, a forward of a wide layer on 32 samples takes twice as long.)

**Caveats.** Parameters of subclasses (sharded, quantised) own more than their numbers and stay in place. A write to
``.data`` that a forward makes only now and then, not at the first time, goes unseen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from optland.context.notes import Notes, notes_of
from optland.context.writes import WriteWatch

__all__ = ["has_hooks", "preserve_parameters"]

_PLAIN = (nn.Parameter, Tensor)

Places = dict[Tensor, list[tuple[nn.Module, str]]]
"""Where each parameter stands: modules, and its names in them."""


def has_hooks(tensor: Tensor) -> bool:
    """Whether a hook waits for this tensor's gradient.

    PyTorch has no public way to ask; the attributes are those that its own ``register_..._hook`` methods fill.

    Args:
        tensor: A parameter; hooks on modules do not count.

    Example:
        >>> w = torch.zeros(1, requires_grad=True)
        >>> handle = w.register_hook(lambda gradient: None)
        >>> has_hooks(w), has_hooks(torch.zeros(1))
        (True, False)
    """
    return bool(tensor._backward_hooks or getattr(tensor, "_post_accumulate_grad_hooks", None))


@contextmanager
def preserve_parameters(
    model: nn.Module, modules: Sequence[nn.Module], mode: str, standing: dict[int, Tensor] | None = None
) -> Iterator[None]:
    """Keep the parameters of ``modules`` (all of ``model``'s) as they are while it runs in ``mode``.

    Args:
        model: The model, whose :class:`~optland.context.notes.Notes` say what stands in for which parameter inside.
        modules: All of its modules.
        mode: ``"eval"`` or ``"train"``.
        standing: The stand-ins of an earlier block, whose graph is to be run again.

    Raises:
        RuntimeError: A forward has written a parameter that it left alone before.
    """
    notes = notes_of(model)
    if notes.standing is not None:
        yield
        return
    looked, written = notes.looked.setdefault(mode, set()), notes.written.setdefault(mode, set())
    places = _places(modules)
    if standing is None:
        standing = _stand_ins(notes, mode, places, looked, written)
    copied = [p for p in places if id(p) in standing and standing[id(p)].data_ptr() != p.data_ptr()]
    before = [standing[id(p)]._version for p in copied]
    frozen = _left_in_place(places, standing, looked)
    watched = [p for p in places if id(p) in looked and id(p) not in written]
    versions = [p._version for p in watched]
    computed = _computed(modules)
    for p in places:
        if id(p) in standing:
            _place(standing[id(p)], places[p])
    notes.standing, notes.replaced, notes.active = standing, False, {}
    stand_ins = standing

    def copied_now(p: Tensor, copy: Tensor) -> None:
        stand_ins[id(p)] = copy
        _place(copy, places[p])

    watch = WriteWatch(frozen, copied_now)
    try:
        with watch if frozen else nullcontext():
            yield
        _compare(notes, mode, places, copied, before)
        looked.update(map(id, frozen))
    finally:
        notes.standing = None
        written.update(map(id, watch.written))
        for p, where in places.items():
            _place(p, where)
        for module, kept in computed:
            module.__dict__.update(kept)
    late = [places[p][0] for p, version in zip(watched, versions, strict=True) if p._version != version]
    if late:
        raise RuntimeError(
            f"the forward has written {_named(*late[0])}, which it left alone in earlier evaluations, so that no copy "
            "was kept and this probe has changed the model; write parameters at every forward of a mode or at none"
        )


def _left_in_place(places: Places, standing: dict[int, Tensor], looked: set[int]) -> list[Tensor]:
    """Frozen parameters whose first block this is, and that no copy stands for."""
    return [p for p in places if id(p) not in standing and id(p) not in looked and _is_frozen(p)]


def _is_frozen(p: Tensor) -> bool:
    return type(p) in _PLAIN and not p.requires_grad


def _says_that_it_writes(where: Sequence[tuple[nn.Module, str]]) -> bool:
    """As embeddings with a largest norm do, in a kernel that nobody sees."""
    return any(getattr(module, "max_norm", None) is not None for module, _ in where)


def _stand_ins(
    notes: Notes, mode: str, places: Places, looked: set[int], written: set[int]
) -> dict[int, Tensor]:
    """Leaves for the parameters that need one, by their ``id``: a copy, or the same memory again."""
    hidden = mode not in notes.tried or notes.backward != ""
    found = {}
    for p in places:
        if type(p) not in _PLAIN:
            continue
        first = id(p) not in looked and not (_is_frozen(p) and not _says_that_it_writes(places[p]))
        if first or id(p) in written:
            found[id(p)] = p.detach().clone().requires_grad_(p.requires_grad)
        elif p.requires_grad and (hidden or has_hooks(p)):
            found[id(p)] = p.detach().requires_grad_()
    return found


def _place(t: Tensor, where: Sequence[tuple[nn.Module, str]]) -> None:
    for module, name in where:
        if module._parameters.get(name) is not t:
            module._parameters[name] = t  # type: ignore[assignment]


def _named(module: nn.Module, name: str) -> str:
    return f"{name!r} of {type(module).__name__}"


def _computed(modules: Sequence[nn.Module]) -> list[tuple[nn.Module, dict[str, Tensor]]]:
    """Tensors that hooks before the forward compute anew, such as the weight of the older weight and spectral norms."""
    hooked = [module for module in modules if module._forward_pre_hooks]
    return [(m, {k: v for k, v in m.__dict__.items() if isinstance(v, Tensor)}) for m in hooked]


def _places(modules: Sequence[nn.Module]) -> Places:
    """Every parameter, and where it stands; a tied one stands in several places."""
    found: Places = {}
    for module in modules:
        for name, p in module._parameters.items():
            if p is not None:
                found.setdefault(p, []).append((module, name))
    return found


def _compare(
    notes: Notes, mode: str, places: Places, copied: Sequence[Tensor], before: Sequence[int]
) -> None:
    """Note which parameters the block has written, and which of those it has changed."""
    if notes.replaced:  # and what a transform has left in a stand-in may have no memory to compare
        return
    standing = notes.standing or {}
    pairs = [(p, standing[id(p)], version) for p, version in zip(copied, before, strict=True)]
    changed = [p for p, q, _ in pairs if not _same(p, q) or not _stands(q, places[p])]
    notes.active = {id(p): _named(*places[p][0]) for p in changed}
    advanced = [p for p, q, version in pairs if q._version != version]
    notes.written[mode].update(id(p) for p in [*changed, *advanced])
    notes.looked[mode].update(id(p) for p in copied)


def _stands(q: Tensor, where: Sequence[tuple[nn.Module, str]]) -> bool:
    """Whether the tensor is still in its places; a forward may put a new parameter there."""
    return all(module._parameters.get(name) is q for module, name in where)


def _same(p: Tensor, q: Tensor) -> bool:
    """Equal, with NaN equal to NaN."""
    if torch.equal(p, q):
        return True
    return p.shape == q.shape and bool(((p == q) | ((p != p) & (q != q))).all())
