"""Measure what has a closed form, on a device: each check gives its deviation and the largest that passes.

The problems are of :mod:`optland.problems`, in float64, so that a deviation is a fault of the machine, of PyTorch or of
the package, and not rounding. Estimates are held to four of their own standard errors.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.curvature import critical_step, ggn, hessian, lanczos, trace
from optland.landscape import average_sharpness, sam_sharpness
from optland.objective import Objective
from optland.optim import SAM
from optland.optim.saddle import NegativeCurvature
from optland.pilot import Pilot
from optland.problems import linear_regression, quadratic, with_spectrum
from optland.problems.networks import linear_regression_hessian

__all__ = ["CLOSED_FORMS", "Measurement"]

Measurement = tuple[float, float]
"""The deviation, and the largest that passes."""

EIGENVALUES = (9.0, 4.0, 2.5, 1.5, 1.0, 0.5, 0.2, 0.1, -0.5, -2.0)


def _quadratic(device: str) -> tuple[Objective, Tensor, Tensor]:
    A = with_spectrum(EIGENVALUES).to(device)
    w = torch.linspace(-1.0, 1.0, len(A), dtype=A.dtype, device=device)
    return quadratic(A, w), A, w


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def gradient(device: str) -> Measurement:
    """The gradient of w'Aw / 2 is Aw."""
    L, A, w = _quadratic(device)
    return _relative(L.gradient()[0], A @ w), 1e-12


def products(device: str) -> Measurement:
    """Hessian products of a quadratic are Av."""
    L, A, w = _quadratic(device)
    with hessian(L) as H:
        return _relative(H.matvec([w.flip(0)])[0], A @ w.flip(0)), 1e-12


def gauss_newton(device: str) -> Measurement:
    """The Gauss-Newton matrix of linear regression is its Hessian 2 X'X / n."""
    generator = torch.Generator().manual_seed(0)
    X, Y = (torch.randn(12, k, generator=generator, dtype=torch.float64) for k in (5, 1))
    L = linear_regression(X.to(device), Y.to(device))
    exact = linear_regression_hessian(X, 1).to(device)
    v = torch.arange(1.0, 6.0, dtype=torch.float64, device=device)
    with ggn(L) as G:
        found = G.matvec([v.reshape(L.params[0].shape)])[0].flatten()
    return _relative(found, exact @ v), 1e-12


def extremes(device: str) -> Measurement:
    """The largest and the smallest eigenvalue are 9 and -2."""
    with hessian(_quadratic(device)[0]) as H:
        found = lanczos(H, ends="both", rtol=1e-10, max_matvecs=40)
    off = abs(found.top.value - EIGENVALUES[0]), abs(found.bottom.value - EIGENVALUES[-1])
    return max(off), 1e-6


def whole_trace(device: str) -> Measurement:
    """The estimated trace is the sum of the eigenvalues, within four standard errors."""
    with hessian(_quadratic(device)[0]) as H:
        found = trace(H, method="hutchinson", max_matvecs=200)
    return abs(found.value - sum(EIGENVALUES)), 4 * found.error + 1e-9


def longest_step(device: str) -> Measurement:
    """Down the gradient a quadratic is lower up to 2 g'g / g'Ag."""
    A = with_spectrum([abs(x) for x in EIGENVALUES]).to(device)
    L = quadratic(A)
    g = L.gradient()[0]
    exact = float(2 * g @ g / (g @ A @ g))
    found = critical_step(L, [-g], rtol=1e-3, max_forwards=40)
    return abs(found.step.value / exact - 1.0), 2e-3


def sharpness(device: str) -> Measurement:
    """The mean rise under noise of deviation r is r^2 tr(A) / 2, within four standard errors."""
    found = average_sharpness(_quadratic(device)[0], 0.1, num_pairs=100).rise
    return abs(found.value - 0.005 * sum(EIGENVALUES)), 4 * found.error + 1e-12


def sam_rise(device: str) -> Measurement:
    """SAM's rise on a quadratic is rho |g| + rho^2 g'Ag / 2 g'g."""
    L, A, w = _quadratic(device)
    g = A @ w
    exact = 0.1 * float(g.norm()) + 0.005 * float(g @ A @ g / (g @ g))
    return abs(sam_sharpness(L, 0.1).rise.value / exact - 1.0), 1e-9


def leaves_a_saddle(device: str) -> Measurement:
    """From the exact saddle of x^2 - y^2 + y^4, where the gradient is 0, it ends in a minimum of loss -1/4."""
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64, device=device))
    optimizer = NegativeCurvature(torch.optim.SGD([w], lr=0.1))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = w[0] ** 2 - w[1] ** 2 + w[1] ** 4
        loss.backward()
        return loss

    for _ in range(100):
        optimizer.step(closure)
    return abs(closure().item() + 0.25), 1e-6


def looking_changes_nothing(device: str) -> Measurement:
    """Ten steps of SAM watched by a pilot are those of ten without, bit for bit; figure: entries that differ."""
    ends = [_trained(device, watched) for watched in (False, True)]
    return float(sum(int((a != b).sum()) for a, b in zip(*ends, strict=True))), 0.0


def _trained(device: str, watched: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 6, generator=generator).to(device)
    y = torch.randint(3, (32,), generator=generator).to(device)
    sizes = (6, 8, 3)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in pairwise(sizes))).to(device)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_((0.5 * torch.randn(p.shape, generator=generator)).to(device))
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.05, model=model)
    pilot = Pilot(optimizer, model, _loss, mode="monitor", total_steps=10) if watched else None
    for _ in range(10):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = _loss(model, (x, y))
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        if pilot is not None:
            pilot.after_step((x, y), loss)
    if pilot is not None:
        pilot.close()
    return [p.detach() for p in model.parameters()]


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


CLOSED_FORMS: dict[str, Callable[[str], Measurement]] = {
    check.__name__.replace("_", "-"): check
    for check in (
        gradient, products, gauss_newton, extremes, whole_trace, longest_step, sharpness, sam_rise, leaves_a_saddle,
        looking_changes_nothing,
    )
}  # fmt: skip
"""The checks by name; each takes a device, and the first lines of its docstring are shown beside its figure."""
