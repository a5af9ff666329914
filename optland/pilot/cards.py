"""One card a policy: what it does, what it reads and turns, what it costs, when to use it, and what shows that.

The table of policies in the README is made from these cards, and a test keeps both in step with the classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optland.pilot.policies import POLICIES

__all__ = ["FOR_DISPLAY", "POLICY_CARDS", "PolicyCard", "policy_table"]

FOR_DISPLAY = "for display"
"""What a card says in place of measurements where the policy only shows numbers."""


@dataclass(frozen=True, slots=True)
class PolicyCard:
    """What to know before choosing a policy.

    Attributes:
        name: Its name in ``Pilot(policies=[...])``.
        does: What it does, in a sentence.
        signals: What it looks at.
        turns: What it sets or caps; a dash for one that only speaks.
        cost: Beyond the probe budget and the losses of the steps.
        when: When to use it, and when not.
        measured: Files of benchmarks/results, without their ending, that hold a row for it; or :data:`FOR_DISPLAY`.
        reference: Author, year and arXiv id.
    """

    name: str
    does: str
    signals: str
    turns: str
    cost: str
    when: str
    measured: str
    reference: str

    @property
    def policy(self) -> Any:
        """Its class."""
        return POLICIES[self.name]


_CARD_ROWS = (
    ("auto_lr",
     "sets the learning rate from a scheduled *relative* step; halves its pace after a rewind",
     "update relative to weights, coherence of gradients; with `ceiling` the critical step",
     "step length; with `ceiling` a cap on the lr",
     "on the device 1 copy of the weights and 1 of the gradients; in host memory the 2 snapshots of control mode",
     "the length of the run is known, or its end is called; not for optimizers that are not linear in the rate",
     "control_report, control_development, control_edge", "ratio: You 2017, 1708.03888"),
    ("safe_lr", "caps your schedule, never raises it", "critical step along the realised update", "cap on the lr",
     "1 copy of the weights", "the schedule is trusted, its height is not",
     "control_report", "Kalra 2026, 2601.16979"),
    ("noise_batch", "doubles the batch while steps are noise-limited", "gradient noise scale",
     "batch size; unless `auto_lr` is there also lr factor and Adam's betas", "none",
     "fewer steps for the same samples are worth something; a loader that can grow",
     "batch", "McCandlish 2018, 1812.06162"),
    ("plateau", "drops the rate at a noise floor, or leaves a saddle",
     "loss slope, SASA statistic, negative-curvature ratio", "lr factor, escape",
     "1 copy of the weights, two inner products", "no schedule; not with a decaying one",
     "plateau", "Zhang 2020, 2002.10597"),
    ("spike_guard",
     "leaves out the update of a corrupt batch; after some in a row cuts the rate, after many goes back",
     "gradient norm and loss", "skip, rewind, lr factor as a cap", "no copy",
     "damaged samples, low precision, long runs; not with batches of 1 to 4, or clipping before the step",
     "spikes", "Kumar 2025, 2504.02507"),
    ("edge_monitor", "the edge ratio as one number, an alarm above 1", "critical step", "-",
     "1 copy of the weights", "always", FOR_DISPLAY, "Kalra 2026, 2601.16979"),
    ("noise_monitor", "says when the batch is too small or too large", "gradient noise scale", "-", "none", "always",
     FOR_DISPLAY, "McCandlish 2018, 1812.06162"),
    ("curvature_monitor", "both ends of the Hessian's spectrum on a fixed set of samples", "curvature", "-", "none",
     "runs long enough for products of the Hessian inside the budget", FOR_DISPLAY, "Ghorbani 2019, 1901.10159"),
)  # fmt: skip

POLICY_CARDS = tuple(PolicyCard(*row) for row in _CARD_ROWS)


def policy_table() -> str:
    """The README's table, one row a card.

    Example:
        >>> policy_table().splitlines()[0]
        '| policy | what it does | reads | turns | cost beyond the probes | when | measured in | source |'
    """
    head = [
        "| policy | what it does | reads | turns | cost beyond the probes | when | measured in | source |",
        "|" + "---|" * 8,
    ]
    rows = [
        f"| `{c.name}` | {c.does} | {c.signals} | {c.turns} | {c.cost} | {c.when} | {_measured(c)} | {c.reference} |"
        for c in POLICY_CARDS
    ]
    return "\n".join([*head, *rows])


def _measured(card: PolicyCard) -> str:
    if card.measured == FOR_DISPLAY:
        return FOR_DISPLAY
    return ", ".join(f"[{name}](benchmarks/results/{name}.json)" for name in card.measured.split(", "))
