"""``optland explain KEY``: the meaning of a logged number, where it should be, and what to do where it is not."""

from __future__ import annotations

import textwrap

from optland.cli.terminal import say
from optland.config import UserError, did_you_mean
from optland.log.meanings import GROUPS, VOCABULARY, Key
from optland.log.vocabulary import STEP, key_of

__all__ = ["EXPLAIN_EXAMPLES", "explain"]

EXPLAIN_EXAMPLES = """examples:
  optland explain edge/ratio
  optland explain optland/sam/stability
  optland explain noise
  optland explain

A key may have its prefix, as in a wandb run of yours, and be the name of a group; none lists them all.
"""

_AXES = {
    STEP: "count of optimizer updates: the axis of every chart",
    "samples": "count of samples trained on, over all processes: an axis that compares runs of different batch sizes",
    "epoch": "passes over the training split",
}
_PREFIX = "optland/"


def explain(name: str | None) -> None:
    """Print what is known of a key, of a group, or of all of them.

    Args:
        name: The key, with or without its prefix, or the name of a group; None lists all keys.

    Raises:
        UserError: There is no such key.
    """
    if name is None:
        for group, about in GROUPS.items():
            say(f"{group}: {about}\n    {', '.join(key.name.partition('/')[2] for key in _keys(group))}")
        say(f"\naxes: {', '.join(_AXES)}\nRead one with: optland explain KEY")
        return
    plain = name.removeprefix(_PREFIX)
    if plain.rstrip("/") in GROUPS:
        group = plain.rstrip("/")
        say(f"{group}: {GROUPS[group]}")
        for key in _keys(group):
            say(f"\n{_paragraph(key)}")
    elif plain in _AXES:
        say(f"{plain}\n  {_AXES[plain]}")
    else:
        say(_paragraph(_found(plain, name), plain))


def _keys(group: str) -> list[Key]:
    return [key for key in VOCABULARY if key.name.startswith(f"{group}/")]


def _found(plain: str, asked: str) -> Key:
    key = key_of(plain)
    if key is not None:
        return key
    names = [key.name for key in VOCABULARY]
    # Half of a key, such as the name of a chart, is as good as one that is misspelt.
    ends = [name for name in names if name.partition("/")[2] == plain]
    meant = f" Did you mean '{ends[0]}'?" if ends else did_you_mean(plain, [*names, *_AXES])
    raise UserError(f"'{asked}' is no key of optland's.{meant} All of them: optland explain")


def _paragraph(key: Key, asked: str = "") -> str:
    lines = [asked or key.name]
    meaning = f"the standard error or residual of: {key.meaning}" if asked.endswith("_error") else key.meaning
    for head, text in (("", meaning), ("good: ", key.good), ("else: ", key.remedy)):
        lines.append(
            textwrap.fill(f"{head}{text}", 100, initial_indent="  ", subsequent_indent="  " + " " * len(head))
        )
    return "\n".join(lines)
