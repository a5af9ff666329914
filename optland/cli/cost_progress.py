"""Show the progress of a measurement whose largest cost is known before it begins."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from optland.cli.terminal import say

__all__ = ["CostProgress"]


class CostProgress:
    """Shows what is being measured: a bar of the declared cost on a terminal, a line per part elsewhere.

    Args:
        declared: Gradient evaluations that the measurement can take at most.
        spent: Those spent so far; it is asked five times a second from another thread, so it must only read.
    """

    def __init__(self, declared: float, spent: Callable[[], float]) -> None:
        self.declared, self.spent, self.part = declared, spent, ""
        self._before = spent()
        self._started = time.monotonic()
        console = Console()
        self._live = Live(get_renderable=self._line, console=console, transient=True, refresh_per_second=5)
        self._shown = console.is_terminal

    def begin(self, part: str) -> None:
        """A part begins."""
        self.part = part
        if not self._shown:
            say(f"measuring: {part}{self._left(self.spent())}")

    def _line(self) -> Group:
        done = min(self.spent(), self.declared)
        grid = Table.grid(padding=(0, 1))
        words = (
            f"{self.part}, {done:.3g} of at most {self.declared:.3g} gradient evaluations{self._left(done)}"
        )
        grid.add_row(ProgressBar(total=self.declared, completed=done, width=30), Text(words))
        return Group(grid)

    def _left(self, done: float) -> str:
        """Time left at the present pace, were all of the declared cost to be spent."""
        spent, since = time.monotonic() - self._started, done - self._before
        if since <= 0 or spent < 2.0:
            return ""
        seconds = int(spent * max(self.declared - done, 0.0) / since)
        return f", at most {seconds // 60}:{seconds % 60:02d} left"

    def __enter__(self) -> CostProgress:
        if self._shown:
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._shown:
            self._live.stop()
