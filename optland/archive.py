"""Results on disk: numbers and words in a ``.json``, arrays and tensors in the ``.npz`` beside it.

Frozen dataclasses, nested in one another, in tuples and in dictionaries, are written field by field, so that the JSON
can be read without this package. Nothing is unpickled: a file can give wrong numbers, never run code.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["load", "save"]

T = TypeVar("T")

PACKAGE = "optland"


def save(result: Any, path: str | Path) -> None:
    """Write ``result``, a dataclass, to ``path``.json and its arrays to ``path``.npz.

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
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    text = json.dumps(_encode(result, arrays), indent=1)
    stem = _stem(path)
    stem.parent.mkdir(parents=True, exist_ok=True)
    np.savez(f"{stem}.npz", **arrays)  # type: ignore[arg-type]  # the stub knows no names
    Path(f"{stem}.json").write_text(text + "\n", encoding="utf-8")


def load(path: str | Path, cls: type[T]) -> T:
    """Read the result of type ``cls`` that :func:`save` wrote to ``path``.

    Raises:
        TypeError: The file holds another type.
    """
    stem = _stem(path)
    with np.load(f"{stem}.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    found = _decode(json.loads(Path(f"{stem}.json").read_text(encoding="utf-8")), arrays)
    if not isinstance(found, cls):
        raise TypeError(f"{stem}.json holds a {type(found).__name__}, not a {cls.__name__}; load it as that")
    return found


def _stem(path: str | Path) -> Path:
    path = Path(path)
    return path.with_suffix("") if path.suffix in (".npz", ".json") else path


def _encode(value: Any, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _encode(getattr(value, f.name), arrays) for f in dataclasses.fields(value)}
        return {"type": f"{type(value).__module__}:{type(value).__qualname__}", "fields": fields}
    if isinstance(value, Tensor | np.ndarray):
        name = f"array_{len(arrays)}"
        tensor = isinstance(value, Tensor)
        arrays[name] = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        return {"tensor" if tensor else "array": name}
    if isinstance(value, tuple | list):
        return {type(value).__name__: [_encode(item, arrays) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[key, _encode(item, arrays)] for key, item in value.items()]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"a {type(value).__name__} cannot be saved; results hold numbers, words, arrays and tensors"
    )


def _decode(value: Any, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    if not isinstance(value, dict):
        return value
    if "type" in value:
        fields = {name: _decode(item, arrays) for name, item in value["fields"].items()}
        return _dataclass(value["type"])(**fields)
    ((kind, content),) = value.items()
    if kind in ("tensor", "array"):
        return torch.from_numpy(arrays[content]) if kind == "tensor" else arrays[content]
    if kind == "dict":
        return {key: _decode(item, arrays) for key, item in content}
    items = [_decode(item, arrays) for item in content]
    return tuple(items) if kind == "tuple" else items


def _dataclass(name: str) -> Any:
    """The dataclass of this package with this name, and nothing else that a file might name."""
    module, _, qualname = name.partition(":")
    found = (
        getattr(importlib.import_module(module), qualname, None) if module.startswith(f"{PACKAGE}.") else None
    )
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise TypeError(f"the file names {name!r}, which is no result of {PACKAGE}")
    return found
