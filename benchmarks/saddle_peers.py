"""Saddle-leaving solvers of other packages, where they are installed: torchzero, pytorch-minimize, psd-optimizer."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import signal
import warnings
from collections.abc import Callable
from typing import Any

import torch
from step_loop import Closure
from torch import Tensor, nn

__all__ = ["PEER_SOLVERS", "versions"]

Function = Callable[[Tensor], Tensor]
SECONDS = 8


class _Stop(Exception):
    """The budget of calls, or of seconds, is spent."""


class _Counted:
    """A function that counts its calls, notes the first value below a bound, and stops at its budget."""

    def __init__(self, f: Function, budget: int, below: float) -> None:
        self.f, self.budget, self.below = f, budget, below
        self.calls = 0
        self.escaped_at: int | None = None

    def __call__(self, w: Tensor) -> Tensor:
        if self.calls >= self.budget:
            raise _Stop(f"{self.budget} calls")
        self.calls += 1
        value = self.f(w)
        if self.escaped_at is None and float(value.detach()) < self.below:
            self.escaped_at = self.calls
        return value


def _measured(solve: Callable[[_Counted, nn.Parameter], str]) -> Callable[..., dict[str, Any]]:
    def run(f: Function, start: Tensor, budget: int, below: float) -> dict[str, Any]:
        torch.manual_seed(0)
        counted, w = _Counted(f, budget, below), nn.Parameter(start.clone())
        said = error = ""

        def late(*_: Any) -> None:
            raise _Stop(f"{SECONDS} s")

        before = signal.signal(signal.SIGALRM, late)
        signal.alarm(SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                said = solve(counted, w)
        except _Stop as stopped:
            error = f"stopped at {stopped}"
        except Exception as broken:  # a peer may raise anything, and that is a result
            error = f"{type(broken).__name__}: {broken}"[:120]
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        end = float(f(w.detach()))
        return {"escaped": end < below, "calls": counted.escaped_at, "finite": end == end, "error": error,
                "false": said == "success" and not end < below}  # fmt: skip

    return run


def _torchzero(name: str) -> Callable[..., dict[str, Any]]:
    def solve(f: _Counted, w: nn.Parameter) -> str:
        import torchzero as tz

        modules = {
            "Newton |H|": lambda: [tz.m.Newton(eigval_fn=lambda values: values.abs()), tz.m.Backtracking()],
            "NewtonCG": lambda: [tz.m.NewtonCG(), tz.m.Backtracking()],
            "NewtonCGSteihaug": lambda: [tz.m.NewtonCGSteihaug()],
            "CubicRegularization": lambda: [tz.m.CubicRegularization(tz.m.Newton())],
            "TrustCG": lambda: [tz.m.TrustCG(tz.m.Newton())],
        }[name]()
        optimizer = tz.Optimizer([w], *modules)

        def closure(backward: bool = True) -> Tensor:
            loss = f(w)
            if backward:
                optimizer.zero_grad()
                loss.backward()
            return loss

        for _ in range(200):
            optimizer.step(closure)
        return "done"

    return _measured(solve)


def _minimize(method: str) -> Callable[..., dict[str, Any]]:
    def solve(f: _Counted, w: nn.Parameter) -> str:
        import torchmin

        found = torchmin.minimize(f, w.detach().clone(), method=method, max_iter=200)
        w.data.copy_(found.x)
        return "success" if bool(found.success) else "failure"

    return _measured(solve)


def _psd(f: _Counted, w: nn.Parameter) -> str:
    from psd_optimizer.optimizer import PSDOptimizer

    optimizer = PSDOptimizer([w], lr=0.1, T=50)
    closure = Closure(optimizer, lambda: f(w))
    for _ in range(200):
        optimizer.step(closure)
    return "done"


_ALL: dict[str, tuple[str, Callable[..., dict[str, Any]]]] = {
    **{f"torchzero {n}": ("torchzero", _torchzero(n))
       for n in ("Newton |H|", "NewtonCG", "NewtonCGSteihaug", "CubicRegularization", "TrustCG")},
    **{f"pytorch-minimize {n}": ("torchmin", _minimize(n))
       for n in ("newton-cg", "newton-exact", "trust-ncg", "trust-krylov", "trust-exact")},
    "psd-optimizer": ("psd_optimizer", _measured(_psd)),
}  # fmt: skip

PEER_SOLVERS = {name: run for name, (module, run) in _ALL.items() if importlib.util.find_spec(module)}


def versions() -> dict[str, str | None]:
    """Of the packages; None for one that is not installed."""
    found: dict[str, str | None] = {}
    for name in ("torchzero", "pytorch-minimize", "psd-optimizer"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
