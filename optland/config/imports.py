"""A function or class of the user's own by import path, ``package.module:name``, from the folder that it lies in.

Beside what is installed, a module is looked for in the folder of the config that names it, then in the current folder.
A run notes the folder that it imported from, so that its own config finds the module again from anywhere.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

__all__ = ["given", "imported", "imported_from", "importing_from", "is_import_path"]

_before_here: ContextVar[tuple[Path, ...]] = ContextVar("_before_here", default=())
_used: list[Path] = []


def is_import_path(name: str) -> bool:
    """Whether a name has the form ``package.module:name``.

    Args:
        name: What the configuration says; a prefix of the package's own, such as ``torchvision:``, has to be asked for
            before.

    Example:
        >>> is_import_path("mine.nets:build"), is_import_path("cnn"), is_import_path("torchvision:resnet18")
        (True, False, True)
    """
    return ":" in name


@contextmanager
def importing_from(folders: Sequence[Path]) -> Iterator[None]:
    """Look for modules in these folders before the current one, while a config is read.

    Args:
        folders: In the order in which they are searched; other threads do not see them.
    """
    token = _before_here.set(tuple(folder.resolve() for folder in folders))
    try:
        yield
    finally:
        _before_here.reset(token)


def imported_from() -> list[Path]:
    """The folders that modules of the user's own were found in so far.

    Returns:
        In the order of their first use in this process, also for runs that have ended.
    """
    return list(_used)


def imported(path: str) -> Any:
    """What an import path names.

    Args:
        path: ``package.module:name``.

    Returns:
        The function, class or value; the module is run where it has not been imported yet.

    Raises:
        ValueError: No such path, module or name, or another module of that name is in use.

    Example:
        >>> imported("collections:OrderedDict").__name__
        'OrderedDict'
    """
    module, colon, name = path.partition(":")
    if not colon or not name or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"{path!r} is no import path; write package.module:name")
    places = list(dict.fromkeys([*_before_here.get(), Path.cwd()]))
    file = _make_importable(module, places)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path}: {module} cannot be imported ({error}); install it, or put it into "
            f"{' or '.join(map(str, places))}"
        ) from error
    except Exception as error:  # whatever the user's module raises; told with its place
        at = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"{path}: {module} cannot be imported ({type(error).__name__}: {error}, at {at.filename}, "
            f"line {at.lineno}); mend it there"
        ) from error
    _refuse_another(path, found, file)
    if not hasattr(found, name):
        raise ValueError(
            f"{path}: {module} has no {name}; name something that is defined in {found.__file__}"
        )
    return getattr(found, name)


def given(path: str, function: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values offered that a function has a parameter for; None leaves it its own default.

    Args:
        path: Its import path, for the errors.
        function: The function or class.
        offered: Values by parameter name.

    Returns:
        Keyword arguments for the function. A function with ``**kwargs`` gets no more than the parameters that it names.

    Raises:
        ValueError: A parameter without a default gets no value.

    Example:
        >>> given("mine:net", lambda num_classes, hidden=32: None, {"num_classes": 3, "width": 8})
        {'num_classes': 3}
    """
    parameters = inspect.signature(function).parameters.values()
    taken = {p.name: offered[p.name] for p in parameters if offered.get(p.name) is not None}
    for p in parameters:
        variadic = p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        if p.kind is p.POSITIONAL_ONLY or (p.default is p.empty and not variadic and p.name not in taken):
            raise ValueError(
                f"{path} has a parameter {p.name!r} that gets no value; "
                + (f"set {p.name}, or " if p.name in offered else "")
                + f"give it a default (what can be given, by name: {', '.join(offered)})"
            )
    return taken


def _make_importable(module: str, places: Sequence[Path]) -> Path | None:
    """Put the first folder that holds the module in front of the search path; its file there, None without one."""
    below = Path(*module.split("."))
    for folder in places:
        for file in (folder / below.with_suffix(".py"), folder / below / "__init__.py"):
            if file.is_file():
                if str(folder) not in sys.path:
                    sys.path.insert(0, str(folder))
                    importlib.invalidate_caches()  # a file may be newer than the listing of its folder
                if folder not in _used:
                    _used.append(folder)
                return file
    return None


def _refuse_another(path: str, found: Any, file: Path | None) -> None:
    there = getattr(found, "__file__", None)
    if file is not None and there is not None and Path(there).resolve() != file.resolve():
        raise ValueError(
            f"{path}: {found.__name__} is {there}, which was imported before {file}; give yours another name"
        )
