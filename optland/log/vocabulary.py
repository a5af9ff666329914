"""The names of logged values: one vocabulary for console, JSONL and wandb.

A key is ``group/name``; :data:`~optland.log.meanings.VOCABULARY` has them all. The axis is our own key ``step``, the
count of optimizer updates. A measured value comes with ``<key>_error`` and ``<key>_converged``, in the row of the step
at which it was measured; how old it is at later steps is logged under ``probe/age_<probe>``.
"""

from __future__ import annotations

import re

from optland.log.meanings import GROUPS, VOCABULARY, Key

__all__ = ["BINDING", "GROUPS", "STEP", "Scalar", "is_chart", "key_of", "without_chart"]

Scalar = float | int | str | bool

STEP = "step"

BINDING = {0: "user", 1: "edge", 2: "ratio", 3: "guard"}
"""What the number under ``lr/binding`` means."""

_PATTERNS = {
    re.compile(re.sub(r"<\w+>", r"[\\w ]+", key.name) + r"(_error)?" * key.estimated): key
    for key in VOCABULARY
}


def key_of(name: str) -> Key | None:
    """The entry of a logged key; None where the vocabulary has none.

    Args:
        name: As it is logged, without a prefix; ``_error`` and a word after a space belong to the key.

    Returns:
        The entry; of a pattern such as ``probe/age_<probe>`` that of the pattern.

    Example:
        >>> key_of("edge/ratio_error").name, key_of("probe/age_edge").name, key_of("edge/ration")
        ('edge/ratio', 'probe/age_<probe>', None)
    """
    exact = [key for key in VOCABULARY if key.name == name]
    fitting = (k for part in (name, name.split(" ")[0]) for p, k in _PATTERNS.items() if p.fullmatch(part))
    return exact[0] if exact else next(fitting, None)


def is_chart(name: str) -> bool:
    """Whether a key has a chart of its own; one that the vocabulary does not know, a user's own, has.

    Args:
        name: As it is logged, without a prefix.

    Example:
        >>> is_chart("train/loss"), is_chart("edge/ratio_error"), is_chart("mine/number"), is_chart("samples")
        (True, False, True, False)
    """
    if name in (STEP, "samples", "epoch"):
        return False
    key = key_of(name)
    return key is None or (key.chart and not name.endswith("_error"))


def without_chart() -> list[str]:
    """Names and patterns (``probe/age_*``) of all that has no chart of its own."""
    errors = [f"{key.name}_error" for key in VOCABULARY if key.estimated]
    plain = [key.name for key in VOCABULARY if not key.chart and not key.name.startswith("curv/<")]
    ends = [f"curv/lambda_{end}_converged" for end in ("max", "min", "max_precond")]
    return [*(re.sub(r"<\w+>$", "*", name) for name in plain), *errors, *ends]
