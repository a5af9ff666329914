"""Find the living instances of a class, such as the module that holds a given parameter."""

from __future__ import annotations

import gc
from typing import TypeVar

__all__ = ["instances"]

_Kind = TypeVar("_Kind")


def instances(*kinds: type[_Kind]) -> list[_Kind]:
    """All living instances, of subclasses too, except those that ``gc.freeze`` has set aside.

    An instance refers to its class, so one walk of the garbage collector finds them: 0.1 s over a million objects, for
    what happens once in a run. (A walk over ``gc.get_objects()`` would also take hold of tensors that C++ owns, which
    torch 2.6 does not survive.)

    Args:
        *kinds: Classes.

    Returns:
        In no particular order; each holds its instance alive for as long as the list does.

    Example:
        >>> class Kind:
        ...     pass
        >>> one = Kind()
        >>> instances(Kind) == [one]
        True
    """
    classes = list(kinds)
    for kind in classes:  # which grows meanwhile
        classes += [below for below in kind.__subclasses__() if below not in classes]
    return [thing for thing in gc.get_referrers(*classes) if isinstance(thing, kinds)]
