"""Guests of TensorBoard, trackio, Lightning's loggers, a function, and whatever else has a ``log``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from optland.log.decisions import as_markdown
from optland.log.guest import Guest, Row, numbers

__all__ = ["FunctionGuest", "LightningGuest", "TensorBoardGuest", "TrackioGuest"]


class TensorBoardGuest(Guest):
    """Writes with a ``SummaryWriter``; the axis is our step.

    Args:
        writer: The writer.
        prefix: What is put before every key.
    """

    def __init__(self, writer: Any, prefix: str) -> None:
        super().__init__("the SummaryWriter", prefix)
        self._writer = writer

    def write(self, row: Row, step: int) -> None:
        """Write every number as a scalar of its own."""
        for key, value in numbers(row).items():
            self._writer.add_scalar(key, value, step)

    def write_image(self, name: str, path: Path) -> None:
        """Show an image."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), self._step, dataformats="HWC")

    def write_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Show a table as text."""
        self._writer.add_text(name, as_markdown(columns, rows), self._step)

    def flush(self) -> None:
        """Bring what the writer holds to the disk."""
        self._writer.flush()


class TrackioGuest(Guest):
    """Writes to trackio, by its module or a run; the axis is our step.

    Args:
        target: ``trackio`` or what ``trackio.init`` returned.
        prefix: What is put before every key.
        alerts: As of :class:`~optland.log.guest.Guest`.
    """

    def __init__(self, target: Any, prefix: str, *, alerts: bool = False) -> None:
        super().__init__("the trackio run", prefix, alerts=alerts)
        self._target = target

    def write(self, row: Row, step: int) -> None:
        """Write one row."""
        self._target.log(dict(row), step=step)

    def write_image(self, name: str, path: Path) -> None:
        """Show an image."""
        import trackio

        self.write({name: trackio.Image(str(path))}, self._step)

    def write_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Show a table as text."""
        import trackio

        self.write({name: trackio.Markdown(as_markdown(columns, rows))}, self._step)

    def write_alert(self, title: str, text: str, level: str) -> None:
        """Send an alert."""
        import trackio

        trackio.alert(title=title, text=text, level=trackio.AlertLevel[level])


class LightningGuest(Guest):
    """Writes through a logger of Lightning's, its ``CSVLogger`` or ``TensorBoardLogger``; the axis is our step.

    Args:
        logger: The logger.
        prefix: What is put before every key.
    """

    def __init__(self, logger: Any, prefix: str) -> None:
        super().__init__(f"the {type(logger).__name__}", prefix)
        self._logger = logger

    def write(self, row: Row, step: int) -> None:
        """Write the numbers of one row."""
        self._logger.log_metrics(numbers(row), step)

    def flush(self) -> None:
        """Bring what the logger holds to the disk."""
        self._logger.save()


class FunctionGuest(Guest):
    """Gives every row to a function.

    Args:
        write: Called with the row and our step.
        prefix: What is put before every key.
        whose: What is behind the function, in words; its name by default.
    """

    def __init__(self, write: Callable[[Row, int], object], prefix: str, whose: str = "") -> None:
        named = f"the function {getattr(write, '__name__', type(write).__name__)}"
        super().__init__(whose or named, prefix)
        self._function = write

    def write(self, row: Row, step: int) -> None:
        """Hand the row on."""
        self._function(row, step)
