"""Named instants at which a test can end the process, to prove that a run survives exactly there.

The environment variable ``OPTLAND_FAIL_AT=name:n`` makes the n-th :func:`reach` of that name send SIGKILL to the
process: no handler runs, nothing is flushed, as when the machine kills it. ``name:n:TERM`` sends another signal.
Without the variable each point costs one look into an empty dictionary.

========================== ======================================================================================
point                      the instant
========================== ======================================================================================
checkpoint.before_write    the state is gathered, nothing of it is on the disk
checkpoint.mid_write       half of the new file is on the disk
checkpoint.before_rename   the new file is whole, under its temporary name
checkpoint.between_renames the new file is in place, the one before it not yet put behind it
checkpoint.after           the save is done
optim.between_passes       the weights are at w + eps, the second gradient is not known
probe.edge                 a line probe begins: the step is made, and not yet counted anywhere
probe.noise                a gradient-noise probe begins
probe.curvature            a Lanczos run begins, the Hessian's graph in place
pilot.batch_size           the loader has its new batch size, the decision is not yet in the record
========================== ======================================================================================
"""

from __future__ import annotations

import os
import signal

VARIABLE = "OPTLAND_FAIL_AT"

POINTS = (
    "checkpoint.before_write",
    "checkpoint.mid_write",
    "checkpoint.before_rename",
    "checkpoint.between_renames",
    "checkpoint.after",
    "optim.between_passes",
    "probe.edge",
    "probe.noise",
    "probe.curvature",
    "pilot.batch_size",
)
"""Every point there is: a misspelt name would test nothing, so it is refused."""

_left: dict[str, tuple[int, signal.Signals]] = {}


def arm(text: str | None) -> None:
    """Set what the environment variable sets when the package is imported.

    Args:
        text: ``name:n`` or ``name:n:SIGNAL`` with n counted from 1 and SIGNAL such as ``TERM``; None or an empty
            text disarms.

    Raises:
        ValueError: Another form, an unknown point or signal, or n below 1.

    Example:
        >>> arm("probe.edge:2:TERM")
        >>> arm(None)
    """
    _left.clear()
    if not text:
        return
    name, _, rest = text.partition(":")
    count, _, sent = rest.partition(":")
    number = getattr(signal, f"SIG{sent or 'KILL'}", None)
    if name not in POINTS or not count.isdecimal() or int(count) < 1 or number is None:
        raise ValueError(
            f"{VARIABLE}: {text!r} cannot be used; write name:n or name:n:TERM with n from 1 and a name of "
            + ", ".join(POINTS)
        )
    _left[name] = (int(count), signal.Signals(number))


def reach(name: str) -> None:
    """Say that the instant ``name`` has come."""
    if name in _left:
        _count_down(name)


def _count_down(name: str) -> None:
    count, number = _left[name]
    if count > 1:
        _left[name] = (count - 1, number)
        return
    del _left[name]
    os.kill(os.getpid(), number)


arm(os.environ.get(VARIABLE))
