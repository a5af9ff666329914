"""Lists of tensors treated as one long vector.

A model's parameters, a gradient, an update and an eigenvector all are lists of tensors of the same shapes.
The functions here give such lists the arithmetic of one vector in R^d, without copying them into a flat
tensor.

Reductions accumulate in float64 where the device has it, and return at least float32: a bfloat16 sum over
thousands of entries stops growing, and PyTorch's float32 norm on the CPU is off by 1e-3 at ten million. They
reduce sharded ``DTensor`` entries over their mesh, so that a norm is that of the whole vector and not of this
rank's shard.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from optland.flat import LARGE, length

__all__ = [
    "dot",
    "flatten",
    "norm",
    "random_unit",
    "scaled",
]

Vector = Sequence[Tensor]

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def no_graph(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """Run a function without recording a graph.

    ``torch.no_grad`` does the same, at 2 us per call: as much as an operation on a small tensor.
    """

    @functools.wraps(function)
    def quiet(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        if not torch.is_grad_enabled():
            return function(*args, **kwargs)
        torch.set_grad_enabled(False)
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_grad_enabled(True)

    return quiet


def dense(x: Vector) -> list[Tensor]:
    """The entries with every coordinate stored; gradients of ``nn.Embedding(sparse=True)`` come without the zeros.

    Returns:
        The same tensors where they are strided already, so it costs nothing then.

    Example:
        >>> dense([torch.tensor([0.0, 2.0]).to_sparse()])[0].tolist()
        [0.0, 2.0]
    """
    return [t if t.layout is torch.strided else t.to_dense() for t in x]


def numel(x: Vector) -> int:
    """Number of coordinates d."""
    return sum(t.numel() for t in x)


def _wide_type(t: Tensor) -> torch.dtype:
    """The type that reductions accumulate in."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _wide(t: Tensor) -> Tensor:
    return t.to(_wide_type(t))


def _sum_type(x: Vector) -> torch.dtype:
    """The type that partial sums are kept in; the Apple backend has no float64."""
    return torch.float32 if any(t.device.type == "mps" for t in x) else torch.float64


def _narrowed(total: Tensor, x: Vector) -> Tensor:
    """A reduced scalar in the type that results have: the widest of the entries, at least float32."""
    return total.to(torch.float64 if torch.float64 in [t.dtype for t in x] else torch.float32)


def _whole(t: Tensor) -> Tensor:
    """A reduced scalar as a plain tensor: a ``DTensor`` partial sum becomes the sum over its mesh."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t


_PLAIN = {Tensor, nn.Parameter}


def _is_sharded(x: Vector) -> bool:
    return not {type(t) for t in x} <= _PLAIN and any(hasattr(t, "full_tensor") for t in x)


_CHUNK = LARGE
"""Coordinates that are copied together: small tensors cost one call each, and a copy of all of them costs memory."""


def _is_on_cpu(x: Vector) -> bool:
    return _PLAIN.issuperset(map(type, x)) and {t.is_cpu for t in x} <= {True}


def _chunks(x: Vector) -> Iterator[slice]:
    """Runs of neighbouring entries of up to that many coordinates together; a larger entry is one by itself."""
    start = held = 0
    for i, t in enumerate(x):
        count = t.numel()
        if held + count > _CHUNK and i > start:
            yield slice(start, i)
            start, held = i, 0
        held += count
    yield slice(start, len(x))


def _together(x: Vector) -> Tensor:
    """One flat tensor; of a single entry no copy."""
    return x[0] if len(x) == 1 else torch.cat([t.reshape(-1) for t in x])


def _product(x: Vector, y: Vector) -> Tensor:
    """Inner product of one chunk, in float64."""
    if len(x) == 1 and x[0].numel() > _CHUNK:  # no copies of a large one in the wider type
        return (_wide(x[0]) * _wide(y[0])).sum(dtype=torch.float64)
    return torch.dot(_together(x).reshape(-1).double(), _together(y).reshape(-1).double())


_SINGLE = 2**26
"""Coordinates up to which a GPU may hold two more copies of a vector for the time of an inner product."""


def _is_on_one_gpu(x: Vector) -> bool:
    return x[0].is_cuda and len({t.device for t in x}) == 1 and numel(x) <= _SINGLE and not _is_sharded(x)


def _is_uniform(x: Vector) -> bool:
    """Whether one multi-tensor kernel does for all: plain tensors of one wide type on one device."""
    kinds = {(t.dtype, t.device) for t in x}
    return len(kinds) == 1 and x[0].dtype in (torch.float32, torch.float64) and not _is_sharded(x)


@no_graph
def dot(x: Vector, y: Vector) -> Tensor:
    """Inner product <x, y>, a 0-d tensor on the device of the first entry (no host synchronisation).

    Args:
        x: Its entries may be of other types and devices than those of ``y``, which are multiplied in a wider type.
        y: As many tensors, in the same shapes.

    Returns:
        In float64 where an entry is, else in float32; 0 for two empty vectors.

    Raises:
        ValueError: One has more tensors than the other.

    Example:
        >>> float(dot([torch.ones(2), torch.ones(1)], [torch.ones(2), 3 * torch.ones(1)]))
        5.0
    """
    if not x:
        return torch.zeros(())
    if len(x) != len(y):
        raise ValueError(f"a vector of {len(x)} tensors has no inner product with one of {len(y)}")
    if _is_on_cpu(x) and _is_on_cpu(y):
        pieces = [_product(x[run], y[run]) for run in _chunks(x)]
        return _narrowed(pieces[0] if len(pieces) == 1 else torch.stack(pieces).sum(), [*x, *y])
    wide = _sum_type(x)
    if _is_on_one_gpu(x) and _is_on_one_gpu(y):
        # Four launches for the whole vector instead of three per tensor.
        products = torch._foreach_mul([_wide(a) for a in x], [_wide(b) for b in y])
        return _narrowed(torch.cat([p.flatten() for p in products]).sum(dtype=wide), [*x, *y])
    parts = [_whole((_wide(a) * _wide(b)).sum(dtype=wide)) for a, b in zip(x, y, strict=True)]
    return _narrowed(torch.stack([p.to(parts[0].device) for p in parts]).sum(), [*x, *y])


@no_graph
def norm(x: Vector) -> Tensor:
    """Euclidean norm ||x||_2, a 0-d tensor on the device of the first entry.

    Returns:
        In float64 where an entry is, else in float32; 0 for an empty vector, NaN where an entry is NaN.

    Example:
        >>> float(norm([torch.tensor([3.0]), torch.tensor([4.0])]))
        5.0
    """
    if not x:
        return torch.zeros(())
    if _is_on_cpu(x):
        lengths = [length(_together(x[run])) for run in _chunks(x)]
        return _narrowed(
            lengths[0] if len(lengths) == 1 else torch.linalg.vector_norm(torch.stack(lengths)), x
        )
    if _is_on_one_gpu(x):
        # A norm of many tensors that accumulates in float64 is a launch for each of them.
        flat = torch.cat([_wide(t).flatten() for t in x])
        return _narrowed(torch.linalg.vector_norm(flat, dtype=_sum_type(x)), x)
    if _is_sharded(x):
        norms = torch._foreach_norm([_wide(t) for t in x])
    else:
        norms = torch._foreach_norm(list(x), 2, _sum_type(x))
    parts = [_whole(n) for n in norms]
    return _narrowed(torch.linalg.vector_norm(torch.stack([p.to(parts[0].device) for p in parts])), x)


def accumulator(like: Vector) -> list[Tensor]:
    """Zeros in the shapes of ``like``, in the type that sums accumulate in (see the module's first lines).

    Returns:
        float64 tensors for float64 entries, float32 ones for all others.
    """
    return [torch.zeros_like(t, dtype=_wide_type(t)) for t in like]


@no_graph
def clone(x: Vector) -> list[Tensor]:
    """A detached copy of every entry, in its own memory."""
    if _foreach_clone is not None and x and not _is_sharded(x):
        return list(_foreach_clone(list(x)))
    return [t.detach().clone() for t in x]


_foreach_clone = getattr(torch, "_foreach_clone", None)
"""One call for all tensors, in the PyTorch versions that have it."""


@no_graph
def copy_(target: Vector, source: Vector) -> None:
    """Overwrite ``target`` with ``source`` bit for bit, keeping the storage of ``target``.

    Args:
        target: Tensors that are written to, in place.
        source: One tensor for each, in the same shapes.
    """
    if not target:
        return
    if _is_sharded(target):  # the fused copy has no sharding rule for DTensor
        for t, s in zip(target, source, strict=True):
            t.copy_(s)
    else:
        torch._foreach_copy_(list(target), list(source))


@no_graph
def axpy_(alpha: float | Tensor, x: Vector, y: Vector) -> None:
    """In place y <- y + alpha x; a tensor ``alpha`` stays on its device.

    Args:
        alpha: A number, or a 0-d tensor, which costs no host synchronisation.
        x: In the shapes of ``y``.
        y: Written to, in place.
    """
    if not y:
        return
    if isinstance(alpha, Tensor) and _is_uniform(x):
        torch._foreach_add_(list(y), torch._foreach_mul(list(x), alpha.to(x[0])))
    elif isinstance(alpha, Tensor):
        # The product first, in the wider type of the two: alpha cast to half precision could underflow to zero.
        torch._foreach_add_(list(y), [(_wide(a) * alpha.to(_wide(a).dtype)).to(a.dtype) for a in x])
    else:
        torch._foreach_add_(list(y), list(x), alpha=alpha)


@no_graph
def add(x: Vector, alpha: float | Tensor | Sequence[float], y: Vector) -> list[Tensor]:
    """A new vector x + alpha y, alpha one number or one for each entry; a tensor ``alpha`` stays on its device.

    Args:
        x: Not written to.
        alpha: One number, a 0-d tensor, or a number for each entry.
        y: In the shapes of ``x``.

    Returns:
        Tensors in new memory, in the types that PyTorch's promotion gives.

    Example:
        >>> [t.tolist() for t in add([torch.ones(2)], -0.5, [torch.ones(2)])]
        [[0.5, 0.5]]
    """
    if not x:
        return []
    if isinstance(alpha, Tensor):
        return list(torch._foreach_add(list(x), scaled(alpha.to(y[0]), y)))
    if isinstance(alpha, Sequence):
        if any(a != alpha[0] for a in alpha):
            return list(torch._foreach_add(list(x), torch._foreach_mul(list(y), list(alpha))))
        alpha = alpha[0]
    return list(torch._foreach_add(list(x), list(y), alpha=alpha))


@no_graph
def scaled(alpha: float | Tensor, x: Vector) -> list[Tensor]:
    """A new vector alpha x.

    Args:
        alpha: A number, or a 0-d tensor, whose wider type the result then has.
        x: Not written to.

    Example:
        >>> scaled(2.0, [torch.ones(2), torch.zeros(1)])
        [tensor([2., 2.]), tensor([0.])]
    """
    if x and _is_uniform(x) and not (isinstance(alpha, Tensor) and alpha.dtype != x[0].dtype):
        return list(torch._foreach_mul(list(x), alpha))
    return [t * alpha for t in x]


@no_graph
def subtract(x: Vector, y: Vector) -> list[Tensor]:
    """A new vector x - y."""
    return list(torch._foreach_sub(list(x), list(y))) if x else []


@no_graph
def combine(weights: Sequence[float], vectors: Sequence[Vector]) -> list[Tensor]:
    """A new vector sum_i weights_i vectors_i (a Ritz vector from its basis, for example).

    Args:
        weights: One for each vector; at least one.
        vectors: All in the same shapes.

    Raises:
        ValueError: There are more weights than vectors, or fewer.

    Example:
        >>> combine([2.0, -1.0], [[torch.ones(2)], [torch.tensor([0.0, 1.0])]])
        [tensor([2., 1.])]
    """
    out = scaled(weights[0], vectors[0])
    for weight, vector in zip(weights[1:], vectors[1:], strict=True):
        axpy_(weight, vector, out)
    return out


def require_shapes(x: Vector, like: Vector, name: str, each: Sequence[str] = ()) -> list[Tensor]:
    """The vector, dense, where it is one of the same parameters.

    Args:
        x: What the user gave.
        like: The trainable parameters.
        name: What the messages call ``x``.
        each: Names of the parameters, where they are known; the messages count them otherwise.

    Raises:
        ValueError: The shapes of ``x`` are not those of ``like``; the message calls it ``name``.
        TypeError: An entry is complex.
    """
    given, wanted = [tuple(t.shape) for t in x], [tuple(t.shape) for t in like]
    if given != wanted:
        where = f"{len(given)} tensors for {len(wanted)} parameters"
        if len(given) == len(wanted):
            i = next(i for i, (a, b) in enumerate(zip(given, wanted, strict=True)) if a != b)
            where = f"{repr(each[i]) if each else f'tensor {i}'} is {given[i]}, the parameter {wanted[i]}"
        raise ValueError(
            f"{name} has other shapes than the trainable parameters ({where}): pass one tensor for each of them"
        )
    if any(t.is_complex() for t in x):
        raise TypeError(f"{name} has complex entries; pass real ones (torch.view_as_real)")
    return dense(x)


def direction_length(x: Vector, name: str) -> float:
    """The norm of a vector that serves as a direction.

    Args:
        x: The direction; entries may be sparse.
        name: What the messages call it.

    Raises:
        ValueError: It is zero or not finite; the message calls the vector ``name``.
        TypeError: An entry is complex.
    """
    if any(t.is_complex() for t in x):
        raise TypeError(f"{name} has complex entries; pass real ones (torch.view_as_real)")
    length = float(norm(dense(x)))
    if not 0.0 < length < math.inf:
        raise ValueError(f"the length of {name} is {length}: a direction is finite and not zero")
    return length


def flatten(x: Vector) -> Tensor:
    """One flat tensor (d,) in the accumulation type, on the device of the first entry; shards are put together.

    Example:
        >>> flatten([torch.ones(1, 2), torch.zeros(())])
        tensor([1., 1., 0.])
    """
    return torch.cat([_wide(_whole(t.detach())).reshape(-1).to(x[0].device) for t in x])


def unflatten(flat: Tensor, like: Vector) -> list[Tensor]:
    """The flat tensor cut into the shapes, types and devices of ``like``, in new memory.

    Args:
        flat: (d,), d the number of coordinates of ``like``.
        like: Tensors that give shapes, types and devices; of ``DTensor`` entries the sharding too.

    Example:
        >>> [t.tolist() for t in unflatten(torch.arange(3.0), [torch.zeros(1, 2), torch.zeros(())])]
        [[[0.0, 1.0]], 2.0]
    """
    pieces = torch.split(flat, [t.numel() for t in like])
    return [beside(piece.reshape(t.shape), t, copy=True) for piece, t in zip(pieces, like, strict=True)]


def beside(whole: Tensor, like: Tensor, *, copy: bool = False) -> Tensor:
    """A tensor with the type and device of another one of its shape, and sharded as that one is.

    Args:
        whole: With all coordinates, the same on every process.
        like: The other one.
        copy: In memory of its own, also where nothing has to be changed.
    """
    if hasattr(like, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor  # takes a while to load, and few need it

        sharded: Any = like
        local = whole.to(device=sharded.to_local().device, dtype=like.dtype)
        return distribute_tensor(local, sharded.device_mesh, sharded.placements, src_data_rank=None).clone()
    return whole.to(device=like.device, dtype=like.dtype, copy=copy)


def random_unit(like: Vector, seed: int) -> list[Tensor]:
    """A vector drawn uniformly from the unit sphere of R^d, in the shapes and types of ``like``.

    It is drawn on the CPU from its own generator, so the global random state is untouched and the same seed
    gives the same direction on every device.

    Args:
        like: Usually the parameters.
        seed: Of the direction; the same on all processes, so that they draw the same one.

    Example:
        >>> u = random_unit([torch.zeros(3), torch.zeros(2, 2)], seed=0)
        >>> [tuple(t.shape) for t in u], round(float(norm(u)), 6)
        ([(3,), (2, 2)], 1.0)
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in like]
    length = float(norm(draws))
    return [beside(d / length, t) for d, t in zip(draws, like, strict=True)]
