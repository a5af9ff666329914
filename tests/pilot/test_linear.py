"""Whether a move is linear in the learning rate: known, declared, or tried on copies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from drivers import Lion, muon
from torch import Tensor, nn
from torch.optim import Optimizer

from optland.optim import ASAM, SAM
from optland.optim.saddle import CubicNewton, NegativeCurvature, SaddleFreeNewton, TrustRegionNewton
from optland.pilot import AutoLR, Pilot
from optland.pilot.linear import LINEAR, has_to_be_tried, innermost_of, tried, why_not_linear


class Signed(Optimizer):
    """w <- w - lr (sign(m) + wd w): linear in lr, with a moment and a step counter."""

    power = 1.0

    def __init__(self, params: Any, lr: float = 0.1, wd: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "wd": wd})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                state["count"] = state.get("count", 0) + 1
                m = state.setdefault("m", torch.zeros_like(p)).mul_(0.9).add_(p.grad, alpha=0.1)
                p.sub_(group["lr"] ** self.power * (m.sign() + group["wd"] * p))
        return loss


class Rooted(Signed):
    """With the root of lr in its place."""

    power = 0.5


class Decaying(Signed):
    """lr multiplies the gradient's part alone: the decay has a rate of its own."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        before = [p.clone() for g in self.param_groups for p in g["params"]]
        loss = super().step(closure)
        for w, p in zip(before, (p for g in self.param_groups for p in g["params"]), strict=True):
            p.sub_(w, alpha=0.5)
        return loss


def trained(make: Any, steps: int = 3) -> tuple[nn.Module, Any]:
    """A small net with gradients at hand, after some steps of the optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    optimizer = make(model.parameters())
    for k in range(steps + 1):
        optimizer.zero_grad()
        model(torch.randn(8, 4, dtype=torch.float64)).square().sum().backward()
        if k < steps:
            optimizer.step()
    return model, optimizer


def everything(optimizer: Optimizer, model: nn.Module) -> Any:
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    return copy.deepcopy([optimizer.state_dict(), model.state_dict(), grads])


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


# ---------------------------------------------------------------- known


@pytest.mark.parametrize("name", sorted(LINEAR - {"Muon", "SparseAdam"}))
def test_those_known_as_linear_are(name: str) -> None:
    """By a trial all the same, with weight decay where they have it."""
    kind = getattr(torch.optim, name)
    _, optimizer = trained(
        lambda p: kind(p, lr=0.01, **({} if name == "SparseAdam" else {"weight_decay": 0.1}))
    )
    assert why_not_linear(optimizer) is None
    assert not has_to_be_tried(optimizer)
    assert tried(optimizer, optimizer.param_groups[0]["params"]) is None


def test_muon_is_linear() -> None:
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(4, 3))
    optimizer = muon([w], 0.01)
    w.grad = torch.randn(4, 3)
    assert why_not_linear(optimizer) is None
    assert not has_to_be_tried(optimizer)
    assert tried(optimizer, [w]) is None


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: torch.optim.LBFGS(p), "line search"),
        (lambda p: torch.optim.Rprop(p, lr=0.01), "first step"),
        (lambda p: torch.optim.ASGD(p, lr=0.01), "average of the weights"),
        (lambda p: torch.optim.Adafactor(p, lr=0.01), "size of the update"),
        (SaddleFreeNewton, "Newton system"),
        (CubicNewton, "cubic model"),
        (TrustRegionNewton, "trust region"),
        (lambda p: SAM(torch.optim.Rprop(p, lr=0.01)), "first step"),
    ],
)
def test_those_known_as_not_linear_say_why(make: Any, says: str) -> None:
    model = nn.Linear(2, 2)
    optimizer = make(model.parameters())
    assert says in str(why_not_linear(optimizer))
    with pytest.raises(TypeError, match=r"auto_lr turns step_length.*not linear in the learning rate"):
        one_update(optimizer, model)


def test_schedule_free_averages_are_known_by_their_name() -> None:
    class AdamWScheduleFree(Signed):
        pass

    assert "average over the run" in str(why_not_linear(AdamWScheduleFree([nn.Parameter(torch.zeros(1))])))


def test_groups_without_a_rate_are_refused() -> None:
    optimizer = Signed([nn.Parameter(torch.zeros(1))])
    del optimizer.param_groups[0]["lr"]
    assert why_not_linear(optimizer) == "its parameter groups have no lr"


@pytest.mark.parametrize("wrap", [SAM, ASAM, NegativeCurvature, lambda b: NegativeCurvature(SAM(b))])
def test_what_is_asked_of_a_wrapper_is_asked_of_its_base(wrap: Any) -> None:
    for base, tries in ((torch.optim.SGD, False), (Signed, True)):
        optimizer = wrap(base([nn.Parameter(torch.zeros(2))], lr=0.1))
        assert type(innermost_of(optimizer)) is base
        assert has_to_be_tried(optimizer) is tries


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_few_digits_are_refused_in_words(dtype: torch.dtype) -> None:
    model = nn.Linear(2, 2).to(dtype)
    with pytest.raises(TypeError, match=r"weight is b?float16 without a float32 master copy.*use autocast"):
        one_update(torch.optim.SGD(model.parameters(), lr=0.1), model)


# ---------------------------------------------------------------- tried


@pytest.mark.parametrize("kind", [Signed, Lion])
def test_an_unknown_linear_one_passes_its_trial_and_nothing_moves(kind: Any) -> None:
    model, optimizer = trained(lambda p: kind(p, lr=0.1))
    before = everything(optimizer, model)
    assert has_to_be_tried(optimizer)
    assert tried(optimizer, list(model.parameters())) is None
    assert equal(everything(optimizer, model), before)


@pytest.mark.parametrize(("kind", "times"), [(Rooted, "0.71"), (Decaying, "")])
def test_one_that_is_not_linear_fails_it_and_nothing_moves(kind: Any, times: str) -> None:
    model, optimizer = trained(lambda p: kind(p, lr=0.1))
    before = everything(optimizer, model)
    why = tried(optimizer, list(model.parameters()))
    assert f"at half the rate its move is {times}" in str(why)
    assert equal(everything(optimizer, model), before)


def test_the_trial_calls_no_hook() -> None:
    model, optimizer = trained(lambda p: Signed(p))
    called: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    tried(optimizer, list(model.parameters()))
    assert called == []


def test_a_copy_that_cannot_step_says_nothing_against_it() -> None:
    class Bound(Signed):
        def __init__(self, params: Any) -> None:
            params = list(params)
            super().__init__(params)
            self.mine = {id(p) for p in params}

        def step(self, closure: Any = None) -> Any:
            assert all(id(p) in self.mine for g in self.param_groups for p in g["params"])
            return super().step(closure)

    model, optimizer = trained(Bound)
    assert tried(optimizer, list(model.parameters())) is None


def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).float().square().sum()


def one_update(optimizer: Any, model: nn.Module, policies: Any = ("auto_lr",)) -> tuple[Pilot, float]:
    """One update under these policies."""
    torch.manual_seed(1)
    dtype = next(model.parameters()).dtype
    batch = torch.randn(8, 4 if isinstance(model, nn.Sequential) else 2, dtype=dtype)
    pilot = Pilot(optimizer, model, loss_fn, policies=policies, total_steps=10, budget=0.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        return loss

    before = [p.detach().clone() for p in model.parameters()]
    loss = optimizer.step(closure)
    pilot.after_step(batch, loss)
    pairs = [(p.detach(), w) for p, w in zip(model.parameters(), before, strict=True) if w.ndim >= 2]
    return pilot, float(torch.tensor([(p - w).norm() / w.norm() for p, w in pairs]).norm())


@pytest.mark.parametrize("kind", [Signed, Lion])
def test_an_unknown_linear_one_is_given_the_length_that_is_asked_for(kind: Any) -> None:
    """The middle of update 1 of 10: 0.05, the end of the warm-up."""
    model, optimizer = trained(lambda p: kind(p, lr=3.0), steps=0)
    pilot, moved = one_update(optimizer, model, [AutoLR(tau=0.02)])
    assert pilot.step == 1
    assert moved == pytest.approx(0.02, rel=1e-6)


def test_an_unknown_one_that_is_not_is_refused_before_anything_moves() -> None:
    model, optimizer = trained(Rooted, steps=0)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"length of an update of Rooted cannot be set .* use safe_lr"):
        one_update(optimizer, model)
    assert equal(model.state_dict(), before)
    assert not optimizer.state
    model, optimizer = trained(Rooted, steps=0)
    one_update(optimizer, model, ["safe_lr"])
