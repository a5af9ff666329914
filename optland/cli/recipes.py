"""Find recipes and their configs by name or path."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from optland.config import RUN_FOLDER, UserError, did_you_mean, load
from optland.config.scripts import ROOT_VARIABLE, recipe_name
from optland.config.scripts import roots as _roots

__all__ = [
    "ROOT_VARIABLE",
    "Recipe",
    "all_recipes",
    "find_recipe",
    "first_comment",
    "local_recipes",
    "named_recipe",
    "roots",
]

_CONTRACT = "run_script("
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Recipe:
    """A recipe script and the configs that belong to it.

    Attributes:
        script: ``<root>/recipes/<name>.py``; its configs are in ``<root>/configs/<name>/``, and, for a copy, the
            YAML files beside it, or in a folder ``configs`` there, that are for it.
    """

    script: Path

    @property
    def name(self) -> str:
        """The script's name without ``.py``; of a copy that kept the name of another recipe, its folder's."""
        return recipe_name(self.script)

    @property
    def argument(self) -> str:
        """How to name it on the command line: by its name where that finds it, else by its path."""
        if all_recipes().get(self.name) == self:
            return self.name
        below = self.script.is_relative_to(Path.cwd())
        shown = str(self.script.relative_to(Path.cwd()) if below else self.script)
        return shown if os.sep in shown else os.path.join(".", shown)

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
        here, root = self.script.parent, self.script.parent.parent
        beside = [*sorted(here.glob("*.yaml")), *sorted((here / "configs").glob("*.yaml"))]
        shipped = sorted((root / "configs" / self.name).glob("*.yaml"))
        return {path.stem: path for path in [*filter(self.owns, beside), *shipped]}

    def owns(self, config: Path) -> bool:
        """Whether a config that lies with this recipe is for it, whatever recipe it was copied from.

        Args:
            config: A YAML file; its ``recipe:`` line decides, and one without that line is for nobody.
        """
        if config.resolve().parent not in self._folders():
            return False
        named = named_recipe(config)
        of_another = (self.script.parent / f"{named}.py").is_file()
        return named in (self.name, self.script.stem) or (bool(named) and not of_another)

    def _folders(self) -> list[Path]:
        here = self.script.resolve().parent
        return [here, here / "configs", here.parent / "configs" / self.name]

    def find_config(self, named: str) -> Path:
        """A config by path or by bare name.

        Args:
            named: A path, or a bare name with or without ``.yaml``. A file of that name comes before a shipped config.

        Raises:
            UserError: There is no such config; the message lists those there are.
        """
        bare = named.removesuffix(".yaml")
        path = Path(named)
        if not path.is_file() and bare in self.configs:
            return self.configs[bare]
        if not path.exists() and os.sep in named and path.stem in self.configs:
            raise UserError(
                f"{named}: there is no such file; {self.name} brings a config of that name: optland run "
                f"{self.argument} {path.stem}"
            )
        if path.is_file() or (named and path.is_dir()) or (os.sep in named and "=" not in named):
            return path  # where it is no file, `load` says which there are
        if "=" in named:
            raise UserError(f"'{named}' stands where the config belongs. {self._usage()}")
        hint = did_you_mean(bare, self.configs)
        raise UserError(f"the recipe '{self.name}' has no config '{named}'.{hint} {self._usage()}")

    def definitions(self) -> ModuleType:
        """The definitions of the script: it is run under a name of its own, so that its last lines do not start a run.

        Returns:
            The module, which :data:`sys.modules` keeps under ``optland_recipe_NAME``.

        Raises:
            UserError: It defines no ``Config``.
        """
        module = ModuleType(f"optland_recipe_{re.sub(r'[^0-9A-Za-z_]', '_', self.name)}")
        module.__file__ = str(self.script)
        sys.modules[module.__name__] = module  # where a dataclass looks its annotations up
        exec(compile(self.script.read_text(encoding="utf-8"), str(self.script), "exec"), vars(module))
        if not hasattr(module, "Config"):
            raise UserError(f"{self.script} has no Config; add a dataclass, the schema of its configs")
        return module

    def load_config(self, named: str, overrides: Sequence[str], schema: Any) -> Any:
        """The configuration that a run has.

        Args:
            named: The config, by path or by bare name.
            overrides: ``key=value`` items.
            schema: The script's ``Config``.

        Returns:
            An instance of ``schema``, whose ``out`` is ``runs/RECIPE/CONFIG`` where nothing says otherwise.

        Raises:
            UserError: There is no such config, or something about it is wrong.
        """
        path = self.find_config(named)
        folder = getattr(schema, "__dataclass_fields__", {}).get("out")
        own_folder = folder is not None and folder.default == RUN_FOLDER
        return load(
            schema,
            path,
            overrides,
            recipe=None if path.is_file() and self.owns(path) else self.name,
            defaults={"out": f"runs/{self.name}/{path.stem}"} if own_folder else {},
        )

    def _usage(self) -> str:
        known = ", ".join(self.configs) or "none yet"
        return f"Write: optland run {self.argument} CONFIG [key=value ...]. Its configs: {known}"


def roots() -> list[Path]:
    """Folders that hold ``recipes/`` and ``configs/``: the user's own, then what the package ships.

    Raises:
        UserError: :data:`ROOT_VARIABLE` names a folder that is not there.
    """
    return _roots(_PACKAGE)


def all_recipes() -> dict[str, Recipe]:
    """Every recipe in a folder ``recipes/`` by name; the user's own come before shipped ones of the same name."""
    found: dict[str, Recipe] = {}
    for root in roots():
        for script in sorted((root / "recipes").glob("*.py")):
            found.setdefault(script.stem, Recipe(script))
    return found


def local_recipes() -> dict[str, Recipe]:
    """The user's own in ``./recipes``, beside it, and in folders here, by name: scripts that end as a recipe does.

    Returns:
        The first of each name: ``./recipes`` before the present folder, that before the folders in it.
    """
    here = Path.cwd()
    below = [path for path in sorted(here.glob("[!.]*")) if path.is_dir() and path.name != "recipes"]
    is_root = Path(os.environ.get(ROOT_VARIABLE) or "/").resolve() == here  # whose recipes are known
    found: dict[str, Recipe] = {}
    for folder in [here, *below] if is_root else [here / "recipes", here, *below]:
        for recipe in _scripts_in(folder):
            found.setdefault(recipe.name, recipe)
    return found


def find_recipe(named: str) -> Recipe:
    """A recipe by name, by the path of its script, or by the folder that it is alone in.

    Args:
        named: ``landscape_train``, ``mine/recipe.py`` or ``mine``.

    Returns:
        By name, in this order: the user's own in ``./recipes`` before a shipped one, any known one, the recipe of the
        folder, one that lies in a folder here.

    Raises:
        UserError: There is no such recipe.
    """
    if named.endswith(".py"):
        if not Path(named).is_file():
            raise UserError(f"{named}: there is no such recipe script. `optland ls` lists the known recipes")
        return Recipe(Path(named).resolve())
    recipes = all_recipes()
    local = Path.cwd() / "recipes" / f"{named}.py"
    shipped = named in recipes and recipes[named].script.parent.parent == roots()[-1]
    if (shipped or named not in recipes) and _is_recipe(local):
        return Recipe(local.resolve())
    if named in recipes:
        return recipes[named]
    if named and Path(named).is_dir() and (here := list(_scripts_in(Path(named).resolve()))):
        own = [recipe for recipe in here if recipe.script.stem == Path(named).resolve().name]
        if len(here) > 1 and not own:
            scripts = ", ".join(str(Path(named) / recipe.script.name) for recipe in here)
            raise UserError(f"there are several recipes in {named}; name one of them: {scripts}")
        return (own or here)[0]
    recipes |= local_recipes()
    if named in recipes:
        return recipes[named]
    hint = did_you_mean(named.lower(), recipes)
    raise UserError(f"there is no recipe '{named}'.{hint} `optland ls` lists the recipes")


def _scripts_in(folder: Path) -> Iterator[Recipe]:
    try:
        scripts = sorted(folder.glob("*.py"))
    except OSError:  # a folder that may not be read
        return
    yield from (Recipe(script) for script in scripts if _is_recipe(script))


def _is_recipe(script: Path) -> bool:
    try:
        return _CONTRACT in script.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def named_recipe(config: Path) -> str:
    """The recipe that the ``recipe:`` line of a config names; empty where there is none.

    Args:
        config: A YAML file, which need not be one that can be loaded.
    """
    text = config.read_text(encoding="utf-8", errors="replace")
    line = re.search(r"^recipe:([^#\n]*)", text, flags=re.MULTILINE)
    return line[1].strip().strip("'\"") if line else ""


def first_comment(path: Path) -> str:
    """The first comment of a config, without the launch command on top of it.

    Args:
        path: A YAML file.

    Returns:
        The text after ``#``; empty without one.
    """
    comments = (
        line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"
    )
    return next((comment for comment in comments if not comment.startswith("optland run")), "")
