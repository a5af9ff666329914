"""Notes on a model, which probes find out once and keep for as long as the model lives.

Some questions cost a look: whether a forward writes its own weights, whether the graph refuses ``autograd.grad``,
whether second derivatives of this kind of graph are right. Each is asked once per model, not per probe.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

__all__ = ["Notes", "Verdict", "notes_of"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a comparison of second derivatives.

    Attributes:
        names: Of the parameters they are taken by.
        graphs: What the graphs are made of.
        fault: What is wrong with them; empty where they are right.
        note: What the record should say.
        rounding: Size of their error relative to a product, where it is more than that of the type of the weights.
        of_loss: False where the fault lies in the gradient already: it is not that of the loss.
    """

    names: frozenset[str]
    graphs: frozenset[str]
    fault: str = ""
    note: str = ""
    rounding: float = 0.0
    of_loss: bool = True


@dataclass(slots=True)
class Notes:
    """Of one model.

    Attributes:
        looked: Parameters (by ``id``) whose forward in a mode has been watched with copies.
        written: Those of them that it wrote.
        active: Names, by the ``id`` of the parameter, of those whose values the last guarded block has changed.
        standing: What stands in the model for a parameter (by its ``id``) inside the present guard; None outside.
        replaced: Whether still other tensors stood there for a while, so that the guard has seen nothing.
        tried: Modes in which graphs have been asked whether ``autograd.grad`` gives all of the gradient.
        backward: Why gradients are taken by ``backward()``; empty where ``autograd.grad`` does.
        verdicts: Of second derivatives, by kind of graph.
    """

    looked: dict[str, set[int]] = field(default_factory=dict)
    written: dict[str, set[int]] = field(default_factory=dict)
    active: dict[int, str] = field(default_factory=dict)
    standing: dict[int, Tensor] | None = None
    replaced: bool = False
    tried: set[str] = field(default_factory=set)
    backward: str = ""
    verdicts: dict[str, list[Verdict]] = field(default_factory=dict)

    def verdict(self, kind: str, names: Iterable[str], graphs: Iterable[str] | None = None) -> Verdict | None:
        """The verdict on second derivatives by these parameters through graphs made of this.

        What is right for some parameters and kernels is right for fewer; what is wrong for them is wrong for more.

        Args:
            kind: Of derivative.
            names: Of the parameters.
            graphs: Of the kernels; None asks whether any graph by these parameters was found right.

        Returns:
            The first that settles it, right or wrong; None where the comparison has to be made.
        """
        asked, made_of = frozenset(names), None if graphs is None else frozenset(graphs)
        for known in self.verdicts.get(kind, []):
            if not known.fault and asked <= known.names and (made_of is None or made_of <= known.graphs):
                return known
            if known.fault and made_of is not None and known.names <= asked and known.graphs <= made_of:
                return known
        return None

    def keep(self, kind: str, verdict: Verdict) -> None:
        """Remember a verdict.

        Args:
            kind: Of derivative.
            verdict: Asked before those that are remembered later.
        """
        self.verdicts.setdefault(kind, []).append(verdict)

    def state_dict(self) -> dict[str, Any]:
        """The verdicts as plain values, so that a resumed run pays for no look that the unbroken one has had.

        Returns:
            Lists of tuples by kind of derivative; everything else in the notes is asked anew, which costs little.
        """
        return {
            kind: [(sorted(v.names), sorted(v.graphs), v.fault, v.note, v.rounding, v.of_loss) for v in found]
            for kind, found in self.verdicts.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.verdicts = {
            kind: [Verdict(frozenset(names), frozenset(graphs), *rest) for names, graphs, *rest in found]
            for kind, found in state.items()
        }


_NOTES: weakref.WeakKeyDictionary[nn.Module, Notes] = weakref.WeakKeyDictionary()


def notes_of(model: nn.Module) -> Notes:
    """The notes on this very module; a copy of it begins with none.

    Args:
        model: Held by a weak reference, so that its notes go when it does.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> notes_of(model) is notes_of(model)
        True
    """
    found = _NOTES.get(model)
    if found is None:
        found = _NOTES[model] = Notes()
    return found
