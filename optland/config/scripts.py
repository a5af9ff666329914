"""The script of a recipe: its name, and the record of it that a run keeps."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from optland.config.errors import UserError
from optland.config.imports import imported_from

__all__ = ["ROOT_VARIABLE", "RUN_FOLDER", "ScriptRecord", "recipe_name", "roots"]

RUN_FOLDER = "runs/run"
"""Default of a configuration's ``out``; on the command line it stands for ``runs/<recipe>/<config>``."""

ROOT_VARIABLE = "OPTLAND_RECIPES"
"""Environment variable: a folder of the user's own that holds ``recipes/`` and ``configs/``."""

_PACKAGE = Path(__file__).resolve().parent.parent


def roots(package: Path = _PACKAGE) -> list[Path]:
    """Folders that hold ``recipes/`` and ``configs/``: the user's own, then what the package ships.

    Args:
        package: Folder of the package; beside it lies a checkout's ``recipes``, or inside it ``_bundled``.

    Returns:
        One or two folders; a recipe of the first comes before one of the same name in the second.

    Raises:
        UserError: The environment names a folder that is not there.
    """
    own = os.environ.get(ROOT_VARIABLE, "").strip()
    if own and not Path(own).is_dir():
        raise UserError(
            f"{ROOT_VARIABLE}: there is no folder {own}; name one that holds recipes/, or unset it"
        )
    checkout = package.parent
    shipped = checkout if (checkout / "recipes").is_dir() else package / "_bundled"
    return [*([Path(own).resolve()] if own else []), shipped]


def recipe_name(script: str | Path) -> str:
    """The name of the recipe that a script is: its file's, without ``.py``.

    A copy that has kept the file name of a known recipe is called by its folder: ``mine/landscape_train.py`` is the
    recipe ``mine``.

    Args:
        script: Its path, from the present folder.

    Example:
        >>> recipe_name("recipes/mine.py"), recipe_name("anywhere/other.py")
        ('mine', 'other')
    """
    path = Path(script).resolve()
    known = any((root / "recipes" / path.name).is_file() for root in roots())
    of_its_own = known and path.parent.name not in ("recipes", "")
    return path.parent.name if of_its_own else path.stem


@dataclass(frozen=True)
class ScriptRecord:
    """Which script made a run; kept in the run folder as ``recipe.json``.

    Attributes:
        recipe: The recipe's name.
        script: Its path from the folder that the run was started in, absolute where it is not below; None for a recipe
            that the package ships, which is found by its name.
        from_run: Its path from the run folder.
        sha256: Of its text.
        imports: Folders that the configuration imported modules from: each from the run folder, where it can be said
            so, and absolute.
    """

    recipe: str
    script: str | None
    from_run: str | None
    sha256: str
    imports: tuple[str, ...] = ()

    FILE = "recipe.json"

    @classmethod
    def of(cls, script: Path, folder: Path) -> ScriptRecord:
        """The record of a script for a run folder.

        Args:
            script: The recipe's script.
            folder: The run folder; paths are kept as seen from it, so that run and project can be moved together.
        """
        path, name = script.resolve(), recipe_name(script)
        imports = tuple(place for used in imported_from() for place in _places(used, folder))
        if path.parent.parent == roots()[-1]:
            return cls(name, None, None, _sum(path), imports)
        below = path.is_relative_to(Path.cwd())
        shown = path.relative_to(Path.cwd()) if below else path
        from_run = next((place for place in _places(path, folder) if not Path(place).is_absolute()), None)
        return cls(name, shown.as_posix(), from_run, _sum(path), imports)

    @classmethod
    def read(cls, folder: Path) -> ScriptRecord | None:
        """The record in a run folder; None where no readable one exists."""
        try:
            found = json.loads((folder / cls.FILE).read_text(encoding="utf-8"))
            known = {key: found[key] for key in ("recipe", "script", "from_run", "sha256")}
            return cls(**known, imports=tuple(map(str, found.get("imports", ()))))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def text(self) -> str:
        """As it is written down."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def find(self, folder: Path) -> Path | None:
        """The script, wherever the run or the project has been moved to; None where it is not there.

        One with the text that made the run comes first, then one that was edited since.

        Args:
            folder: The run folder, where it lies now.
        """
        there = [path for path in self._candidates(folder) if path.is_file()]
        return next((path for path in there if self.is_text_of(path)), there[0] if there else None)

    def is_text_of(self, script: Path) -> bool:
        """Whether the script reads as it did.

        Args:
            script: A file that is there.
        """
        return _sum(script) == self.sha256

    def imports_from(self, folder: Path) -> list[Path]:
        """The folders that modules were imported from, wherever run and project have been moved to together.

        Args:
            folder: The run folder, where it lies now.
        """
        return [folder / place for place in self.imports]

    def _candidates(self, folder: Path) -> Iterator[Path]:
        if self.script is None:
            yield roots()[-1] / "recipes" / f"{self.recipe}.py"
            return
        if self.from_run is not None:
            yield folder / self.from_run
        yield Path(self.script)


def _places(path: Path, folder: Path) -> list[str]:
    """A path as seen from a run folder, and absolute; the latter alone where they are on two drives."""
    whole = path.resolve().as_posix()
    try:
        return [Path(os.path.relpath(path, folder.resolve())).as_posix(), whole]
    except ValueError:
        return [whole]


def _sum(script: Path) -> str:
    return hashlib.sha256(script.read_bytes()).hexdigest()
