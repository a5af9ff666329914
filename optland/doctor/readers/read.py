"""Read a log, whatever tool wrote it: which one is told from the files.

============================  =========================================================================================
what                          which file
============================  =========================================================================================
a run of optland              ``log.jsonl`` in a run folder
transformers' ``Trainer``     ``trainer_state.json``, in its output folder or a checkpoint of it
Lightning's ``CSVLogger``     ``metrics.csv``
TensorBoard                   ``events.out.tfevents.*``; read with the package tensorboard
W&B, exported                 a CSV of a chart or of a table of the run's history
W&B, offline                  ``run-*.wandb`` in an ``offline-run-...`` folder; read by wandb's own command
============================  =========================================================================================
"""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optland.doctor.histories import Histories
from optland.doctor.readers.names import canonical
from optland.log.jsonl import read_jsonl

__all__ = ["KINDS", "Log", "read_log"]

MOST_STEPS = 1e15
"""What is above counts no updates: a time in microseconds, or a damaged number."""

Row = dict[str, float]
_STEPS = ("step", "global_step", "trainer/global_step", "train/global_step", "_step")


NAMED = 8
"""Names listed beside a path that is not there."""


@dataclass(frozen=True)
class Log:
    """A log that was read.

    Attributes:
        path: The file.
        kind: The tool that wrote it, a key of :data:`KINDS`.
        histories: Its values under our keys, and what it says of the run.
    """

    path: Path
    kind: str
    histories: Histories


def read_log(path: str | Path) -> Log:
    r"""Read the log of a run.

    Args:
        path: A file, or a folder that holds one.

    Returns:
        Of several files of a kind the newest, in the folder or up to two below it; accuracies in percent.

    Raises:
        ValueError: There is no log that can be read, or nothing in it that the rules could use.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "metrics.csv").write_text("step,train_loss,val_loss\n9,0.5,\n9,,0.7\n")
        ...     log = read_log(folder)
        >>> log.kind, log.histories.values("val/loss")
        ('lightning', [0.7])
    """
    place = Path(path)
    if not place.exists():
        raise ValueError(f"{place}: there is no such file or folder; {_beside(place)}")
    for kind, (pattern, read) in KINDS.items():
        found = _newest(place, pattern)
        if found is not None:
            run = _read(found, kind, read)
            if not any(run.values(name) or run.raw(name) for name in run.names()):
                raise ValueError(
                    f"{found}: nothing in it has a name that is known, such as train_loss or eval_loss; "
                    f"{_runs_below(found)}"
                )
            return Log(found, kind, run)
    wanted = ", ".join(pattern for pattern, _ in KINDS.values())
    raise ValueError(f"{place}: no log is in there; what can be read is {wanted}")


def _beside(place: Path) -> str:
    """What there is where the path stops being one, so that the right one can be typed."""
    there = next((folder for folder in place.absolute().parents if folder.is_dir()), place.absolute())
    try:
        names = sorted(entry.name for entry in there.iterdir() if not entry.name.startswith("."))
    except OSError:
        names = []
    listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    return f"give a run folder or a log; in {there} there is {listed or 'nothing'}"


def _runs_below(log: Path) -> str:
    """Where the logs of single runs are, beside one that holds none."""
    runs = sorted({below.parent for below in log.parent.glob(f"*/*/{log.name}")})
    if runs:
        return f"it is of several runs: name one of its {len(runs)}, such as {runs[0]}"
    return "give the log of a training"


def _read(path: Path, kind: str, read: Callable[[Path], Histories]) -> Histories:
    """One file by its reader; whatever is wrong with a damaged one, the file is named."""
    try:
        return read(path)
    except Unreadable:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise Unreadable(f"{path}: it is damaged, or no log of {kind} ({what})") from error


class Unreadable(ValueError):
    """A file that its reader cannot make anything of."""


def _newest(place: Path, pattern: str) -> Path | None:
    if place.is_file():
        return place if place.match(pattern) else None
    for folders in ("", "*/", "*/*/"):
        found = sorted(place.glob(f"{folders}{pattern}"), key=lambda p: p.stat().st_mtime)
        if found:
            return found[-1]
    return None


def _gathered(
    rows: Iterator[tuple[int, Mapping[str, Any]]], facts: Mapping[str, Any] | None = None
) -> Histories:
    run = Histories(facts)
    for step, row in rows:
        named = {canonical(name): value for name, value in row.items()}
        run.put(
            step, {name: value for name, value in named.items() if name is not None and value is not None}
        )
    return run


# One reader each --------------------------------------------------------------------------------------------------


def _optland(path: Path) -> Histories:
    rows = [row for row in read_jsonl(path) if isinstance(row, dict) and row.get("kind") == "row"]
    facts = _facts_of_config(path.parent / "config.yaml")
    return Histories.from_rows(rows, facts)


def _facts_of_config(path: Path) -> dict[str, Any]:
    """What a configuration says of the run that the rules read."""
    if not path.is_file():
        return {}
    from omegaconf import OmegaConf

    try:
        config = OmegaConf.create(OmegaConf.to_container(OmegaConf.load(path)) or {})
    except Exception:  # the log is the run's; a damaged configuration beside it only says less of it
        return {}
    if not OmegaConf.is_dict(config):
        return {}
    wanted = {
        "batch": "batch_size", "lr": "optimizer.lr", "rho": "optimizer.rho", "momentum": "optimizer.momentum",
        "weight_decay": "optimizer.weight_decay",
    }  # fmt: skip
    found = {name: OmegaConf.select(config, key) for name, key in wanted.items()}
    return {name: float(value) for name, value in found.items() if isinstance(value, (int, float))}


def _transformers(path: Path) -> Histories:
    state = json.loads(path.read_text(encoding="utf-8-sig"))
    facts = {"total_steps": state.get("max_steps"), "batch": state.get("train_batch_size")}
    rows = (
        (int(row["step"]), {name: _percent(name, value) for name, value in row.items() if _is_number(value)})
        for row in state.get("log_history") or ()
        if isinstance(row, dict) and _is_step(row.get("step"))
    )
    return _gathered(rows, {name: value for name, value in facts.items() if _is_number(value) and value > 0})


def _csv(path: Path) -> Histories:
    def rows() -> Iterator[tuple[int, Row]]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for count, row in enumerate(csv.DictReader(file)):
                lowered = {str(name).lower(): value for name, value in row.items() if name is not None}
                said = (_number(lowered.get(name)) for name in _STEPS)
                step = next((s for s in said if s is not None and _is_step(s)), count)
                numbers = {
                    n: number for n, text in row.items() if n and (number := _number(text)) is not None
                }
                own = {n: _percent(n, v) for n, v in numbers.items() if not n.endswith(("__MIN", "__MAX"))}
                yield int(float(step)), own

    return _gathered(rows())


def _tensorboard(path: Path) -> Histories:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise Unreadable(
            f"{path}: TensorBoard's files are read with its package; run: pip install tensorboard"
        ) from error
    events = EventAccumulator(str(path.parent), size_guidance={"scalars": 0})
    events.Reload()
    by_step: dict[int, Row] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            by_step.setdefault(int(event.step), {})[tag] = _percent(tag, float(event.value))
    return _gathered(iter(sorted(by_step.items())))


def _wandb(path: Path) -> Histories:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise Unreadable(f"{path}: wandb cannot read it ({said[0]}); export the run's history as CSV instead")
    by_step: dict[int, Row] = {}
    for line in done.stdout.splitlines():
        row = _history_of(line)
        step = next((int(row[name]) for name in ("optland/step", "step", "_step") if name in row), None)
        if step is not None:
            by_step.setdefault(step, {}).update({n: _percent(n, v) for n, v in row.items()})
    return _gathered(iter(sorted(by_step.items())))


def _history_of(line: str) -> Row:
    """The numbers of a history record, as wandb's command prints one a line."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(record, dict) or record.get("type") != "history":
        return {}
    items = record.get("history", {}).get("item", {})
    return {name: float(value) for name, value in items.items() if _is_number(value)}


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text not in (None, "") else None
    except ValueError:
        return math.nan if re.fullmatch(r'"?nan"?', str(text).strip(), flags=re.I) else None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_step(value: object) -> bool:
    return isinstance(value, (int, float)) and _is_number(value) and 0 <= value < MOST_STEPS


def _percent(name: str, value: float) -> float:
    """An accuracy in percent: other tools give a share."""
    return 100 * value if (canonical(name) or "").endswith("/acc") and 0 <= value <= 1 else value


KINDS: dict[str, tuple[str, Callable[[Path], Histories]]] = {
    "optland": ("log.jsonl", _optland),
    "transformers": ("trainer_state.json", _transformers),
    "lightning": ("metrics.csv", _csv),
    "tensorboard": ("events.out.tfevents.*", _tensorboard),
    "wandb": ("run-*.wandb", _wandb),
    "csv": ("*.csv", _csv),
}
"""Tools by name, the pattern of their files and their readers, in the order in which they are looked for."""
