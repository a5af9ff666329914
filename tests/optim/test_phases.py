"""A step goes through named phases by legal moves, and no optimizer is more than three classes deep."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from drivers import ALL, make
from torch import Tensor

from optland.optim import MSAM, SAM, TwoPass
from optland.optim.curvature_penalties import CRSAM
from optland.optim.flight import MOVES, Phase
from optland.optim.method import Gradients, Method
from optland.optim.registry import METHODS, SOLVERS, WRAPPERS


def phases_of(optimizer: Any, w: Tensor) -> list[str]:
    """Where a step of the phase form is after each of its calls."""
    seen = [optimizer._flight.phase.value]

    def at(_: Any = None) -> None:
        seen.append(optimizer._flight.phase.value)

    optimizer.zero_grad()
    for _ in optimizer.passes():
        (0.5 * w.square().sum()).backward()
        at()
    optimizer.restore()
    at()
    optimizer.step()
    at()
    return seen


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        (SAM, {}, ["idle", "idle", "perturbed", "ready", "idle"]),
        (SAM, {"gate": lambda _: False}, ["idle", "idle", "ready", "idle"]),
        (CRSAM, {}, ["idle", "idle", "perturbed", "crossed", "ready", "idle"]),
        (MSAM, {}, ["idle", "perturbed", "ready", "idle"]),
        (MSAM, {"gate": lambda _: False}, ["idle", "waiting", "ready", "idle"]),
    ],
)
def test_a_step_goes_through_its_phases(method: Any, options: dict[str, Any], expected: list[str]) -> None:
    w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = method(torch.optim.SGD([w], lr=0.1, momentum=0.9), **options)
    assert phases_of(optimizer, w) == expected


def test_other_moves_are_refused() -> None:
    w = torch.nn.Parameter(torch.tensor([3.0]))
    flight = SAM(torch.optim.SGD([w], lr=0.1))._flight
    for here, there in product(Phase, Phase):
        flight.phase = here
        if here is there or there in MOVES[here]:
            flight.to(there)
            assert flight.phase is there
        else:
            with pytest.raises(
                RuntimeError, match=f"a step that is {here.value} cannot become {there.value}"
            ):
                flight.to(there)
            assert flight.phase is here
    assert all(Phase.IDLE in MOVES[phase] for phase in Phase if phase is not Phase.IDLE)


@pytest.mark.parametrize("cls", [*METHODS.values(), *WRAPPERS.values(), *SOLVERS.values()])
def test_three_classes_of_ours_at_most_are_above_torch_s(cls: type) -> None:
    ours = [c.__name__ for c in cls.__mro__ if c.__module__.startswith("optland.")]
    assert len(ours) <= 3, ours


@pytest.mark.parametrize("name", ALL)
def test_a_method_knows_no_optimizer(name: str, make_network: Any) -> None:
    method = make(name, make_network()).method
    known = [value for value in vars(method).values() if isinstance(value, torch.optim.Optimizer)]
    assert isinstance(method, Method)
    assert not known


class Flat(Method):
    """Pure choices from outside: climb along the sign of g, and hand over the mean of both gradients."""

    def direction(self, at: Gradients) -> list[Tensor]:
        return [g.sign() for g in at.g]

    def combine(self, at: Gradients) -> list[Tensor]:
        return [(g + h) / 2 for g, h in zip(at.g, at.h, strict=True)]


def test_a_method_of_the_user_s_is_an_argument() -> None:
    """On w^2 / 2 at (3, -4) with rho = sqrt(2): eps = (1, -1), so the base receives w + eps / 2."""
    w = torch.nn.Parameter(torch.tensor([3.0, -4.0], dtype=torch.float64))
    optimizer = TwoPass(torch.optim.SGD([w], lr=0.1), Flat(rho=2.0**0.5))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * w.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(w.detach(), torch.tensor([3.0 - 0.35, -4.0 + 0.45], dtype=torch.float64))
