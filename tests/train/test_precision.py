"""Precision and speed: every option against a loop written out, under the pilot, and through a resume."""

from __future__ import annotations

import copy
import functools
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiers import slow
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from optland import vectors
from optland.config import UserError
from optland.objective import Objective
from optland.optim import ASAM, SAM, TwoPass
from optland.optim.method import Gradients, Method
from optland.optim.saddle import NegativeCurvature
from optland.pilot import AutoLR, Pilot
from optland.train import BatchLoader
from optland.train.loops.precision import Precision, PrecisionConfig
from optland.train.loops.schedule import schedule_by_name
from optland.train.models import ModelConfig, build_model
from optland.train.runs.checkpoint import Checkpoint

Batch = tuple[Tensor, Tensor]


def images(n: int = 96) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 1, 8, 8, generator=generator)
    return x, (x.flatten(1) @ torch.randn(64, 4, generator=generator)).argmax(1)


def make(name: str = "cnn", dropout: float = 0.0, width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig(name=name, width=width, dropout=dropout), (1, 8, 8), 4)


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def sam(model: nn.Module) -> torch.optim.Optimizer:
    return SAM(sgd(model), rho=0.1, model=model)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01)


MAKERS = [sgd, adamw, sam]


def batches(count: int = 6, size: int = 16) -> list[Batch]:
    x, y = images()
    return [(x[k * size : (k + 1) * size], y[k * size : (k + 1) * size]) for k in range(count)]


def ours(
    config: PrecisionConfig, make_optimizer: Callable[[nn.Module], Any], model: nn.Module, loss: Any = loss_fn
) -> list[float]:
    """The recipe's loop."""
    net = config.prepare(model)
    optimizer = make_optimizer(net)
    precision = config.build(optimizer)
    losses = []
    for batch in batches():

        def closure(batch: Batch = batch) -> Tensor:
            optimizer.zero_grad()
            return precision.backward(loss, net, batch)

        losses.append(float(precision.step(closure)))
    return losses


def plain(
    make_optimizer: Callable[[nn.Module], Any], model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor]
) -> list[float]:
    """The loop of a tutorial."""
    optimizer = make_optimizer(model)
    losses = []
    for batch in batches():

        def closure(batch: Batch = batch) -> Tensor:
            optimizer.zero_grad()
            value = loss(model, batch)
            value.backward()
            return value.detach()

        losses.append(float(optimizer.step(closure)))
    return losses


def weights(model: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in model.state_dict().values()]


def assert_same_bits(a: nn.Module, b: nn.Module) -> None:
    for s, t in zip(weights(a), weights(b), strict=True):
        assert torch.equal(s, t)


def assert_close(a: nn.Module, b: nn.Module, **tolerance: float) -> None:
    for s, t in zip(weights(a), weights(b), strict=True):
        torch.testing.assert_close(s, t, **tolerance)


# Autocast and loss scaling ------------------------------------------------------------------------


@pytest.mark.parametrize("make_optimizer", MAKERS)
def test_float32_is_the_plain_loop_bit_for_bit(make_optimizer: Any) -> None:
    a, b = make("resnet8", dropout=0.2), make("resnet8", dropout=0.2)
    torch.manual_seed(5)
    first = ours(PrecisionConfig(), make_optimizer, a)
    torch.manual_seed(5)
    assert first == plain(make_optimizer, b, loss_fn)
    assert_same_bits(a, b)


@pytest.mark.parametrize("make_optimizer", MAKERS)
def test_bf16_is_the_plain_loop_under_autocast_and_trains(make_optimizer: Any) -> None:
    def autocast_loss(model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss_fn(model, batch)

    a, b, full = make(), make(), make()
    losses = ours(PrecisionConfig(precision="bf16"), make_optimizer, a)
    assert losses == plain(make_optimizer, b, autocast_loss)
    assert_same_bits(a, b)
    in_full = ours(PrecisionConfig(), make_optimizer, full)
    assert losses != in_full
    assert losses == pytest.approx(in_full, rel=0.05)
    assert all(p.dtype == torch.float32 for p in a.parameters())


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("make_optimizer", [sgd, adamw])
def test_fp16_is_the_scaled_loop_written_out(make_optimizer: Any, clip: float | None) -> None:
    a, b = make(), make()
    losses = ours(PrecisionConfig(precision="fp16", clip=clip), make_optimizer, a)
    optimizer, scaler, expected = make_optimizer(b), GradScaler("cpu"), []
    for batch in batches():
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = loss_fn(b, batch)
        scaler.scale(loss).backward()
        if clip is not None:
            scaler.unscale_(optimizer)
            clip_grad_norm_(b.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        expected.append(loss.item())
    assert losses == expected
    assert_same_bits(a, b)
    assert not torch.equal(weights(a)[0], weights(make())[0])


@pytest.mark.parametrize("clip", [None, 0.3])
def test_sam_under_a_loss_scale_equals_sam_without_one(clip: float | None) -> None:
    """In float64 nothing rounds noticeably, so that scaling, both passes and clipping must cancel out."""

    def scaled(model: nn.Module) -> None:
        config = PrecisionConfig(precision="fp16", clip=clip, accumulation=2)
        optimizer = sam(model)
        precision = config.build(optimizer)
        precision.dtype = None  # the scaler alone
        _steps(precision, optimizer, model)

    a, b = make(dropout=0.3).double(), make(dropout=0.3).double()
    torch.manual_seed(3)
    scaled(a)
    torch.manual_seed(3)
    optimizer = sam(b)
    _steps(PrecisionConfig(clip=clip, accumulation=2).build(optimizer), optimizer, b)
    assert_close(a, b, rtol=1e-9, atol=1e-12)


def _steps(precision: Precision, optimizer: Any, model: nn.Module) -> None:
    for batch in [(x.double(), y) for x, y in batches()]:

        def closure(batch: Batch = batch) -> Tensor:
            optimizer.zero_grad()
            return precision.backward(loss_fn, model, batch)

        precision.step(closure)


@pytest.mark.filterwarnings(
    "ignore:the gradient of update 1 is not finite", "ignore:the run ended after 67% of"
)
@pytest.mark.parametrize("make_optimizer", MAKERS)
def test_an_overflow_skips_the_step_halves_the_scale_and_the_run_goes_on(make_optimizer: Any) -> None:
    model = make()
    optimizer = make_optimizer(model)
    precision = PrecisionConfig(precision="fp16").build(optimizer)
    loader = BatchLoader(images(), 16, epochs=1)
    scheduler = schedule_by_name("cosine", optimizer, loader)
    assert scheduler is not None
    pilot = Pilot(optimizer, model, loss_fn, total_samples=loader.total_samples)
    before = weights(model)
    for call, batch in enumerate(pilot.batches(loader)):
        spoilt = call in (0, 2)

        def closure(batch: Batch = batch, spoilt: bool = spoilt) -> Tensor:
            optimizer.zero_grad()
            loss = precision.backward(loss_fn, model, batch)
            if spoilt:
                next(model.parameters()).grad[0] = math.inf
            return loss

        loss = precision.step(closure)
        scheduler.step()
        pilot.after_step(batch, loss)
        same = [torch.equal(a, b) for a, b in zip(before, weights(model), strict=True)]
        assert all(same) if spoilt else not any(same)
        before = weights(model)
    assert precision.scaler.get_scale() == 2.0**16 / 4
    assert (pilot.step, pilot.lost) == (call - 1, 2)


def test_an_interrupt_in_pass_two_leaves_the_weights_unperturbed() -> None:
    model = make()
    optimizer = sam(model)
    precision = PrecisionConfig(precision="fp16").build(optimizer)
    calls = []

    def closure() -> Tensor:
        calls.append(1)
        optimizer.zero_grad()
        if len(calls) == 2:
            raise KeyboardInterrupt
        return precision.backward(loss_fn, model, batches(1)[0])

    before = weights(model)
    with pytest.raises(KeyboardInterrupt):
        precision.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


def test_a_wrapper_that_calls_closures_by_itself_cannot_be_loss_scaled() -> None:
    optimizer = NegativeCurvature(torch.optim.SGD(make().parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"NegativeCurvature evaluates its closure by itself.*bf16 or fp32"):
        PrecisionConfig(precision="fp16").build(optimizer)


# Accumulation and clipping ------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 5, 16, 99])
@pytest.mark.parametrize("make_optimizer", MAKERS)
def test_accumulation_equals_the_full_batch(make_optimizer: Any, parts: int) -> None:
    a, b = make().double(), make().double()

    def double_loss(model: nn.Module, batch: Batch) -> Tensor:
        return loss_fn(model, (batch[0].double(), batch[1]))

    losses = ours(PrecisionConfig(accumulation=parts), make_optimizer, a, double_loss)
    assert losses == pytest.approx(plain(make_optimizer, b, double_loss), rel=1e-9)
    assert_close(a, b, rtol=1e-7, atol=1e-10)


def test_accumulation_changes_within_an_epoch_and_keeps_the_gradient() -> None:
    model, other = make().double(), make().double()
    batch = next(iter(batches()))
    batch = (batch[0].double(), batch[1])
    sizes: list[int] = []

    def seen(m: nn.Module, part: Batch) -> Tensor:
        if torch.is_grad_enabled():  # else it is looked at, and trains nothing
            sizes.append(len(part[1]))
        return loss_fn(m, part)

    precision = PrecisionConfig().build(sgd(model))
    loss_fn(other, batch).backward()
    for parts in (1, 3, 2):
        precision.set_accumulation(parts)
        model.zero_grad()
        precision.backward(seen, model, batch)
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)
    n = len(batch[1])
    assert (sizes[0], len(sizes), sum(sizes)) == (n, 6, 3 * n)
    resumed = PrecisionConfig().build(sgd(model))
    resumed.load_state_dict(precision.state_dict())
    assert resumed.accumulation == 2
    with pytest.raises(ValueError, match="accumulation: 0 micro-batches"):
        precision.set_accumulation(0)


def test_a_token_level_loss_is_weighted_by_its_counts() -> None:
    """The parts count 1 and 12 tokens; the mean over tokens is not the mean of the parts' means."""
    model = nn.Linear(3, 1, bias=False).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(4, 3, dtype=torch.float64)
    tokens = torch.tensor([0.0, 1.0, 5.0, 7.0], dtype=torch.float64)

    def summed(m: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return (m(batch[0]).squeeze(1) * batch[1]).sum(), batch[1].sum()

    for parts in (1, 2, 4):  # with 4 parts, the first counts nothing at all
        precision = PrecisionConfig(accumulation=parts).build(optimizer)
        optimizer.zero_grad()
        loss = precision.backward(summed, model, (x, tokens))
        assert float(loss) == pytest.approx(float((x @ model.weight[0].detach()) @ tokens / 13))
        torch.testing.assert_close(model.weight.grad[0], tokens @ x / 13)
    with pytest.raises(ValueError, match="total count of 0"):
        precision.backward(summed, model, (x, 0 * tokens))


@pytest.mark.parametrize("make_optimizer", [sgd, adamw])
def test_clipping_is_torchs_between_backward_and_step(make_optimizer: Any) -> None:
    a, b = make(), make()
    ours(PrecisionConfig(clip=0.2), make_optimizer, a)
    optimizer = make_optimizer(b)
    for batch in batches():
        optimizer.zero_grad()
        loss_fn(b, batch).backward()
        assert clip_grad_norm_(b.parameters(), 0.2) > 0.2
        optimizer.step()
    assert_same_bits(a, b)


class Shy(Method):
    """Combines both gradients, so that a clipped g would show."""

    def combine(self, at: Gradients) -> list[Tensor]:
        return [2 * b - a for a, b in zip(at.g, at.h, strict=True)]


class ShyAndScaled(Shy):
    def metric(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> Tensor:
        return p.abs() + 0.01


@pytest.mark.parametrize("method", [Shy, ShyAndScaled])
def test_under_sam_what_the_base_receives_is_clipped_and_the_perturbation_is_not(method: Any) -> None:
    a, b, received = make(), make(), []
    ours(PrecisionConfig(clip=0.2), lambda m: TwoPass(sgd(m), method(rho=0.1), model=m), a)
    base = sgd(b)
    optimizer = TwoPass(base, method(rho=0.1), model=b)
    for batch in batches():
        loss_fn(b, batch).backward()
        optimizer.perturb()
        optimizer.zero_grad()
        loss_fn(b, batch).backward()
        optimizer.restore()
        received.append(float(clip_grad_norm_(b.parameters(), 0.2)))
        optimizer.step()
        optimizer.zero_grad()
    assert min(received) > 0.2
    assert_same_bits(a, b)


@pytest.mark.parametrize("method", [SAM, ASAM])
def test_clipping_leaves_nothing_on_the_optimizer(method: Any) -> None:
    """Built anew, as a notebook's cell that runs twice does, it clips by the last one's limit; a bare step does not."""
    model = make()
    optimizer = method(torch.optim.SGD(model.parameters(), lr=1.0), rho=0.1, model=model)
    strict = PrecisionConfig(clip=1e-6).build(optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_fn(model, batches(1)[0])
        loss.backward()
        return loss

    def failing() -> Tensor:
        raise KeyError

    def length(step: Callable[[Any], Any]) -> float:
        before = [p.detach().clone() for p in model.parameters()]
        step(closure)
        return float(vectors.norm([p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]))

    with pytest.raises(KeyError):
        strict.step(failing)
    assert length(PrecisionConfig(clip=1e-3).build(optimizer).step) == pytest.approx(1e-3, rel=1e-3)
    assert length(optimizer.step) > 1e-2
    assert length(strict.step) == pytest.approx(
        1e-6, rel=0.1
    )  # float32 weights round a move as small as that
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer.base))):
        assert copied.param_groups[0]["lr"] == 1.0


def test_telemetry_of_sam_is_that_of_the_unclipped_gradients() -> None:
    read = []
    for clip in (None, 1e-3):
        model = make()
        optimizer: Any = sam(model)
        precision = PrecisionConfig(clip=clip).build(optimizer)

        def closure(
            optimizer: Any = optimizer, precision: Precision = precision, model: Any = model
        ) -> Tensor:
            optimizer.zero_grad()
            return precision.backward(loss_fn, model, batches(1)[0])

        precision.step(closure)
        read.append(optimizer.telemetry.read())
    assert read[0] == read[1]


# Layout and compilation ---------------------------------------------------------------------------


def test_channels_last_changes_the_layout_and_not_the_result() -> None:
    a, b, flat = make("resnet8", width=8), make("resnet8", width=8), make("mlp")
    losses = ours(PrecisionConfig(channels_last=True), sam, a)
    convolutions = [p for p in a.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert len(convolutions) > 3
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in convolutions)
    assert losses == pytest.approx(plain(sam, b, loss_fn), rel=1e-4)
    assert PrecisionConfig(channels_last=True).prepare(flat) is flat
    kept = [p.clone() for p in a.parameters()]
    Objective(a, loss_fn, batches(1)).gradient([p + 0.1 for p in kept])
    assert all(
        torch.equal(p, k) and p.stride() == k.stride() for p, k in zip(a.parameters(), kept, strict=True)
    )


def test_a_layout_that_would_corrupt_memory_is_refused() -> None:
    narrow = build_model(ModelConfig("resnet8", width=4), (1, 8, 8), 4)
    with pytest.raises(UserError, match=r"1 x 1 .* has 4; use channels_last=false"):
        PrecisionConfig(channels_last=True).prepare(narrow)
    assert all(p.is_contiguous() for p in narrow.parameters())


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_loop_runs_compiled_while_probes_see_the_model_itself(backend: str, monkeypatch: Any) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    x, y = images()
    results = []
    for compiled in (False, True):
        model = make("mlp")
        config = PrecisionConfig(compile=compiled)
        net = config.prepare(model)
        assert (net is not model) == compiled
        assert Objective(net, loss_fn, [(x, y)]).model is model
        optimizer = sam(net)
        precision = config.build(optimizer)
        loader = BatchLoader([x, y], 16, epochs=4)
        policies = ["auto_lr", "curvature_monitor"]
        pilot = Pilot(
            optimizer, model, loss_fn, policies=policies, total_samples=loader.total_samples, budget=1.0
        )
        losses = []
        for batch in pilot.batches(loader):

            def closure(
                batch: Batch = batch, net: Any = net, optimizer: Any = optimizer, precision: Any = precision
            ) -> Tensor:
                optimizer.zero_grad()
                return precision.backward(loss_fn, net, batch)

            losses.append(float(precision.step(closure)))
            pilot.after_step(batch, losses[-1])
        assert pilot.budget.spent["curvature"] > 0
        results.append((losses, weights(model)))
    (eager, w), (fast, v) = results
    assert fast == pytest.approx(eager, rel=1e-3)
    for a, b in zip(w, v, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def test_compilation_without_a_compiler_is_refused_before_the_first_step(monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"install g\+\+, or set compile=false"):
        PrecisionConfig(compile=True).prepare(make())


# Under the pilot, and through a resume ------------------------------------------------------------


class Run:
    """The recipe's loop with everything in it."""

    def __init__(self, config: PrecisionConfig, make_optimizer: Any, epochs: int = 8, **pilot: Any) -> None:
        # Strided convolutions of fewer channels cannot be laid out channels last on the CPU.
        self.model = make("resnet8", dropout=0.2, width=16 if config.channels_last else 4)
        self.net = config.prepare(self.model)
        self.optimizer = make_optimizer(self.net)
        self.precision = config.build(self.optimizer)
        self.ema = config.build_ema(self.model)
        self.loader = BatchLoader(images(), 16, epochs=epochs, seed=2)
        self.pilot = Pilot(
            self.optimizer, self.model, loss_fn, total_samples=self.loader.total_samples, budget=1.0, **pilot
        )
        self.losses: list[float] = []
        self.lengths: list[float] = []
        torch.manual_seed(7)

    def checkpoint(self, folder: Any) -> Checkpoint:
        parts = {
            "model": self.model,
            "optimizer": self.optimizer,
            "precision": self.precision,
            "ema": self.ema,
        }
        return Checkpoint(folder / "c.pt", every=1, **parts, loader=self.loader, pilot=self.pilot)

    def train(self, steps: int = 10**6) -> Run:
        for batch in self.pilot.batches(self.loader):

            def closure(batch: Batch = batch) -> Tensor:
                self.optimizer.zero_grad()
                return self.precision.backward(loss_fn, self.net, batch)

            before = weights(self.model)
            loss = self.precision.step(closure)
            self.lengths.append(lengths_of(before, weights(self.model)))
            self.pilot.after_step(batch, loss)
            if self.ema is not None:
                self.ema.update()
            self.losses.append(float(loss))
            if self.pilot.step >= steps:
                break
        return self


OPTIONS = {
    "bf16": PrecisionConfig(precision="bf16"),
    "fp16": PrecisionConfig(precision="fp16"),
    "layout": PrecisionConfig(channels_last=True),
    "parts": PrecisionConfig(accumulation=3),
    "clip": PrecisionConfig(clip=0.5),
    "ema": PrecisionConfig(ema=0.9),
    "mixed": PrecisionConfig(precision="fp16", clip=0.5, accumulation=3, ema=0.9),
    "all": PrecisionConfig(precision="fp16", channels_last=True, clip=0.5, accumulation=3, ema=0.9),
}


@pytest.mark.filterwarnings("ignore:gradients come to the step clipped")
@pytest.mark.parametrize(
    ("option", "make_optimizer"),
    [
        *[("parts", sam), ("bf16", adamw)],
        *slow(*((option, sam) for option in OPTIONS if option != "parts"), ("all", adamw), ("fp16", sgd)),
    ],
)
def test_auto_lr_sets_the_length_of_each_step_under_every_option(option: str, make_optimizer: Any) -> None:
    """Whatever computed the gradient, each update has the scheduled length relative to the weights before it."""
    run = Run(OPTIONS[option], make_optimizer, policies=[AutoLR(tau=0.05), "curvature_monitor"])
    run.train()
    assert run.pilot.step == len(run.losses) == 48
    for k, length in enumerate(run.lengths):
        progress = (k + 0.5) / 48
        shape = progress / 0.05 if progress < 0.05 else (1 - progress) / 0.95
        assert length == pytest.approx(0.05 * shape, rel=1e-3)
    assert run.losses[-1] < 0.95 * run.losses[0]  # a run of 48 short steps
    assert run.pilot.budget.spent["curvature"] > 0


def lengths_of(before: list[Tensor], after: list[Tensor]) -> float:
    """Root-sum-square over the matrices of |d| / |w|, with a tenth of the root-mean-square weight as the least |w|."""
    pairs = [(w.double(), v.double()) for w, v in zip(before, after, strict=True) if w.ndim >= 2]
    mean = math.sqrt(sum(float(w.square().sum()) for w, _ in pairs) / sum(w.numel() for w, _ in pairs))
    least = [0.1 * mean * math.sqrt(w.numel()) for w, _ in pairs]
    return math.hypot(
        *(float((v - w).norm()) / max(float(w.norm()), x) for (w, v), x in zip(pairs, least, strict=True))
    )


@pytest.mark.parametrize("option", ["bf16", *slow("layout", "all")])
def test_watching_changes_no_bit_under_any_option(option: str) -> None:
    off = Run(OPTIONS[option], sam, mode="off").train()
    watched = Run(OPTIONS[option], sam, mode="monitor").train()
    assert min(watched.pilot.budget.spent[name] for name in ("edge", "noise", "curvature")) > 0
    assert off.losses == watched.losses
    assert_same_bits(off.model, watched.model)
    assert off.precision.state_dict() == watched.precision.state_dict()
    if off.ema is not None:
        assert_same_bits(off.ema.model, watched.ema.model)


@pytest.mark.filterwarnings("ignore:the gradient of update", "ignore:gradients come to the step clipped")
@pytest.mark.parametrize(
    ("option", "make_optimizer"),
    [("mixed", sam), *slow(("all", sam), ("all", adamw), ("bf16", adamw), ("bf16", sam))],
)
def test_a_resume_is_exact_scaler_and_average_included(
    option: str, make_optimizer: Any, tmp_path: Any
) -> None:
    whole = Run(OPTIONS[option], make_optimizer, epochs=4)
    whole.precision.scaler.set_growth_interval(7)
    whole.train()
    stopped = Run(OPTIONS[option], make_optimizer, epochs=4)
    stopped.precision.scaler.set_growth_interval(7)
    stopped.train(steps=10).checkpoint(tmp_path).save(10)
    resumed = Run(OPTIONS[option], make_optimizer, epochs=4)
    assert resumed.checkpoint(tmp_path).load() == 10
    resumed.train()
    assert stopped.losses + resumed.losses == whole.losses
    assert_same_bits(whole.model, resumed.model)
    assert resumed.precision.state_dict() == whole.precision.state_dict()
    if whole.ema is not None:
        assert_same_bits(whole.ema.model, resumed.ema.model)
        assert whole.precision.scaler.get_scale() > 2.0**16, "the scale has grown, so its state matters"


# Configuration ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"precision": "bf32"}, "^precision: 'bf32' is not known"),
        ({"clip": 0.0}, "^clip: 0.0 must be above 0"),
        ({"clip": math.inf}, "^clip: inf"),
        ({"accumulation": 0}, "^accumulation: 0 micro-batches"),
        ({"ema": 1.0}, "^ema: 1.0 is not a decay"),
    ],
)
def test_impossible_options_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PrecisionConfig(**config)


def test_the_norm_that_is_clipped_is_the_global_one() -> None:
    model = make("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    precision = PrecisionConfig(clip=0.25).build(optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        return precision.backward(loss_fn, model, batches(1)[0])

    before = vectors.clone([p.detach() for p in model.parameters()])
    precision.step(closure)
    moved = vectors.norm(vectors.subtract([p.detach() for p in model.parameters()], before))
    assert float(moved) == pytest.approx(0.25, rel=1e-4)
