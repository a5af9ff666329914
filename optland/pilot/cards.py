"""One card a policy: what it does, which signals and actuators it uses, what it costs, when to use it.

The table of policies in the README is made from these cards, and a test keeps both in step with the classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optland.pilot.policies import POLICIES

__all__ = ["POLICY_CARDS", "PolicyCard", "policy_table"]


@dataclass(frozen=True, slots=True)
class PolicyCard:
    """What to know before choosing a policy.

    Attributes:
        name: Its name in ``Pilot(policies=[...])``.
        does: What it does, in a sentence.
        signals: What it looks at.
        actuators: What it turns; a dash for one that only speaks.
        cost: Beyond the probe budget and the losses of the steps.
        when: When to use it, and when not.
        reference: Author, year and arXiv id.
    """

    name: str
    does: str
    signals: str
    actuators: str
    cost: str
    when: str
    reference: str

    @property
    def policy(self) -> Any:
        """Its class."""
        return POLICIES[self.name]


_CARD_ROWS = (
    ("auto_lr",
     "sets the learning rate from a scheduled *relative* step; rewinds and halves its pace when the run breaks",
     "update relative to weights, loss, critical step", "lr, rewind", "1 copy of the weights",
     "the length of the run is known; not for schedule-free optimizers", "ratio: You 2017, 1708.03888"),
    ("relative_step", "the same rule with a fixed constant and no probe", "update relative to weights, loss",
     "lr, rewind",
     "1 copy of the weights", "no probe is wanted; not for runs under 250 steps", "ratio: You 2017, 1708.03888"),
    ("safe_lr", "caps your schedule, never raises it", "critical step along the realised update", "lr, rewind", "none",
     "the schedule is trusted, its height is not", "Kalra 2026, 2601.16979"),
    ("edge_monitor", "the edge ratio as one number, an alarm above 1", "critical step", "-", "none", "always",
     "Kalra 2026, 2601.16979"),
    ("noise_monitor", "says when the batch is too small or too large", "gradient noise scale", "-", "none", "always",
     "McCandlish 2018, 1812.06162"),
    ("noise_batch", "doubles the batch while steps are noise-limited", "gradient noise scale", "batch size", "none",
     "fewer steps for the same samples are worth something; a loader that can grow", "McCandlish 2018, 1812.06162"),
    ("seesaw", "doubles the batch where the schedule has halved the rate", "the schedule", "batch size, lr factor",
     "none",
     "a decaying schedule on hardware where a larger batch is free; not with noise_batch", "Meterez 2025, 2510.14717"),
    ("plateau", "drops the rate at a noise floor, leaves a saddle, or starts SAM",
     "loss slope, SASA statistic, negative-curvature ratio", "lr factor, escape, SAM duty",
     "1 copy of the weights, two inner products", "no schedule; not with a decaying one", "Zhang 2020, 2002.10597"),
    ("late_sam", "SAM in the last 15 % of the run", "progress or schedule", "SAM duty",
     "+15 % gradients in place of +100 %",
     "SAM at nearly the base's price; not under label noise", "Zhou 2024, 2410.10373"),
    ("rho", "SAM's radius follows the schedule or a budget for the loss rise", "schedule, or loss and gradient norm",
     "rho",
     "none", "one radius is too large early or late", "Zhuang 2022, 2203.08065"),
    ("spike_guard", "takes back the step of a corrupt batch; in a row, cuts the rate and then rolls back",
     "loss and gradient norm",
     "skip, lr factor, rollback", "1 copy of weights, buffers, optimizer state",
     "damaged samples, low precision, long runs; not with batches of 1 to 4", "Kumar 2025, 2504.02507"),
    ("gi_adam", "starts Adam's second moment at the first squared gradient", "none", "Adam's v_0",
     "1 optimizer step a run",
     "Adam or AdamW with little warm-up", "Kalra 2024, 2406.09405"),
)  # fmt: skip

POLICY_CARDS = tuple(PolicyCard(*row) for row in _CARD_ROWS)


def policy_table() -> str:
    """The README's table, one row a card.

    Example:
        >>> policy_table().splitlines()[0]
        '| policy | what it does | signals | actuators | cost beyond the probes | when | source |'
    """
    head = [
        "| policy | what it does | signals | actuators | cost beyond the probes | when | source |",
        "|" + "---|" * 7,
    ]
    rows = [
        f"| `{c.name}` | {c.does} | {c.signals} | {c.actuators} | {c.cost} | {c.when} | {c.reference} |"
        for c in POLICY_CARDS
    ]
    return "\n".join([*head, *rows])
