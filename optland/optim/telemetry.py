r"""Curvature and angles that a two-pass step measures without an extra gradient.

With g the gradient at w, h the gradient at w + eps, and eps the perturbation as the weights' precision
realised it:

.. math:: \lambda = \frac{\epsilon^T (h - g)}{\|\epsilon\|^2}, \qquad
          \cos = \frac{g^T h}{\|g\| \|h\|}, \qquad
          \text{stability} = \eta \lambda (1 + \|\epsilon\| \lambda / \|g\|)

They need reductions over all weights, and are taken once in ``telemetry_every`` updates; until the next time the last
values stay, with their age in updates under ``probe/age_sam``. The loss at both places, the norm of g and whether the
step was skipped are known in every step.

On a quadratic the first is the Rayleigh quotient of the Hessian along eps, exactly. The last is the SAM
stability ratio of gradient descent: above 2 the step overshoots along the ascent direction (Agarwala &
Dauphin 2023, arXiv:2302.08692).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Telemetry", "largest"]

Scalar = Tensor | float


class Telemetry:
    """Scalars of the last step, kept on their device until :meth:`read`.

    Example:
        >>> telemetry = Telemetry()
        >>> telemetry.note(loss=1.0, loss_up=1.5, g_norm=torch.tensor(2.0))
        >>> telemetry.read()
        {'sam/loss_gap': 0.5, 'update/grad_norm': 2.0}
    """

    def __init__(self) -> None:
        self._raw: dict[str, Scalar] = {}
        self._kept: dict[str, Scalar] = {}  # all of the last step with a measurement
        self._age = 0
        self.period: int | None = None
        """The ``telemetry_every`` updates that the last measurement belongs to."""

    def clear(self) -> None:
        """A new step begins: what is measured once in a while stays, and grows older."""
        self._raw = {}
        self._age += 1

    @property
    def has_measurement(self) -> bool:
        """Whether this step was measured."""
        return "eps_norm_realised" in self._raw

    def keep(self, period: int) -> None:
        """Remember this step's measurement until there is another."""
        self._kept, self._age, self.period = dict(self._raw), 0, period

    def state_dict(self) -> dict[str, Any]:
        """The last measurement, as plain numbers: a resumed run's log goes on with it.

        Returns:
            The numbers by name, their age in updates, and the period of the measurements.
        """
        return {"kept": _to_host(self._kept), "age": self._age, "period": self.period}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self._kept, self._age, self.period = dict(state["kept"]), state["age"], state["period"]

    def note(self, **scalars: Scalar) -> None:
        """Keep scalars under their raw names; a 0-d tensor stays on its device, without its graph."""
        for name, value in scalars.items():
            self._raw[name] = value.detach() if isinstance(value, Tensor) else float(value)

    def read(self) -> dict[str, float]:
        """The metrics of the last step; this is the one place that waits for the device.

        Returns:
            What is known and finite of: ``sam/loss_gap`` L(w + eps) - L(w), closure form only;
            ``sam/curvature`` and ``sam/cos`` (module docstring); ``sam/rho`` the norm of the perturbation
            that was asked for and ``sam/rho_realised`` of the one that the weights' precision let through;
            ``update/grad_norm`` ||g||, ``sam/grad_norm`` ||h||; ``sam/stability``, with SGD as the base
            (elsewhere the learning rate is not in the units of the curvature); ``sam/skipped`` 1 when the
            step was left out because a gradient was not finite; ``probe/age_sam``, updates since curvature and
            angle were measured. What does not apply is absent.
        """
        now = _derived(self._raw, _METRICS)
        if not self._kept:
            return now
        last = _derived(self._kept, _MEASURED)
        known = last | now
        return {key: known[key] for key in _METRICS if key in known} | {"probe/age_sam": float(self._age)}


def _derived(scalars: dict[str, Scalar], keys: Iterable[str]) -> dict[str, float]:
    raw = _to_host(scalars)
    metrics: dict[str, float] = {}
    for key in keys:
        try:
            value = _METRICS[key](raw)
        except (KeyError, ZeroDivisionError, OverflowError):
            continue  # not measured, or not defined for this step (a zero perturbation)
        if math.isfinite(value):
            metrics[key] = value
    return metrics


def largest(values: list[Scalar]) -> Scalar:
    """The largest value, without waiting for the device when there are tensors among them.

    Args:
        values: At least one.

    Example:
        >>> largest([1.0, 3.0]), largest([1.0, torch.tensor(3.0)])
        (3.0, tensor(3.))
    """
    if len(values) == 1 and not isinstance(values[0], Tensor):
        return values[0]
    if any(isinstance(value, Tensor) for value in values):
        return torch.stack([torch.as_tensor(value).detach() for value in values]).max()
    return max(values)


def _to_host(raw: dict[str, Scalar]) -> dict[str, float]:
    """All scalars as floats, with a single transfer."""
    tensors = {name: value for name, value in raw.items() if isinstance(value, Tensor)}
    host = {name: value for name, value in raw.items() if not isinstance(value, Tensor)}
    if tensors:
        device = next(iter(tensors.values())).device
        stacked = torch.stack([t.to(device, torch.float64).reshape(()) for t in tensors.values()])
        host.update(zip(tensors, stacked.tolist(), strict=True))
    return host


def _curvature(r: dict[str, float]) -> float:
    return r["eps_change"] / (r.get("loss_scale", 1.0) * r["eps_norm_realised"] ** 2)


def _grad_norm(r: dict[str, float]) -> float:
    return r["g_norm"] / r.get("loss_scale", 1.0)


def _stability(r: dict[str, float]) -> float:
    lam = _curvature(r)
    return r["lr"] * lam * (1.0 + r["eps_norm"] * lam / _grad_norm(r))


_METRICS: dict[str, Callable[[dict[str, float]], float]] = {
    "sam/loss_gap": lambda r: (r["loss_up"] - r["loss"]) / r.get("share", 1.0),
    "sam/curvature": _curvature,
    "sam/cos": lambda r: r["g_dot_h"] / (r["g_norm"] * r["h_norm"]),
    "sam/rho": lambda r: r["eps_norm"],
    "sam/rho_realised": lambda r: r["eps_norm_realised"],
    "update/grad_norm": _grad_norm,
    "sam/grad_norm": lambda r: r["h_norm"] / r.get("loss_scale", 1.0),
    "sam/stability": _stability,
    "sam/skipped": lambda r: r["skipped"],
}

_MEASURED = ("sam/curvature", "sam/cos", "sam/rho", "sam/rho_realised", "sam/grad_norm", "sam/stability")
"""What is measured once in a while."""
