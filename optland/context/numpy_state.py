"""The state of NumPy's global generator, and a cheap way to see that nobody has drawn from it.

NumPy gives out and takes the 624 words of its Mersenne Twister one by one, 90 us each way, which a training step of one
millisecond would feel. Its bit generators also have a public address of their state
(``BitGenerator.ctypes.state_address``); 2,500 bytes are compared there in less than one microsecond, and the words are
asked for only where they have changed.

One thing is not among these bytes: the second of a pair of Gaussian numbers, which waits for the next call. A state
with such a number is always read and written in full. Without one, equal bytes are an equal state, since a number
comes to wait by a draw, which changes the bytes. (Or by putting back a state that differs from the last one read in
this alone; what is put back here is not relied on.)
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, ClassVar

import numpy as np

__all__ = ["NumpyState"]

_WORDS = 624
_BYTES = 4 * _WORDS + 4  # the words and a position


class NumpyState:
    """The state at one moment.

    Args:
        full: As ``np.random.get_state(legacy=False)`` gives it.
        raw: The bytes of the words and the position, or None.

    Attributes:
        full: As NumPy gives it out.
        raw: Its bytes, where they tell the whole of it; None for other bit generators and where a number waits.

    Example:
        >>> before = NumpyState.now()
        >>> drawn = np.random.random()
        >>> before.restore()
        >>> bool(np.random.random() == drawn)
        True
    """

    __slots__ = ("full", "raw")
    last: ClassVar[NumpyState | None] = None
    """The last one that was read in full and is known by its bytes."""

    def __init__(self, full: dict[str, Any], raw: bytes | None) -> None:
        self.full, self.raw = full, raw

    @classmethod
    def now(cls) -> NumpyState:
        """The present state; the last one once more where nobody has drawn since."""
        raw, last = _raw(), cls.last
        if raw is not None and last is not None and raw == last.raw:
            return last
        full: dict[str, Any] = np.random.get_state(legacy=False)  # noqa: NPY002
        if raw is None or full.get("has_gauss") != 0:
            return cls(full, None)
        cls.last = state = cls(full, raw)
        return state

    def restore(self) -> None:
        """Put it back; nothing is written where it is the present one."""
        last = NumpyState.last
        if last is not None and self.raw is not None and self.raw == last.raw == _raw():
            return
        NumpyState.last = None
        np.random.set_state(self.full)  # noqa: NPY002


def _raw() -> bytes | None:
    """The bytes of the present state; None where they are not laid out as is known."""
    random: Any = np.random  # whose types do not tell of this function
    generator = random.get_bit_generator()
    if type(generator) is not np.random.MT19937 or not _is_laid_out_as_known():
        return None
    return ctypes.string_at(generator.ctypes.state_address, _BYTES)


@functools.cache
def _is_laid_out_as_known() -> bool:
    """Whether the bytes of a generator of our own are the words and the position that NumPy says it has."""
    generator = np.random.MT19937(20261130)
    generator.random_raw(5)
    raw, told = ctypes.string_at(generator.ctypes.state_address, _BYTES), generator.state["state"]
    expected = np.asarray(told["key"], np.uint32).tobytes() + np.array(told["pos"], np.intc).tobytes()
    return raw == expected
