"""The console logger: a live display on a terminal, plain lines everywhere else.

On a terminal one block stays at the bottom: progress with the time left, the loss, the validation accuracy,
the learning rate with what decided it, the batch size, the sharpness with its error and age, the noise
scale, the share of compute spent on probes, and the last decision with its reason. Elsewhere (a file, a
pipe, a batch job) the same values come as one aligned line every so many steps and at every evaluation,
without escape codes.
"""

from __future__ import annotations

import atexit
import math
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from optland.log.logger import change_in_words
from optland.log.streams import let_go
from optland.log.vocabulary import BINDING, STEP, Scalar

_SHARPNESS = "curv/lambda_max"
_EVALUATION = ("val/", "test/acc", "test/loss")
_VERDICT, _ADVICE = "summary/verdict", "summary/advice"
_WIDTH = 120
"""Of a plain line: what a terminal beside an editor shows, and a log viewer does not wrap."""


class _Console(Console):
    """A rich console that survives a broken pipe; rich itself would end the process, and the training with it."""

    def on_broken_pipe(self) -> None:
        """Show nothing more."""
        self.quiet = True
        let_go(self.file)


class ConsoleLogger:
    """Shows a run on the console.

    Args:
        total_samples: Samples that the run will train on in all, for the progress bar and the time left.
        epochs: Passes over the data in them; None where the run does not count in epochs.
        every: Steps between two plain lines; evaluations and decisions are always shown.
        file: Where to write; standard output by default. Whether it is a terminal decides the form.
        console: A rich console to use in place of ``file``.

    Raises:
        ValueError: ``every`` is below 1.
    """

    def __init__(
        self,
        total_samples: int,
        *,
        epochs: int | None = None,
        every: int = 50,
        file: IO[str] | None = None,
        console: Console | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        self._console = console or _Console(file=file, markup=False, emoji=False)
        self._every = every
        self._total, self._epochs = total_samples, epochs
        self._began: tuple[float, float] | None = (
            None  # the clock and the samples at the first row, also of a resumed run
        )
        self._latest: dict[str, Scalar] = {}
        self._taken_at: dict[str, int] = {}
        self._next_line = 0
        self._decision = ""
        self._live: Live | None = None
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("samples, left"),
            TimeRemainingColumn(),
            console=self._console,
            auto_refresh=False,
        )
        self._task = self._progress.add_task("train", total=total_samples)

    def log(self, row: Mapping[str, Scalar]) -> None:
        """Take the scalars of one step and show them when it is time.

        Args:
            row: With ``step``; ``samples`` moves the progress bar.
        """
        step = int(row[STEP])
        self._latest.update(row)
        self._taken_at.update(dict.fromkeys(row, step))
        if "samples" in row:
            self._progress.update(self._task, completed=float(row["samples"]))
            self._began = self._began or (time.monotonic(), float(row["samples"]))
        if self._console.is_terminal:
            self._start()
        elif step >= self._next_line or any(key.startswith(_EVALUATION) for key in row):
            self._next_line = (step // self._every + 1) * self._every
            self._print(self._line())

    def event(self, event: Mapping[str, object]) -> None:
        """Show a decision with its reason."""
        self._decision = describe_event(event)
        if self._live is None:
            width = min(_WIDTH, self._console.width) if self._console.is_terminal else _WIDTH
            self._print("\n".join(textwrap.wrap(self._decision, width, subsequent_indent="    ")))

    def image(self, name: str, path: Path) -> None:
        """Say where an image is."""
        self._print(f"{name}: {path}")

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table.

        Args:
            name: Its title.
            columns: A name for each column.
            rows: Cells of each row; numbers are shown with four digits, and nothing for None.
        """
        table = Table(title=self._text(name))
        named = max((len(word) for row in rows for word in str(row[0]).split()), default=1)
        for place, column in enumerate(columns):  # a name is never cut, and that of a row not broken either
            room = min(named, WIDEST_NAME) if place == 0 else None
            table.add_column(self._text(column), overflow="fold", min_width=room)
        for row in rows:
            table.add_row(*(self._text("" if cell is None else _number(cell)) for cell in row))
        self._console.print(table)

    def finish(self, summary: Mapping[str, object], exit_code: int = 0) -> None:
        """Close the live display and print the summary, with the verdict as a paragraph and what to try on a line.

        Args:
            summary: Closing values; what is no verdict and no advice is a row of the table.
            exit_code: Other than 0 stands in the title.
        """
        self._stop()
        ending = "stopped" if "summary/stopped" in summary else "failed"
        title = "Summary" if exit_code == 0 else f"Summary ({ending}, exit code {exit_code})"
        table = Table("quantity", "value", title=title)
        for key, value in summary.items():
            if key not in (_VERDICT, _ADVICE):
                table.add_row(self._text(key), self._text(_number(value)))
        if table.row_count:
            self._console.print(table)
        words = [str(summary.get(_VERDICT, ""))]
        words += [f"Next: the same command with {summary[_ADVICE]}"] if summary.get(_ADVICE) else []
        if any(words):
            self._console.print(Padding(self._text("\n".join(filter(None, words))), (1, 2)))

    def state_dict(self) -> dict[str, Any]:
        """An empty state: what was shown is gone."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Ignore a state."""

    def _start(self) -> None:
        if self._live is None:
            self._live = Live(get_renderable=self._block, console=self._console)
            self._live.start()
            atexit.register(self._stop)  # a run that dies must not leave the terminal without a cursor

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
            atexit.unregister(self._stop)

    def _block(self) -> Group:
        """The live display, made anew whenever it is drawn, so that a step costs no drawing."""
        table = Table.grid(padding=(0, 2))
        for label, value in self._values().items():
            table.add_row(Text(label, style="dim"), self._text(value))
        return Group(self._progress, table, self._text(self._decision))

    def _line(self) -> str:
        """Where the run is, then its values, as many as fit."""
        line = self._where()
        for label, value in self._values().items():
            part = f"  {label} {value:<{_ROOM.get(label, 6)}}"
            if len(line) + len(part.rstrip()) <= _WIDTH:
                line += part
        return line.rstrip()

    def _where(self) -> str:
        """Epoch, step, share of the run and time left, as far as they are known."""
        step = f"step {int(self._latest[STEP]):>6}"
        if "samples" not in self._latest:
            return step
        done = min(float(self._latest["samples"]) / max(self._total, 1), 1.0)
        left = f"{self._left(done):>5} left"
        if not self._epochs:
            return f"{step} {math.floor(100 * done):>4} % {left}"
        # Half a sample of grace: the last batch of an epoch belongs to it, however the division rounds.
        now = math.ceil(done * self._epochs - 0.5 * self._epochs / max(self._total, 1))
        return f"epoch {max(now, 1):>{len(str(self._epochs))}}/{self._epochs} {step} {left}"

    def _left(self, done: float) -> str:
        """Time to go at the speed since the first row of this process."""
        if self._began is None or float(self._latest["samples"]) <= self._began[1]:
            return "?"
        clock, first = self._began
        seconds = (time.monotonic() - clock) / (float(self._latest["samples"]) - first)
        return _duration(seconds * self._total * (1.0 - done))

    def _values(self) -> dict[str, str]:
        """The values known so far, by label, in a fixed order."""
        latest = dict(self._latest)
        loss = latest.get("train/loss_ema", latest.get("train/loss"))
        shown = {
            "loss": None if loss is None else _number(loss),
            "val acc": self._get("val/acc"),
            "lr": self._learning_rate(latest),
            "sharpness": self._sharpness(latest),
            "batch": self._get("noise/b_current"),
            "noise scale": self._get("noise/b_simple"),
            "probes": self._budget(latest),
        }
        return {label: value for label, value in shown.items() if value is not None}

    def _get(self, key: str) -> str | None:
        return _number(self._latest[key]) if key in self._latest else None

    def _learning_rate(self, latest: Mapping[str, Scalar]) -> str | None:
        if "lr/applied" not in latest:
            return None
        binding = latest.get("lr/binding")
        why = "" if binding is None else f" ({BINDING.get(_as_code(binding), binding)})"
        return f"{_number(latest['lr/applied'])}{why}"

    def _sharpness(self, latest: Mapping[str, Scalar]) -> str | None:
        if _SHARPNESS not in latest:
            return None
        error = latest.get(f"{_SHARPNESS}_error")
        spread = "" if error is None else f" ± {_number(error)}"
        mark = "" if latest.get(f"{_SHARPNESS}_converged", True) else " NOT CONVERGED"
        age = int(latest[STEP]) - self._taken_at[_SHARPNESS]
        return f"{_number(latest[_SHARPNESS])}{spread}{mark}, {age} steps old"

    def _budget(self, latest: Mapping[str, Scalar]) -> str | None:
        if "budget/probe_frac" not in latest:
            return None
        allowed = latest.get("budget/allowed")
        limit = "" if allowed is None else f" of {100 * float(allowed):.3g} % allowed"
        return f"{100 * float(latest['budget/probe_frac']):.3g} %{limit}"

    def _print(self, line: str) -> None:
        # Soft wrap: a log file has no width, and a line that rich broke could not be searched for.
        self._console.print(self._safe(line), soft_wrap=True, markup=False, emoji=False, highlight=False)

    def _text(self, text: str) -> Text:
        """A text that is no markup, whatever brackets it holds."""
        return Text(self._safe(text))

    def _safe(self, text: str) -> str:
        """The text in the console's encoding; some batch systems still write ASCII."""
        encoding = self._console.encoding
        return (
            text.replace("±", "+/-").encode(encoding, "replace").decode(encoding)
            if _ascii(encoding)
            else text
        )


WIDEST_NAME = 24
"""Letters of a row's name that its column has room for, however narrow the terminal."""

_ROOM = {"lr": 16, "val acc": 5, "batch": 4}
"""Columns that a value takes, so that lines stand under each other."""


def _duration(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any.

    Example:
        >>> _duration(75.0), _duration(3675.0)
        ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def describe_event(event: Mapping[str, object]) -> str:
    """A decision in one line: who changed what, from what to what, and why.

    Args:
        event: As :meth:`optland.log.Logger.event` has it.

    Example:
        >>> change = {"actuator": "batch_size", "old": 32, "new": 64}
        >>> describe_event({"step": 7, "policy": "noise_batch", **change, "reason": "noise scale 80"})
        'step 7: noise_batch: batch_size 32 -> 64: noise scale 80'
    """
    values = (_number(event.get(name)) for name in ("old", "new"))
    change = change_in_words(event.get("actuator"), *values, taken=bool(event.get("taken", True)))
    return f"step {event.get(STEP)}: {event.get('policy')}: {change}: {event.get('reason')}"


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if math.isfinite(value) else str(value)


def _as_code(value: Scalar) -> int:
    return int(value) if isinstance(value, (int, float)) and math.isfinite(value) else -1


def _ascii(encoding: str) -> bool:
    return not encoding.lower().startswith("utf")
