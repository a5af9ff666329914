"""Copy a recipe with its configs, to be edited and run from anywhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

from optland.cli.recipes import Recipe
from optland.cli.terminal import say
from optland.config import UserError
from optland.config.scripts import recipe_name

__all__ = ["copy_recipe"]

_NEEDS_NO_DOWNLOAD = "digits"


def copy_recipe(recipe: Recipe, config: str | None, destination: str) -> None:
    """Copy a recipe's script and its configs (or the one named) side by side, and say how to run them.

    Args:
        recipe: What to copy.
        config: The one config to take along; None takes all.
        destination: A folder, or ``<folder>/<name>.py`` to give the copy a name of its own.

    Raises:
        UserError: A file would be written over, or the folder cannot be made.
    """
    target = Path(destination)
    script = target if target.suffix == ".py" else target / recipe.script.name
    configs = (
        recipe.configs if config is None else {recipe.find_config(config).stem: recipe.find_config(config)}
    )
    text = recipe.script.read_text(encoding="utf-8")
    launch = rf"optland run {re.escape(recipe.name)} \S*?([^/\s]+\.yaml)"
    copies = {script: re.sub(launch, lambda m: _command(script, script.parent / m.group(1)), text)}
    for path in configs.values():
        copy = script.parent / path.name
        copies[copy] = _for_script(path.read_text(encoding="utf-8"), recipe, script, copy)
    if taken := [str(path) for path in copies if path.exists()]:
        raise UserError(f"there is {' and '.join(taken)} already; name another folder, or move it away first")
    try:
        script.parent.mkdir(parents=True, exist_ok=True)
        for path, text in copies.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{error.filename}: cannot be written ({error.strerror}); name another folder"
        ) from error
    for path in copies:
        say(f"wrote {path}")
    first = sorted(list(copies)[1:], key=lambda path: path.stem != _NEEDS_NO_DOWNLOAD)
    for path in first[:1]:
        say(f"Run it with:\n  {_command(script, path)}")


def _for_script(text: str, recipe: Recipe, script: Path, config: Path) -> str:
    """A config for the copy: its ``recipe`` key, its run folder, and the launch command on top."""
    name = recipe_name(script)
    text = re.sub(r"^# optland run \S+ \S+", lambda _: f"# {_command(script, config)}", text, count=1)
    text = re.sub(rf"^out: runs/{re.escape(recipe.name)}/", f"out: runs/{name}/", text, flags=re.MULTILINE)
    return re.sub(r"^recipe:.*$", f"recipe: {name}", text, count=1, flags=re.MULTILINE)


def _command(script: Path, config: Path) -> str:
    # A bare name would be looked up among the known recipes.
    shown = str(script) if os.sep in str(script) else os.path.join(".", script)
    return f"optland run {shown} {config}"
