"""What holds exactly for each method, on functions of which everything is known."""

import itertools
import math

import pytest
import torch
from drivers import make, run
from torch import nn

from optland.objective import Objective
from optland.optim import FSAM, GSAM, MSAM, SAM, USAM, WSAM, LookSAM, Tail
from optland.optim.curvature_penalties import CRSAM, StableSAM
from optland.optim.eigen_sam import EigenSAM
from optland.optim.keys import setting
from optland.optim.metrics import FisherSAM, PreconditionedSAM
from optland.optim.rise_budget import LESAM
from optland.optim.smoothed import VaSSO
from optland.optim.sparse import SparseSAM
from optland.optim.wsam import PGN


def sgd(quadratic, **options):
    return torch.optim.SGD(quadratic.groups(), **{"lr": 0.1, **options})


def eps_of(quadratic, optimizer):
    """The perturbation of the next step, as one vector, with the gradient that it is for."""
    optimizer.zero_grad()
    quadratic.loss().backward()
    w = quadratic.w
    with optimizer.perturbed():
        return quadratic.w - w, quadratic.H @ w


def handed(quadratic, optimizer):
    """One step's g, h and the gradient that the base receives, by their formulas on the quadratic."""
    w = quadratic.w
    optimizer.step(quadratic.closure(optimizer))
    out = torch.cat([p.grad.flatten() for p in quadratic.params])
    g = quadratic.H @ w
    h = quadratic.H @ (w + 0.3 * g / g.norm())
    return g, h, out


def same_runs(quadratic, one, two, steps=5, rtol=1e-10):
    """Both optimizers, made by functions of the quadratic, leave the same weights."""
    start, ends = [p.detach().clone() for p in quadratic.params], []
    for build in (one, two):
        with torch.no_grad():
            for p, s in zip(quadratic.params, start, strict=True):
                p.copy_(s)
                p.grad = None
        optimizer = build(quadratic)
        for _ in range(steps):
            optimizer.step(quadratic.closure(optimizer))
        ends.append(quadratic.w)
    torch.testing.assert_close(*ends, rtol=rtol, atol=1e-13)


# The ball ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1.3, 2.0, 4.0, math.inf])
def test_the_p_norm_of_eps_is_rho_and_the_rise_that_of_the_dual_norm(quadratic, p):
    eps, g = eps_of(quadratic, SAM(sgd(quadratic), rho=0.3, p=p))
    q = 1.0 if p == math.inf else p / (p - 1)
    assert torch.linalg.vector_norm(eps, p).item() == pytest.approx(0.3, rel=1e-12)
    assert (g @ eps).item() == pytest.approx(0.3 * torch.linalg.vector_norm(g, q).item(), rel=1e-12)


@pytest.mark.parametrize("scope", ["global", "group", "tensor"])
def test_the_scope_is_what_has_the_length_rho(scope):
    w = [nn.Parameter(torch.full((2,), float(i), dtype=torch.float64)) for i in (1, 2, 3)]
    groups = [{"params": w[:2]}, {"params": w[2:], "rho": 0.8}]
    optimizer = SAM(torch.optim.SGD(groups, lr=0.1), rho=0.3, scope=scope)
    before = [p.detach().clone() for p in w]
    (0.5 * sum(p.square().sum() for p in w)).backward()
    with optimizer.perturbed():
        eps = [p.detach() - b for p, b in zip(w, before, strict=True)]
    lengths = [e.norm().item() for e in eps]
    g = [b.norm().item() for b in before]
    over = {"global": [math.hypot(*g)] * 3, "group": [math.hypot(*g[:2])] * 2 + g[2:], "tensor": g}[scope]
    expected = [rho * x / n for rho, x, n in zip((0.3, 0.3, 0.8), g, over, strict=True)]
    assert lengths == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("p", [1.5, math.inf])
def test_other_norms_in_half_precision(dtype, p):
    w = nn.Parameter(torch.zeros(64, dtype=dtype))
    optimizer = SAM(torch.optim.SGD([w], lr=0.1), rho=1e-2, p=p)
    w.grad = torch.linspace(0.5, 2.0, 64).to(dtype)
    with optimizer.perturbed():
        assert torch.linalg.vector_norm(w.detach().double(), p).item() == pytest.approx(1e-2, rel=2e-2)


def test_balls_that_there_are_not():
    w = nn.Parameter(torch.zeros(2))
    for p in (1.0, 0.5, math.nan):
        with pytest.raises(ValueError, match="no unique steepest direction"):
            SAM(torch.optim.SGD([w], lr=0.1), p=p)
    with pytest.raises(ValueError, match="scope='layer' is not known"):
        SAM(torch.optim.SGD([w], lr=0.1), scope="layer")


# Radius ------------------------------------------------------------------------------------------------


def test_unnormalised_sam_is_a_linear_map_and_stable_where_it_should_be(quadratic):
    w, H, one = quadratic.w, quadratic.H, torch.eye(7, dtype=torch.float64)
    optimizer = USAM(sgd(quadratic), rho=0.4)
    optimizer.step(quadratic.closure(optimizer))
    torch.testing.assert_close(quadratic.w, (one - 0.1 * H @ (one + 0.4 * H)) @ w, rtol=1e-12, atol=1e-14)
    lam, rho = 3.0, 0.5
    for product, stable in ((1.98, True), (2.02, False)):  # eta lam (1 + rho lam)
        x = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = USAM(torch.optim.SGD([x], lr=product / (lam * (1 + rho * lam))), rho=rho)
        for _ in range(200):
            optimizer.zero_grad()
            for _ in optimizer.passes():
                (0.5 * lam * x.square().sum()).backward()
            optimizer.step()
        assert (x.abs().item() < 1.0) == stable
    same_runs(quadratic, lambda q: USAM(sgd(q), rho=0.3, normalised=1.0), lambda q: SAM(sgd(q), rho=0.3))


def test_the_rise_is_sigma_until_the_cap(quadratic):
    g = (quadratic.H @ quadratic.w).norm().item()
    eps, gradient = eps_of(quadratic, LESAM(sgd(quadratic), rho=1.0, sigma=0.2 * g))
    assert (gradient @ eps).item() == pytest.approx(0.2 * g, rel=1e-12)
    eps, gradient = eps_of(quadratic, LESAM(sgd(quadratic), rho=0.1, sigma=0.2 * g))
    assert eps.norm().item() == pytest.approx(0.1, rel=1e-12)


def test_the_radius_of_gsam_follows_the_learning_rate(quadratic):
    optimizer = GSAM(sgd(quadratic, lr=1.0), rho=0.6, rho_min=0.2, lr_max=1.0, lr_min=0.5)
    for lr, radius in ((1.0, 0.6), (0.75, 0.4), (0.5, 0.2), (0.1, 0.2), (3.0, 0.6)):
        for group in optimizer.param_groups:
            group["lr"] = lr
        eps, _ = eps_of(quadratic, optimizer)
        assert eps.norm().item() == pytest.approx(radius, rel=1e-12)
    with pytest.raises(ValueError, match=r"lr_max=0.1 is not above lr_min=0.5"):
        GSAM(sgd(quadratic), lr_max=0.1, lr_min=0.5)
    with pytest.raises(ValueError, match="descend='h'"):
        GSAM(sgd(quadratic), descend="h")


# Metric and direction ------------------------------------------------------------------------------------


def test_fisher_length(quadratic):
    eps, g = eps_of(quadratic, FisherSAM(sgd(quadratic), rho=0.3, eta=2.0))
    F = 1 + 2.0 * g**2
    assert (eps @ (F * eps)).item() == pytest.approx(0.09, rel=1e-12)
    torch.testing.assert_close(eps / eps.norm(), (g / F) / (g / F).norm(), rtol=1e-10, atol=1e-12)
    same_runs(quadratic, lambda q: FisherSAM(sgd(q), rho=0.3, eta=0.0), lambda q: SAM(sgd(q), rho=0.3))


def test_adam_geometry_keeps_the_euclidean_length(quadratic):
    optimizer = PreconditionedSAM(
        torch.optim.Adam(quadratic.groups(), lr=0.1, betas=(0.5, 0.8)), rho=0.3, delta=1e-3
    )
    eps, g = eps_of(quadratic, optimizer)
    torch.testing.assert_close(eps, 0.3 * g / g.norm(), rtol=1e-12, atol=1e-14)  # no second moment yet
    received = []
    for _ in range(2):
        optimizer.step(quadratic.closure(optimizer))
        received.append(torch.cat([p.grad.flatten() for p in quadratic.params]))
    second = (0.2 * 0.8 * received[0] ** 2 + 0.2 * received[1] ** 2) / (1 - 0.8**2)
    eps, g = eps_of(quadratic, optimizer)
    d = g / (second.sqrt() + 1e-3)
    torch.testing.assert_close(eps, 0.3 * d / d.norm(), rtol=1e-12, atol=1e-14)


def test_running_means_at_their_ends_are_sam(quadratic):
    same_runs(quadratic, lambda q: FSAM(sgd(q), rho=0.3, sigma=0.0), lambda q: SAM(sgd(q), rho=0.3))
    same_runs(quadratic, lambda q: VaSSO(sgd(q), rho=0.3, theta=1.0), lambda q: SAM(sgd(q), rho=0.3))


def test_a_constant_gradient_leaves_friendly_sam_nothing_to_climb():
    w = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = FSAM(torch.optim.SGD([w], lr=0.1), rho=0.3, sigma=1.0, telemetry_every=1)
    slope, lengths = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), []
    for _ in range(4):
        optimizer.zero_grad()
        for _ in optimizer.passes():
            (w @ slope).backward()
        optimizer.step()
        lengths.append(optimizer.telemetry.read()["sam/rho"])
    assert lengths == [pytest.approx(0.3), 0.0, 0.0, 0.0]
    torch.testing.assert_close(w.detach(), -0.4 * slope, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
def test_a_mask_keeps_the_largest_coordinates(quadratic, sparsity):
    eps, g = eps_of(quadratic, SparseSAM(sgd(quadratic), rho=0.3, sparsity=sparsity))
    kept = 7 - int(sparsity * 7)
    largest = g.abs().argsort(descending=True)[:kept]
    assert set(eps.nonzero().flatten().tolist()) == set(largest.tolist())
    torch.testing.assert_close(eps[largest], 0.3 * g[largest] / g.norm(), rtol=1e-9, atol=0)


def masks_of(network, optimizer, steps):
    for _ in range(steps):
        run(network, optimizer, 1)
        entries = [optimizer.state[p]["sam_sparse_mask"].flatten() for p in network.model.parameters()]
        yield torch.cat(entries).bool().clone()


def test_a_mask_stays_until_its_refresh_and_is_made_when_a_gate_opens(make_network):
    network = make_network()
    masks = list(masks_of(network, make("sparse_sam", network, refresh=3, lr=0.5, rho=0.3), 7))
    assert [torch.equal(a, b) for a, b in itertools.pairwise(masks)] == [True, True, False] * 2
    network = make_network()
    optimizer = make("sparse_sam", network, refresh=100, gate=Tail(4, 0.25))
    run(network, optimizer, 4)  # only the last step is perturbed, and no multiple of 100
    assert optimizer.telemetry.read()["sam/rho"] > 0.01


def eigen(quadratic, **options):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = quadratic.params

    objective = Objective(Model(), lambda m, batch: quadratic.loss(), [torch.zeros(1)])
    return EigenSAM(sgd(quadratic), objective, **{"rho": 0.3, "rtol": 1e-10, "max_matvecs": 50, **options})


def test_eigen_sam_turns_toward_the_sharpest_direction(quadratic):
    v = torch.linalg.eigh(quadratic.H).eigenvectors[:, -1]
    eps, g = eps_of(quadratic, eigen(quadratic, alpha=0.4))
    unit = g / g.norm()
    u = unit + 0.4 * torch.sign(unit @ v) * (v - (v @ unit) * unit)
    torch.testing.assert_close(eps, 0.3 * u / u.norm(), rtol=1e-6, atol=1e-8)
    assert (eps @ v).abs() / eps.norm() > (unit @ v).abs()
    same_runs(quadratic, lambda q: eigen(q, alpha=0.0), lambda q: SAM(sgd(q), rho=0.3))


def test_eigen_sam_pays_for_its_eigenvector_when_it_is_due(quadratic):
    costs = []
    optimizer = eigen(quadratic, refresh=3, gate=Tail(10, 0.8))
    for _ in range(8):
        before = optimizer.method.objective.cost_ge
        optimizer.step(quadratic.closure(optimizer))
        costs.append(optimizer.method.objective.cost_ge > before)
    # behind a gate that opens at step 2, each third step from there
    assert costs == [False, False, True, False, False, True, False, False]
    with pytest.raises(TypeError, match=r"objective is a Linear; pass Objective"):
        EigenSAM(sgd(quadratic), nn.Linear(1, 1))


# Combination ---------------------------------------------------------------------------------------------


def test_gsam_climbs_across_the_descent(quadratic):
    g, h, out = handed(quadratic, GSAM(sgd(quadratic), rho=0.3, alpha=0.7))
    assert ((out - h) @ h).item() == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(out - h, -0.7 * (g - (g @ h) / (h @ h) * h), rtol=1e-8, atol=1e-11)
    g, h, out = handed(quadratic, GSAM(sgd(quadratic), rho=0.3, alpha=0.7, descend="w"))
    assert ((out - g) @ g).item() == pytest.approx(0.0, abs=1e-12)
    same_runs(quadratic, lambda q: GSAM(sgd(q), rho=0.3, alpha=0.0), lambda q: SAM(sgd(q), rho=0.3))


def test_weighted_sharpness_between_base_and_sam(quadratic):
    for decoupled in (True, False):
        same_runs(
            quadratic,
            lambda q, d=decoupled: WSAM(sgd(q), rho=0.3, gamma=0.5, decoupled=d),
            lambda q: SAM(sgd(q), rho=0.3),
        )
        same_runs(quadratic, lambda q, d=decoupled: WSAM(sgd(q), rho=0.3, gamma=0.0, decoupled=d), sgd)
    same_runs(
        quadratic,
        lambda q: WSAM(sgd(q), rho=0.1, gamma=0.8),
        lambda q: WSAM(sgd(q), rho=0.1, gamma=0.8, decoupled=False),
    )
    same_runs(quadratic, lambda q: PGN(sgd(q), rho=0.3, a=1.0), lambda q: SAM(sgd(q), rho=0.3))
    same_runs(quadratic, lambda q: PGN(sgd(q), rho=0.3, a=0.0), sgd)


def test_stable_sam_has_the_length_of_the_gradient(quadratic):
    g, h, out = handed(quadratic, StableSAM(sgd(quadratic), rho=0.3))
    torch.testing.assert_close(out, h * g.norm() / h.norm(), rtol=1e-10, atol=0)


def test_looksam_reuses_a_part_of_known_length(quadratic):
    same_runs(quadratic, lambda q: LookSAM(sgd(q), rho=0.3, k=1), lambda q: SAM(sgd(q), rho=0.3))
    for T, k in ((10, 5), (11, 5), (7, 3)):
        optimizer, calls = LookSAM(sgd(quadratic), rho=0.3, k=k, alpha=0.7, bounded=False), []
        closure = quadratic.closure(optimizer)
        for t in range(T):
            w = quadratic.w
            optimizer.step(lambda: calls.append(1) or closure())  # noqa: B023
            g, out = quadratic.H @ w, torch.cat([p.grad.flatten() for p in quadratic.params])
            g_v = torch.cat([optimizer.state[p]["sam_look_direction"].flatten() for p in quadratic.params])
            if t % k == 0:
                assert (g_v @ g).item() == pytest.approx(0.0, abs=1e-12)
                torch.testing.assert_close(
                    out, quadratic.H @ (w + 0.3 * g / g.norm()), rtol=1e-10, atol=1e-13
                )
            else:
                assert (out - g).norm().item() == pytest.approx(0.7 * g.norm().item(), rel=1e-8)
        assert len(calls) == T + math.ceil(T / k)


@pytest.mark.parametrize("how", ["written", "replaced"])
def test_looksam_takes_the_length_of_what_it_reuses_as_it_is_now(quadratic, how):
    """A rewind writes into what is remembered, a checkpoint replaces it; only its direction counts."""
    start, ends = [p.detach().clone() for p in quadratic.params], []
    for factor in (1.0, 16.0):
        with torch.no_grad():
            for p, s in zip(quadratic.params, start, strict=True):
                p.copy_(s)
        optimizer = LookSAM(torch.optim.SGD(quadratic.params, lr=0.05), rho=0.1, k=5)
        closure = quadratic.closure(optimizer)
        for _ in range(3):  # a look, and two steps that reuse it
            optimizer.step(closure)
        for p in quadratic.params:
            state = optimizer.state[p]
            if how == "written":
                state["sam_look_direction"].mul_(factor)
            else:
                state["sam_look_direction"] = state["sam_look_direction"] * factor
        optimizer.step(closure)
        ends.append(quadratic.w)
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("alpha", [0.7, 1e-3])
def test_looksam_turns_the_gradient_no_further_than_it_was_turned_when_it_looked(quadratic, alpha):
    optimizer = LookSAM(sgd(quadratic), rho=0.01, k=4, alpha=alpha)
    closure = quadratic.closure(optimizer)
    for t in range(8):
        w = quadratic.w
        optimizer.step(closure)
        g, out = quadratic.H @ w, torch.cat([p.grad.flatten() for p in quadratic.params])
        if t % 4 == 0:
            h = quadratic.H @ (w + 0.01 * g / g.norm())
            seen = ((h - (h @ g) / (g @ g) * g).norm() / g.norm()).item()
            assert 1e-3 < seen < 0.7
        else:
            assert (out - g).norm().item() == pytest.approx(min(alpha, seen) * g.norm().item(), rel=1e-6)


def test_the_differences_of_crsam_on_a_quadratic(quadratic):
    # The second difference vanishes, whatever its weight, and the first is 2 rho H g / |g|.
    w, H = quadratic.w, quadratic.H
    g, h, out = handed(quadratic, CRSAM(sgd(quadratic), rho=0.3, gamma=50.0, beta=0.2))
    torch.testing.assert_close(out, h + 0.2 * 2 * 0.3 * H @ (g / g.norm()), rtol=1e-10, atol=1e-11)
    assert not torch.equal(quadratic.w, w)


def test_the_telemetry_of_crsam_is_that_of_the_first_side(quadratic):
    optimizer = CRSAM(sgd(quadratic), rho=0.3)
    u = quadratic.H @ quadratic.w
    u = u / u.norm()
    optimizer.step(quadratic.closure(optimizer))
    assert optimizer.telemetry.read()["sam/curvature"] == pytest.approx(
        (u @ quadratic.H @ u).item(), rel=1e-9
    )


# Momentum ------------------------------------------------------------------------------------------------


def unnormalised(method, at):
    """eps = -rho v."""
    return [-setting(group, "rho") * v for v, group in zip(at.g, at.groups, strict=True)]


def test_momentum_sam_without_its_norm_is_nesterov(quadratic, monkeypatch):
    monkeypatch.setattr("optland.optim.momentum_sam._Momentum.perturbation", unnormalised)
    start, visited = [p.detach().clone() for p in quadratic.params], []
    plain = torch.optim.SGD(quadratic.params, lr=0.05, momentum=0.8, nesterov=True)
    for _ in range(30):
        visited.append(quadratic.w)
        plain.step(quadratic.closure(plain))
    with torch.no_grad():
        for p, s in zip(quadratic.params, start, strict=True):
            p.copy_(s)
    optimizer, seen = (
        MSAM(torch.optim.SGD(quadratic.params, lr=0.05, momentum=0.8), rho=0.05 * 0.8),
        [],
    )
    closure = quadratic.closure(optimizer)
    for _ in range(30):
        optimizer.step(lambda: seen.append(quadratic.w) or closure())
    for a, b in zip(seen, visited, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    assert (seen[-1] - torch.cat([s.flatten() for s in start])).norm() > 0.1


def test_momentum_sam_with_rho_zero_is_heavy_ball(quadratic):
    same_runs(quadratic, lambda q: MSAM(sgd(q, momentum=0.8), rho=0.0), lambda q: sgd(q, momentum=0.8))


def test_momentum_sam_looks_where_the_base_is_about_to_go(quadratic):
    optimizer = MSAM(sgd(quadratic, momentum=0.8), rho=0.3)
    eps, _ = eps_of(quadratic, optimizer)
    assert eps.norm() == 0.0  # there is no momentum yet
    optimizer.step(quadratic.closure(optimizer))
    v = torch.cat([optimizer.state[p]["momentum_buffer"].flatten() for p in quadratic.params])
    w, seen = quadratic.w, []
    closure = quadratic.closure(optimizer)
    optimizer.step(lambda: seen.append(quadratic.w) or closure())
    torch.testing.assert_close(seen[0] - w, -0.3 * v / v.norm(), rtol=1e-10, atol=1e-12)


# Values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda b: USAM(b, normalised=1.5), "normalised=1.5"),
        (lambda b: WSAM(b, gamma=1.0), "gamma=1.0"),
        (lambda b: FSAM(b, decay=1.5), "decay=1.5"),
        (lambda b: VaSSO(b, theta=0.0), "theta=0.0"),
        (lambda b: VaSSO(b, theta=1.1), "theta=1.1"),
        (lambda b: LookSAM(b, k=0), "k=0"),
        (lambda b: LookSAM(b, alpha=-1.0), "alpha=-1.0"),
        (lambda b: SparseSAM(b, sparsity=1.0), "sparsity=1.0"),
        (lambda b: SparseSAM(b, refresh=0), "refresh=0"),
        (lambda b: CRSAM(b, beta=math.nan), "beta=nan"),
        (lambda b: LESAM(b, sigma=-0.1), "sigma=-0.1"),
        (lambda b: PGN(b, a=math.inf), "a=inf"),
        (lambda b: SAM(b, telemetry_every=-1), "telemetry_every=-1"),
    ],
)
def test_values_out_of_range_are_named(quadratic, build, message):
    base = sgd(quadratic)
    before = [set(group) for group in base.param_groups]
    with pytest.raises(ValueError, match=message):
        build(base)
    assert [set(group) for group in base.param_groups] == before
