"""The commands with their arguments, and the entry point of a recipe's script."""

from __future__ import annotations

import argparse
import os
import pkgutil
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from optland import __version__
from optland.cli import diagnose_options, probe_options, release_options, report_options, verify_options
from optland.cli.copying import copy_recipe
from optland.cli.execution import execute
from optland.cli.explain import EXPLAIN_EXAMPLES, explain
from optland.cli.grid import Grid, run_grid
from optland.cli.launched import has_joined, is_launched, leave, speaks, started
from optland.cli.needs import check_needs
from optland.cli.recipes import (
    ROOT_VARIABLE,
    Recipe,
    all_recipes,
    find_recipe,
    first_comment,
    local_recipes,
    roots,
)
from optland.cli.terminal import DONE, FAILED, INTERRUPTED, REFUSED, STOPPED, UNREAD, complain, hanging, say
from optland.config import UserError, did_you_mean, to_yaml
from optland.config.secrets import redact_item
from optland.log.streams import Outcome, steady

__all__ = ["main", "run_script"]

_EXAMPLES = f"""examples:
  optland ls
  optland run landscape_train digits
  optland run landscape_train mine.yaml epochs=3
  optland run landscape_train digits --resume
  optland run landscape_train digits --dry-run
  optland run landscape_train digits --grid optimizer.rho=0.05,0.1,0.2 --seeds 3
  optland validate landscape_train digits epochs=3
  optland cp landscape_train digits my_experiment
  optland run my_experiment digits
  optland probe runs/landscape_train/digits
  optland report runs/landscape_train/digits
  optland release runs/landscape_train/digits --for int4
  optland diagnose runs/landscape_train/digits
  optland explain edge/ratio
  optland verify

Recipes of your own: a script, by its path; by its name in ./recipes or here; by the folder that it is alone in; or set
{ROOT_VARIABLE} to a folder that holds recipes/ and configs/.
"""

_RUN_EXAMPLES = """examples:
  optland run landscape_train digits epochs=3 log.wandb=online
  optland run landscape_train digits --resume
  optland run landscape_train digits --seeds 5
  optland run landscape_train digits out=runs/rho --grid optimizer.rho=0.05,0.1 --grid model.name=cnn,mlp --seeds 3

A grid runs every combination of its values with every seed, one after the other, each in a run folder
of its own, out/<point>/seed<k>, and ends in a table and in grid.csv in out. The same command again
goes on where it was: what is finished is not run again.
"""

_LS_EXAMPLES = """examples:
  optland ls
"""

_VALIDATE_EXAMPLES = """examples:
  optland validate landscape_train digits
  optland validate landscape_train mine.yaml epochs=3 optimizer.rho=0.05
  optland validate landscape_train digits epochs=3 > mine.yaml

The configuration is printed whole, every default included; what is printed is a config again.
"""

_CP_EXAMPLES = """examples:
  optland cp landscape_train my_experiment
  optland cp landscape_train digits my_experiment/mine.py
"""

_MEASURING: dict[str, tuple[str, str, ModuleType]] = {
    "probe": ("measure the landscape around a trained run", "RUN", probe_options),
    "report": ("the landscape around checkpoints as one HTML page", "RUN...", report_options),
    "release": (
        "what a trained run bears when it is rounded, pruned or shaken",
        "RUN --for DAMAGE",
        release_options,
    ),
    "diagnose": ("say what is wrong with a run, from its log", "RUN...", diagnose_options),
    "verify": ("check optland on this machine, or any optimizer", "[MODULE:NAME]", verify_options),
}
"""By command: what it does, what it takes, and the module with its arguments. The work is the function of its name in
the module of its name, apart, since it needs PyTorch, which the other commands do without."""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line that ends with the fix, as everywhere in the package."""

    def __init__(self, **options: Any) -> None:
        # An abbreviation would take --seed=3 for --seeds 3.
        self.known: list[str] = []
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """Add it, and keep the names of the option for :meth:`refuse`."""
        added = super().add_argument(*names, **options)
        self.known += added.option_strings
        return added

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print and exit on, with the choice that was meant."""
        message = message.replace(", key=value", "")  # argparse counts it among the required ones
        raise UserError(f"{message}.{_meant(message)} See: {self.prog} --help")

    def refuse(self, item: str) -> None:
        """Raise where an argument that no one took is an option, with the one that was meant."""
        if not item.startswith("-"):
            return
        name = item.lstrip("-")
        if "=" in name and item.partition("=")[0] not in self.known:
            raise UserError(f"unknown option {item}. Config values are written without dashes: {name}")
        raise UserError(f"unknown option {item}.{did_you_mean(item, self.known)} See --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments after the program's name; those of the process by default.

    Returns:
        The exit code: 0 done, 1 a member of a grid failed, 2 the user's input cannot be used, 75 stopped with
        a checkpoint to go on from, 130 interrupted, 141 nobody reads what a command does nothing but print, else the
        recipe's own.
    """
    with steady() as output:
        return _answered(_main(argv), output, [*(sys.argv[1:] if argv is None else argv)])


def _main(argv: Sequence[str] | None) -> int:
    try:
        parser, commands = _parser()
        arguments, extra = parser.parse_known_args(argv)
        command = arguments.command
        if command in ("run", "validate"):
            return _run(arguments, _overrides(arguments, extra, commands[command]))
        if extra:
            commands[command].refuse(extra[0])
            raise UserError(f"'{extra[0]}' is one argument too many. Write: {commands[command].usage}")
        if command in _MEASURING:
            work: Callable[[argparse.Namespace], int] = pkgutil.resolve_name(
                f"optland.cli.{command}:{command}"
            )
            return work(arguments)
        if command == "ls":
            _ls()
        elif command == "cp":
            copy_recipe(find_recipe(arguments.recipe), arguments.config, arguments.destination)
        else:
            explain(arguments.key)
    except UserError as error:
        return _refuse(error)
    except KeyboardInterrupt:  # before the recipe's own `main`: there is nothing to go on from
        if speaks():
            complain("\nInterrupted; start it again.")
        return INTERRUPTED
    return DONE


def run_script(file: str, argv: Sequence[str] | None = None) -> int:
    """Run a recipe as its script: read its config, then call its ``main``.

    Where a launcher has started several processes it does not return: each leaves with the code at once.

    Args:
        file: The script's ``__file__``.
        argv: ``CONFIG [key=value ...] [--resume | --dry-run]``; those of the process by default.

    Returns:
        The exit code.
    """
    try:
        with steady() as output:
            code = _answered(_run_script(file, argv), output, [*(sys.argv[1:] if argv is None else argv)])
    except SystemExit as end:
        if isinstance(end.code, int):
            leave(end.code)
        raise
    leave(code)
    return code


def _run_script(file: str, argv: Sequence[str] | None) -> int:
    """The work of :func:`run_script`; the script's ``Config`` and ``main`` are taken from ``__main__``, which it is.

    Of several processes of a launcher the first alone speaks, so that a refusal is printed once.
    """
    recipe = Recipe(Path(file).resolve())
    parser = _Parser(prog=Path(file).name, description=recipe.summary)
    _add_config(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--validate", "--dry-run", action="store_true", help="only check the config and print it"
    )
    script = sys.modules["__main__"]
    command, config = ["optland", "run", recipe.argument], None
    try:
        arguments, extra = parser.parse_known_args(argv)
        overrides = _overrides(arguments, extra, parser)
        command += [arguments.config, *map(redact_item, overrides), "--resume"]
        config = recipe.load_config(arguments.config, overrides, script.Config)
        if arguments.validate:
            say(f"ok\n{to_yaml(config, recipe=recipe.name)}".rstrip("\n"))
            return DONE
        if speaks():
            check_needs(script)
        if argv is None:  # wandb records the command line of the process
            sys.argv[1:] = [redact_item(item) for item in sys.argv[1:]]
        return started(script.main, config, resume=arguments.resume)
    except UserError as error:
        return _refuse(error)
    except SystemExit as end:
        if end.code == STOPPED and speaks():
            complain(f"To go on:\n  {shlex.join(command)}")
        raise
    except KeyboardInterrupt:
        if speaks():
            complain(f"\n{_interrupted(config, command)}")
        return INTERRUPTED


def _interrupted(config: object, command: Sequence[str]) -> str:
    """What to do after Ctrl-C: a run that has no folder yet has nothing to go on from."""
    out = getattr(config, "out", None)
    if config is None or (out is not None and not (Path(out) / "config.yaml").exists()):
        return "Interrupted before the run began; start it again."
    return f"Interrupted. To go on from the last checkpoint:\n  {shlex.join(command)}"


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    """All commands with their arguments, and the parser of each; PyTorch is not loaded for it."""
    parser = _Parser(
        prog="optland",
        description="Train PyTorch models with the loss landscape in view.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"optland {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, epilog: str, usage: str | None = None) -> _Parser:
        words = f"{text[0].upper()}{text[1:]}."
        written = None if usage is None else f"optland {name} {usage}".rstrip()
        return commands.add_parser(name, help=text, description=words, epilog=epilog, usage=written)

    command("ls", "list recipes and their configs", _LS_EXAMPLES, "")
    run = command("run", "run a recipe with a config, once or over a grid", _RUN_EXAMPLES)
    validate = command("validate", "check a config and print it in full, without running", _VALIDATE_EXAMPLES)
    copy = command("cp", "copy a recipe and its configs, to be edited", _CP_EXAMPLES, "RECIPE [CONFIG] DEST")
    for name, (text, takes, options) in _MEASURING.items():
        options.add_arguments(command(name, text, options.EXAMPLES, f"{takes} [--options]"))
    meaning = command(
        "explain", "say what a logged key means, and what to do about it", EXPLAIN_EXAMPLES, "[KEY]"
    )
    meaning.add_argument("key", metavar="KEY", nargs="?", help="such as edge/ratio; all of them by default")
    for one in (run, validate):
        one.add_argument("recipe", metavar="RECIPE", help="a name from `optland ls`, or a script")
        _add_config(one)
    run.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    run.add_argument("--dry-run", action="store_true", help="only check the config and print it in full")
    run.add_argument(
        "--grid", metavar="key=a,b,c", action="append", default=[], help="run every value of a key"
    )
    run.add_argument("--seeds", metavar="N", help="run with N seeds, from the config's on")
    copy.add_argument("recipe", metavar="RECIPE", help="a name from `optland ls`, or a script")
    copy.add_argument("config", metavar="CONFIG", nargs="?", help="copy this config only; all by default")
    copy.add_argument("destination", metavar="DEST", help="a folder, or a file name ending in .py")
    return parser, commands.choices


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or the bare name of a shipped one")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="changes, such as epochs=3")


def _run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """``validate``, ``run``, and ``run`` over a grid."""
    recipe = find_recipe(arguments.recipe)
    if arguments.command == "validate":
        return execute(recipe, [arguments.config, *overrides, "--validate"])
    if arguments.grid or arguments.seeds is not None:
        if is_launched():
            raise UserError(
                "a grid is started without torchrun: its members are programs of their own, one after another; leave "
                "--grid and --seeds out to share one run among the processes"
            )
        grid = Grid.parse(recipe, arguments.config, overrides, arguments.grid, arguments.seeds)
        return run_grid(grid, dry_run=arguments.dry_run)
    flags = ["--validate"] * arguments.dry_run + ["--resume"] * arguments.resume
    return execute(recipe, [arguments.config, *overrides, *flags])


def _overrides(arguments: argparse.Namespace, extra: Sequence[str], parser: _Parser) -> list[str]:
    """All ``key=value`` items, also those that stand after an option."""
    for item in extra:
        parser.refuse(item)
    return [*arguments.overrides, *extra]


def _ls() -> None:
    recipes = all_recipes()
    recipes |= {name: recipe for name, recipe in local_recipes().items() if name not in recipes}
    if not recipes:
        folders = ", ".join(str(root / "recipes") for root in roots())
        raise UserError(f"no recipes found in {folders}. Set {ROOT_VARIABLE} to a folder with recipes/")
    for recipe in recipes.values():
        say(hanging(f"{recipe.name}: {recipe.summary}", 4))
        for name, path in recipe.configs.items():
            say(hanging(f"    {name:<20} {first_comment(path)}".rstrip(), 25))
    say("\nRun one with: optland run RECIPE CONFIG [key=value ...]")


def _meant(message: str) -> str:
    """The choice that was misspelt, out of what argparse says of it."""
    written = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
    return did_you_mean(written[1], re.findall(r"[\w-]+", written[2])) if written else ""


def _answered(code: int, output: Outcome, arguments: Sequence[str]) -> int:
    """The exit code, when standard output has gone away: a run has its files, a command that prints has nothing."""
    sys.stdout.flush()
    prints = arguments[:1] in (["ls"], ["validate"], ["explain"]) or {"--dry-run", "--validate"} & set(
        arguments
    )
    if output.failure is not None:
        complain(f"optland: not all of the output could be written ({output.failure})")
    if code != DONE or not prints:
        return code
    return UNREAD if output.closed else FAILED if output.failure is not None else DONE


def _refuse(error: UserError) -> int:
    """Say why nothing was done, and give exit code 2.

    Until the processes of a launcher have met the first one speaks for all; after that an error may be this one's
    alone.
    """
    if speaks():
        complain(f"optland: {error}")
    elif has_joined():  # it may be this one's alone
        complain(f"optland, process {os.environ.get('RANK')}: {error}")
    return REFUSED
