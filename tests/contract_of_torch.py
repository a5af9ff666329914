"""What PyTorch demands of its own optimizers, demanded of ours around each of them.

The cases come from the database of PyTorch's optimizer tests (``torch.testing._internal.common_optimizers``): every
optimizer with its constructor inputs. The checks follow the ideas of those tests and compare with the base alone, bit
for bit where the wrapper has nothing to add.

A check returns None, or the words of a refusal: of the wrapper, or of the base itself, which the wrapper has to pass on
unchanged. It raises AssertionError where the contract is broken.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import io
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from optland.optim import (
    ASAM,
    MSAM,
    SAM,
    WSAM,
    LookSAM,
)
from optland.optim.saddle import NegativeCurvature, NoisyGradient, PerturbedGradient

RADIUS = 0.05
NOISE = 0.3

TWO_PASS: dict[str, Callable[..., Any]] = {
    "sam": lambda base, rho=RADIUS: SAM(base, rho=rho),
    "asam": lambda base, rho=RADIUS: ASAM(base, rho=rho),
    "msam": lambda base, rho=RADIUS: MSAM(base, rho=rho),
    "looksam": lambda base, rho=RADIUS: LookSAM(base, rho=rho, k=2),
    "wsam": lambda base, rho=RADIUS: WSAM(base, rho=rho, gamma=0.8),
}
SADDLE: dict[str, Callable[..., Optimizer]] = {
    "negative_curvature": lambda base, rho=0.0: NegativeCurvature(base),
    "perturbed_gradient": lambda base, rho=0.0: PerturbedGradient(base),
    "noisy_gradient": lambda base, rho=0.0: NoisyGradient(base, radius=NOISE, seed=3),
}
WRAPPERS = TWO_PASS | SADDLE


@dataclass(frozen=True)
class Case:
    """One optimizer of PyTorch with one input of its constructor."""

    name: str
    options: dict[str, Any] = field(hash=False)
    label: str = "default"
    sparse: bool = False  # takes sparse gradients alone
    schedulers: tuple[Callable[..., Any], ...] = field(default=(), hash=False)

    def __str__(self) -> str:
        return f"{self.name}, {self.label}"

    def base(self, params: Any) -> Optimizer:
        made: Optimizer = getattr(torch.optim, self.name)(params, **copy.deepcopy(self.options))
        return made


def one_input_each() -> list[Case]:
    """Every optimizer that this version of torch exports, at its defaults, momentum where it is an option."""
    names = [
        name
        for name in torch.optim.__all__
        if isinstance(found := getattr(torch.optim, name), type)
        and issubclass(found, Optimizer)
        and found is not Optimizer
    ]
    momentum = {"SGD": {"lr": 0.01, "momentum": 0.9}, "RMSprop": {"momentum": 0.5}}
    return [Case(name, momentum.get(name, {}), sparse=name == "SparseAdam") for name in sorted(names)]


@functools.cache
def database() -> list[Case] | str:
    """All inputs of torch's database with every implementation that runs here, or why there are none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = importlib.import_module("torch.testing._internal.common_optimizers")
        return [case for info in found.optim_db for case in _inputs(info)]
    except (ImportError, AttributeError, TypeError) as error:
        return f"torch {torch.__version__} keeps its optimizer database elsewhere: {error}"


def _inputs(info: Any) -> Iterator[Case]:
    name = info.optim_cls.__name__
    impls = [impl for impl in info.supported_impls if impl != "fused" or "cpu" in info.supports_fused_on]
    if getattr(info, "has_capturable_arg", False):
        impls.append("capturable")
    for given in info.optim_inputs_func(device="cpu"):
        for impl in ("", *impls):
            options = given.kwargs | ({impl: True} if impl else {})
            label = f"{given.desc} & {impl}" if impl else given.desc
            schedulers = tuple(step for row in info.scheduler_inputs for step in row)
            yield Case(name, options, label, info.only_supports_sparse_grads, schedulers)


# The problem -------------------------------------------------------------------------------------------


class Problem:
    """A smooth loss of a few parameters of every shape: matrices, one of them not contiguous, a vector, a number."""

    left_out: tuple[int, ...] = ()
    """Parameters that the loss does not depend on."""

    def __init__(self, case: Case, dtype: torch.dtype = torch.float32, sign: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(11)

        def draw(*shape: int) -> Tensor:
            wide = torch.complex128 if dtype.is_complex else torch.float64
            return torch.randn(shape, generator=generator, dtype=wide).to(dtype)

        matrices = [nn.Parameter(draw(3, 4)), nn.Parameter(draw(5, 3).t())]
        others = [] if case.name == "Muon" else [nn.Parameter(draw(4)), nn.Parameter(draw())]
        self.params = matrices + others
        self.more = nn.Parameter(draw(2, 2))  # comes later, in a group of its own
        self.targets = {p: draw(*p.shape) for p in [*self.params, self.more]}
        self.sign, self.calls, self.sparse = sign, 0, case.sparse

    def loss(self) -> Tensor:
        if self.sparse:
            rows = nn.functional.embedding(torch.tensor([0, 2]), self.params[0], sparse=True)
            return self.sign * rows.square().sum()
        used = [p for i, p in enumerate([*self.params, self.more]) if i not in self.left_out]
        wide = [p if p.is_complex() else p.float() for p in used]
        coupled = torch.stack([x.abs().square().mean() for x in wide]).sum()
        parts = [(x - self.targets[p]).abs().square().sum() for x, p in zip(wide, used, strict=True)]
        return self.sign * (torch.stack(parts).sum() + coupled.sin())

    def closure(self, optimizer: Optimizer) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            self.calls += 1
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            return loss

        return closure

    def run(self, optimizer: Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.step(self.closure(optimizer))

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in [*self.params, self.more]]


def same(a: list[Tensor], b: list[Tensor]) -> None:
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y), (x, y)


def noisy(problem: Problem, base: Optimizer) -> Callable[[], Tensor]:
    """The closure of a base that is given the noise of NoisyGradient by hand."""
    generator = torch.Generator().manual_seed(3)
    inner = problem.closure(base)

    def closure() -> Tensor:
        loss = inner()
        params = [p for group in base.param_groups for p in group["params"] if p.grad is not None]
        scale = NOISE / sum(p.numel() for p in params) ** 0.5
        for p in params:
            draw = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.grad += (scale * draw).to(p.dtype)
        return loss

    return closure


def step_of(problem: Problem, optimizer: Optimizer, kind: str) -> Callable[[], Any]:
    """One step in the closure form: of the wrapper, or of the base alone, which is given noise where there is some."""
    if kind == "noisy_gradient" and not isinstance(optimizer, NoisyGradient):
        closure = noisy(problem, optimizer)
    else:
        closure = problem.closure(optimizer)
    return lambda: optimizer.step(closure)


def repeat(steps: int, *actions: Callable[[], Any]) -> None:
    for action in actions:
        for _ in range(steps):
            action()


class Pair:
    """The base alone, and the wrapper around another one, on twin problems."""

    def __init__(self, case: Case, kind: str, rho: float = 0.0, **options: Any) -> None:
        self.case, self.kind = case, kind
        self.one, self.two = Problem(case, **options), Problem(case, **options)
        self.plain = case.base(self.one.params)
        self.ours = WRAPPERS[kind](case.base(self.two.params), rho)
        self.actions = step_of(self.one, self.plain, kind), step_of(self.two, self.ours, kind)

    def run(self, steps: int) -> None:
        repeat(steps, *self.actions)

    def equal(self) -> None:
        same(self.one.weights(), self.two.weights())
        for p, q in zip([*self.one.params, self.one.more], [*self.two.params, self.two.more], strict=True):
            for key, value in self.plain.state.get(p, {}).items():
                other = self.ours.state[q][key]
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(other)), key
        # No sign of a saddle has shown in so few steps.
        assert not getattr(self.ours, "events", [])


# Refusals ----------------------------------------------------------------------------------------------

BY_DESIGN = (
    r"LBFGS evaluates the closure by itself",
    r"MSAM perturbs along the momentum of its base, and this \w+ has none",
    r"needs dense real gradients and found a torch.sparse_coo one",
    r"needs dense real gradients and found a complex one",
    r"NegativeCurvature leaves a saddle downwards, and this \w+ has maximize=True",
    r"differentiable=True, and no graph goes through the perturbation",
)
"""What wrappers refuse, as patterns."""

OF_BASE = "the base's own: "


def failure(steps: int, case: Case, make: Callable[[Problem], Callable[[], Any]], **options: Any):
    """What stops an optimizer within its first steps, None where nothing does; it must not have moved anything."""
    problem = Problem(case, **options)
    before = problem.weights()
    try:
        step = make(problem)
        for _ in range(steps):
            before = problem.weights()
            step()
    except Exception as error:
        same(before, problem.weights())
        return error
    return None


def refusal(case: Case, kind: str, **options: Any) -> str | None:
    """Why this base cannot be had in this wrapper; what the base refuses by itself has to come through as it is."""

    def plain(problem: Problem) -> Callable[[], Any]:
        base = case.base(problem.params)
        return step_of(problem, base, kind)

    def ours(problem: Problem) -> Callable[[], Any]:
        wrapper = WRAPPERS[kind](case.base(problem.params), RADIUS)
        return step_of(problem, wrapper, kind)

    of_base, of_ours = failure(3, case, plain, **options), failure(3, case, ours, **options)
    if of_ours is None:
        assert of_base is None, f"the base refuses what its wrapper takes: {of_base}"
        return None
    words = str(of_ours)
    if any(re.search(pattern, words) for pattern in BY_DESIGN):
        assert isinstance(of_ours, TypeError | ValueError)
        return words
    assert of_base is not None, f"{type(of_ours).__name__}: {of_ours}"
    assert (type(of_ours), words) == (type(of_base), str(of_base))
    return OF_BASE + words


# Checks ------------------------------------------------------------------------------------------------


def check_the_base_alone(case: Case, kind: str) -> None:
    """With nothing to add, the base's numbers, bit for bit."""
    pair = Pair(case, kind)
    pair.run(4)
    pair.equal()


def check_phases(case: Case, kind: str) -> None:
    """The phase form gives the numbers of the closure form, and the closure is called as often as the method says."""
    if kind not in TWO_PASS:
        return
    one, two = Problem(case), Problem(case)
    closures, phases = (WRAPPERS[kind](case.base(problem.params)) for problem in (one, two))
    evaluations = 0
    for _ in range(4):
        closures.step(one.closure(closures))
        evaluations += closures.last_evaluations
        phases.zero_grad()
        for _ in phases.passes():
            two.loss().backward()
        phases.step()
    same(one.weights(), two.weights())
    assert one.calls == evaluations == {"msam": 4, "looksam": 6}.get(kind, 8)


def check_restore(case: Case, kind: str) -> None:
    """A visit to w + eps leaves every bit where it was."""
    if kind not in TWO_PASS:
        return
    problem = Problem(case)
    optimizer = WRAPPERS[kind](case.base(problem.params), 0.5)
    problem.run(optimizer, 2)
    problem.loss().backward()
    before = problem.weights()
    with optimizer.perturbed():
        moved = problem.weights()
    same(before, problem.weights())
    assert not all(torch.equal(x, y) for x, y in zip(before, moved, strict=True))


def check_resume(case: Case, kind: str) -> None:
    """A checkpoint goes on bit for bit, through a file that holds tensors and plain values only."""
    one, two = Problem(case), Problem(case)
    straight = WRAPPERS[kind](case.base(one.params))
    one.run(straight, 4)
    first = WRAPPERS[kind](case.base(two.params))
    two.run(first, 2)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    resumed = WRAPPERS[kind](case.base(two.params), 0.9)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    two.run(resumed, 2)
    same(one.weights(), two.weights())


def check_checkpoints_of_the_base(case: Case, kind: str) -> None:
    """A wrapper loads what a plain base saved, also one of an older torch without the newer flags, and the reverse."""
    newer = {"foreach", "fused", "maximize", "capturable", "differentiable", "decoupled_weight_decay"}
    dropped = {flag for flag in newer if not case.options.get(flag) and case.name != "Adafactor"}
    for flags in (set(), dropped):  # Adafactor is younger than they are
        pair = Pair(case, kind)
        repeat(2, pair.actions[0])
        saved = copy.deepcopy(pair.plain.state_dict())
        for group in saved["param_groups"]:
            for flag in flags & group.keys():
                del group[flag]
        pair.plain.load_state_dict(copy.deepcopy(saved))
        with torch.no_grad():
            for p, q in zip(pair.two.params, pair.one.params, strict=True):
                p.copy_(q)
        pair.ours.load_state_dict(saved)
        pair.actions = step_of(pair.one, pair.plain, kind), step_of(pair.two, pair.ours, kind)
        pair.run(2)
        pair.equal()
        back = case.base(pair.two.params)
        back.load_state_dict(pair.ours.state_dict())
        repeat(1, step_of(pair.one, pair.plain, "sam"), step_of(pair.two, back, "sam"))
        same(pair.one.weights(), pair.two.weights())


def check_hooks(case: Case, kind: str) -> None:
    """Every kind of hook fires once per update, with the optimizer that it was registered on."""
    problem = Problem(case)
    optimizer = WRAPPERS[kind](case.base(problem.params))
    base = optimizer.base
    seen: list[tuple[str, bool]] = []

    def note(what: str, whose: Optimizer) -> Callable[..., None]:
        return lambda given, *_: seen.append((what, given is whose))

    for whose, name in ((optimizer, "ours"), (base, "base")):
        whose.register_step_pre_hook(note(f"before {name}", whose))
        whose.register_step_post_hook(note(f"after {name}", whose))
    optimizer.register_state_dict_pre_hook(note("saving", optimizer))
    optimizer.register_state_dict_post_hook(note("saved", optimizer))
    optimizer.register_load_state_dict_pre_hook(note("loading", optimizer))
    optimizer.register_load_state_dict_post_hook(note("loaded", optimizer))
    everywhere: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: everywhere.append("before")),
        register_optimizer_step_post_hook(lambda *_: everywhere.append("after")),
    ]
    try:
        problem.run(optimizer, 1)
    finally:
        for handle in handles:
            handle.remove()
    assert sorted(everywhere) == ["after", "before"], everywhere
    names = ["before ours", "before base", "after base", "after ours"]
    assert seen == [(name, True) for name in names], seen
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen[4:] == [(name, True) for name in ("saving", "saved", "loading", "loaded")], seen
    problem.run(optimizer, 2)
    assert len(seen) == 16


def check_groups(case: Case, kind: str) -> str | None:
    """Groups with a rate of their own, one that is added in mid-run, and a radius by group."""
    problems = Problem(case), Problem(case)
    made = []
    for problem, wrap in zip(
        problems, (lambda base: base, lambda base: WRAPPERS[kind](base, 0.0)), strict=True
    ):
        half = len(problem.params) // 2
        groups = [{"params": problem.params[:half]}, {"params": problem.params[half:], "lr": 0.004}]
        made.append(wrap(case.base(groups)))
    steps = [step_of(problem, optimizer, kind) for problem, optimizer in zip(problems, made, strict=True)]
    repeat(2, *steps)
    for problem, optimizer in zip(problems, made, strict=True):
        optimizer.add_param_group({"params": [problem.more], "lr": 0.002})
    try:
        repeat(2, steps[0])
    except KeyError as error:  # Adagrad of torch 2.6 makes no state for a group that comes later
        return f"{OF_BASE}KeyError {error} after add_param_group"
    repeat(2, steps[1])
    same(problems[0].weights(), problems[1].weights())
    one, two = made
    assert one.param_groups[0].keys() == {key for key in two.param_groups[0] if not key.startswith("sam_")}
    assert two.param_groups is two.base.param_groups
    assert [group["lr"] for group in two.param_groups[1:]] == [0.004, 0.002]
    assert str(two).count("Parameter Group") == 3
    for wrong in ({"params": [problems[1].more]}, [problems[1].more]):
        errors = []
        for optimizer, problem in zip(made, problems, strict=True):
            given = {"params": [problem.more]} if isinstance(wrong, dict) else [problem.more]
            try:
                optimizer.add_param_group(given)
            except (TypeError, ValueError) as error:
                errors.append((type(error), str(error)))
        assert len(errors) == 2
        assert errors[0] == errors[1]
    if kind in TWO_PASS:
        two.param_groups[1]["sam_rho"] = 0.7
        repeat(1, steps[1])
        problems[1].loss().backward()
        before = problems[1].weights()
        with two.perturbed():
            after = problems[1].weights()
        own = {id(p) for p in two.param_groups[1]["params"]}
        everything = [*problems[1].params, problems[1].more]
        for p, x, y in zip(everything, before, after, strict=True):
            assert torch.equal(x, y) != (id(p) in own)
    return None


SCHEDULERS: tuple[Callable[[Optimizer], Any], ...] = (
    lambda o: lr_scheduler.StepLR(o, step_size=1, gamma=0.5),
    lambda o: lr_scheduler.LambdaLR(o, lambda step: 1.0 / (1 + step)),
    lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=2),
    lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0, threshold=1e9),
    lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    lambda o: lr_scheduler.OneCycleLR(
        o, max_lr=0.05, total_steps=8, cycle_momentum="momentum" in o.defaults or "betas" in o.defaults
    ),
)


def check_schedulers(case: Case, kind: str) -> None:
    """A scheduler on the wrapper, or on its base, does what it does on the base alone, without a warning."""
    for build in case.schedulers:
        weights = []
        for at in ("alone", "wrapper", "base"):
            problem = Problem(case)
            base = case.base(problem.params)
            optimizer = base if at == "alone" else WRAPPERS[kind](base, 0.0)
            step = step_of(problem, optimizer, kind)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.filterwarnings("ignore", "The epoch parameter")
                scheduler = build(base if at == "base" else optimizer)
                for i in range(3):
                    step()
                    plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
                    scheduler.step(*([float(i)] if plateau else []))
            weights.append(problem.weights())
            assert optimizer.param_groups[0]["lr"] is base.param_groups[0]["lr"]
        same(weights[0], weights[1])
        same(weights[0], weights[2])


def check_copies(case: Case, kind: str) -> None:
    """A deep copy and a pickle, of parameters and optimizer together, go on as the original does."""
    for duplicate in (copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))):
        problem = Problem(case)
        optimizer = WRAPPERS[kind](case.base(problem.params))
        lr_scheduler.StepLR(optimizer, step_size=1)  # puts its own step() on the instance
        problem.run(optimizer, 2)
        other, copied = duplicate((problem, optimizer))
        assert type(copied) is type(optimizer)
        assert copied.param_groups is copied.base.param_groups
        problem.run(optimizer, 2)
        middle = other.weights()
        other.run(copied, 2)
        same(problem.weights(), other.weights())
        assert not all(torch.equal(x, y) for x, y in zip(middle, other.weights(), strict=True))


def check_bfloat16(case: Case, kind: str) -> str | None:
    """Weights in bfloat16: the base's numbers without a radius, finite ones with one."""
    if said := refusal(case, kind, dtype=torch.bfloat16):
        return said
    pair = Pair(case, kind, dtype=torch.bfloat16)
    pair.run(3)
    pair.equal()
    problem = Problem(case, dtype=torch.bfloat16)
    problem.run(WRAPPERS[kind](case.base(problem.params)), 3)
    assert all(w.isfinite().all() for w in problem.weights())
    return None


def check_maximize(case: Case, kind: str) -> None:
    """Maximizing a loss is minimizing the negated one, perturbation and all."""
    if not case.options.get("maximize") or kind == "noisy_gradient":  # whose noise has no sign
        return
    up = Problem(case)
    down = Problem(case, sign=-1.0)
    minimizing = Case(case.name, case.options | {"maximize": False})
    for problem, of in ((up, case), (down, minimizing)):
        problem.run(WRAPPERS[kind](of.base(problem.params)), 4)
    same(up.weights(), down.weights())


def check_missing_gradients(case: Case, kind: str) -> None:
    """Parameters that the loss does not reach stay, as with the base alone; so they do when frozen."""
    for freeze in (False, True):
        pair = Pair(case, kind)
        for problem in (pair.one, pair.two):
            problem.left_out = (0,)
            problem.params[0].requires_grad_(not freeze)
        pair.run(3)
        pair.equal()
        assert torch.equal(pair.two.params[0], Problem(case).params[0])
        problem = Problem(case)
        problem.left_out = (0,)
        problem.run(WRAPPERS[kind](case.base(problem.params)), 3)
        assert torch.equal(problem.params[0], Problem(case).params[0])


def check_tensor_rate(case: Case, kind: str) -> str | None:
    """A learning rate that is a tensor stays that tensor."""
    case = Case(case.name, case.options | {"lr": torch.tensor(0.01)}, case.label)
    if said := refusal(case, kind):
        return said
    pair = Pair(case, kind)
    rate = pair.ours.param_groups[0]["lr"]
    for optimizer in (pair.plain, pair.ours):
        lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    pair.run(3)
    pair.equal()
    assert pair.ours.param_groups[0]["lr"] is rate
    return None


def check_complex(case: Case, kind: str) -> str:
    """Complex parameters are refused before anything moves."""
    said = refusal(case, kind, dtype=torch.complex64)
    assert said is not None, "complex gradients were taken"
    return said


CHECKS: dict[str, Callable[[Case, str], str | None]] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}


def verdicts(case: Case, kind: str, *, thorough: bool = True) -> dict[str, str | None]:
    """What each check says of a case: None where it holds, or the words of a refusal."""
    own = SCHEDULERS if thorough else SCHEDULERS[-2:]
    case = dataclasses.replace(case, schedulers=(*own, *case.schedulers))
    if said := refusal(case, kind):
        return {"construction": said}
    return {name: check(case, kind) for name, check in CHECKS.items()}
