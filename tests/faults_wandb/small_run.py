"""A run in small: rows at a steady pace to the record and to wandb, as a recipe writes them. A script, run by tests.

Usage: small_run.py FOLDER MODE ROWS
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from optland.log import JsonlLogger, Logger, WandbLogger
from optland.log.logger import LoggerGroup

PACE = 0.02  # seconds a row


def main(folder: Path, mode: str, rows: int) -> None:
    members: list[Logger] = [JsonlLogger(folder / "log.jsonl")]
    if mode != "disabled":
        members.append(WandbLogger(folder, mode=mode))
    log = LoggerGroup(members)
    for step in range(1, rows + 1):
        log.log({"step": step, "train/loss": 1 / step})
        time.sleep(PACE)
    log.table("landscape/path", ["t", "loss"], [[0.0, 1.5]])
    log.finish({"summary/advice": "none"})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
