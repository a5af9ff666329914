"""Wrappers and solvers as optimizers: hooks, checkpoints, nesting, closures and gradients that cannot be."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from optland.optim import MSAM, SAM
from optland.optim.saddle import (
    CubicNewton,
    NegativeCurvature,
    NoisyGradient,
    PerturbedGradient,
    SaddleFreeNewton,
    Trigger,
    TrustRegionNewton,
)
from optland.optim.saddle.saved import ENTRY

Params = Any


def sgd(p: Params, momentum: float = 0.0) -> torch.optim.Optimizer:
    return torch.optim.SGD(p, lr=0.05, momentum=momentum)


def looking(base: torch.optim.Optimizer, seed: int = 0) -> NegativeCurvature:
    """Looks at the curvature in every fourth step."""
    trigger = Trigger(("every", "still", "circling"), every=4, share=1.0, allowance=1000)
    return NegativeCurvature(base, trigger=trigger, max_matvecs=3, seed=seed)


WRAPPERS: dict[str, Callable[[Params], torch.optim.Optimizer]] = {
    "NegativeCurvature": lambda p: looking(sgd(p)),
    "NegativeCurvature over momentum": lambda p: looking(sgd(p, 0.9)),
    "NegativeCurvature over AdamW": lambda p: looking(torch.optim.AdamW(p, lr=0.01)),
    "NegativeCurvature over SAM": lambda p: looking(SAM(sgd(p, 0.9), rho=0.05)),
    "NegativeCurvature over MSAM": lambda p: looking(MSAM(sgd(p, 0.9), rho=0.05)),
    "PerturbedGradient": lambda p: PerturbedGradient(
        sgd(p, 0.9), wait=3, trigger=Trigger(("every",), every=3)
    ),
    "NoisyGradient": lambda p: NoisyGradient(sgd(p, 0.9)),
    "NegativeCurvature over NoisyGradient": lambda p: looking(NoisyGradient(sgd(p, 0.9))),
    "two wrappers over SAM": lambda p: PerturbedGradient(
        looking(SAM(torch.optim.Adam(p, lr=0.01), rho=0.05)), wait=3, trigger=Trigger(("every",), every=3)
    ),
}
SOLVERS: dict[str, Callable[[Params], torch.optim.Optimizer]] = {
    "SaddleFreeNewton": lambda p: SaddleFreeNewton(p, max_matvecs=3),
    "CubicNewton": lambda p: CubicNewton(p, max_matvecs=3),
    "TrustRegionNewton": lambda p: TrustRegionNewton(p, max_matvecs=3),
}
ALL = {**WRAPPERS, **SOLVERS}
ALIKE = (
    "NegativeCurvature over momentum",
    "NegativeCurvature over NoisyGradient",
    "SaddleFreeNewton",
    "TrustRegionNewton",
)


def quick(names: Any) -> list[Any]:
    """The default tier has one of each kind."""
    return [pytest.param(n, marks=[pytest.mark.slow] if n in ALIKE else []) for n in names]


EVERY = pytest.mark.parametrize("name", quick(ALL))
WRAPPER = pytest.mark.parametrize("name", quick(WRAPPERS))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 3, generator=draw, dtype=torch.float64), torch.arange(12) % 2

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


def chain(optimizer: Any) -> list[Any]:
    """The optimizer and those inside it, the outermost first."""
    found = [optimizer]
    while hasattr(found[-1], "base"):
        found.append(found[-1].base)
    return found


# Hooks -----------------------------------------------------------------------------------------------


@EVERY
def test_hooks_run_once_per_step_on_every_level_and_the_global_ones_once_in_all(name: str) -> None:
    model = net()
    optimizer = ALL[name](list(model.parameters()))
    seen: list[tuple[str, int]] = []
    for level, one in enumerate(chain(optimizer)):
        one.register_step_pre_hook(lambda o, a, k, n=level: seen.append(("pre", n)))
        one.register_step_post_hook(lambda o, a, k, n=level: seen.append(("post", n)))
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append(("pre", -1))),
        register_optimizer_step_post_hook(lambda *_: seen.append(("post", -1))),
    ]
    try:
        run(model, optimizer, 5)
    finally:
        for handle in handles:
            handle.remove()
    for level in range(-1, len(chain(optimizer))):
        assert seen.count(("pre", level)) == 5
        assert seen.count(("post", level)) == 5


@EVERY
def test_a_scheduler_in_a_post_hook_halves_once_per_step(name: str) -> None:
    model = net()
    optimizer = ALL[name](list(model.parameters()))
    rate = optimizer.param_groups[0]["lr"]
    scheduler = lr_scheduler.StepLR(optimizer, 1, 0.5)
    optimizer.register_step_post_hook(lambda *_: scheduler.step())
    run(model, optimizer, 3)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate / 8)


@pytest.mark.parametrize(
    "name", ["NegativeCurvature", "two wrappers over SAM", "NoisyGradient", "CubicNewton"]
)
def test_a_profile_has_one_row_per_step_of_the_innermost(name: str) -> None:
    model = net()
    optimizer = ALL[name](list(model.parameters()))
    run(model, optimizer, 1)
    with torch.autograd.profiler.profile() as profile:
        run(model, optimizer, 3)
    rows = {e.key: e.count for e in profile.key_averages() if e.key.startswith("Optimizer.step#")}
    assert rows == {f"Optimizer.step#{type(chain(optimizer)[-1]).__name__}.step": 3}


def test_a_subclass_with_a_step_of_its_own_runs_hooks_once() -> None:
    class Loud(NegativeCurvature):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    class Quiet(SAM):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    for make in (Loud, Quiet):
        model, seen = net(), []
        optimizer = make(sgd(model.parameters()))
        optimizer.register_step_post_hook(lambda *_, seen=seen: seen.append(1))
        run(model, optimizer, 2)
        assert len(seen) == 2


# Checkpoints -----------------------------------------------------------------------------------------


def assert_same(a: Any, b: Any) -> None:
    """Weights aside, everything that two optimizers know."""
    for one, other in zip(chain(a), chain(b), strict=True):
        assert repr(getattr(one, "events", None)) == repr(getattr(other, "events", None))
        assert getattr(one, "verdict", None) == getattr(other, "verdict", None)
        assert getattr(one, "closure_calls", None) == getattr(other, "closure_calls", None)
        if hasattr(one, "trigger"):
            assert repr(one.trigger.state_dict()) == repr(other.trigger.state_dict())


def resumes(name: str, before: int, carry: Callable[[nn.Module, Any, nn.Module, Any], None]) -> None:
    """``before`` steps, everything carried over, and nine more on both sides."""
    model, fresh = net(), net()
    optimizer = ALL[name](list(model.parameters()))
    run(model, optimizer, before)
    model.zero_grad()
    resumed = ALL[name](list(fresh.parameters()))
    carry(model, optimizer, fresh, resumed)
    assert_same(resumed, optimizer)
    run(model, optimizer, 9)
    run(fresh, resumed, 9)
    for a, b in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(a, b)
    assert_same(resumed, optimizer)


@EVERY
@pytest.mark.parametrize("flat", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("before", [pytest.param(0, marks=pytest.mark.slow), 7])
def test_distributed_state_dicts_resume_bit_for_bit(name: str, flat: bool, before: int) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)

    def carry(model: nn.Module, optimizer: Any, fresh: nn.Module, resumed: Any) -> None:
        state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
        fresh.load_state_dict(model.state_dict())
        set_optimizer_state_dict(fresh, resumed, state, options=options)

    resumes(name, before, carry)


@pytest.mark.parametrize("name", ["NegativeCurvature", "two wrappers over SAM", "CubicNewton"])
def test_model_and_optimizer_together_on_the_cpu_and_through_a_file(name: str) -> None:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)

    def carry(model: nn.Module, optimizer: Any, fresh: nn.Module, resumed: Any) -> None:
        file = io.BytesIO()
        torch.save(get_state_dict(model, optimizer, options=options), file)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        set_state_dict(
            fresh, resumed, model_state_dict=weights, optim_state_dict=state, options=StateDictOptions()
        )

    resumes(name, 6, carry)


@EVERY
@pytest.mark.parametrize(
    "before", [pytest.param(0, marks=pytest.mark.slow), 7, pytest.param(13, marks=pytest.mark.slow)]
)
def test_plain_state_dicts_resume_through_a_file(name: str, before: int) -> None:
    def carry(model: nn.Module, optimizer: Any, fresh: nn.Module, resumed: Any) -> None:
        file = io.BytesIO()
        torch.save((model.state_dict(), optimizer.state_dict()), file)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        fresh.load_state_dict(weights)
        resumed.load_state_dict(state)

    resumes(name, before, carry)


@pytest.mark.parametrize("name", ["NegativeCurvature over SAM", "NegativeCurvature"])
def test_an_optimizer_in_use_goes_back_to_a_flat_checkpoint(name: str) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    model = net()
    optimizer = ALL[name](list(model.parameters()))
    run(model, optimizer, 6)
    model.zero_grad()
    saved = copy.deepcopy((model.state_dict(), get_optimizer_state_dict(model, optimizer, options=options)))
    run(model, optimizer, 9)
    there = [p.detach().clone() for p in model.parameters()]
    model.zero_grad()
    model.load_state_dict(saved[0])
    set_optimizer_state_dict(model, optimizer, saved[1], options=options)
    run(model, optimizer, 9)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), there, strict=True))


@WRAPPER
def test_saving_changes_nothing(name: str) -> None:
    runs = []
    for saves in (False, True):
        model = net()
        optimizer = ALL[name](list(model.parameters()))
        for _ in range(12):
            if saves:
                optimizer.state_dict()
            run(model, optimizer, 1)
        runs.append((model, optimizer))
    for a, b in zip(*(m.parameters() for m, _ in runs), strict=True):
        assert torch.equal(a, b)
    assert_same(runs[0][1], runs[1][1])


@WRAPPER
def test_the_innermost_goes_on_alone_and_a_wrapper_from_its_checkpoint(name: str) -> None:
    model = net()
    optimizer = ALL[name](list(model.parameters()))
    run(model, optimizer, 5)
    alone = type(chain(optimizer)[-1])(model.parameters(), lr=0.5)
    alone.load_state_dict(optimizer.state_dict())
    run(model, alone, 2)
    again = ALL[name](list(model.parameters()))
    again.load_state_dict(alone.state_dict())
    run(model, again, 5)


def test_an_adam_whose_first_update_was_left_out_makes_its_state_as_always() -> None:
    """The first gradient is not finite, SAM skips the update, and nothing of ours may lie in the empty state."""
    model = net()
    optimizer = looking(SAM(torch.optim.Adam(model.parameters(), lr=0.01), rho=0.05))
    x, scales = torch.ones(2, 3, dtype=torch.float64), [1.0, 1.0, float("inf")]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) * scales[-1]).square().mean()
        loss.backward()
        return loss

    while scales:
        optimizer.step(closure)
        optimizer.state_dict()
        assert bool(optimizer.state) == (len(scales) < 3)
        scales.pop()
    assert all("exp_avg" in optimizer.state[p] for p in model.parameters())


def test_parameters_that_are_unfrozen_in_between() -> None:
    model = net()
    model[0].requires_grad_(False)
    optimizer = NegativeCurvature(sgd(model.parameters(), 0.9), trigger=Trigger(patience=4))
    run(model, optimizer, 6)
    model[0].requires_grad_(True)
    run(model, optimizer, 6)
    optimizer.load_state_dict(optimizer.state_dict())
    run(model, optimizer, 2)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


# What cannot be ----------------------------------------------------------------------------------------


def untouched(model: nn.Module, optimizer: Any, closure: Any, error: Any, words: str) -> None:
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(error, match=words):
        optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    of_base = [k for entry in optimizer.state.values() for k in entry if not k.startswith("sam_saddle")]
    assert of_base == []


@EVERY
def test_sparse_gradients_are_refused_before_anything_moves(name: str) -> None:
    model = nn.EmbeddingBag(5, 3, sparse=True)
    optimizer = ALL[name](list(model.parameters()))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.tensor([[0, 1], [1, 2]])).square().sum()
        loss.backward()
        return loss

    untouched(model, optimizer, closure, TypeError, "needs dense real gradients .*sparse=False")


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0 + 1.0j, 2.0j]))


@EVERY
def test_complex_parameters_are_refused_before_anything_moves(name: str) -> None:
    model = Complex()
    optimizer = ALL[name](list(model.parameters()))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model.w.abs().square().sum()
        loss.backward()
        return loss

    untouched(model, optimizer, closure, TypeError, "real and imaginary parts as separate parameters")


@pytest.mark.parametrize("returned", [None, torch.zeros(3), "low"], ids=["none", "vector", "text"])
@pytest.mark.parametrize("name", quick(n for n in ALL if n != "NoisyGradient"))
def test_a_closure_that_returns_no_loss_is_refused_before_anything_moves(name: str, returned: Any) -> None:
    model = net()
    optimizer = ALL[name](list(model.parameters()))

    def closure() -> Any:
        optimizer.zero_grad()
        model(torch.ones(1, 3, dtype=torch.float64)).square().sum().backward()
        return returned

    untouched(model, optimizer, closure, ValueError, "the closure returned .*return the loss")


@EVERY
def test_a_closure_may_return_a_number(name: str) -> None:
    ends = []
    for number in (False, True):
        model = net()
        optimizer = ALL[name](list(model.parameters()))

        def closure(model: Any = model, optimizer: Any = optimizer, number: bool = number) -> Any:
            optimizer.zero_grad()
            loss = model(torch.ones(1, 3, dtype=torch.float64)).square().sum()
            loss.backward()
            return loss.item() if number else loss

        for _ in range(6):
            optimizer.step(closure)
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("name", ["NegativeCurvature", "NoisyGradient", "PerturbedGradient"])
def test_gradients_of_before_the_closure_are_no_gradients_of_it(name: str) -> None:
    model = net()
    optimizer = ALL[name](list(model.parameters()))
    x = torch.ones(1, 3, dtype=torch.float64)
    model(x).square().sum().backward()
    untouched(model, optimizer, lambda: model(x).square().sum(), RuntimeError, "ran no backward pass")


@pytest.mark.parametrize("name", ["NegativeCurvature", "PerturbedGradient"])
def test_a_closure_without_any_gradient_is_no_critical_point(name: str) -> None:
    """An evaluation by mistake; it must not be taken for a gradient of zero, and end in a kick."""
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer: Any = {"NegativeCurvature": NegativeCurvature, "PerturbedGradient": PerturbedGradient}[name](
        sgd(model.parameters())
    )
    x = torch.ones(1, 3, dtype=torch.float64)
    for _ in range(5):
        optimizer.step(lambda: model(x).square().sum())
    assert optimizer.events == []
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


@EVERY
def test_a_step_without_a_closure_is_refused_unless_a_checkpointer_makes_it(name: str) -> None:
    model = net()
    optimizer = ALL[name](list(model.parameters()))
    with pytest.raises(TypeError, match="needs a closure"):
        optimizer.step()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.raises(TypeError, match="needs a closure"):  # at an exact saddle, by mistake
        optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    rate, optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"], 0.0
    optimizer.step(closure=None)
    optimizer.param_groups[0]["lr"] = rate
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert getattr(optimizer, "events", []) == []


@pytest.mark.parametrize("outer", [SAM, NoisyGradient, lambda b: MSAM(b)])
@pytest.mark.parametrize("inner", ["NegativeCurvature", "PerturbedGradient", "NoisyGradient", "CubicNewton"])
def test_who_evaluates_the_closure_alone_takes_no_base_that_needs_it(outer: Any, inner: str) -> None:
    with pytest.raises(ValueError, match="needs the closure of a step"):
        outer(ALL[inner](list(net().parameters())))


@WRAPPER
def test_the_cost_of_a_step_is_what_was_called(name: str) -> None:
    model, made = net(), 0
    optimizer: Any = ALL[name](list(model.parameters()))

    def closure() -> Tensor:
        nonlocal made
        made += 1
        optimizer.zero_grad()
        loss = model(torch.ones(1, 3, dtype=torch.float64)).square().sum()
        loss.backward()
        return loss

    for _ in range(9):
        made = 0
        optimizer.step(closure)
        assert optimizer.last_evaluations == made
    assert not hasattr(optimizer, "train")


def test_three_in_one_another_keep_their_own_generators_in_a_checkpoint() -> None:
    def three(*seeds: int) -> list[PerturbedGradient]:
        optimizer: Any = sgd(net().parameters())
        return [optimizer := PerturbedGradient(optimizer, seed=seed) for seed in seeds]

    first, second = three(1, 2, 3), three(4, 5, 6)
    saved = first[-1].state_dict()
    second[-1].load_state_dict(saved)
    assert sum(name.startswith(ENTRY) for name in saved["param_groups"][0]) == 3
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.generator.get_state(), other.generator.get_state())
