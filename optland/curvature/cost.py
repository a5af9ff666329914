"""Declared costs: the most that a probe can cost is its attribute, ``lanczos.cost(objective, max_matvecs=40)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar, cast

__all__ = ["Probe", "costs"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R_co = TypeVar("R_co", covariant=True)


class Probe(Protocol[P, R_co, Q]):
    """A function that measures, and beside it the most that a call can cost.

    Attributes:
        cost: The most gradient evaluations that a call can take, known before it runs.
    """

    __name__: str
    cost: Callable[Q, float]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Measure."""
        ...


def costs(declared: Callable[Q, float]) -> Callable[[Callable[P, R_co]], Probe[P, R_co, Q]]:
    """Give a probe its declared cost; the function itself stays as it is.

    Args:
        declared: From the objective and the options that matter to gradient evaluations.

    Example:
        >>> @costs(lambda num_samples: 2.0 * num_samples)
        ... def measured(num_samples: int) -> str:
        ...     return f"{num_samples} samples"
        >>> measured(3), measured.cost(3)
        ('3 samples', 6.0)
    """

    def give(probe: Callable[P, R_co]) -> Probe[P, R_co, Q]:
        probe.cost = declared  # type: ignore[attr-defined]
        return cast(Probe[P, R_co, Q], probe)

    return give
