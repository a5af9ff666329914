r"""Gates, which decide which steps take a second pass: every k-th, random ones, late ones, or by a rule.

A gate is a function of the optimizer, called once per step after pass one, that says whether pass two is to follow; a
step without one is a plain step of the base. It may look at ``optimizer.steps`` (updates made), ``param_groups`` (the
learning rate), ``optimizer.gradient_norm()`` and ``optimizer.telemetry`` (:class:`StepState`); a sharpness that someone
else measures plugs in as ``gate=lambda optimizer: sharpness() > 10``.

====================  ==========================================  =====================================
gate                  second pass                                 cost, gradient evaluations per sample
====================  ==========================================  =====================================
``Every(k)``          each k-th step                              1 + 1/k
``Bernoulli(p)``      with probability p                          1 + p
``Tail(total, s)``    in the last share s of the run              1 + s
``LargeGradient``     where ||g||^2 is large for its history      about 1.5
====================  ==========================================  =====================================

In a configuration a gate is its call as text: ``gate="every(5)"``, ``"tail(1000, share=0.5)"``.

Gates decide from counts, rates and gradients alone, so that a resumed run and every rank decide alike; what a gate
remembers lies in the parameter groups (``sam_gate_*``) and travels in the checkpoint.

References: interval, MosaicML Composer; Bernoulli, Zhao, Zhang & Hu 2022, "SS-SAM", arXiv:2203.09962; tail, Zhou et
al. 2024, "Sharpness-Aware Minimization Efficiently Selects Flatter Minima Late in Training", arXiv:2410.10373; large
gradients, Jiang, Yang, Zhang & Kwok 2023, "An Adaptive Policy to Employ Sharpness-Aware Minimization" (AE-SAM),
arXiv:2304.14647.
"""

from __future__ import annotations

import ast
import inspect
import math
import random
from typing import Any, ClassVar, Protocol

from optland.config import did_you_mean
from optland.optim.keys import key, setting
from optland.optim.telemetry import Telemetry

__all__ = [
    "Bernoulli",
    "Every",
    "Gate",
    "LargeGradient",
    "StepState",
    "Tail",
    "as_gate",
    "gate_state",
]


class StepState(Protocol):
    """The part of an optimizer that a gate may read, between pass one and the decision.

    Attributes:
        param_groups: In whose entries a gate keeps what it remembers.
    """

    @property
    def steps(self) -> int:
        """Updates made so far."""
        ...

    @property
    def telemetry(self) -> Telemetry:
        """Scalars of the steps so far."""
        ...

    # No property: an optimizer's groups are an attribute, and a gate keeps what it remembers in them.
    param_groups: list[dict[str, Any]]

    def gradient_norm(self) -> float:
        """The length of the gradient of pass one, in the units of the mean loss; the host waits for it."""
        ...


class Gate(Protocol):
    """Says whether this step takes its second pass."""

    def __call__(self, optimizer: StepState, /) -> bool:
        """Decide, after pass one."""
        ...


def as_gate(gate: Gate | str | None, total_steps: int | None = None) -> Gate | None:
    """A gate as given, or made from its call as text.

    Args:
        gate: A function of the optimizer, or a call as text.
        total_steps: Updates in the run, for a text that needs them and does not say them.

    Raises:
        ValueError: The text is not the call of a gate with plain numbers, or its numbers are not possible.
        TypeError: ``gate`` is neither text nor callable.

    Example:
        >>> as_gate("every(5)"), as_gate("tail(share=0.5)", total_steps=1000)
        (Every(k=5), Tail(total_steps=1000, share=0.5))
    """
    if gate is None or callable(gate):
        return gate
    if not isinstance(gate, str):
        raise TypeError(
            f"gate={gate!r} is a {type(gate).__name__}; use a function of the optimizer, or 'every(5)'"
        )
    call = _call(gate)
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    if name not in _BY_NAME:
        hint = did_you_mean(name, list(_BY_NAME))
        raise ValueError(
            f"gate={gate!r} is not known; use one of {', '.join(_BY_NAME)}, such as 'every(5)'.{hint}"
        )
    try:
        arguments = [ast.literal_eval(x) for x in call.args]
        options = {str(x.arg): ast.literal_eval(x.value) for x in call.keywords}
        if total_steps is not None and not arguments and "total_steps" in _parameters(name):
            options.setdefault("total_steps", total_steps)
        made: Gate = _BY_NAME[name](*arguments, **options)
    except TypeError as error:
        raise ValueError(f"gate={gate!r}: {error}") from error
    return made


def _parameters(name: str) -> list[str]:
    return list(inspect.signature(_BY_NAME[name]).parameters)


def _call(text: str) -> ast.Call:
    try:
        tree = ast.parse(text if "(" in text else f"{text}()", mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"gate={text!r} cannot be read; write a call such as 'every(5)'") from error
    if not isinstance(tree, ast.Call):
        raise ValueError(f"gate={text!r} is not a call; write for example 'every(5)'")
    return tree


def gate_state(gate: Gate | None) -> dict[str, float]:
    """The state of a gate, with its values at the start: ``gate_*`` names of :mod:`optland.optim.keys`.

    Args:
        gate: None, or one without a ``state``, has nothing to keep.

    Returns:
        A copy.

    Example:
        >>> gate_state(None)
        {}
    """
    return dict(getattr(gate, "state", {}))


class _Own:
    """A gate of this module: its settings are its representation."""

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


class Every(_Own):
    """The second pass in each k-th step, the first step included.

    Args:
        k: Steps from one to the next. The perturbed steps are fewer, so they may be larger: the authors of this
            gate scale rho with k, from 0.05 at k = 1 to 0.5 at k = 10.

    Raises:
        ValueError: ``k`` is not positive.
    """

    def __init__(self, k: int) -> None:
        if k < 1:
            raise ValueError(f"k={k} is not possible; use 1 for every step or more")
        self.k = k

    def __call__(self, optimizer: StepState, /) -> bool:
        """True in steps 0, k, 2k, ..."""
        return optimizer.steps % self.k == 0


class Bernoulli(_Own):
    """The second pass with probability p, drawn from seed and step count: the same on every rank and after a resume.

    Args:
        p: Probability.
        seed: Seed.

    Raises:
        ValueError: ``p`` is not a probability.
    """

    def __init__(self, p: float, seed: int = 0) -> None:
        _check_share("p", p)
        self.p, self.seed = p, seed

    def __call__(self, optimizer: StepState, /) -> bool:
        """Draw."""
        return random.Random(f"{self.seed}/{optimizer.steps}").random() < self.p


class Tail(_Own):
    """The second pass in the last share of the run: most of what SAM gives is given there.

    Args:
        total_steps: Updates in the run.
        share: Length of the tail.

    Raises:
        ValueError: ``share`` is not within 0 and 1, or ``total_steps`` is not positive.
    """

    def __init__(self, total_steps: int, share: float = 0.25) -> None:
        if total_steps < 1:
            raise ValueError(
                f"total_steps={total_steps} is not possible; pass the number of updates of the run"
            )
        _check_share("share", share)
        self.total_steps, self.share = total_steps, share

    def __call__(self, optimizer: StepState, /) -> bool:
        """True from step (1 - share) total on."""
        return optimizer.steps >= (1.0 - self.share) * self.total_steps


class LargeGradient(_Own):
    r"""The second pass where \|g\|^2 >= mu + c sigma, with running mean mu and deviation sigma of \|g\|^2 (AE-SAM).

    c falls linearly from ``start`` to ``end`` over the run, so that SAM becomes more frequent. Reading the norm makes
    the host wait for the device, once per step.

    Args:
        total_steps: Updates in the run.
        decay: Of the running moments.
        start: c at the beginning.
        end: c at the end.

    Raises:
        ValueError: ``total_steps`` is not positive, or ``decay`` is not within 0 and 1.
    """

    state: ClassVar[dict[str, float]] = {"gate_mean": 0.0, "gate_variance": 0.0}

    def __init__(self, total_steps: int, decay: float = 0.9, start: float = 1.0, end: float = -1.0) -> None:
        if total_steps < 1:
            raise ValueError(
                f"total_steps={total_steps} is not possible; pass the number of updates of the run"
            )
        _check_share("decay", decay)
        self.total_steps, self.decay, self.start, self.end = total_steps, decay, start, end

    def __call__(self, optimizer: StepState, /) -> bool:
        """Update the moments with this step's norm, then compare."""
        square = optimizer.gradient_norm() ** 2
        if not math.isfinite(square):
            return False  # the step will be skipped; its norm must not stay in the mean
        group = optimizer.param_groups[0]
        before, spread = setting(group, "gate_mean"), setting(group, "gate_variance")
        mean = square if before == 0.0 else self.decay * before + (1 - self.decay) * square
        variance = self.decay * spread + (1 - self.decay) * (square - mean) ** 2
        group[key("gate_mean")], group[key("gate_variance")] = mean, variance
        progress = min(1.0, optimizer.steps / self.total_steps)
        c = self.start + (self.end - self.start) * progress
        return square >= mean + c * math.sqrt(variance)


def _check_share(name: str, value: Any) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}={value} is not within 0 and 1")


_BY_NAME: dict[str, Any] = {
    "every": Every,
    "bernoulli": Bernoulli,
    "tail": Tail,
    "large_gradient": LargeGradient,
}
