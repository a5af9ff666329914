"""A run's configuration: a dataclass is the schema, a YAML file fills it, ``key=value`` changes it.

The schema is an ordinary (frozen, nested) dataclass and :func:`load` returns an ordinary instance of it, so a
recipe reads ``config.train.lr`` and a type checker knows what that is. OmegaConf parses and merges; what is
checked here is that every key exists, every value has the type it was declared with, and nothing required is
missing. A mistake is answered with one message: where it was written, the full key, the value, and how to put
it right.

Rules of reading:

- A text field holds what was written: ``mode: off`` is the text ``off``, not the YAML 1.1 boolean.
- A number field takes ``1e-3``; a whole-number field takes neither ``true`` nor ``10.0``.
- NaN and infinity are refused, unless the field says ``field(metadata={"allow_nonfinite": True})``.
- A list or a dict given in the file replaces the default one; ``weights.edge=2`` on the command line changes
  that entry and keeps the others.
- ``${other.key}`` refers to another value of the same file; ``???`` marks a value that must still be given.
- A ``package.module:name`` is imported from the folder of the file, else from the current one or what is installed.
- The top-level key ``recipe:`` names the recipe that the file is for.

Example:
    >>> import dataclasses, pathlib, tempfile
    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     lr: float
    ...     steps: int = 100
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "tiny.yaml"
    ...     _ = path.write_text("lr: 1e-3")
    ...     load(Config, path, ["steps=5"])
    Config(lr=0.001, steps=5)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from optland.config.errors import ConfigError, UserError, did_you_mean
from optland.config.imports import importing_from
from optland.config.schema import Builder, plain
from optland.config.scripts import RUN_FOLDER, ScriptRecord
from optland.config.secrets import redact
from optland.config.sources import Sources

__all__ = [
    "RUN_FOLDER",
    "ConfigError",
    "UserError",
    "did_you_mean",
    "load",
]

T = TypeVar("T")


def load(
    schema: type[T],
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    recipe: str | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> T:
    """Read a YAML file and overrides into an instance of a dataclass.

    Args:
        schema: The dataclass to fill. A field without a default is required. Checks in ``__post_init__``
            raise ``ValueError``; a message that starts with a field's name is reported at that field.
        path: The YAML file.
        overrides: ``key=value`` items with dotted keys, applied in order; values are written as in YAML.
        recipe: The recipe that asks. The file's ``recipe:`` key must then name it.
        defaults: Top-level values that take the place of the schema's where neither file nor overrides have one.

    Returns:
        A ``schema`` instance whose ``__post_init__`` checks, and those of every section, have passed.

    Raises:
        ConfigError: If anything about the file or the overrides is wrong.
    """
    sources, folder = Sources(Path(path)), Path(path).parent
    record = ScriptRecord.read(folder)
    tree = {**(defaults or {}), **sources.read(overrides)}
    if "recipe" not in {field.name for field in dataclasses.fields(cast(Any, schema))}:
        _check_recipe(tree.pop("recipe", None), recipe, sources)
    with importing_from([*(record.imports_from(folder) if record else []), folder]):
        return cast(T, Builder(sources, schema).section(schema, tree, ""))


def to_yaml(config: object, *, recipe: str | None = None) -> str:
    """The resolved configuration as YAML, in the order of the schema; :func:`load` reads back an equal one.

    API keys, passwords and the like are hidden.

    Args:
        config: An instance of a schema dataclass.
        recipe: Written as the top-level key ``recipe`` where given, which makes the text a complete config.

    Returns:
        Every key with its value, defaults included.

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config:
        ...     lr: float = 0.1
        >>> print(to_yaml(Config(), recipe="mine"), end="")
        recipe: mine
        lr: 0.1
    """
    from omegaconf import OmegaConf

    tree = ({} if recipe is None else {"recipe": recipe}) | plain(config)
    return OmegaConf.to_yaml(OmegaConf.create(redact(tree)))


def _check_recipe(named: Any, recipe: str | None, sources: Sources) -> None:
    """A config runs only with the recipe it was written for."""
    if recipe is None or named == recipe:
        return
    if named is None:
        raise ConfigError(f"{sources.path}: no recipe is named. Add the line 'recipe: {recipe}' on top")
    raise sources.error(
        "recipe",
        f"recipe: this config is for '{named}', not '{recipe}'. Run: optland run {named} {sources.path}, or, if it is "
        f"to be for '{recipe}' from now on, write 'recipe: {recipe}' in it",
    )
