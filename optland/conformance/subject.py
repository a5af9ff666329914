"""The subject of a test: how an optimizer is built, how it is driven, and what it claims to be.

A subject says these three things and no more, so that a package is judged by its own documented way of use:
a calling convention (:class:`Drive`), a method with its parameters in the letters of its paper
(:class:`Claim`), and, by check, what it says itself that it does not support.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optland.conformance.problems import Problem

__all__ = [
    "Base",
    "BaseName",
    "Claim",
    "Drive",
    "FirstSecond",
    "GradientFirst",
    "Phases",
    "SetClosure",
    "Subject",
]


BaseName = Literal["sgd", "adamw"]


@dataclass(frozen=True)
class Base:
    """The base optimizer that a check asks for.

    Calling it makes an instance; packages that take a class and options take :attr:`cls` and :attr:`options`.

    Args:
        name: Which one.
        options: Keyword arguments of its constructor.

    Example:
        >>> type(Base("sgd", {"lr": 0.1})([nn.Parameter(torch.ones(1))])).__name__
        'SGD'
    """

    name: BaseName
    options: Mapping[str, Any]

    @property
    def cls(self) -> type[Optimizer]:
        """The class of the base optimizer."""
        return torch.optim.SGD if self.name == "sgd" else torch.optim.AdamW

    def __call__(self, params: Any) -> Optimizer:
        """A base optimizer over these parameters or groups."""
        make: Callable[..., Optimizer] = self.cls
        return make(params, **self.options)


Make = Callable[[list[Any], Base, nn.Module, Mapping[str, Any]], Any]
"""(parameters or groups, base, model, options of the method) -> optimizer."""


class Drive:
    """One step by closure, as ``torch.optim`` has it: zero, forward, backward, return the loss."""

    returns_loss = True
    """Whether ``step`` owes the loss; False where the caller has computed it himself."""
    takes_parts = True
    """Whether the caller owns the backward pass and can make it of several micro-batches."""
    takes_closure = True
    """Whether ``step`` takes a closure."""

    def closure(self, optimizer: Any, problem: Problem) -> Callable[..., Tensor]:
        """The closure that is passed to ``step``.

        Args:
            optimizer: Zeroed in it first.
            problem: Its loss is evaluated and differentiated once per call.

        Returns:
            A function without arguments that returns the loss, with the gradient in ``.grad``.
        """

        def closure() -> Tensor:
            optimizer.zero_grad()
            return problem.backward()

        return closure

    def prepare(self, optimizer: Any, problem: Problem) -> None:
        """The caller's part before ``step``.

        Args:
            optimizer: Under test.
            problem: The loss.
        """

    def step(self, optimizer: Any, problem: Problem) -> Any:
        """Make one update; return what the optimizer's ``step`` returned.

        Args:
            optimizer: Under test.
            problem: The loss.
        """
        self.prepare(optimizer, problem)
        return optimizer.step(self.closure(optimizer, problem))


class GradientFirst(Drive):
    """The caller computes the first gradient, and the closure is for the second."""

    returns_loss = False

    def prepare(self, optimizer: Any, problem: Problem) -> None:
        """The first gradient.

        Args:
            optimizer: Zeroed first.
            problem: The loss.
        """
        self.closure(optimizer, problem)()


class FirstSecond(Drive):
    """``first_step`` and ``second_step`` between two backward passes, as the most used implementation has it."""

    returns_loss = False
    takes_closure = False

    def step(self, optimizer: Any, problem: Problem) -> Any:
        """Backward, first_step, backward, second_step.

        Args:
            optimizer: Has both methods.
            problem: The loss.

        Returns:
            None: the caller knows the loss.
        """
        problem.backward()
        optimizer.first_step(zero_grad=True)
        problem.backward()
        optimizer.second_step(zero_grad=True)


class Phases(Drive):
    """``passes()`` says how often and where a backward pass is wanted; ``step()`` makes the update."""

    returns_loss = False
    takes_closure = False

    def step(self, optimizer: Any, problem: Problem) -> Any:
        """Zero, a backward pass at each place that the method asks for, step.

        Args:
            optimizer: Has ``passes``.
            problem: The loss.

        Returns:
            None: the caller knows the loss.
        """
        optimizer.zero_grad()
        for _ in optimizer.passes():
            problem.backward()
        optimizer.step()


class SetClosure(Drive):
    """Loss function and batch are handed over with ``set_closure``, then ``step()`` does everything."""

    takes_parts = False
    takes_closure = False

    def step(self, optimizer: Any, problem: Problem) -> Any:
        """``set_closure(criterion, x, y)``, then ``step()``, which returns (outputs, loss).

        Args:
            optimizer: Has ``set_closure``.
            problem: The loss, its inputs and targets.
        """
        optimizer.set_closure(problem.judge, problem.x, problem.y)
        returned = optimizer.step()
        return returned[1] if isinstance(returned, tuple) else returned


@dataclass(frozen=True)
class Claim:
    """A method by name and its parameters, in the paper's letters.

    Args:
        method: A name of :data:`optland.conformance.oracles.ORACLES`, such as ``"sam"``; any other name is
            held to the general checks alone.
        options: Parameters with the values that general checks use. Those here, and no others, may be varied
            by a check.
        off: Options under which the method is its base optimizer; None where there are none.
        bases: Base optimizers that the method can do with, the one that checks prefer first.
        momentum: Least momentum that the method asks of SGD.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=lambda: {"rho": 0.3})
    off: Mapping[str, Any] | None = field(default_factory=lambda: {"rho": 0.0})
    bases: tuple[BaseName, ...] = ("sgd", "adamw")
    momentum: float = 0.0


@dataclass(frozen=True)
class Subject:
    """An optimizer under test.

    Args:
        name: Shown in reports.
        make: Builds the optimizer from parameters (or groups), a :class:`Base`, the model, and the options of
            the :class:`Claim`.
        claim: What it claims to be.
        drive: Its documented way of making a step.
        halves: Names of the calls of a step in pieces, where there are such: what goes up, as often as it is
            called, and what makes the update; neither needs an argument.
        scaled: One step under a ``GradScaler``, in the documented way; None where none is documented.
        micro: One step with a perturbation for each of the parts of the batch (m-sharpness), in the
            documented way; None where it is not offered.
        disclaims: Check id -> the package's own statement that it does not support this.

    Example:
        >>> import torch
        >>> from optland.optim import SAM
        >>> def make(params, base, model, options):
        ...     return SAM(base(params), rho=options["rho"], model=model)
        >>> from optland.conformance import run
        >>> str(run(Subject("mine", make, Claim("sam")), only=("step",)).findings[0].status)
        'passed'
    """

    name: str
    make: Make
    claim: Claim
    drive: Drive = field(default_factory=Drive)
    halves: tuple[str, ...] | None = None
    scaled: Callable[[Any, Problem, torch.amp.GradScaler], None] | None = None
    micro: Callable[[Any, Problem, list[slice]], None] | None = None
    disclaims: Mapping[str, str] = field(default_factory=dict)
