"""Two-pass steps in Lightning are those of the plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiers import slow
from torch import nn

pytest.importorskip("lightning")

import lightning as L
import torchmetrics
from integrations.lightning_runs import (
    Bare,
    Losses,
    Net,
    apart,
    half,
    loader,
    loss_of,
    net,
    optimizer,
    plain,
    trainer,
)
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from optland.integrations.lightning import SAMModule
from optland.optim import SAM

CLIPS: dict[str, tuple[dict[str, Any], Any]] = {
    "none": ({}, None),
    "norm": ({"gradient_clip_val": 0.3}, lambda params: clip_grad_norm_(params, 0.3)),
    "value": (
        {"gradient_clip_val": 0.02, "gradient_clip_algorithm": "value"},
        lambda params: clip_grad_value_(params, 0.02),
    ),
}


@pytest.mark.cell("Lightning", "SAM closure")
@pytest.mark.cell("Lightning", "SAM phase")
@pytest.mark.cell("Lightning", "scheduler")
@pytest.mark.cell("Lightning", "clip")
@pytest.mark.cell("Lightning", "accumulation")
@pytest.mark.parametrize(
    ("method", "accumulation", "clip"),
    [
        ("sam", 1, "norm"),
        ("sam", 4, "none"),
        ("asam", 4, "value"),
        ("msam", 4, "norm"),
        ("looksam", 4, "norm"),
        *slow(
            *(
                (method, accumulation, clip)
                for method in ("sam", "asam", "msam", "looksam")
                for accumulation in (1, 4)
                for clip in CLIPS
            )
        ),
    ],
)
def test_weights_and_losses_are_those_of_the_plain_loop(method: str, accumulation: int, clip: str) -> None:
    options, by_hand = CLIPS[clip]
    module, losses = Net(method, gamma=0.98), Losses()
    run = trainer(accumulate_grad_batches=accumulation, callbacks=[losses], **options)
    run.fit(module, loader())
    other = net()
    expected = plain(method, other, list(loader()), accumulation=accumulation, clip=by_hand, gamma=0.98)
    assert run.global_step == 20
    assert apart(module.net, other) < 1e-10
    assert losses.outputs == pytest.approx([x / accumulation for x in expected], abs=1e-10)
    assert losses.logged == pytest.approx(expected, abs=1e-6)  # Lightning logs in float32
    assert apart(module.net, net()) > 1e-2  # it has trained


@pytest.mark.cell("Lightning", "bf16")
@pytest.mark.parametrize("accumulation", [1, 4])
def test_bfloat16_has_the_bits_of_the_plain_loop(accumulation: int) -> None:
    module, other = Net(model=net().float()), net().float()
    run = trainer(precision="bf16-mixed", accumulate_grad_batches=accumulation, gradient_clip_val=0.5)
    run.fit(module, loader(dtype=torch.float32))
    batches = list(loader(dtype=torch.float32))
    plain("sam", other, batches, accumulation=accumulation, dtype=torch.bfloat16,
          clip=lambda params: clip_grad_norm_(params, 0.5))  # fmt: skip
    assert apart(module.net, other) == 0.0
    exact = net().float()
    plain("sam", exact, batches, accumulation=accumulation, clip=lambda params: clip_grad_norm_(params, 0.5))
    assert apart(exact, other) > 1e-5  # it was bfloat16


@pytest.mark.cell("Lightning", "fp16 scaler")
@pytest.mark.parametrize(
    ("method", "accumulation"), [("sam", 1), ("msam", 4), *slow(("sam", 4), ("asam", 4), ("looksam", 4))]
)
def test_half_precision_has_the_bits_of_the_plain_loop(method: str, accumulation: int) -> None:
    """The scale starts so high that the first steps are left out, and grows again in the run."""
    options = {"init_scale": 2.0**22, "growth_interval": 6}
    module, other, plugin = Net(method, model=net().float()), net().float(), half(**options)
    run = trainer(plugins=[plugin], accumulate_grad_batches=accumulation, gradient_clip_val=0.5)
    run.fit(module, loader(dtype=torch.float32))
    scaler = torch.amp.GradScaler("cpu", **options)
    plain(method, other, list(loader(dtype=torch.float32)), accumulation=accumulation, dtype=torch.float16,
          scaler=scaler, clip=lambda params: clip_grad_norm_(params, 0.5))  # fmt: skip
    assert apart(module.net, other) == 0.0
    assert plugin.scaler.get_scale() == scaler.get_scale() < options["init_scale"]
    assert apart(module.net, net().float()) > 1e-2


@pytest.mark.cell("Lightning", "fp16 scaler", "refused")
@pytest.mark.cell("Lightning", "accumulation", "refused")
@pytest.mark.parametrize("options", [{"plugins": "half"}, {"accumulate_grad_batches": 4}])
def test_without_the_mixin_the_refusal_names_it(options: dict[str, Any]) -> None:
    if "plugins" in options:
        options = {"plugins": [half()]}
    module = Bare(model=net().float())
    with pytest.raises(RuntimeError, match=r"optland\.integrations\.lightning\.SAMModule"):
        trainer(**options).fit(module, loader(dtype=torch.float32))
    assert apart(module.net, net().float()) == 0.0


@pytest.mark.cell("Lightning", "SAM closure")
def test_without_the_mixin_one_batch_per_update_goes_on_working() -> None:
    module, other = Bare(), net()
    trainer().fit(module, loader())
    plain("sam", other, list(loader()))
    assert apart(module.net, other) == 0.0


class Counting(Net):
    """Metrics of every kind, and what its hooks have seen."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.alone = torchmetrics.MeanMetric(), torchmetrics.MeanMetric()
        self.several = torchmetrics.MetricCollection(
            {"low": torchmetrics.MinMetric(), "sum": torchmetrics.SumMetric()}
        )
        self.seen: dict[str, int] = {}
        self.passes: list[bool] = []
        self.norms: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = loss_of(self, batch)
        self.mean(loss)
        self.several.update(loss)
        self.log("train/mean", self.mean, on_step=False, on_epoch=True)
        self.log_dict({"train/loss": loss, "train/one": 1.0}, on_step=False, on_epoch=True, reduce_fx="sum")
        self.passes.append(self.in_second_pass)
        return {"loss": loss}

    def count(self, name: str) -> None:
        self.seen[name] = self.seen.get(name, 0) + 1

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.count("step")
        self.norms.append(float(torch.stack([p.grad.norm() for p in self.net.parameters()]).norm()))

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.count("zero")


@pytest.mark.cell("Lightning", "SAM closure")
def test_metrics_and_hooks_see_each_batch_and_each_update_once() -> None:
    module = Counting()
    run = trainer(5, max_epochs=1, accumulate_grad_batches=4)
    run.fit(module, loader(20))
    other = net()
    expected = plain("sam", other, list(loader(20)), num_steps=5, accumulation=4)
    assert apart(module.net, other) == 0.0
    assert run.callback_metrics["train/one"] == 20
    assert float(run.callback_metrics["train/loss"]) == pytest.approx(sum(expected), rel=1e-6)
    assert float(run.callback_metrics["train/mean"]) == pytest.approx(sum(expected) / 20, rel=1e-6)
    totals = {name: float(x) for name, x in module.several.compute().items()}
    assert totals == {"low": pytest.approx(min(expected)), "sum": pytest.approx(sum(expected), rel=1e-6)}
    assert module.seen == {"step": 5, "zero": 5}
    assert module.passes == ([False] * 4 + [True] * 4) * 5
    assert "log" not in vars(module)
    assert isinstance(module.mean, torchmetrics.MeanMetric)
    assert set(module.state_dict()) == {f"net.{name}" for name in net().state_dict()}


@pytest.mark.cell("Lightning", "SAM phase")
def test_a_gate_leaves_out_second_passes() -> None:
    module = Net("looksam")
    trainer(accumulate_grad_batches=4).fit(module, loader())
    assert module.calls == 4 * (20 + 4)  # every fifth update


class Drawing(Net):
    """Draws random numbers outside of any forward pass of the module."""

    def __init__(self, **options: Any) -> None:
        super().__init__(model=net(nn.BatchNorm1d(8), nn.Dropout(0.5)), **options)
        self.drawn: list[list[float]] = [[], []]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.drawn[self.in_second_pass].append(float(torch.rand(())))
        loss = loss_of(self, batch)
        self.drawn[self.in_second_pass].append(float(torch.rand(())))
        return loss


@pytest.mark.parametrize("guarded", [True, False])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_pass_two_repeats_the_random_numbers_and_leaves_buffers(guarded: bool, accumulation: int) -> None:
    module = Drawing(guarded=guarded)
    torch.manual_seed(5)
    trainer(5, accumulate_grad_batches=accumulation).fit(module, loader())
    first, second = module.drawn
    assert first == second
    assert len(set(first)) == len(first) == 10 * accumulation
    norm = module.net[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.num_batches_tracked == 5 * accumulation


@pytest.mark.parametrize("method", ["sam", "msam"])
def test_a_batch_that_is_not_finite_costs_its_update_alone(method: str) -> None:
    broken = [[x.clone(), y] for x, y in loader(12)]
    broken[5][0][0, 0] = float("nan")
    module, other = Net(method), net()
    trainer(6, accumulate_grad_batches=2).fit(module, DataList(broken))
    plain(method, other, broken, num_steps=6, accumulation=2)
    assert apart(module.net, other) == 0.0
    assert apart(module.net, net()) > 0


class DataList(torch.utils.data.DataLoader[Any]):
    """Batches that are there already."""

    def __init__(self, batches: list[Any]) -> None:
        super().__init__(batches, batch_size=None)


@pytest.mark.cell("Lightning", "resume")
@pytest.mark.parametrize("method", ["looksam", "msam"])
def test_a_run_resumes_bit_for_bit(method: str, tmp_path: Any) -> None:
    def run(num_epochs: int, **options: Any) -> tuple[Any, L.Trainer]:
        module = Net(method, gamma=0.9)
        made = trainer(-1, max_epochs=num_epochs, accumulate_grad_batches=3)
        made.fit(module, loader(10), **options)
        return module, made

    whole, made = run(4)
    assert made.global_step == 16  # the last update of an epoch has one batch
    _, first = run(2)
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed, made = run(4, ckpt_path=tmp_path / "half.ckpt")
    assert made.global_step == 16
    assert apart(whole.net, resumed.net) == 0.0


class Skipping(Net):
    """Leaves out batches, as some loaders need."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx % 4 in (1, 3) or batch_idx >= 16 else loss_of(self, batch)


@pytest.mark.parametrize("method", ["sam", "msam"])
def test_a_training_step_that_returns_none_is_left_out_of_both_passes(method: str) -> None:
    module, other = Skipping(method), net()
    with pytest.warns(RuntimeWarning, match="brought no gradient"):
        trainer(5, accumulate_grad_batches=4).fit(module, loader(20))
    kept = [batch for i, batch in enumerate(loader(20)) if i < 16 and i % 4 in (0, 2)]
    made = plain_halves(method, other, kept)
    assert made == 4
    assert apart(module.net, other) < 1e-12


def plain_halves(method: str, model: nn.Module, batches: list[Any]) -> int:
    """Two of the four micro-batches of each update, with their share of the loss."""
    made = optimizer(method, model.parameters())
    for at in range(0, len(batches), 2):
        made.zero_grad()
        for _ in made.passes():
            for batch in batches[at : at + 2]:
                (loss_of(model, batch) / 4).backward()
        made.step()
    return len(batches) // 2


class Failing(Net):
    """Breaks off in pass two."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.in_second_pass and batch_idx == 5:
            raise KeyError("no such key")
        return loss_of(self, batch)


class Saves(L.Callback):
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.weights = [p.detach().clone() for p in pl_module.net.parameters()]


def test_an_error_in_pass_two_leaves_the_weights_at_w() -> None:
    module, other, saves = Failing(), net(), Saves()
    with pytest.raises(KeyError, match="no such key"):
        trainer(accumulate_grad_batches=4, callbacks=[saves]).fit(module, loader())
    plain("sam", other, list(loader()), num_steps=1, accumulation=4)
    assert apart(module.net, other) == 0.0
    assert all(torch.equal(p, q) for p, q in zip(saves.weights, other.parameters(), strict=True))
    assert module.in_second_pass is False


class Stopping(Net):
    """Ends each epoch in the middle of an update."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        return -1 if batch_idx == 6 else None

    def on_train_epoch_end(self) -> None:
        self.weights = [p.detach().clone() for p in self.net.parameters()]


def test_an_epoch_that_a_hook_ends_leaves_the_weights_at_w() -> None:
    module, other = Stopping("msam"), net()
    trainer(-1, max_epochs=1, accumulate_grad_batches=4).fit(module, loader())
    plain("msam", other, list(loader()), num_steps=1, accumulation=4)
    assert all(torch.equal(p, q) for p, q in zip(module.weights, other.parameters(), strict=True))


class Lonely(Net):
    def configure_callbacks(self) -> Any:
        return []


class Iterating(Net):
    def training_step(self, dataloader_iter: Any) -> Any:
        batch, _, _ = next(dataloader_iter)
        return loss_of(self, batch)


class ByHand(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Lonely, r"return \[\*super\(\)\.configure_callbacks\(\)"),
        (Iterating, r"use training_step\(batch, batch_idx\)"),
        (ByHand, r"opt\.restore\(\), opt\.step\(\)"),
    ],
)
def test_what_cannot_be_run_again_is_refused_in_words(module: Any, words: str) -> None:
    made = module()
    with pytest.raises((RuntimeError, ValueError), match=words):
        trainer().fit(made, loader())
    assert apart(made.net, net()) == 0.0


class Manual(Bare):
    """Manual optimization by the phases of the optimizer that Lightning gives out."""

    def __init__(self, *, closure: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.automatic_optimization, self.closure = False, closure

    def training_step(self, batch: Any, batch_idx: int) -> None:
        opt: Any = self.optimizers()
        if self.closure:
            opt.step(lambda: self.zeroed_backward(opt, batch))
            return
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        opt.zero_grad()
        for _ in opt.passes(loss_scale=None if scaler is None else scaler.get_scale()):
            self.manual_backward(loss_of(self, batch))
        opt.restore()
        opt.step()

    def zeroed_backward(self, opt: Any, batch: Any) -> Any:
        opt.zero_grad()
        loss = loss_of(self, batch)
        self.manual_backward(loss)
        return loss


@pytest.mark.cell("Lightning manual", "SAM closure")
@pytest.mark.cell("Lightning manual", "SAM phase")
@pytest.mark.parametrize("closure", [False, True])
def test_manual_optimization_counts_its_steps(closure: bool) -> None:
    module, other = Manual(closure=closure), net()
    run = trainer(7)
    run.fit(module, loader())
    plain("sam", other, list(loader()), num_steps=7)
    assert run.global_step == 7
    assert apart(module.net, other) == 0.0


@pytest.mark.cell("Lightning manual", "fp16 scaler")
def test_manual_optimization_with_a_scaler() -> None:
    options = {"init_scale": 2.0**22, "growth_interval": 6}
    module, other = Manual(model=net().float()), net().float()
    trainer(12, plugins=[half(**options)]).fit(module, loader(dtype=torch.float32))
    plain("sam", other, list(loader(dtype=torch.float32)), num_steps=12, dtype=torch.float16,
          scaler=torch.amp.GradScaler("cpu", **options))  # fmt: skip
    assert apart(module.net, other) == 0.0


class ManualUpdates(Bare):
    """Several micro-batches to an update, clipped, with a schedule: all by hand."""

    def __init__(self, num_parts: int) -> None:
        super().__init__(gamma=0.9)
        self.automatic_optimization, self.num_parts, self.parts = False, num_parts, []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.parts.append(batch)
        if len(self.parts) < self.num_parts:
            return
        parts, self.parts = self.parts, []
        opt: Any = self.optimizers()
        opt.zero_grad()
        for _ in opt.passes():
            for part in parts:
                self.manual_backward(loss_of(self, part) / len(parts))
        opt.restore()
        self.clip_gradients(opt, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
        opt.step()
        self.lr_schedulers().step()


def clipped(params: list[Any]) -> None:
    torch.nn.utils.clip_grad_norm_(params, 0.1)


@pytest.mark.cell("Lightning manual", "accumulation")
@pytest.mark.cell("Lightning manual", "clip")
@pytest.mark.cell("Lightning manual", "scheduler")
@pytest.mark.parametrize("num_parts", [1, 4])
def test_manual_optimization_accumulates_clips_and_schedules(num_parts: int) -> None:
    module, other = ManualUpdates(num_parts), net()
    run = trainer(9)
    run.fit(module, loader())
    plain("sam", other, list(loader()), num_steps=9, accumulation=num_parts, clip=clipped, gamma=0.9)
    assert run.global_step == 9
    assert apart(module.net, other) < 1e-12


@pytest.mark.cell("Lightning manual", "resume")
def test_a_manual_run_resumes_bit_for_bit(tmp_path: Any) -> None:
    def run(num_epochs: int, **options: Any) -> tuple[Any, L.Trainer]:
        module, made = ManualUpdates(2), trainer(-1, max_epochs=num_epochs)
        made.fit(module, loader(10), **options)
        return module, made

    whole, made = run(4)
    assert made.global_step == 20
    _, first = run(2)
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed, made = run(4, ckpt_path=tmp_path / "half.ckpt")
    assert made.global_step == 20
    assert apart(whole.net, resumed.net) == 0.0


class Plain(SAMModule, Bare):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_an_optimizer_of_one_pass_is_left_as_it_is() -> None:
    module = Plain()
    trainer(5, accumulate_grad_batches=2).fit(module, loader())
    assert module.calls == 10


def test_an_interrupt_between_the_passes_leaves_a_step_that_can_be_repeated() -> None:
    module = Net()
    made = SAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=0.1)
    loss_of(module, next(iter(loader()))).backward()
    made.perturb()
    loss_of(module, next(iter(loader()))).backward()
    made.restore()
    with pytest.raises(RuntimeError, match="Call step\\(\\) without a closure"):
        made.step(lambda: loss_of(module, next(iter(loader()))).backward())
