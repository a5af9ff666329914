"""The table of all claims from what has been measured, and the work that is still to be done for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optland.files import for_json
from optland.statistics import holm
from optland.train.experiments.bank import Bank
from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.measures import LOOKS, Look, at_end, at_start
from optland.train.experiments.claims.registry import CLAIMS
from optland.train.experiments.claims.trials import Trial, Trials
from optland.train.experiments.claims.verdicts import Effect, Verdict, effect_of, verdict_of
from optland.train.experiments.claims.watch import Watch

__all__ = ["Row", "Work"]


@dataclass(frozen=True)
class Row:
    """A claim with its verdict.

    Attributes:
        claim: What is claimed.
        effect: What was measured.
        found: What it was taken from.
        p_value: Corrected over all rows.
        verdict: By the rule.
        runs: Runs and trials that it rests on.
        missing: Of these, those that are not there yet.
        dead: Runs that died.
        cost_ge: Gradient evaluations of its runs and trials; those that claims share count in each.
    """

    claim: Claim
    effect: Effect
    found: Found
    p_value: float
    verdict: Verdict
    runs: int
    missing: int
    dead: int
    cost_ge: float

    def plain(self) -> dict[str, Any]:
        """As a file of JSON has it.

        Returns:
            Plain values by name, nested; five digits, and null for what is not finite.
        """
        names = ("name", "text", "source", "measured", "published")
        counts = ("runs", "missing", "dead", "cost_ge")
        whole = {
            **{name: getattr(self.claim, name) for name in names},
            "band": asdict(self.claim.band),
            "effect": asdict(self.effect),
            "values": self.found.values,
            "p_value": self.p_value,
            "verdict": str(self.verdict),
            **{name: getattr(self, name) for name in counts},
            "beside": self.found.beside,
            "note": self.found.note,
        }
        return dict(for_json(whole, digits=5))


class Work:
    """The runs and trials of a dial, made one after another.

    The nets of blocks, which cost most, come last; before and among them all of a seed come before the next, so that
    work which is stopped has decided as much as it could.

    Args:
        dial: Sizes.
        folder: Of the files: one of JSON lines for each way of looking at runs, and ``trials.jsonl``.
        claims: What is decided; all.
        watch: Told of every piece of work in a line of text.
    """

    def __init__(
        self,
        dial: Dial,
        folder: str | Path,
        *,
        claims: Sequence[Claim] = CLAIMS,
        watch: Callable[[str], None] | None = None,
    ) -> None:
        self.dial, self.claims = dial, claims
        where = Path(folder)
        banks = {look: self._bank(look, where / f"{look}.jsonl", watch) for look in LOOKS}
        self.evidence = Evidence(banks, Trials(where / "trials.jsonl", watch))

    def _bank(self, look: Look, path: Path, watch: Callable[[str], None] | None) -> Bank:
        dial = self.dial
        along = {"watch": lambda run, splits: Watch(dial, run, splits, look)}
        measures, start = at_end(look, dial.probed), at_start(look, dial.probed)
        return Bank(path, measures, start=start, along=along, watch=watch)

    def pieces(self) -> list[tuple[Look, BankRun] | Trial]:
        """All of the work, each once, in its order; a run with how closely the claims have to look at it.

        Returns:
            Pairs (look, run), and trials; the order in which they are to be made.
        """
        runs: dict[str, tuple[Look, BankRun]] = {}
        trials: dict[str, Trial] = {}
        for look in LOOKS:  # the closest look at a run stays
            for claim in self.claims:
                if claim.look == look:
                    runs |= {run.key: (look, run) for run in claim.runs(self.dial)}
                    trials |= {trial.key: trial for trial in claim.trials(self.dial)}
        found: list[tuple[Look, BankRun] | Trial] = [*runs.values(), *trials.values()]
        return sorted(found, key=_turn)

    def missing(self) -> list[tuple[Look, BankRun] | Trial]:
        """What is still to be done."""
        return [piece for piece in self.pieces() if not self._is_there(piece)]

    def make(self, piece: tuple[Look, BankRun] | Trial) -> None:
        """Do one piece of it.

        Args:
            piece: One of :meth:`pieces`.
        """
        if isinstance(piece, Trial):
            self.evidence.trials.make(piece)
        else:
            self.evidence.banks[piece[0]].make([piece[1]])

    def rows(self) -> list[Row]:
        """A row for each claim, corrected over all of them: one that cannot be decided counts in the correction too.

        Returns:
            In the order of the claims, with p corrected after Holm (1979); a claim whose runs are missing is undecided.
        """
        found = [claim.effect(self.evidence, self.dial) for claim in self.claims]
        effects = [effect_of(f.values, claim.band) for f, claim in zip(found, self.claims, strict=True)]
        corrected = holm([effect.p_value for effect in effects])
        return [self._row(*parts) for parts in zip(self.claims, found, effects, corrected, strict=True)]

    def _row(self, claim: Claim, found: Found, effect: Effect, p_value: float) -> Row:
        lines = [self.evidence.line(run) for run in claim.runs(self.dial)]
        made = [self.evidence.trials.find(trial) for trial in claim.trials(self.dial)]
        cost = sum(line["facts"]["ge"] for line in lines if line) + sum(t.get("ge") or 0.0 for t in made if t)
        missing = sum(not line for line in lines) + sum(t is None for t in made)
        dead = sum(bool(line) and line["dead"] for line in lines)
        verdict = verdict_of(effect, claim.band, p_value)
        return Row(claim, effect, found, p_value, verdict, len(lines) + len(made), missing, dead, cost)

    def _is_there(self, piece: tuple[Look, BankRun] | Trial) -> bool:
        if isinstance(piece, Trial):
            return self.evidence.trials.find(piece) is not None
        look, run = piece
        return any(self.evidence.banks[better].find(run) for better in LOOKS[LOOKS.index(look) :])


def _turn(piece: tuple[Look, BankRun] | Trial) -> tuple[bool, int]:
    """By which the work is ordered."""
    if isinstance(piece, Trial):
        return False, piece.seed
    return piece[1].net.name in ("resnet", "densenet"), piece[1].seed
