"""Check wandb's environment variables before training: an empty one counts as unset, a wrong one is refused.

wandb reads them when a run starts, in the middle of training as it were, and answers a wrong one with an exception of
its settings. The few that most people set are checked here; for all others wandb itself is asked, in a process that
takes about a second and is started only where there are any.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping

from optland.config import UserError, did_you_mean

__all__ = [
    "LONGEST_NAME",
    "LONGEST_TAG",
    "NOT_IN_A_PROJECT",
    "check_environment",
    "labels",
    "setting",
    "without_empty",
]

PREFIX = "WANDB_"

# wandb's own limits.
LONGEST_NAME = 128
LONGEST_TAG = 64
NOT_IN_A_PROJECT = set("/\\#?%:")

MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")

_ANYTHING = (
    "API_KEY",
    "DIR",
    "ENTITY",
    "SERVICE",
)  # a login, a disk or a service that is not there is met later
_PATIENCE = 30.0  # seconds; a wandb that takes longer to be imported is asked nothing


def without_empty(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without those of wandb's variables that are set to nothing.

    Args:
        environment: Variables by name; it is not changed.

    Example:
        >>> without_empty({"WANDB_MODE": " ", "WANDB_NAME": "mine", "HOME": ""})
        {'WANDB_NAME': 'mine', 'HOME': ''}
    """
    return {k: v for k, v in environment.items() if v.strip() or not k.startswith(PREFIX)}


def setting(variable: str, value: object) -> object:
    """The environment's word where it says anything, read here because wandb reads its variables once per process.

    Args:
        variable: Name of an environment variable.
        value: What counts where it is unset or empty.
    """
    return os.environ.get(variable, "").strip() or value


def labels() -> list[str]:
    """The tags of ``WANDB_TAGS``, each once; none where it is unset or empty."""
    tags = (tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(","))
    return list(dict.fromkeys(tag for tag in tags if tag))


def check_environment() -> None:
    """Refuse a variable that wandb would refuse when training has begun.

    Raises:
        UserError: One of them cannot be used.
    """
    given = {k: v.strip() for k, v in without_empty(os.environ).items() if k.startswith(PREFIX)}
    faults = {name: fault for name, value in given.items() if (fault := _fault(name, value))}
    if not faults and given.get("WANDB_MODE") != "disabled":
        others = {k: v for k, v in given.items() if k.removeprefix(PREFIX) not in (*_RULES, *_ANYTHING)}
        faults = _asked(tuple(sorted(others.items()))) if others else {}
    for name, fault in faults.items():
        raise UserError(f"{name}: {fault}; set another value, or unset {name}")


def _fault(name: str, value: str) -> str:
    """What is wrong with a variable that is checked here; empty where nothing is, or where wandb has to be asked."""
    rule = _RULES.get(name.removeprefix(PREFIX))
    return rule(value) if rule is not None else ""


def _mode(value: str) -> str:
    if value in MODES:
        return ""
    return f"{value!r} is no mode; choose from online, offline, disabled.{did_you_mean(value, MODES)}".rstrip(
        "."
    )


def _name(value: str) -> str:
    return "" if len(value) <= LONGEST_NAME else f"{value[:40]!r}... is longer than {LONGEST_NAME} characters"


def _project(value: str) -> str:
    wrong = sorted(NOT_IN_A_PROJECT & set(value))
    return f"{value[:40]!r} holds {' '.join(wrong)}, which no name may" if wrong else _name(value)


def _tags(value: str) -> str:
    long = [tag for tag in value.split(",") if len(tag.strip()) > LONGEST_TAG]
    return f"the tag {long[0][:40]!r}... is longer than {LONGEST_TAG} characters" if long else ""


_RULES: dict[str, Callable[[str], str]] = {
    "MODE": _mode,
    "NAME": _name,
    "RUN_GROUP": _name,
    "JOB_TYPE": _name,
    "PROJECT": _project,
    "RUN_ID": _project,
    "TAGS": _tags,
}

_QUESTION = """
import json, sys
import wandb
faults = {}
for name, value in json.loads(sys.argv[1]):
    try:
        wandb.Settings().update_from_env_vars({name: value})
    except Exception as error:
        details = getattr(error, "errors", list)()
        faults[name] = details[0]["msg"] if details else str(error)
print(json.dumps(faults))
"""


@functools.lru_cache(maxsize=4)  # a run asks before it makes its folder, and its logger once more
def _asked(variables: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """The objections of wandb, by variable; none where it cannot be asked."""
    quiet = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
    command = [sys.executable, "-P", "-c", _QUESTION, json.dumps(variables)]
    try:
        answer = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=_PATIENCE)
        faults = json.loads(answer.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return {}
    given = dict(variables)
    return {name: f"wandb refuses {given[name][:40]!r}: {fault}" for name, fault in faults.items()}
