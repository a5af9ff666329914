"""Decide the claims about loss landscapes by experiment, each under a rule that was written before the run.

Every net is trained once and measured for all claims; what is done is kept, and a run that was stopped goes on with
--resume. The page has the table of verdicts, a figure for each claim, and how to read them.

    optland run test_claims configs/test_claims/smoke.yaml
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

import torch

from optland.cli import run_script
from optland.config import RUN_FOLDER
from optland.report.claims import claims_table, plot_claims, write_claims
from optland.train import GracefulStop, LogConfig, RunFolder
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.table import Work
from optland.train.experiments.claims.verdicts import Verdict

SHOWN = ("claim", "predicted", "found (95 %)", "verdict", "dead")


@dataclass(frozen=True)
class Config:
    """One table of verdicts.

    Attributes:
        dial: How large the experiments are.
        minutes: After these nothing new is begun, and the run ends as if it had been stopped; null for no limit.
        threads: CPU threads; one is fastest for small nets.
        out: Run folder.
        log: Where to log.
    """

    dial: Dial = field(default_factory=Dial)
    minutes: float | None = None
    threads: int = 1
    out: str = RUN_FOLDER
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        if self.threads < 1 or (self.minutes is not None and not self.minutes > 0):
            raise ValueError(f"threads: {self.threads} must be at least 1, minutes: {self.minutes} above 0")


def do(work: Work, minutes: float | None) -> None:
    """All that is missing, one piece after another; a stop waits for the end of the present one."""
    end = float("inf") if minutes is None else time.monotonic() + 60.0 * minutes
    waiting = work.missing()
    with GracefulStop() as stop:
        for k, piece in enumerate(waiting, 1):
            if time.monotonic() >= end:
                stop.request(f"minutes={minutes:g}")
            if stop.requested:
                stop.leave(step=k - 1)
            print(f"{k}/{len(waiting)} ", end="", flush=True)
            work.make(piece)


def main(config: Config, *, resume: bool = False) -> int:
    """Do the work, decide, and write the page."""
    torch.set_num_threads(config.threads)
    run = RunFolder(config.out, config, config.log, recipe=__file__, length=1, resume=resume)
    if run.finished:
        print(f"the run in {run.path} is finished; start a new one without --resume")
        return 0
    with run:
        work = Work(config.dial, run.path / "measured", watch=lambda line: print(line, flush=True))
        do(work, config.minutes)
        rows = work.rows()
        counts = Counter(row.verdict for row in rows)
        run.finish({f"landscape/{verdict}": counts[verdict] for verdict in Verdict})
        run.log.table("landscape/claims", *claims_table(rows, SHOWN))
        with run.attempt("report.html"):
            write_claims(rows, config.dial, run.path, about={"run": run.path.name})
        with run.attempt("claims.png") as picture:
            plot_claims(rows, picture)
            run.log.image("landscape/claims_picture", picture)
    print("\n".join(f"{verdict:<28} {counts[verdict]}" for verdict in Verdict))
    print(run.where())
    return run.exit_code


if __name__ == "__main__":
    raise SystemExit(run_script(__file__))
