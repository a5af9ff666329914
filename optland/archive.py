"""Save and load results: numbers and words in a ``.json``, arrays and tensors in the ``.npz`` beside it.

Every frozen dataclass of this package can be saved: its fields are written one by one, through dataclasses, tuples,
lists and dictionaries nested in it, so that the JSON can be read without this package. What comes back is equal bit
for bit, NaN, infinities and half-precision tensors included; tensors come back on the CPU.

**Safety.** Nothing is unpickled, and only frozen dataclasses of this package are made: a file can give wrong numbers,
never run code. The JSON holds a version, the name of the class, and a sum over both files, so a file that is
damaged, foreign, or beside the arrays of another result is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from optland.files import write_whole
from optland.words import Words

if TYPE_CHECKING:  # every result is an archive, also where nothing is saved and numbers are all there is
    import numpy as np
    from torch import Tensor

    NumpyArray = np.ndarray[Any, Any]

__all__ = ["load"]

T = TypeVar("T")

PACKAGE = "optland"
FORMAT = "optland result"
VERSION = 1

RENAMED = {"num_products": "num_matvecs"}
"""Fields by the names that files written before a change call them."""


class Archived:
    """A result that can be saved and loaded: what the frozen dataclasses of this package inherit."""

    __slots__ = ()

    def save(self, path: str | Path) -> None:
        """Write the result to ``path``.json and its arrays to ``path``.npz.

        Args:
            path: Without an ending, or with either of the two; folders that are missing are made. Files there are
                replaced.

        Raises:
            TypeError: A field holds something that has no place in either file.
        """
        save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what :meth:`save` wrote.

        Args:
            path: As it was given to :meth:`save`.

        Returns:
            An object of this class, with all tensors on the CPU.

        Raises:
            FileNotFoundError: One of the two files is not there.
            ValueError: The files are damaged, or no result of this package.
            TypeError: They hold a result of another type.
        """
        return load(path, cls)


def save(result: Any, path: str | Path) -> None:
    """Write ``result``, a frozen dataclass of this package, to ``path``.json and its arrays to ``path``.npz.

    Args:
        result: Fields may be numbers, words, tensors, arrays, other such dataclasses, and tuples, lists and
            dictionaries of these.
        path: Without an ending, or with either of the two; folders that are missing are made. Files there are replaced,
            each in one step.

    Raises:
        TypeError: A field holds something that has no place in either file.

    Example:
        >>> import tempfile
        >>> from optland.estimate import Estimate, Provenance
        >>> file = Path(tempfile.mkdtemp()) / "trace"
        >>> save(Estimate(2.0, 0.1, "standard_error", True, 30.0, Provenance("hutchinson")), file)
        >>> load(file, Estimate).value
        2.0
    """
    if not _is_result(type(result)):
        raise TypeError(f"a {type(result).__name__} cannot be saved; pass a result of {PACKAGE}")
    import numpy as np

    arrays: dict[str, NumpyArray] = {}
    content = _encode(result, arrays)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # the stub knows no names
    head = {"format": FORMAT, "version": VERSION, "sum": _sum(content, buffer.getvalue())}
    text = json.dumps({**head, "result": content}, indent=1, allow_nan=False)
    stem = _stem(path)
    Path(stem).parent.mkdir(parents=True, exist_ok=True)
    write_whole(f"{stem}.npz", buffer.getbuffer())
    write_whole(f"{stem}.json", f"{text}\n")


def load(path: str | Path, cls: type[T]) -> T:
    """Read the result of type ``cls`` that :func:`save` wrote to ``path``.

    Args:
        path: As it was given to :func:`save`.
        cls: The type that is expected; a result of a class derived from it is taken too.

    Raises:
        FileNotFoundError: One of the two files is not there.
        ValueError: The files are damaged, or no result of this package.
        TypeError: They hold a result of another type.
    """
    import numpy as np

    stem = _stem(path)
    content, packed = _read(stem)
    try:
        with np.load(io.BytesIO(packed), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        found = _decode(content, arrays)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, ImportError) as error:
        raise ValueError(
            f"{stem}.json is no result that this version of {PACKAGE} knows: {error}; load it with the version that "
            "saved it"
        ) from error
    if not isinstance(found, cls):
        raise TypeError(f"{stem}.json holds a {type(found).__name__}, not a {cls.__name__}; load it as that")
    return found


def _read(stem: str) -> tuple[Any, bytes]:
    """The content of the JSON and the bytes of the arrays, once the checksum over both was found right."""
    text, packed = Path(f"{stem}.json").read_bytes(), Path(f"{stem}.npz").read_bytes()
    try:
        document = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{stem}.json is damaged or no JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{stem}.json is no result of {PACKAGE}: it does not call itself {FORMAT!r}")
    if document.get("version") != VERSION:
        raise ValueError(
            f"{stem}.json has version {document.get('version')!r}, and this package reads {VERSION}; "
            "load it with the version that saved it"
        )
    content = document.get("result")
    if document.get("sum") != _sum(content, packed):
        raise ValueError(
            f"{stem}.json and {stem}.npz are not what was saved together: one is damaged, edited or of another result; "
            "save the result again"
        )
    return content, packed


def _sum(content: Any, packed: bytes) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode() + packed).hexdigest()


def _stem(path: str | Path) -> str:
    path = Path(path)
    return str(path.with_suffix("") if path.suffix in (".npz", ".json") else path)


def _is_result(cls: type[Any]) -> bool:
    """Whether this is a frozen dataclass of this package."""
    parameters = getattr(cls, "__dataclass_params__", None)
    return bool(parameters and parameters.frozen and cls.__module__.startswith(f"{PACKAGE}."))


def _encode(value: Any, arrays: dict[str, NumpyArray]) -> Any:
    """``value`` in what JSON knows; its arrays go to ``arrays``."""
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, Words):
        return {"words": [f"{type(value).__module__}:{type(value).__qualname__}", str(value)]}
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if _is_result(type(value)):
        fields = {f.name: _encode(getattr(value, f.name), arrays) for f in dataclasses.fields(value)}
        return {"type": f"{type(value).__module__}:{type(value).__qualname__}", "fields": fields}
    if type(value) in (tuple, list):
        return {type(value).__name__: [_encode(item, arrays) for item in value]}
    if type(value) is dict:
        return {"dict": [[_encode(key, arrays), _encode(item, arrays)] for key, item in value.items()]}
    import numpy as np
    from torch import Tensor

    if isinstance(value, Tensor):
        return _encode_tensor(value, arrays)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return {"array": _keep(value, arrays)}
    if isinstance(value, np.generic) and value.dtype.kind in "biufc":
        return {"scalar": _keep(np.asarray(value), arrays)}
    raise TypeError(
        f"a {type(value).__name__} cannot be saved; results hold numbers, words, arrays and tensors"
    )


def _encode_tensor(tensor: Tensor, arrays: dict[str, NumpyArray]) -> dict[str, Any]:
    """As bytes, where NumPy lacks the type (bfloat16, eight bits)."""
    import torch

    tensor = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
    try:
        return {"tensor": _keep(tensor.numpy(), arrays)}
    except TypeError:
        packed = tensor.reshape(-1).view(torch.uint8).numpy()
        kind = str(tensor.dtype).removeprefix("torch.")
        return {"packed": [_keep(packed, arrays), kind, list(tensor.shape)]}


def _keep(array: NumpyArray, arrays: dict[str, NumpyArray]) -> str:
    name = f"array_{len(arrays)}"
    arrays[name] = array
    return name


def _decode(value: Any, arrays: dict[str, NumpyArray]) -> Any:
    """The value that :func:`_encode` was given."""
    if not isinstance(value, dict):
        return value
    if "type" in value:
        cls, fields = _class_named(value["type"]), {}
        known = {f.name for f in dataclasses.fields(cls)}
        for name, item in value["fields"].items():
            fields[name if name in known else RENAMED.get(name, name)] = _decode(item, arrays)
        return cls(**fields)
    ((kind, content),) = value.items()
    if kind == "words":
        return _class_named(content[0], Words)(content[1])
    if kind == "float":
        return float(content)
    if kind == "dict":
        return {_decode(key, arrays): _decode(item, arrays) for key, item in content}
    if kind in ("tuple", "list"):
        items = [_decode(item, arrays) for item in content]
        return tuple(items) if kind == "tuple" else items
    import torch

    if kind == "packed":
        name, dtype, shape = content
        return torch.from_numpy(arrays[name]).view(getattr(torch, dtype)).reshape(shape)
    if kind not in ("tensor", "array", "scalar"):
        raise ValueError(f"it holds a {kind!r}")
    array = arrays[content]
    return torch.from_numpy(array) if kind == "tensor" else array if kind == "array" else array[()]


def _class_named(name: str, kind: type[T] | None = None) -> Any:
    """A frozen dataclass of this package, or a set of words of it, by name; a file can name nothing else."""
    module, _, qualname = name.partition(":")
    inside = module.startswith(f"{PACKAGE}.")
    found = getattr(importlib.import_module(module), qualname, None) if inside else None
    if not (isinstance(found, type) and (_is_result(found) if kind is None else issubclass(found, kind))):
        raise TypeError(f"{name!r} is no result of {PACKAGE}")
    return found
