"""Names of this package's entries in a base's dictionaries: ``group["sam_rho"]``, ``state[p]["sam_look_direction"]``.

The prefix keeps them apart from the base's own, whatever those are called: Adadelta has a ``rho``, RMSprop and ASGD an
``alpha``. Constructor arguments have no prefix.

Other packages use the short name, so a group may be *given* with it, ``{"params": ..., "rho": 0.1}``: at the start, in
``add_param_group`` and in a checkpoint it is renamed, unless the base has an option of that name, which it then sets.
*Written* into a group in use the short name would be read by no one, so the next step refuses it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer

__all__ = ["PREFIX", "GroupKeys", "key", "setting"]

PREFIX = "sam_"


@functools.cache
def key(name: str) -> str:
    """The key of one of this package's names in groups and state; a key is returned as it is.

    Example:
        >>> key("rho"), key("sam_step")
        ('sam_rho', 'sam_step')
    """
    return name if name.startswith(PREFIX) else PREFIX + name


def setting(group: dict[str, Any], name: str) -> Any:
    """The present value of one of the wrapper's hyper-parameters in a group.

    Args:
        group: A parameter group of the base.
        name: Without the prefix.

    Raises:
        KeyError: The group has none; one that is added later gets the default from ``add_param_group``.

    Example:
        >>> setting({"sam_rho": 0.05}, "rho")
        0.05
    """
    return group[key(name)]


class GroupKeys:
    """The keys that one wrapper has in the groups of its base.

    Args:
        base: The optimizer that owns the groups.
        names: Names of the hyper-parameters; one that begins with the prefix is bookkeeping and has no short form.
    """

    def __init__(self, base: Optimizer, names: Iterable[str]) -> None:
        self._keys = {name: key(name) for name in names}
        of_base = base.defaults.keys() | inspect.signature(type(base)).parameters.keys()
        self._short = frozenset(
            name for name, its in self._keys.items() if name != its and name not in of_base
        )

    def values(self, group: dict[str, Any]) -> dict[str, Any]:
        """The wrapper's hyper-parameters that a given group sets, by name.

        Args:
            group: As the user gives it, with short names such as ``rho`` or with the prefix.

        Raises:
            ValueError: It has one of them under both names.
        """
        found = {name: group[its] for name, its in self._keys.items() if its in group}
        for name in sorted(self._short & group.keys()):
            if name in found:
                raise ValueError(
                    f"a parameter group has both {name!r} ({group[name]!r}) and {key(name)!r} ({found[name]!r}); "
                    f"leave {name!r} out"
                )
            found[name] = group[name]
        return found

    def rename(self, group: dict[str, Any]) -> bool:
        """Turn short names into keys; returns whether there were any."""
        short = self._short & group.keys()
        for name in short:
            group[key(name)] = group.pop(name)
        return bool(short)

    def refuse_short(self, groups: list[dict[str, Any]]) -> None:
        """Raise where a short name was written into a group in use.

        Raises:
            ValueError: It was.
        """
        for number, group in enumerate(groups):
            if not self._short.isdisjoint(group):
                name = min(self._short & group.keys())
                raise ValueError(
                    f"param_groups[{number}] was given {name!r} ({group[name]!r}), which is not read; write "
                    f"param_groups[{number}][{key(name)!r}] = {group[name]!r} and take {name!r} out with "
                    f"param_groups[{number}].pop({name!r})"
                )
