"""With a frozen base, SAM, probes and pilot cost what the trained part costs, in bytes and in work.

Every tensor that an operation makes is seen: none is as large as a frozen weight, so that none of these is ever copied,
nor does it get a gradient, a tangent or a place in an optimizer. Activations and adapters are far smaller here.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from optland import SAM, Objective, Pilot, critical_step, density, ggn, hessian, lanczos, trace
from optland.curvature import gradient_noise
from optland.landscape import sam_sharpness
from optland.optim import available, create
from optland.pilot import AutoLR

WIDTH, RANK, LAYERS, BATCH, CLASSES = 768, 1, 3, 4, 3
FROZEN = WIDTH * WIDTH * 4  # bytes of one frozen weight


class Adapted(nn.Module):
    """A frozen linear map with a trained correction of rank 2."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH)
        self.down, self.up = nn.Linear(WIDTH, RANK, bias=False), nn.Linear(RANK, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.base(x) + self.up(self.down(x))
        return found


def net(activation: type[nn.Module] = nn.Tanh, *, frozen: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layers = [part for _ in range(LAYERS) for part in (Adapted(), activation())]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))
    for module in model.modules():
        if isinstance(module, Adapted):
            module.base.requires_grad_(not frozen)
    return model


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, WIDTH), torch.randint(CLASSES, (BATCH,))


def loss_fn(model: nn.Module, data: Any) -> Tensor:
    return F.cross_entropy(model(data[0]), data[1])


def address(t: Tensor) -> Any:
    return t.untyped_storage().data_ptr()


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Bytes of the largest storage that an operation has made, those apart that were there before."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = {address(t) for t in known}
        self.most, self.by = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for t in tree_leaves(made):
            if isinstance(t, Tensor) and not t._is_zerotensor() and address(t) not in self.known:
                held = t.untyped_storage().nbytes()
                if held > self.most:
                    self.most, self.by = held, f"{func} {tuple(t.shape)}"
        return made


def largest(model: nn.Module, work: Callable[[], Any]) -> tuple[int, str]:
    with Largest([*model.parameters(), *model.buffers()]) as seen:
        work()
    return seen.most, seen.by


def products(method: Any) -> Callable[[Objective], Any]:
    def work(L: Objective) -> None:
        with hessian(L, method=method) as H:
            H.matvec([torch.ones_like(p) for p in H.like])
            H.matvec([torch.ones_like(p) for p in H.like])

    return work


def with_hessian(measure: Callable[[Any], Any]) -> Callable[[Objective], Any]:
    def work(L: Objective) -> None:
        with hessian(L) as H:
            measure(H)

    return work


def a_product_of_gauss_and_newton(L: Objective) -> None:
    with ggn(L) as G:
        G.matvec([torch.ones_like(p) for p in G.like])


PROBES: dict[str, Callable[[Objective], Any]] = {
    "value": lambda L: L.value(),
    "gradient": lambda L: L.gradient(),
    "double backward": products("double_backward"),
    "kept graph": products("kept_graph"),
    "forward over reverse": products("forward_over_reverse"),
    "differences": products("finite_difference"),
    "gauss-newton": a_product_of_gauss_and_newton,
    "lanczos": with_hessian(lambda H: lanczos(H, k=1, max_matvecs=6)),
    "trace": with_hessian(lambda H: trace(H, max_matvecs=6)),
    "density": with_hessian(lambda H: density(H, num_steps=8, num_starts=1)),
    "critical step": lambda L: critical_step(L, [-g for g in L.gradient()], max_forwards=6),
    "gradient noise": lambda L: gradient_noise(L, num_parts=2),
    "sam sharpness": lambda L: sam_sharpness(L, 0.05),
}


@pytest.mark.parametrize("name", PROBES)
@pytest.mark.parametrize("activation", [nn.Tanh, pytest.param(nn.ReLU, marks=pytest.mark.slow)])
def test_a_probe_makes_nothing_of_the_size_of_a_frozen_weight(name: str, activation: type[nn.Module]) -> None:
    model = net(activation)
    L = Objective(model, loss_fn, [batch()])
    most, by = largest(model, lambda: PROBES[name](L))
    assert 0 < most < FROZEN, by


def test_what_is_looked_for_is_found_where_nothing_is_frozen() -> None:
    model = net(frozen=False)
    L = Objective(model, loss_fn, [batch()])
    for name in ("gradient", "lanczos", "critical step"):
        assert largest(model, partial(PROBES[name], L))[0] >= FROZEN, name


def steps(
    model: nn.Module, optimizer: Any, num: int, after: Callable[[Any, Tensor], Any] | None = None
) -> None:
    for _ in range(num):
        data = batch()

        def closure(data: Any = data) -> Tensor:
            optimizer.zero_grad()
            loss = loss_fn(model, data)
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        if after is not None:
            after(data, loss)


NAMES = sorted(set(available("*sam*")) - {"eigensam"})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_makes_nothing_of_the_size_of_a_frozen_weight(name: str, whole: bool) -> None:
    """Also where the optimizer was given all parameters, the frozen ones among them."""
    model = net()
    params = [p for p in model.parameters() if whole or p.requires_grad]
    optimizer = create(name, params, base="adamw", lr=1e-3, model=model)
    most, by = largest(model, lambda: steps(model, optimizer, 3))
    assert 0 < most < FROZEN, by
    assert all(p.requires_grad for p in optimizer.state)


@pytest.mark.parametrize("mode", [pytest.param("monitor", marks=pytest.mark.slow), "control"])
def test_a_pilot_makes_nothing_of_the_size_of_a_frozen_weight(mode: Any) -> None:
    """Every probe, lengths, snapshots and a rewind."""
    model = net()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = SAM(torch.optim.AdamW(trained, lr=1e-3), rho=0.05, model=model)
    policies: list[Any] = [
        AutoLR(tau=0.03),
        "edge_monitor",
        "noise_monitor",
        "curvature_monitor",
        "spike_guard",
    ]
    pilot = Pilot(optimizer, model, loss_fn, policies=policies, budget=1.0, total_steps=40, mode=mode)
    most, by = largest(model, lambda: steps(model, optimizer, 40, pilot.after_step))
    assert 0 < most < FROZEN, by
    assert {"edge", "noise", "curvature"} <= pilot.budget.spent.keys()
    pilot.close()


def work_of(frozen: bool, work: Callable[[Objective], Any]) -> int:
    L = Objective(net(frozen=frozen), loss_fn, [batch()])
    with FlopCounterMode(display=False) as counter:
        work(L)
    return int(counter.get_total_flops())


def test_the_work_of_a_gradient_and_a_product_leaves_out_the_frozen_weights() -> None:
    """A matrix takes 2 n^2 operations for a sample: once forward and once backward, and once more for its own gradient.

    In a gradient the last are left out, and below the first trained layer the backward too; a product with the Hessian
    differentiates both of its passes, and leaves out twice as many.
    """
    matrix = 2 * BATCH * WIDTH**2
    of_gradient = {frozen: work_of(frozen, lambda L: L.gradient()) for frozen in (True, False)}
    assert of_gradient[False] - of_gradient[True] == LAYERS * matrix
    of_product = {frozen: work_of(frozen, products("double_backward")) for frozen in (True, False)}
    assert of_product[False] - of_product[True] >= 2 * LAYERS * matrix


class Moving(nn.Module):
    """A frozen average that its forward moves, a frozen codebook, and a frozen table that its layer renormalises."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.codes = nn.Parameter(torch.ones(2, 3), requires_grad=False)
        self.table = nn.Embedding(5, 3, max_norm=0.5)
        self.still = nn.Linear(3, 3)
        self.out = nn.Linear(3, 2)
        for p in [*self.table.parameters(), *self.still.parameters()]:
            p.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.mean.data.mul_(0.9).add_(0.1 * x.mean(0))
        with torch.no_grad():
            self.codes[0] += self.mean
            torch.add(self.codes[1], 1.0, out=self.codes[1])
        rows = self.table(torch.tensor([0, 3]))
        found: Tensor = self.out(torch.tanh(self.still(x) + self.mean + self.codes.sum(0) + rows.sum(0)))
        return found


def test_frozen_parameters_that_a_forward_writes_are_as_they_were() -> None:
    """Bit for bit, at the first look and at later ones; and every look sees the same function."""
    torch.manual_seed(0)
    model = Moving()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    L = Objective(
        model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(torch.randn(6, 3), torch.randint(2, (6,)))]
    )
    values = [L.value() for _ in range(3)]
    L.gradient()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert len(set(values)) == 1
    written = {name for name, p in model.named_parameters() if id(p) in L.notes.written["eval"]}
    assert written == {"mean", "codes", "table.weight"}


def test_a_frozen_part_may_be_compiled() -> None:
    torch.manual_seed(0)
    base, head, x = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 1), torch.randn(6, 4)
    compiled: Any = torch.compile(base, backend="eager", fullgraph=True)
    found = [
        Objective(nn.Sequential(part, nn.Tanh(), head), lambda m, x: m(x).square().mean(), [x])
        for part in (base, compiled)
    ]
    assert found[1].value() == pytest.approx(found[0].value(), rel=1e-6)
    torch.testing.assert_close(found[1].gradient(), found[0].gradient())


def test_a_forward_that_fails_leaves_them_too() -> None:
    model = Moving()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def failing(m: nn.Module, x: Tensor) -> Tensor:
        m(x)
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        Objective(model, failing, [torch.randn(6, 3)]).value()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_nothing_is_left_behind() -> None:
    """After probes and steps the only storages of that size are the frozen weights themselves."""
    model = net()
    optimizer = SAM(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad]), model=model)
    L = Objective(model, loss_fn, [batch()])
    steps(model, optimizer, 2)
    for work in PROBES.values():
        work(L)
    gc.collect()
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held = [t for t in gc.get_objects() if type(t) in (Tensor, nn.Parameter) and t.shape == (WIDTH, WIDTH)]
    left = [t for t in held if t.untyped_storage().data_ptr() not in known]
    assert left == []
