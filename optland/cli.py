"""The command line: list recipes, check a configuration, run it.

A recipe is a script ``recipes/<name>.py`` that is run, never imported. Its contract:

- its docstring's first line says what it shows;
- ``Config``, a dataclass, is the schema of its YAML files in ``configs/<name>/``;
- ``main(config: Config, *, resume: bool = False) -> int`` does the work and returns the exit code;
- its last lines are::

    if __name__ == "__main__":
        raise SystemExit(run_script(__file__))

so that ``python recipes/<name>.py CONFIG key=value`` and ``optland run <name> CONFIG key=value`` are the
same thing. Bad input raises :class:`optland.config.UserError` (or a subclass): the user sees its message,
no traceback, exit code 2. Any other exception is a defect and keeps its traceback.
"""

from __future__ import annotations

import argparse
import ast
import os
import runpy
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optland import __version__
from optland.config import UserError, did_you_mean, load, to_yaml

__all__ = ["main", "run_script"]

ROOT_VARIABLE = "OPTLAND_RECIPES"
_USER_ERROR = 2
_INTERRUPTED = 130

_EXAMPLES = f"""examples:
  optland ls
  optland run landscape_train digits
  optland run landscape_train configs/landscape_train/digits.yaml epochs=3
  optland run landscape_train digits --resume
  optland validate landscape_train digits epochs=3

Recipes of your own: set {ROOT_VARIABLE} to a folder that holds recipes/ and configs/.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments after the program's name; those of the process by default.

    Returns:
        The exit code: 0 done, 2 the user's input cannot be used, 130 interrupted.
    """
    parser = _parser()
    arguments, extra = parser.parse_known_args(argv)
    try:
        if arguments.command == "ls":
            return _ls()
        overrides = _overrides(arguments, extra)
        flags = ["--validate"] if arguments.command == "validate" else ["--resume"] * arguments.resume
        return _execute(_find_recipe(arguments.recipe), [arguments.config, *overrides, *flags])
    except UserError as error:
        return _refuse(error)
    except KeyboardInterrupt:  # before the recipe's own `main`: there is nothing to go on from
        return _INTERRUPTED


def run_script(file: str, argv: Sequence[str] | None = None) -> int:
    """What a recipe script does when it is run: read its config, then call its ``main``.

    Args:
        file: The script's ``__file__``.
        argv: ``CONFIG [key=value ...] [--resume | --validate]``; those of the process by default.

    Returns:
        The exit code.
    """
    recipe = Recipe(Path(file).resolve())
    parser = argparse.ArgumentParser(prog=Path(file).name, description=recipe.summary)
    _add_config(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--validate", action="store_true", help="only check the config and print it")
    arguments, extra = parser.parse_known_args(argv)
    script = sys.modules["__main__"]
    overrides: list[str] = []
    try:
        overrides = _overrides(arguments, extra)
        path = recipe.find_config(arguments.config)
        config = load(script.Config, path, overrides, recipe=recipe.name)
        if arguments.validate:
            print(f"ok\n{to_yaml(config, recipe=recipe.name)}", end="")
            return 0
        return int(script.main(config, resume=arguments.resume))
    except UserError as error:
        return _refuse(error)
    except KeyboardInterrupt:
        command = ["optland", "run", recipe.argument, arguments.config, *overrides, "--resume"]
        print(f"\nInterrupted. To go on from the last checkpoint:\n  {shlex.join(command)}", file=sys.stderr)
        return _INTERRUPTED


@dataclass(frozen=True)
class Recipe:
    """A recipe script and the configs that belong to it.

    Attributes:
        script: ``<root>/recipes/<name>.py``; its configs are in ``<root>/configs/<name>/``.
    """

    script: Path

    @property
    def name(self) -> str:
        """The script's name without ``.py``."""
        return self.script.stem

    @property
    def argument(self) -> str:
        """How to name it on the command line: by its name where that finds it, else by its path."""
        return self.name if _recipes().get(self.name) == self else str(self.script)

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
        return {path.stem: path for path in sorted(folder.glob("*.yaml"))}

    def find_config(self, named: str) -> Path:
        """A config by path or by bare name."""
        bare = named.removesuffix(".yaml")
        if not Path(named).is_file() and bare in self.configs:
            return self.configs[bare]
        if Path(named).is_file() or (os.sep in named and "=" not in named):
            return Path(named)  # where it does not exist, `load` says which files do
        if "=" in named:
            raise UserError(f"'{named}' stands where the config belongs. {self._usage()}")
        hint = did_you_mean(bare, self.configs)
        raise UserError(f"the recipe '{self.name}' has no config '{named}'.{hint} {self._usage()}")

    def _usage(self) -> str:
        known = ", ".join(self.configs) or "none yet"
        return f"Write: optland run {self.name} CONFIG [key=value ...]. Its configs: {known}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="optland",
        description="Train PyTorch models with the loss landscape in view.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"optland {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("ls", help="list recipes and their configs")
    run = commands.add_parser("run", help="run a recipe with a config")
    validate = commands.add_parser("validate", help="check a config and print it in full, without running")
    for command in (run, validate):
        command.add_argument("recipe", metavar="RECIPE", help="a name from `optland ls`, or a script")
        _add_config(command)
    run.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the bare name of a shipped one")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="changes, such as epochs=3")


def _overrides(arguments: argparse.Namespace, extra: Sequence[str]) -> list[str]:
    """All ``key=value`` items, also those that stand after an option."""
    for item in extra:
        if item.startswith("-"):
            raise UserError(_unknown_option(item))
    return [*arguments.overrides, *extra]


def _ls() -> int:
    recipes = _recipes()
    if not recipes:
        folders = ", ".join(str(root / "recipes") for root in _roots())
        raise UserError(f"no recipes found in {folders}. Set {ROOT_VARIABLE} to a folder with recipes/")
    for recipe in recipes.values():
        print(f"{recipe.name}: {recipe.summary}")
        for name, path in recipe.configs.items():
            print(f"    {name:<20} {_first_comment(path)}".rstrip())
    print("\nRun one with: optland run RECIPE CONFIG [key=value ...]")
    return 0


def _roots() -> list[Path]:
    """Folders that hold ``recipes/`` and ``configs/``: the user's own, then what the package ships."""
    package = Path(__file__).resolve().parent
    checkout = package.parent
    own = os.environ.get(ROOT_VARIABLE)
    shipped = checkout if (checkout / "recipes").is_dir() else package / "_bundled"
    return [*([Path(own).resolve()] if own else []), shipped]


def _recipes() -> dict[str, Recipe]:
    found: dict[str, Recipe] = {}
    for root in _roots():
        for script in sorted((root / "recipes").glob("*.py")):
            found.setdefault(script.stem, Recipe(script))
    return found


def _find_recipe(named: str) -> Recipe:
    if named.endswith(".py"):
        if not Path(named).is_file():
            raise UserError(f"{named}: there is no such recipe script. `optland ls` lists the known recipes")
        return Recipe(Path(named).resolve())
    recipes = _recipes()
    if named in recipes:
        return recipes[named]
    hint = did_you_mean(named, recipes)
    raise UserError(f"there is no recipe '{named}'.{hint} `optland ls` lists the recipes")


def _execute(recipe: Recipe, arguments: list[str]) -> int:
    """Run the script as ``python script.py arguments`` would, in this process."""
    before = sys.argv
    sys.argv = [str(recipe.script), *arguments]
    try:
        runpy.run_path(str(recipe.script), run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            raise  # the interpreter prints the text and exits with 1
        return end.code or 0
    finally:
        sys.argv = before
    raise UserError(
        f"{recipe.script}: nothing ran. Its last lines must be:\n"
        'if __name__ == "__main__":\n    raise SystemExit(run_script(__file__))'
    )


def _first_comment(path: Path) -> str:
    """What a config says about itself; the launch command that stands on top of it is not news here."""
    comments = (
        line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"
    )
    return next((comment for comment in comments if not comment.startswith("optland run")), "")


def _unknown_option(option: str) -> str:
    name = option.lstrip("-")
    if "=" in name:
        return f"unknown option {option}. Config values are written without dashes: {name}"
    return f"unknown option {option}.{did_you_mean(option, ['--resume', '--validate', '--help'])} See --help"


def _refuse(error: UserError) -> int:
    print(f"optland: {error}", file=sys.stderr)
    return _USER_ERROR


if __name__ == "__main__":
    raise SystemExit(main())
