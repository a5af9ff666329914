"""The public names of the package, one per line: ``python tests/contracts/api.py --write`` puts them into docs/api.txt.

Public is what stands in ``__all__`` of a package or of a module directly below ``optland``. A function and a class have
their parameters with defaults, a class also its public methods and properties; ``= home`` marks a name that another
module has exported already. Without ``--write`` the text is printed.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args, get_origin

import optland

FILE = Path(__file__).resolve().parents[2] / "docs" / "api.txt"
COMMAND = "python tests/contracts/api.py --write"
PLAIN = (bool, int, float, str, type(None))


class Public(NamedTuple):
    """A public object under the first name that exports it.

    Attributes:
        name: Its full name, ``optland.curvature.lanczos`` or, of a method, ``optland.objective.Objective.on``.
        value: The object.
        home: The full name that exports it too, and first; empty for the first.
    """

    name: str
    value: Any
    home: str = ""


def modules() -> list[ModuleType]:
    """Packages, and modules directly below ``optland``; the innermost folders last, ``optland`` itself after them."""
    found = [
        info.name
        for info in pkgutil.walk_packages(optland.__path__, "optland.")
        if (info.ispkg or info.name.count(".") == 1) and not info.name.startswith("optland._")
    ]
    ordered = sorted(found, key=lambda name: (name.count("."), name))
    return [*(importlib.import_module(name) for name in ordered), optland]


def exported() -> Iterator[Public]:
    """What ``__all__`` of each module names."""
    homes: dict[str, tuple[str, Any]] = {}
    for module in modules():
        for name in sorted(getattr(module, "__all__", ())):
            value = getattr(module, name)
            home, known = homes.setdefault(name, (f"{module.__name__}.{name}", value))
            again = home != f"{module.__name__}.{name}" and known is value
            yield Public(f"{module.__name__}.{name}", value, home if again else "")


def everything() -> Iterator[Public]:
    """What is exported, each class followed by its methods and properties."""
    names = list(exported())
    classes = {public.value for public in names if inspect.isclass(public.value)}
    for public in names:
        yield public
        if inspect.isclass(public.value) and not public.home:
            yield from members(public, classes)


def members(public: Public, classes: set[type]) -> Iterator[Public]:
    """Public methods and properties of a class; not those that a public base has with the same parameters."""
    bases = [owner for owner in public.value.__mro__[1:] if owner in classes]
    for name in sorted(dir(public.value)):
        member = inspect.getattr_static(public.value, name)
        told = {shown(inspect.getattr_static(base, name)) for base in bases if hasattr(base, name)}
        ours = not name.startswith("_") and is_ours(public.value, name) and is_method(member)
        if ours and shown(member) not in told:
            yield Public(f"{public.name}.{name}", member)


def is_ours(cls: type, name: str) -> bool:
    """Whether the package itself defines a name of a class, and no base from elsewhere."""
    owner = next((owner for owner in cls.__mro__ if name in vars(owner)), object)
    return owner.__module__.startswith("optland")


def is_method(member: object) -> bool:
    return inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod)


def parameters(value: Any) -> list[inspect.Parameter]:
    """Parameters without ``self`` and ``cls``; none where there is no signature of our own, or nobody calls it."""
    if inspect.isclass(value) and issubclass(value, StrEnum):
        return []
    function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
    if isinstance(value, property) or not callable(function) or is_protocol(value) or get_origin(value):
        return []
    try:
        found = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # of an alias such as Sequence[Tensor], or an exception without __init__
        return []
    return [item for item in found if item.name not in ("self", "cls")]


def is_protocol(value: object) -> bool:
    return bool(getattr(value, "_is_protocol", False))


def words(value: Any) -> list[str]:
    """The strings that a ``StrEnum`` or a ``Literal`` allows."""
    if inspect.isclass(value) and issubclass(value, StrEnum):
        return [str(item) for item in value]
    return [item for item in get_args(value) if isinstance(item, str)] if get_origin(value) is Literal else []


def shown(value: Any) -> str:
    """Parameters or allowed words; annotations, and what one machine or version shows otherwise, are left out."""
    if allowed := words(value):
        return f": {', '.join(map(repr, allowed))}"
    function = callable(value) or isinstance(value, classmethod | staticmethod)
    if not function or is_protocol(value) or get_origin(value) or not hasattr(value, "__module__"):
        return ""
    return f"({', '.join(_with_markers(parameters(value)))})"


def _with_markers(items: Sequence[inspect.Parameter]) -> Iterator[str]:
    """As Python writes a parameter list: ``/`` after what has no name, ``*`` before what must be named."""
    named = False
    for item in items:
        if item.kind is item.VAR_POSITIONAL:
            named = True
            yield f"*{item.name}"
        elif item.kind is item.VAR_KEYWORD:
            yield f"**{item.name}"
        else:
            if item.kind is item.KEYWORD_ONLY and not named:
                named = True
                yield "*"
            yield item.name if item.default is item.empty else f"{item.name}={_default(item.default)}"


def _default(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_default(item) for item in value)}{',' * (len(value) == 1)})"
    if isinstance(value, str):
        return repr(str(value))
    return repr(value) if isinstance(value, PLAIN) else "..."


def listing() -> str:
    """The text of docs/api.txt."""
    found = list(exported())
    distinct = len({public.name.rpartition(".")[2] for public in found})
    lines = [
        f"# {distinct} public names. Made by `{COMMAND}`; tests/contracts/test_api.py says when it is out of date."
    ]
    lines += [
        f"{public.name} = {public.home}" if public.home else f"{public.name}{shown(public.value)}"
        for public in everything()
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Print the list, or write it to docs/api.txt."""
    if list(arguments) not in ([], ["--write"]):
        print(f"unknown arguments {list(arguments)}; use --write or none", file=sys.stderr)
        return 2
    if arguments:
        FILE.parent.mkdir(exist_ok=True)
        FILE.write_text(listing(), encoding="utf-8")
    else:
        print(listing(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
