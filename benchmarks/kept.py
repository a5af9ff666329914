"""Keep the results of a benchmark, one per line, so that an interrupted one goes on where it was."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCRATCH = Path("runs/benchmarks")


@dataclass
class Kept:
    """Finished results by key, in a file of JSON lines."""

    path: Path
    key: Callable[[dict[str, Any]], str] = lambda found: str(found["key"])
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                found = json.loads(line)
            except ValueError:
                print(f"{self.path}: a torn line is dropped, its run is made again", file=sys.stderr)
                continue
            self.done[self.key(found)] = found
        # Written anew: the next line must not be glued to a torn one.
        self.path.write_text("".join(f"{json.dumps(f)}\n" for f in self.done.values()), encoding="utf-8")

    def add(self, found: dict[str, Any]) -> None:
        """Keep one more result."""
        self.done[self.key(found)] = found
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")

    def of(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of that key, measured now if it is not there."""
        if key not in self.done:
            self.add({"key": key, **measure()})
        return {name: value for name, value in self.done[key].items() if name != "key"}
