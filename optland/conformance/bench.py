"""The registry of checks, and the bench that a check works with: one subject in one precision."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from optland.conformance.problems import Problem
from optland.conformance.subject import Base, BaseName, Subject

__all__ = [
    "CHECKS",
    "Bench",
    "Check",
    "Measured",
    "NotApplicableError",
    "Step",
    "ViolationError",
    "check",
    "differing",
]


class NotApplicableError(Exception):
    """Raised where the subject does not claim what the check tests; the message says why."""


class ViolationError(Exception):
    """Raised where the subject fails in a way that has no figure; the message says how."""


@dataclass(frozen=True)
class Measured:
    """A deviation, the largest that passes, and what to know about it.

    Attributes:
        figure: In the unit that the check's docstring names; 0 is perfect.
        tolerance: Inclusive.
        detail: Goes into the finding, whether it passes or not.

    Example:
        >>> Measured(0.0, 0.0).passed, Measured(float("nan"), 1.0).passed
        (True, False)
    """

    figure: float
    tolerance: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        """NaN does not pass."""
        return self.figure <= self.tolerance


@dataclass(frozen=True)
class Check:
    """A check as registered.

    Attributes:
        id: Identifier, in kebab case.
        kind: One of :data:`optland.conformance.finding.KINDS`.
        title: The statement in one line.
        run: Measures a bench.
        methods: Methods that it applies to; None for all.
        variants: Pairs (precision, foreach) in which it runs; the worst counts.
    """

    id: str
    kind: str
    title: str
    run: Callable[[Bench], Measured]
    methods: frozenset[str] | None
    variants: tuple[tuple[torch.dtype, bool], ...]


CHECKS: dict[str, Check] = {}
"""All checks, in the order of the report."""

_VARIANTS: dict[str, tuple[tuple[torch.dtype, bool], ...]] = {
    "all": tuple(itertools.product((torch.float64, torch.float32), (False, True))),
    "float64": ((torch.float64, False), (torch.float64, True)),
    "float32": ((torch.float32, False), (torch.float32, True)),
    "one": ((torch.float64, False),),
    "one32": ((torch.float32, False),),
}


def check(
    id: str,
    kind: str,
    title: str,
    *,
    methods: set[str] | None = None,
    variants: Literal["all", "float64", "float32", "one", "one32"] = "all",
) -> Callable[[Callable[[Bench], Measured]], Callable[[Bench], Measured]]:
    """Register a function as a check.

    The docstring of the function says what its figure is, since reports show the figure alone.

    Args:
        id: Identifier, in kebab case; a check that has it already is replaced.
        kind: A key of :data:`optland.conformance.finding.KINDS`.
        title: What a subject that passes does, in one line; the detail of a failure that has no other.
        methods: Methods whose claim it tests; None for every subject.
        variants: Precisions, each with the base's single-tensor and its multi-tensor path: both in ``"all"``, one of
            them in ``"float64"`` and ``"float32"``. ``"one"`` and ``"one32"`` are one precision on the single-tensor
            path, for checks that do not depend on arithmetic.

    Returns:
        A decorator that registers the function and returns it unchanged.
    """

    def register(run: Callable[[Bench], Measured]) -> Callable[[Bench], Measured]:
        chosen = None if methods is None else frozenset(methods)
        CHECKS[id] = Check(id, kind, title, run, chosen, _VARIANTS[variants])
        return run

    return register


@dataclass(frozen=True)
class Step:
    """One update as seen from outside.

    Attributes:
        before: Weights (d,) in float64 before the update.
        points: Weights (d,) at which each gradient of it was taken, in order.
        after: Weights (d,) after it.
        returned: What ``step`` returned.
    """

    before: Tensor  # (d,)
    points: list[Tensor]  # where the gradient was taken
    after: Tensor  # (d,)
    returned: Any

    @property
    def eps(self) -> Tensor:
        """The perturbation: the second point minus the first.

        Returns:
            (d,) in float64, as rounded by the weights' own precision.

        Raises:
            ViolationError: The step took one gradient evaluation only.
        """
        if len(self.points) < 2:
            raise ViolationError(f"the step took {len(self.points)} gradient evaluation(s), not 2")
        return self.points[1] - self.points[0]

    def received(self, lr: float) -> Tensor:
        """The gradient that plain SGD was handed.

        Args:
            lr: Of that base; without momentum and weight decay the move is exactly -lr times it.

        Returns:
            (d,) in float64.
        """
        return (self.before - self.after) / lr


@dataclass(frozen=True)
class Bench:
    """One subject in one precision.

    Attributes:
        subject: Under test.
        dtype: Of weights and data.
        foreach: Whether the base optimizer is asked for its multi-tensor path.
    """

    subject: Subject
    dtype: torch.dtype
    foreach: bool

    @property
    def options(self) -> Mapping[str, Any]:
        """The parameters of the claim."""
        return self.subject.claim.options

    @property
    def tolerance(self) -> float:
        """Relative deviation that rounding may make.

        In float64 it allows for a norm that was accumulated in float32 (1e-8); ``norm-precision`` looks at
        that.
        """
        return 1e-7 if self.dtype == torch.float64 else 1e-4

    def require(self, *names: str) -> None:
        """Go on only where the claim has these parameters.

        Args:
            *names: In the letters of the paper.

        Raises:
            NotApplicableError: It lacks one of them.
        """
        missing = [name for name in names if name not in self.options]
        if missing:
            raise NotApplicableError(f"has no parameter {', '.join(missing)}")

    @property
    def bases(self) -> tuple[BaseName, ...]:
        """The base optimizers that the subject can do with."""
        return self.subject.claim.bases

    def base(
        self, name: BaseName | None = None, *, lr: float = 0.1, momentum: float = 0.0, decay: float = 0.0
    ) -> Base:
        """A base optimizer, the preferred one unless named, with the least momentum that the claim asks for.

        Args:
            name: ``"sgd"`` or ``"adamw"``.
            lr: Learning rate.
            momentum: Of SGD; AdamW has betas of its own.
            decay: ``weight_decay``: added to SGD's gradient, decoupled in AdamW.
        """
        chosen = self.bases[0] if name is None else name
        settings: dict[str, Any] = {"lr": lr, "weight_decay": decay, "foreach": self.foreach}
        if chosen == "sgd":
            settings["momentum"] = max(momentum, self.subject.claim.momentum)
        return Base(chosen, settings)

    def build(
        self,
        problem: Problem,
        base: BaseName | None = None,
        *,
        lr: float = 0.1,
        momentum: float = 0.0,
        decay: float = 0.0,
        groups: bool = False,
        params: list[nn.Parameter] | None = None,
        **options: Any,
    ) -> Any:
        """The subject's optimizer on a problem, every parameter in its own group with ``groups``.

        The random state is seeded, so that runs of a method that draws numbers can be compared.

        Args:
            problem: Gives the model and its parameters.
            base: The base optimizer, the preferred one unless named.
            lr: Learning rate.
            momentum: Of SGD.
            decay: The base's ``weight_decay``.
            groups: A group for every parameter, which shows a norm that is taken for each group alone.
            params: These parameters only.
            **options: Of the method, over those of the claim.
        """
        torch.manual_seed(0)
        chosen: list[Any] = list(problem.model.parameters()) if params is None else params
        if groups:
            chosen = [{"params": [p]} for p in chosen]
        inner = self.base(base, lr=lr, momentum=momentum, decay=decay)
        return self.subject.make(chosen, inner, problem.model, {**self.options, **options})

    def trace(self, optimizer: Any, problem: Problem, steps: int) -> list[Step]:
        """Make steps and write down what could be seen.

        Args:
            optimizer: Made by :meth:`build` for this problem.
            problem: Its own list of points goes on growing.
            steps: How many.

        Returns:
            One record for each update.
        """
        out = []
        for _ in range(steps):
            before, start = problem.flat(), len(problem.points)
            returned = self.subject.drive.step(optimizer, problem)
            out.append(Step(before, problem.points[start:], problem.flat(), returned))
        return out

    def steps(self, optimizer: Any, problem: Problem, count: int) -> None:
        """Make steps.

        Args:
            optimizer: Made by :meth:`build` for this problem.
            problem: The loss.
            count: How many.
        """
        for _ in range(count):
            self.subject.drive.step(optimizer, problem)


def differing(a: list[Tensor], b: list[Tensor]) -> int:
    """Number of entries that are not the same bit for bit (NaN differs from everything).

    Args:
        a: Tensors.
        b: As many, of the same shapes.

    Example:
        >>> differing([torch.tensor([1.0, float("nan")])], [torch.tensor([1.0, float("nan")])])
        1
    """
    return sum(int((x != y).sum()) for x, y in zip(a, b, strict=True))


def relative(a: Tensor, b: Tensor, scale: Tensor | None = None) -> float:
    """||a - b|| / ||scale||, of b unless given.

    Args:
        a: (d,).
        b: (d,).
        scale: A vector whose length is the unit, such as the distance travelled.

    Returns:
        NaN where both lengths are 0, which passes no check.
    """
    return float((a - b).norm() / (b if scale is None else scale).norm())
