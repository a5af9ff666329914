"""The base class of policies: signals in, proposals with reasons out, in plain numbers without torch.

A policy of one's own takes 15 lines::

    class WarmDecay(Policy):
        name = "warm_decay"
        reads = frozenset({"train/loss"})
        turns = frozenset({"weight_decay"})

        def decide(self, history):
            loss = history.new("train/loss")
            if loss is None or history.step % 100:
                return []
            new = 1e-4 if loss.value > 1.0 else 1e-3
            return [Proposal("weight_decay", new, f"the loss is {loss.value:.3g}", {"train/loss": loss.value})]

:func:`optland.pilot.contract.check_policy` holds it against the contract.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from optland.pilot.decision import Decision, Proposal
from optland.pilot.history import Reader
from optland.pilot.policies.facts import HostFacts

__all__ = ["Policy", "PolicyCard"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyCard:
    """The card of a policy: its row in the docs' table.

    Attributes:
        does: What it does, in a sentence.
        reads: What it looks at.
        turns: What it sets or caps; a dash for one that only speaks.
        cost: Beyond the probe budget and the losses of the steps.
        when: When to use it, and when not.
        measured: Files of benchmarks/results, without their ending, that hold a row for it; none for display.
        reference: Author, year and arXiv id.
    """

    does: str
    reads: str
    turns: str = "-"
    cost: str = "none"
    when: str
    measured: tuple[str, ...] = ()
    reference: str


class Policy:
    """Looks at signals after every update and may ask for something.

    A subclass sets ``name``, ``reads`` and what it ``turns`` or ``caps``, and implements :meth:`decide`. Attributes
    named in ``kept`` are the state that an exact resume needs: plain numbers, strings, lists.

    Attributes:
        name: What users write in ``policies=[...]``, and what decisions are logged under.
        reads: Names of signals. A probe runs only where a policy reads something that it measures.
        may_read: Further signals, used where something else has them measured; no probe runs for these.
        turns: Keys of :data:`~optland.pilot.decision.TURNED` that it sets; nobody else may set them in that run.
        caps: Keys that it bounds from above: ``lr`` or ``lr_factor``.
        card: What to know before choosing it; those of :data:`~optland.pilot.policies.POLICIES` have one.
    """

    name: ClassVar[str]
    card: ClassVar[PolicyCard]
    reads: frozenset[str] = frozenset()
    may_read: frozenset[str] = frozenset()
    turns: frozenset[str] = frozenset()
    caps: frozenset[str] = frozenset()
    kept: ClassVar[tuple[str, ...]] = ()

    def begin(self, host: HostFacts) -> list[Proposal]:
        """Before the first update: take in what is known of the run; may already ask for something.

        ``turns`` is read after this call, so it may depend on the run.

        Args:
            host: What is known before the first update: length, passes over the data, what can be turned.

        Returns:
            Proposals that hold from the first update on; none by default.
        """
        return []

    def decide(self, history: Reader) -> list[Proposal]:
        """The proposals for this update; an empty list for none.

        Called once per update.

        Args:
            history: Signals by name with value, error and age: ``last(name)`` the newest, ``new(name)`` the same once
                and then None, ``setting(name)`` a present setting. Names outside ``reads`` and ``may_read`` may have
                no value.

        Returns:
            Proposals, each with its reason in words. The length of the step is turned at once, all else from the next
            update on.

        Raises:
            NotImplementedError: The subclass does not implement it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say what it asks for; implement decide(history)"
        )

    def told(self, decision: Decision) -> None:
        """Hear the decision on a proposal of this policy, and of every rewind; does nothing by default.

        Args:
            decision: Old and new value, and ``taken``: False where it was not carried out, as in shadow mode.
        """

    def metrics(self) -> dict[str, float]:
        """Numbers for the log, under ``group/name`` keys.

        Returns:
            Of the present update; a key that has no value yet is left out.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Plain values for the checkpoint.

        Returns:
            The attributes named in ``kept``: of filters their own state, of lists copies.
        """
        return {name: _copied(getattr(self, name)) for name in self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        for name in self.kept:
            held = getattr(self, name)
            if hasattr(held, "load_state_dict"):
                held.load_state_dict(state[name])
            else:
                setattr(self, name, _copied(state[name]))


def _copied(value: Any) -> Any:
    """A filter's state; a copy of a list."""
    if hasattr(value, "state_dict"):
        return value.state_dict()
    return list(value) if isinstance(value, list) else value
