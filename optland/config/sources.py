"""Read a YAML file and ``key=value`` overrides into plain data, remembering where each value was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from optland.config.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from omegaconf import DictConfig

_FIX_YAML = "Check the indentation, colons, brackets and quotes around there"


@dataclass
class Sources:
    """Where each value was written, and how, so that an error points at the line that is wrong.

    Attributes:
        path: The YAML file.
        lines: Line number in the file, by full key.
        texts: Scalar values exactly as written, by full key.
        overrides: The ``key=value`` item that set a key.
    """

    path: Path
    lines: dict[str, int] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    overrides: dict[str, str] = field(default_factory=dict)

    def read(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The file with the overrides merged in and every ``${...}`` replaced by what it refers to.

        Args:
            overrides: ``key=value`` items, applied in order.

        Returns:
            Nested dictionaries, lists and scalars, as YAML 1.1 reads them; ``???`` stays as it is.

        Raises:
            ConfigError: No such file, no valid YAML, an override that is none, or a reference that leads nowhere.
        """
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        document = self._parse(_text(self.path))
        for item in overrides:
            self._apply(document, item)
        try:
            return cast(dict[str, Any], OmegaConf.to_container(document, resolve=True))
        except OmegaConfBaseException as error:
            key = str(error.full_key or "")
            message = f"{key}: {_first_line(error)}. Name an existing key inside ${{...}}"
            raise self.error(key, message) from error

    def has(self, key: str) -> bool:
        """Whether the file or an override wrote exactly this key."""
        return key in self.lines or key in self.overrides

    def error(self, key: str, message: str) -> ConfigError:
        """A ConfigError that starts with the place that wrote ``key``, or the nearest section around it.

        Args:
            key: A full key; empty for the whole file.
            message: What is wrong there, and its fix.
        """
        return ConfigError(f"{self._place(key)}: {message}")

    def _place(self, key: str) -> str:
        """Where ``key`` was written: its own line or override, else that of the nearest section around it."""
        if key and key not in self.lines:  # a section that only an override made
            for known, item in self.overrides.items():
                if known.startswith(f"{key}."):
                    return f"override '{item}'"
        while key:
            if key in self.overrides:
                return f"override '{self.overrides[key]}'"
            if key in self.lines:
                return f"{self.path}, line {self.lines[key]}"
            key = key.rpartition(".")[0]
        return str(self.path)

    def _parse(self, text: str) -> DictConfig:
        import yaml
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            if root is None:
                raise ConfigError(f"{self.path}: the file is empty. Write 'key: value' lines into it")
            if root.id != "mapping":
                raise ConfigError(f"{self.path}: expected 'key: value' lines, found a {root.id}")
            self._record(root, "", 1)
            return cast("DictConfig", OmegaConf.create(text))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{self.path}, line {mark.line + 1}" if mark else str(self.path)
            raise ConfigError(f"{where}: this is not valid YAML: {error.problem}. {_FIX_YAML}") from error
        except ConfigError:
            raise
        except RecursionError as error:
            raise ConfigError(
                f"{self.path}: nested too deep, or an alias inside itself. {_FIX_YAML}"
            ) from error
        except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(f"{self.path}: {_first_line(error)}. {_FIX_YAML}") from error

    def _record(self, node: Any, key: str, line: int) -> None:
        """Remember the line and the text of every value below a YAML node."""
        if key:
            self.lines[key] = line
        if node.id == "scalar":
            self.texts[key] = node.value
        elif node.id == "sequence":
            for index, child in enumerate(node.value):
                self._record(child, join(key, index), child.start_mark.line + 1)
        else:
            for name, child in node.value:
                self._record(child, join(key, name.value), name.start_mark.line + 1)

    def _apply(self, document: DictConfig, item: str) -> None:
        """Merge one ``key=value`` item into the document."""
        import yaml
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        key, equals, text = (part.strip() for part in item.partition("="))
        if equals and key and (not all(key.split(".")) or set("[]{}") & set(key)):
            raise ConfigError(
                f"override '{item}': '{key}' is no key. Write names between dots, as in data.name=VALUE"
            )
        if not equals or not key or key[0] in "-+":
            right = f"{key.lstrip('-+') or 'key'}={text or 'VALUE'}"
            raise ConfigError(f"override '{item}': expected key=value. Write '{right}'")
        try:
            parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
            OmegaConf.update(document, key, cast(dict[str, Any], parsed)["value"], merge=True)
            node = yaml.compose(text, Loader=yaml.SafeLoader)
            self._overwrite(node, key, item)
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
            reason = f"'{text}' cannot be set at '{key}' ({_first_line(error)})"
            raise ConfigError(f"override '{item}': {reason}. Values are written as in YAML") from error

    def _overwrite(self, node: Any, key: str, item: str) -> None:
        """Remember that an override wrote a value: a mapping entry by entry, because it is merged."""
        if node is not None and node.id == "mapping":
            for name, child in node.value:
                self._overwrite(child, join(key, name.value), item)
            return
        self._forget(key, self.lines, self.texts)
        for cut in range(key.count(".")):  # a scalar that becomes a section is not what it was
            above = key.rsplit(".", cut + 1)[0]
            if self.texts.pop(above, None) is not None:
                self.lines.pop(above, None)
        self.overrides[key] = item
        if node is None:
            self.texts[key] = ""
            return
        self._record(node, key, 0)
        self._forget(key, self.lines)  # these are lines of the override, not of the file

    @staticmethod
    def _forget(key: str, *tables: dict[str, Any]) -> None:
        for table in tables:
            for known in [known for known in table if known == key or known.startswith(f"{key}.")]:
                del table[known]


def join(key: str, name: object) -> str:
    """A full key, one level deeper.

    Args:
        key: A full key; empty at the top.
        name: Name of an entry, or place in a list.

    Example:
        >>> join("optimizer", "lr"), join("", "seed"), join("policies", 0)
        ('optimizer.lr', 'seed', 'policies.0')
    """
    return f"{key}.{name}" if key else str(name)


def _text(path: Path) -> str:
    if path.is_dir():
        raise ConfigError(f"{path} is a folder. Name one of its files: {_yaml_files(path)}")
    if not path.is_file():
        near = [found.name for found in path.parent.glob("*.y*ml")]
        hint = did_you_mean(path.name, near) or f" In {path.parent} there are: {_yaml_files(path.parent)}"
        raise ConfigError(f"{path}: there is no such file.{hint}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error}). Is it a YAML file?") from error


def _yaml_files(folder: Path) -> str:
    return ", ".join(sorted(found.name for found in folder.glob("*.y*ml"))) or "no YAML files"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".") or type(error).__name__
