"""Turn plain data into dataclass instances, checking every value against its annotation, and back."""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from optland.config.errors import ConfigError, closest, did_you_mean
from optland.config.sources import Sources, join

_MISSING: Any = dataclasses.MISSING
_NOT_GIVEN = "???"
_LARGEST = 2**63  # larger whole numbers fit neither PyTorch nor a file of this package
_SCALARS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


@dataclass(frozen=True)
class Builder:
    """Builds instances of a schema.

    Attributes:
        sources: Where the data was written, for the errors.
        root: The whole schema, to find a misplaced key in another section.
    """

    sources: Sources
    root: Any

    def section(self, schema: Any, value: Any, key: str, default: Any = None) -> Any:
        """One dataclass; what is not given comes from ``default``, else from the fields' own defaults.

        Args:
            schema: A dataclass.
            value: What the file and overrides have for it; None counts as empty.
            key: Its full key; empty for the whole.
            default: An instance whose fields stand for what is not given.

        Returns:
            An instance of the schema.

        Raises:
            ConfigError: An unknown key, a value of another type, a missing one, or one that the schema's own check
                refuses.
        """
        value = {} if value is None else value  # a heading whose lines are all commented out
        if not isinstance(value, Mapping):
            raise self._wrong(key, value, describe(schema))
        hints = get_type_hints(schema)
        known = {field.name: field for field in dataclasses.fields(schema) if field.init}
        for name in value:
            if name not in known:
                raise self._unknown(str(name), key, list(known))
        given = {}
        for name, field in known.items():
            fallback = default_of(field) if default is None else getattr(default, name)
            given[name] = self._field(
                field, hints[name], value.get(name, _NOT_GIVEN), join(key, name), fallback
            )
        try:
            return schema(**given)
        except ConfigError:
            raise
        except ValueError as error:
            raise self._refused(key, list(known), error) from error

    def _field(self, field: dataclasses.Field[Any], kind: Any, value: Any, key: str, default: Any) -> Any:
        if value != _NOT_GIVEN:
            if isinstance(value, dict) and isinstance(default, dict) and not self.sources.has(key):
                value = plain(default) | value  # the command line changed single entries of a default
            return self.convert(kind, value, key, default, bool(field.metadata.get("allow_nonfinite")))
        if default is not _MISSING:
            return default
        if dataclasses.is_dataclass(kind):
            return self.section(kind, {}, key)
        raise ConfigError(
            f"{self.sources.path}: {key} is missing. Add it to the file, or give {key}=VALUE on the command "
            f"line, where VALUE is {describe(kind)}"
        )

    def convert(self, kind: Any, value: Any, key: str, default: Any, nonfinite: bool) -> Any:
        """One value as the annotation ``kind`` wants it.

        Args:
            kind: The annotation.
            value: Plain data.
            key: Its full key, for the errors.
            default: What stands in a section for keys that are not given.
            nonfinite: Whether NaN and infinity may be.

        Returns:
            The value, a list or tuple as the annotation says.

        Raises:
            ConfigError: The value is not of that type.
            TypeError: A config cannot hold that type, which is a fault of the schema.
        """
        origin, members = get_origin(kind), get_args(kind)
        if dataclasses.is_dataclass(kind):
            return self.section(kind, value, key, default if type(default) is kind else None)
        if origin is Literal:
            return self._choice(members, value, key)
        if origin in (Union, types.UnionType):
            return self._union(members, value, key, default, nonfinite)
        if origin in (list, tuple) and isinstance(value, list):
            return origin(self._items(kind, value, key, nonfinite))
        if origin is dict and isinstance(value, dict):
            return dict(self._entries(members[1], value, key, nonfinite))
        if kind is Any or (kind is type(None) and value is None):
            return value
        if kind in _SCALARS:
            return self._scalar(kind, value, key, nonfinite)
        if origin not in (list, tuple, dict) and kind is not type(None):
            raise TypeError(f"the schema gives {key} the type {kind}, which a config cannot hold")
        raise self._wrong(key, value, describe(kind))

    def _items(self, kind: Any, value: list[Any], key: str, nonfinite: bool) -> Iterator[Any]:
        members = get_args(kind)
        repeated = get_origin(kind) is list or members[-1] is Ellipsis
        if not repeated and len(members) != len(value):
            raise self._wrong(key, value, describe(kind))
        for index, item in enumerate(value):
            member = members[0] if repeated else members[index]
            yield self.convert(member, item, join(key, index), None, nonfinite)

    def _entries(
        self, member: Any, value: dict[Any, Any], key: str, nonfinite: bool
    ) -> Iterator[tuple[str, Any]]:
        for name, item in value.items():
            if not isinstance(name, str):
                raise self.sources.error(key, f"{key}: the name {name!r} is not text. Put it in quotes")
            yield name, self.convert(member, item, join(key, name), None, nonfinite)

    def _union(self, members: tuple[Any, ...], value: Any, key: str, default: Any, nonfinite: bool) -> Any:
        """The first member that takes the value; one of exactly the value's type is tried before the others."""
        if value is None and type(None) in members:
            return None
        concrete = [member for member in members if member is not type(None)]
        if len(concrete) == 1:
            return self.convert(concrete[0], value, key, default, nonfinite)
        # A member of exactly the value's type comes first: `float | str` keeps 0.1 a number, "0.1" a text.
        for member in sorted(concrete, key=lambda member: member is not type(value)):
            try:
                return self.convert(member, value, key, default, nonfinite)
            except ConfigError:
                continue
        raise self._wrong(key, value, " or ".join(describe(member) for member in members))

    def _choice(self, choices: tuple[Any, ...], value: Any, key: str) -> Any:
        for choice in choices:
            if type(choice) is type(value) and choice == value:
                return choice
        text = self.sources.texts.get(key, str(value))
        if text in choices:  # `off` was meant as a word; YAML 1.1 made it a boolean
            return text
        hint = did_you_mean(text, [str(choice) for choice in choices])
        raise self._wrong(key, value, describe(Literal[choices]), hint)

    def _scalar(self, kind: Any, value: Any, key: str, nonfinite: bool) -> Any:
        if kind is str or kind is Path:
            return kind(self._as_text(kind, value, key))
        number = _as_number(value)
        if kind is float and number is not None:
            if math.isfinite(number) or nonfinite:
                return number
            raise self._wrong(key, value, describe(kind), " Give a finite one")
        if type(value) is kind:
            if kind is int and not -_LARGEST <= value < _LARGEST:
                raise self._wrong(key, value, describe(kind), " Use one that fits into 64 bits")
            return value
        whole = kind is int and number is not None and number.is_integer()
        raise self._wrong(key, value, describe(kind), f" Write {int(number or 0)}" if whole else "")

    def _as_text(self, kind: Any, value: Any, key: str) -> str:
        if isinstance(value, str):
            return value
        written = self.sources.texts.get(key)
        if value is None:
            raise self._wrong(key, value, describe(kind), " Write '' (in quotes) for an empty text")
        if isinstance(value, (list, dict)) or written is None:
            raise self._wrong(key, value, describe(kind), " Put it in quotes")
        return str(value) if "${" in written else written

    def _wrong(self, key: str, value: Any, wanted: str, hint: str = "") -> ConfigError:
        shown = "nothing" if value is None else repr(self.sources.texts.get(key, value))
        return self.sources.error(key, f"{key}: expected {wanted}, got {shown}.{hint}")

    def _unknown(self, name: str, section: str, known: list[str]) -> ConfigError:
        key = join(section, name)
        near = closest(name, known)
        elsewhere = [path for path in _paths(self.root) if path.rpartition(".")[2] == name]
        if near or elsewhere:
            hint = f"Did you mean '{join(section, near) if near else elsewhere[0]}'?"
        else:
            hint = f"Keys {'of ' + section if section else 'at the top'}: {', '.join(known)}"
        return self.sources.error(key, f"there is no key '{key}'. {hint}")

    def _refused(self, key: str, names: list[str], error: ValueError) -> ConfigError:
        """A schema's own check failed; where its message starts with a field's name, point at that field."""
        message = str(error)
        first = re.match(r"\w*(\.\w+)*", message)
        if first and first.group().partition(".")[0] in names:
            return self.sources.error(join(key, first.group()), join(key, message))
        return self.sources.error(key, f"{key}: {message}" if key else message)


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as YAML knows them; ``${`` in a text stays a text.

    Args:
        value: An instance of a schema, or any part of one.

    Returns:
        Nested dictionaries, lists and scalars.
    """
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (str, Path)):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", str(value))
    return value


def describe(kind: Any) -> str:
    """An annotation in words.

    Example:
        >>> describe(float | None), describe(list[int]), describe(Literal["sgd", "adam"])
        ('a number or null', 'a list of a whole number', 'one of sgd, adam')
    """
    origin, members = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in members)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(member) for member in members)
    if origin in (list, tuple):
        return f"a list of {' and '.join(describe(member) for member in members if member is not Ellipsis)}"
    if origin is dict:
        return f"names with {describe(members[1])} each"
    if dataclasses.is_dataclass(kind):
        return f"a section with the keys {', '.join(field.name for field in dataclasses.fields(kind))}"
    return "null" if kind is type(None) else _SCALARS.get(kind, str(kind))


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The value of a dataclass's field where none is given; ``dataclasses.MISSING`` where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _as_number(value: Any) -> float | None:
    """A float, also from the text ``1e-3``, which YAML 1.1 takes for a word; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _paths(schema: Any, key: str = "") -> Iterator[str]:
    """Every full key of a schema."""
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        path = join(key, field.name)
        yield path
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _paths(cast(Any, hints[field.name]), path)
