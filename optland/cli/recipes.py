"""Where recipes and their configs are, and finding them by name or path."""

from __future__ import annotations

import ast
import os
import re
from dataclasses import dataclass
from pathlib import Path

from optland.config import UserError, did_you_mean

__all__ = ["ROOT_VARIABLE", "Recipe", "all_recipes", "find_recipe", "first_comment", "roots"]

ROOT_VARIABLE = "OPTLAND_RECIPES"
"""Environment variable: a folder of the user's own that holds ``recipes/`` and ``configs/``."""

_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Recipe:
    """A recipe script and the configs that belong to it.

    Attributes:
        script: ``<root>/recipes/<name>.py``; its configs are in ``<root>/configs/<name>/``, and, for a copy, the
            YAML files beside it that name it.
    """

    script: Path

    @property
    def name(self) -> str:
        """The script's name without ``.py``."""
        return self.script.stem

    @property
    def argument(self) -> str:
        """How to name it on the command line: by its name where that finds it, else by its path."""
        return self.name if all_recipes().get(self.name) == self else str(self.script)

    @property
    def summary(self) -> str:
        """First line of the script's docstring; the script is parsed, not run."""
        try:
            docstring = ast.get_docstring(ast.parse(self.script.read_text(encoding="utf-8")))
        except SyntaxError as error:
            return f"(does not parse: {error})"
        return (docstring or "").partition("\n")[0]

    @property
    def configs(self) -> dict[str, Path]:
        """Config files by bare name."""
        folder = self.script.parent.parent / "configs" / self.name
        beside = [path for path in sorted(self.script.parent.glob("*.yaml")) if self._is_for_this(path)]
        return {path.stem: path for path in [*beside, *sorted(folder.glob("*.yaml"))]}

    def find_config(self, named: str) -> Path:
        """A config by path or by bare name.

        Raises:
            UserError: There is no such config; the message lists those there are.
        """
        bare = named.removesuffix(".yaml")
        path = Path(named)
        if not path.is_file() and bare in self.configs:
            return self.configs[bare]
        if path.is_file() or (named and path.is_dir()) or (os.sep in named and "=" not in named):
            return path  # where it is no file, `load` says which there are
        if "=" in named:
            raise UserError(f"'{named}' stands where the config belongs. {self._usage()}")
        hint = did_you_mean(bare, self.configs)
        raise UserError(f"the recipe '{self.name}' has no config '{named}'.{hint} {self._usage()}")

    def _is_for_this(self, path: Path) -> bool:
        text = path.read_text(encoding="utf-8", errors="replace")
        return re.search(rf"^recipe: *{re.escape(self.name)}\s*$", text, flags=re.MULTILINE) is not None

    def _usage(self) -> str:
        known = ", ".join(self.configs) or "none yet"
        return f"Write: optland run {self.name} CONFIG [key=value ...]. Its configs: {known}"


def roots() -> list[Path]:
    """Folders that hold ``recipes/`` and ``configs/``: the user's own, then what the package ships."""
    own = os.environ.get(ROOT_VARIABLE, "").strip()
    if own and not Path(own).is_dir():
        raise UserError(
            f"{ROOT_VARIABLE}: there is no folder {own}; name one that holds recipes/, or unset it"
        )
    checkout = _PACKAGE.parent
    shipped = checkout if (checkout / "recipes").is_dir() else _PACKAGE / "_bundled"
    return [*([Path(own).resolve()] if own else []), shipped]


def all_recipes() -> dict[str, Recipe]:
    """Every recipe by name; the user's own come before shipped ones of the same name."""
    found: dict[str, Recipe] = {}
    for root in roots():
        for script in sorted((root / "recipes").glob("*.py")):
            found.setdefault(script.stem, Recipe(script))
    return found


def find_recipe(named: str) -> Recipe:
    """A recipe by name, or by the path of its script.

    Raises:
        UserError: There is no such recipe.
    """
    if named.endswith(".py"):
        if not Path(named).is_file():
            raise UserError(f"{named}: there is no such recipe script. `optland ls` lists the known recipes")
        return Recipe(Path(named).resolve())
    recipes = all_recipes()
    if named in recipes:
        return recipes[named]
    hint = did_you_mean(named.lower(), recipes)
    raise UserError(f"there is no recipe '{named}'.{hint} `optland ls` lists the recipes")


def first_comment(path: Path) -> str:
    """What a config says about itself; the launch command that stands on top of it is not news here."""
    comments = (
        line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"
    )
    return next((comment for comment in comments if not comment.startswith("optland run")), "")
