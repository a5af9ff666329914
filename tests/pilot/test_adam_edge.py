"""The edge in Adam's metric: against the dense eigenvalue with Adam's own preconditioner written out, in float64."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pilot.runs import Recorder
from torch import Tensor, nn
from torch.nn import functional as F

from optland.curvature import SpectrumTracker
from optland.optim import SAM
from optland.pilot import AutoLR, EdgeMonitor, Pilot
from optland.pilot.probes import AdamEdgeProbe

torch.manual_seed(0)
X = torch.randn(64, 5, dtype=torch.float64)
Y = (X @ torch.randn(5, 3, dtype=torch.float64)).argmax(1)


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def literal(model: nn.Module, optimizer: torch.optim.Optimizer, factor: float, batch: Any) -> float:
    """lambda_max of S H S with s_i^2 = lr_i (1 - beta1) / ((2 - lr_i wd) (1 + beta1) P_i), dense."""
    named = dict(model.named_parameters())

    def of_flat(w: Tensor) -> Tensor:
        pieces = w.split([p.numel() for p in named.values()])
        weights = {n: x.view(p.shape) for (n, p), x in zip(named.items(), pieces, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, weights, (batch[0],)), batch[1])

    H = torch.autograd.functional.hessian(of_flat, torch.cat([p.detach().flatten() for p in named.values()]))
    scales = []
    for p in named.values():
        group = next(g for g in optimizer.param_groups if any(q is p for q in g["params"]))
        state, (b1, b2) = optimizer.state[p], group["betas"]
        t, lr = float(state["step"]), group["lr"] * factor
        P = (1 - b1**t) * ((state["exp_avg_sq"] / (1 - b2**t)).sqrt() + group["eps"])
        decay = group["weight_decay"] if isinstance(optimizer, torch.optim.AdamW) else 0.0
        scales.append((lr * (1 - b1) / ((2 - lr * decay) * (1 + b1) * P)).sqrt().flatten())
    s = torch.cat(scales)
    return torch.linalg.eigvalsh(s[:, None] * H * s).max().item()


def by_group(model: nn.Module) -> torch.optim.Optimizer:
    first, last = list(model[0].parameters()), list(model[2].parameters())
    groups = [{"params": last, "lr": 0.004}, {"params": first, "betas": (0.8, 0.99)}]
    return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.3)


MAKE: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, weight_decay=0.1),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, betas=(0.95, 0.99)),
    "groups": by_group,
}


class Run:
    """A loop whose every look is held against the literal ratio."""

    def __init__(
        self, make: Callable[[nn.Module], torch.optim.Optimizer], sam: bool = False, **pilot: Any
    ) -> None:
        self.model = net()
        self.base = make(self.model)
        self.optimizer: Any = SAM(self.base, rho=0.05, model=self.model) if sam else self.base
        self.log = Recorder()
        self.pilot = Pilot(
            self.optimizer,
            self.model,
            loss_fn,
            budget=1.0,
            total_steps=200,
            log=self.log,
            log_every=1,
            **pilot,
        )
        self.looks: list[tuple[float, float, float]] = []

    def to(self, steps: int) -> Run:
        while self.pilot.step < steps:
            k = self.pilot.step % 2
            batch = X[k::2], Y[k::2]

            def closure(batch: Any = batch) -> Tensor:
                self.optimizer.zero_grad()
                loss = loss_fn(self.model, batch)
                loss.backward()
                return loss

            self.pilot.after_step(batch, self.optimizer.step(closure))
            row = self.log.rows[-1]
            if "edge/ratio_precond" in row:
                factor = self.pilot.host.applied / self.pilot.host.rate
                exact = literal(
                    self.model, self.base, factor, (X[::2], Y[::2])
                )  # the first batch is the probe set
                self.looks.append((row["edge/ratio_precond"], row["edge/ratio_precond_error"], exact))
        return self


def exactly(run: Run) -> dict[str, float]:
    """What the probe finds now, where it may take as many products as there are weights."""
    run.pilot.steering.applied()
    (probe,) = [p for p in run.pilot.looks.probes if isinstance(p, AdamEdgeProbe)]
    probe.tracker = SpectrumTracker(ends="top", rtol=1e-10, max_matvecs=80)
    before = [dict(group) for group in run.base.param_groups]
    found = {signal.name: signal.value for signal in probe.measure(run.pilot.host)}
    assert all(g["lr"] == b["lr"] for g, b in zip(run.base.param_groups, before, strict=True))
    return found


@pytest.mark.parametrize("name", MAKE)
def test_it_is_the_dense_eigenvalue_over_the_threshold(name: str) -> None:
    run = Run(MAKE[name], policies=[EdgeMonitor(metric="adam")])
    for steps in (3, 40):
        found = exactly(run.to(steps))
        exact = literal(run.model, run.base, 1.0, (X[::2], Y[::2]))
        assert found["edge/ratio_precond"] == pytest.approx(exact, rel=1e-8)
        alike = name != "groups"
        assert ("curv/lambda_max_precond" in found) is alike
        if alike:
            group = run.base.param_groups[0]
            b1, lr, wd = group["betas"][0], group["lr"], group["weight_decay"]
            edge = (2 - (lr * wd if name == "adamw" else 0.0)) * (1 + b1) / ((1 - b1) * lr)
            assert found["curv/lambda_max_precond"] == pytest.approx(exact * edge, rel=1e-8)


def test_a_look_in_the_loop_is_never_above_the_dense_eigenvalue() -> None:
    """As a value from a Krylov space never is."""
    run = Run(MAKE["groups"], policies=[EdgeMonitor(metric="adam")]).to(100)
    assert len(run.looks) >= 3
    assert all(0 < found <= exact * (1 + 1e-9) for found, _, exact in run.looks)


@pytest.mark.parametrize(("beta1", "edge"), [(0.0, 2.0), (0.9, 38.0)])
def test_the_edge_is_two_over_the_rate_without_momentum_and_38_with(beta1: float, edge: float) -> None:
    run = Run(
        lambda m: torch.optim.Adam(m.parameters(), lr=0.01, betas=(beta1, 0.999)),
        policies=[EdgeMonitor(metric="adam")],
    )
    found = exactly(run.to(5))
    assert found["curv/lambda_max_precond"] == pytest.approx(
        found["edge/ratio_precond"] * edge / 0.01, rel=1e-9
    )


def test_under_auto_lr_it_is_that_of_the_rate_that_was_applied() -> None:
    run = Run(MAKE["adamw"], sam=True, policies=[AutoLR(tau=0.03), EdgeMonitor(metric="adam")]).to(100)
    assert len(run.looks) >= 3
    assert all(0 < found <= exact * (1 + 1e-9) for found, _, exact in run.looks)
    found, factor = exactly(run), run.pilot.host.applied / 0.01
    assert abs(factor - 1) > 0.05
    assert found["edge/ratio_precond"] == pytest.approx(
        literal(run.model, run.base, factor, (X[::2], Y[::2])), rel=1e-8
    )
    assert "edge/ratio_precond_ema" in run.log.rows[-1]
    assert "edge/ratio_ema" not in run.log.rows[-1]
    assert 0 < run.pilot.budget.spent["adam_edge"] <= run.pilot.budget.train_ge


def test_a_resumed_run_looks_as_an_unbroken_one() -> None:
    policies = ["auto_lr", EdgeMonitor(metric="adam")]
    whole = Run(MAKE["adamw"], policies=copy.deepcopy(policies)).to(140)
    first = Run(MAKE["adamw"], policies=copy.deepcopy(policies)).to(70)
    second = Run(MAKE["adamw"], policies=copy.deepcopy(policies))
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.pilot.load_state_dict(copy.deepcopy(first.pilot.state_dict()))
    second.to(140)
    keys = ("edge/ratio_precond", "edge/ratio_precond_ema", "lr/applied")
    expected, found = (
        [[row.get(k) for k in keys] for row in rows[-70:]] for rows in (whole.log.rows, second.log.rows)
    )
    assert found == expected
    assert len(second.looks) >= 1


def test_frozen_layers_are_another_spectrum_and_no_failure() -> None:
    run = Run(MAKE["adamw"], policies=[EdgeMonitor(metric="adam")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.model[0].requires_grad_(False)
        for _ in range(90):
            run.base.zero_grad()
            loss = loss_fn(run.model, (X, Y))
            loss.backward()
            run.base.step()
            run.pilot.after_step((X, Y), loss)
            if run.pilot.step == 40:
                run.model[0].requires_grad_(True)
    looks = [row["edge/ratio_precond"] for row in run.log.rows if "edge/ratio_precond" in row]
    assert len(looks) >= 2
    assert [p.name for p in run.pilot.looks.probes] == ["adam_edge"]


def test_monitor_mode_takes_the_probe_itself() -> None:
    run = Run(MAKE["adamw"], mode="monitor", policies=[], probes=[AdamEdgeProbe()]).to(160)
    assert len(run.looks) >= 1
    assert {p.name for p in run.pilot.looks.probes} == {"edge", "noise", "curvature", "adam_edge"}


def test_without_adam_there_is_nothing_to_read() -> None:
    sgd: Any = lambda m: torch.optim.SGD(m.parameters(), lr=0.1)  # noqa: E731
    run = Run(sgd, mode="monitor", policies=[], probes=[AdamEdgeProbe()]).to(60)
    assert run.pilot.budget.spent.get("adam_edge", 0.0) == 0.0
    with pytest.raises(
        ValueError, match="reads the preconditioner of Adam or AdamW, and the optimizer is neither"
    ):
        Run(sgd, policies=[EdgeMonitor(metric="adam")]).to(1)
    with pytest.raises(ValueError, match="metric 'sgd' is not known; use 'update' or 'adam'"):
        EdgeMonitor(metric="sgd")
