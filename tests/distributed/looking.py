"""Measurements in two processes: those of one process that has the batches of both, or a refusal in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import SAMPLES, SHARDS, mine, problem, sharded, whole

from optland import Objective, critical_step, ggn, hessian, lanczos, trace, vectors
from optland.curvature import gradient_noise
from optland.curvature.noise.noise_scale import noise_scale

PARTS = 3


def mean(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def counted(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Rank 0 has fewer targets than rank 1, so that a mean of means would be another number."""
    y = batch[1]
    return nn.functional.cross_entropy(model(batch[0]), y, reduction="sum"), (y >= 0).sum()


def data(loss_fn: Any) -> tuple[nn.Module, Tensor, Tensor]:
    net, x, y = problem()
    if loss_fn is counted:
        y[[0, 3]] = -100
    return net, x, y


def measured(L: Objective, method: str, rtol: float) -> dict[str, float]:
    """All that is compared."""
    with hessian(L, method=method) as H:
        spectrum = lanczos(H, k=1, ends="both", rtol=rtol)
    with hessian(L, method=method) as H:
        sum_of_all = trace(H, seed=3)
    step = critical_step(L, [-g for g in L.gradient()], rtol=1e-3, max_forwards=12)
    noise = gradient_noise(L, num_parts=PARTS)
    found = {
        "loss": L.value(), "gradient": float(vectors.norm(L.gradient())), "top": spectrum.top.value,
        "bottom": spectrum.bottom.value, "trace": sum_of_all.value, "its error": sum_of_all.error,
        "critical step": step.step.value, "noise": noise.trace_cov.value, "signal": noise.grad_sq.value,
    }  # fmt: skip
    assert spectrum.top.converged, spectrum
    if method != "finite_difference":
        both = noise_scale(L, num_parts=PARTS, method=method)
        found["noise curvature"] = both.noise_curvature.value
    costs: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(costs, (L.cost_ge, sum_of_all.cost_ge, noise.cost_ge))
    assert costs[0] == costs[1], costs
    return found


def dense(loss_fn: Any) -> Tensor:
    """Eigenvalues of the Hessian of all data, by torch alone."""
    net, x, y = data(loss_fn)
    named = dict(net.named_parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in named.values()])

    def loss(w: Tensor) -> Tensor:
        pieces = w.split([p.numel() for p in named.values()])
        weights = {n: t.view(p.shape) for (n, p), t in zip(named.items(), pieces, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(net, weights, (x,)), y)

    return torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))


def looking(folder: Path) -> None:
    """DistributedDataParallel by each way to multiply, and FSDP2 by differences."""
    for loss_fn in (mean, counted):
        exact = dense(loss_fn)
        net, x, y = data(loss_fn)
        half = SAMPLES // 2
        joined = Objective(net, loss_fn, [(x[:half], y[:half]), (x[half:], y[half:])])
        model, here = DistributedDataParallel(data(loss_fn)[0]), [(x[mine()], y[mine()])]
        for method in ("auto", "double_backward", "forward_over_reverse"):
            L = Objective(model, loss_fn, here)
            before = [p.detach().clone() for p in model.parameters()]
            found, expected = measured(L, method, 1e-9), measured(joined, method, 1e-9)
            for key, value in expected.items():
                what = f"{loss_fn.__name__} {method} {key}: {found[key]} {value}"
                assert abs(found[key] - value) <= 1e-8 * max(1.0, abs(value)), what
            assert abs(found["top"] - float(exact[-1])) < 1e-8
            assert abs(found["bottom"] - float(exact[0])) < 1e-8
            assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
            assert all(p.grad is None for p in model.parameters())
        assert (L.num_samples, L.provenance("").data) == (SAMPLES, "probe set of 2 processes")
        alone = Objective(model.module, loss_fn, here)
        assert (alone.num_samples, alone.provenance("").data) == (half, "probe set")
        if SHARDS:
            sharded_too(loss_fn, here, measured(joined, "finite_difference", 1e-3), exact)


def sharded_too(loss_fn: Any, here: list[Any], expected: dict[str, float], exact: Tensor) -> None:
    """Its parts of a batch hold samples of all ranks, so that noise is of other parts."""
    model = sharded(data(loss_fn)[0])
    before = [whole(p).clone() for p in model.parameters()]
    found = measured(Objective(model, loss_fn, here), "finite_difference", 1e-3)
    for key in ("loss", "gradient", "critical step", "top", "bottom", "trace"):
        what = f"FSDP2 {loss_fn.__name__} {key}: {found[key]} {expected[key]}"
        assert abs(found[key] - expected[key]) <= 1e-6 * max(1.0, abs(expected[key])), what
    assert abs(found["top"] - float(exact[-1])) < 1e-3 * float(exact[-1])
    square = sum(float(whole(g).square().sum()) for g in Objective(model, loss_fn, here).gradient())
    parted = gradient_noise(Objective(model, loss_fn, here), num_parts=PARTS)
    # |g|^2 of all samples is unbiased signal and noise, whatever the parts are.
    assert abs(parted.grad_sq.value + parted.trace_cov.value / SAMPLES - square) < 1e-9
    assert all(torch.equal(whole(p), q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(RuntimeError, match="use method='finite_difference'"):
        hessian(Objective(model, loss_fn, here), method="double_backward").matvec(
            [torch.ones_like(p) for p in model.parameters()]
        )


def looking_refused(folder: Path) -> None:
    """What would be wrong, or wait for ever, is an error on all ranks."""
    net, x, y = problem()
    model, here = DistributedDataParallel(net), [(x[mine()], y[mine()])]

    def fails_on_one(m: nn.Module, batch: Any) -> Tensor:
        if dist.get_rank() == 1:
            raise KeyError("labels")
        return mean(m, batch)

    L = Objective(model, fails_on_one, here)
    for look in (L.value, L.gradient, lambda: hessian(L).matvec([torch.ones_like(p) for p in L.params])):
        with pytest.raises(RuntimeError, match=r"labels.*on rank 1 of 2"):
            look()
    with pytest.raises(ValueError, match="those of 2 processes are not here"):
        lanczos(ggn(Objective(model, mean, here)), k=1)
    with pytest.raises(ValueError, match="pass that wrapper itself"):
        Objective(nn.Sequential(model), mean, here)
    with pytest.raises(RuntimeError, match=r"no samples.*on rank 1 of 2"):
        Objective(model, mean, here if dist.get_rank() == 0 else [])
    if SHARDS:
        with pytest.raises(ValueError, match="give each the same number"):
            Objective(sharded(problem()[0]), mean, here * (1 + dist.get_rank()))


CHECKS = {f.__name__: f for f in (looking, looking_refused)}
