"""On a GPU: the same numbers as on the CPU, mixed precision with a scaler, and probes that leave no trace."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.curvature import hessian, lanczos, trace
from optland.landscape import connect, line, random_direction, worst_sharpness
from optland.objective import Objective
from optland.optim import ASAM, SAM, LookSAM
from optland.optim.saddle import CubicNewton, NegativeCurvature, PerturbedGradient, SaddleFreeNewton
from optland.pilot import Pilot
from optland.train import BatchLoader

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 16), nn.Tanh(),
        nn.Linear(16, 4),
    ).to(dtype)  # fmt: skip


def one_step(optimizer: Any, model: nn.Module, loss_fn: Any, batch: Any) -> Tensor:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = loss_fn(model, batch)
        loss.backward()
        return loss

    found: Tensor = optimizer.step(closure)
    return found


def cross_entropy(m: nn.Module, b: Any) -> Tensor:
    return F.cross_entropy(m(b[0]), b[1])


def data(dtype: torch.dtype = torch.float64, n: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 1, 8, 8, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(0, 4, (n,), generator=generator)


def on(device: str, dtype: torch.dtype = torch.float64, mode: Any = "eval") -> Objective:
    x, y = data(dtype)
    model = net(dtype).to(device)
    batches = [(x[i : i + 32].to(device), y[i : i + 32].to(device)) for i in (0, 32)]
    return Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), batches, mode=mode)


@pytest.mark.parametrize("method", [SAM, ASAM, LookSAM])
def test_steps_are_those_of_the_cpu(method: Any) -> None:
    ends = []
    for device in ("cpu", "cuda"):
        model = net().to(device)
        x, y = (t.to(device) for t in data())
        optimizer = method(torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), rho=0.1, model=model)
        for _ in range(10):
            one_step(optimizer, model, cross_entropy, (x, y))
        ends.append(torch.cat([p.detach().flatten().cpu() for p in model.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-10)


def test_half_precision_with_a_scaler_follows_single_precision() -> None:
    """fp16 autocast, the phase form with GradScaler: the loss falls as in fp32, and the radius is the true one."""
    losses = {}
    for half in (False, True):
        model = net(torch.float32).cuda()
        x, y = (t.cuda() for t in data(torch.float32))
        optimizer = SAM(torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), rho=0.05, model=model)
        scaler = torch.amp.GradScaler("cuda", enabled=half)
        for _ in range(40):
            optimizer.zero_grad()
            for _ in optimizer.passes(loss_scale=scaler.get_scale() if half else None):
                with torch.autocast("cuda", torch.float16, enabled=half):
                    loss = cross_entropy(model, (x, y))
                scaler.scale(loss).backward()
            optimizer.restore()
            scaler.step(optimizer)
            scaler.update()
        losses[half] = float(loss.detach())
        assert optimizer.telemetry.read()["sam/rho_realised"] == pytest.approx(0.05, rel=1e-3)
    assert losses[True] == pytest.approx(losses[False], rel=0.1)


def test_curvature_is_that_of_the_cpu() -> None:
    found = {}
    for device in ("cpu", "cuda"):
        with hessian(on(device)) as H:
            spectrum = lanczos(H, ends="both", rtol=1e-6)
            found[device] = (spectrum.top.value, spectrum.bottom.value)
    assert found["cuda"] == pytest.approx(found["cpu"], rel=1e-5)
    with hessian(on("cuda")) as H:
        estimate = trace(H)
    assert math.isfinite(estimate.total.value if hasattr(estimate, "total") else estimate.value)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_slices_and_sharpness_are_those_of_the_cpu(mode: Any) -> None:
    values = {}
    for device in ("cpu", "cuda"):
        L = on(device, mode=mode)
        found = line(L, random_direction(L, seed=3), num_points=5)
        values[device] = [
            *found.loss.tolist(),
            found.curvature[0],
            worst_sharpness(L, 0.05, num_steps=5).rise.value,
        ]
    assert values["cuda"] == pytest.approx(values["cpu"], rel=1e-6, abs=1e-9)


def test_curves_are_trained() -> None:
    L = on("cuda")
    other = [p.detach() + 0.2 * torch.randn_like(p) for p in L.params]
    found = connect(L, other, num_steps=20, num_points=11)
    assert found.curve is not None
    assert found.curve.recalibrated


@pytest.mark.parametrize("make", [
    lambda p: NegativeCurvature(torch.optim.SGD(p, 0.1)),
    lambda p: PerturbedGradient(torch.optim.SGD(p, 0.1)),
    lambda p: SaddleFreeNewton(p),
    lambda p: CubicNewton(p),
])  # fmt: skip
def test_saddles_are_left(make: Any) -> None:
    w = nn.Parameter(torch.zeros(50, dtype=torch.float64, device="cuda"))
    optimizer = make([w])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * (w[1:] ** 2).sum() - w[0] ** 2 / 2 + w[0] ** 4 / 4
        loss.backward()
        return loss

    for _ in range(150):
        optimizer.step(closure)
    assert closure().item() == pytest.approx(-0.25, abs=0.01)


def test_a_watched_run_is_bit_for_bit_the_unwatched_one_and_control_learns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Without this two unwatched runs differ: cuDNN adds in any order.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    ends = {}
    for mode in ("off", "monitor", "control"):
        torch.manual_seed(0)
        model = net(torch.float32).cuda()
        x, _ = data(torch.float32, 256)
        y = (x.flatten(1) @ torch.randn(64, 4, generator=torch.Generator().manual_seed(2))).argmax(1)
        loader = BatchLoader([x.cuda(), y.cuda()], 32, epochs=6, seed=0)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)

        total: Any = {"mode": mode, "total_samples": loader.total_samples}
        pilot = Pilot(optimizer, model, cross_entropy, **total)
        for batch in pilot.batches(loader):
            loss = one_step(optimizer, model, cross_entropy, batch)
            pilot.after_step(batch, loss)
        ends[mode] = (copy.deepcopy(model.state_dict()), float(loss.detach()))
    off, monitor = ends["off"][0], ends["monitor"][0]
    assert all(torch.equal(off[k], monitor[k]) for k in off)
    assert ends["control"][1] < 1.0
