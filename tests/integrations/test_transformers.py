"""``SAMTrainer`` against the plain loop in float64."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from integrations import hf
from integrations.plain import assert_weights, weights
from integrations.processes import run_two
from tiers import slow
from torch import nn
from transformers import Trainer

from optland.integrations.transformers import SAMTrainer
from optland.optim import SAM, LookSAM
from optland.pilot.host import unwrapped

CASES = [("sam", 1, 0.0, True), ("sam", 4, 0.05, True), ("looksam", 4, 0.05, True), ("sam", 4, 0.05, False)]
MORE = [
    (method, accumulation, clip, counted)
    for method in ("sam", "asam", "msam", "looksam")
    for accumulation in (1, 4)
    for clip in (0.0, 0.05)
    for counted in (True, False)
    if (method, accumulation, clip, counted) not in CASES
]


@pytest.mark.cell("HF Trainer", "SAM phase")
@pytest.mark.cell("HF Trainer", "scheduler")
@pytest.mark.cell("HF Trainer", "clip")
@pytest.mark.cell("HF Trainer", "accumulation")
@pytest.mark.parametrize(("method", "accumulation", "clip", "counted"), [*CASES, *slow(*MORE)])
def test_the_trainer_is_the_plain_loop(
    tmp_path: Path, method: str, accumulation: int, clip: float, counted: bool
) -> None:
    """22 batches an epoch, so that the last update of an epoch has two micro-batches in place of four."""
    kind = hf.Net if counted else hf.MeanNet
    epochs = 4 if accumulation == 4 else 1
    expected, net = kind(), kind()
    losses, norms = hf.plain(
        expected, method, whole=accumulation * hf.SIZE, counted=counted, clip=clip or None, epochs=epochs
    )
    trainer = hf.trainer(
        tmp_path, net, method=method, rho=0.1,
        gradient_accumulation_steps=accumulation, max_grad_norm=clip, num_train_epochs=epochs,
    )  # fmt: skip
    assert trainer.train().global_step == len(losses) >= 20
    assert_weights(net, weights(expected))
    logged = [row for row in trainer.state.log_history if "loss" in row]
    # Those of pass one; the trainer adds them up in float32.
    assert [row["loss"] for row in logged] == pytest.approx(losses, rel=1e-6)
    assert [row["grad_norm"] for row in logged] == pytest.approx(norms, rel=1e-9)
    assert min(norms) > 0.05  # it was clipped where it could be


@pytest.mark.parametrize("gate", ["every(3)"])
def test_a_gate_leaves_out_second_passes(tmp_path: Path, gate: str) -> None:
    expected, net = hf.Net(), hf.Net()
    hf.plain(expected, "sam", whole=2 * hf.SIZE, counted=True, clip=0.05, gate=gate)
    calls = 0

    def count(module: nn.Module, args: object) -> None:
        nonlocal calls
        calls += torch.is_grad_enabled()

    net.register_forward_pre_hook(count)
    trainer = hf.trainer(
        tmp_path,
        net,
        rho=0.1,
        method_options={"gate": gate},
        gradient_accumulation_steps=2,
        max_grad_norm=0.05,
    )
    trainer.train()
    assert_weights(net, weights(expected))
    assert calls == 22 + 2 * math.ceil(11 / 3)


def test_dropout_masks_are_those_of_pass_one(tmp_path: Path) -> None:
    """In micro-batches of one update, each of which has its own; at rho 0 both passes have the same gradient."""
    ends = []
    for method in ("sam", None):
        net = hf.Net(dropout=0.5)
        options = {"rho": 0.0} if method else {}
        hf.trainer(tmp_path, net, method=method, gradient_accumulation_steps=2, **options).train()
        ends.append(net)
    assert_weights(ends[0], weights(ends[1]), atol=1e-13)


@pytest.mark.cell("HF Trainer", "bf16")
def test_bf16_is_autocast_in_the_plain_loop(tmp_path: Path) -> None:
    net, expected = (hf.MeanNet(dtype=torch.float32) for _ in range(2))
    samples = hf.data(dtype=torch.float32)
    hf.trainer(tmp_path, net, rho=0.1, bf16=True, gradient_accumulation_steps=2, samples=samples).train()
    vars(expected)["forward"] = torch.autocast("cpu", torch.bfloat16)(expected.forward)
    hf.plain(expected, "sam", whole=2 * hf.SIZE, counted=False, samples=samples)
    assert_weights(net, weights(expected), atol=0)


@pytest.mark.cell("HF Trainer", "fp16 scaler")
def test_loss_scaling_changes_nothing(tmp_path: Path) -> None:
    """GradScaler on the CPU with weights in float32: its scales are powers of two."""
    ends = []
    for scaled in (False, True):
        net = hf.MeanNet(dtype=torch.float32)
        samples = hf.data(dtype=torch.float32)
        trainer = hf.trainer(
            tmp_path, net, rho=0.1, max_grad_norm=0.05, gradient_accumulation_steps=2, samples=samples
        )
        if scaled:  # as fp16=True does where there is a GPU
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
            trainer.accelerator.native_amp = True
            trainer.accelerator.state._mixed_precision = "fp16"
            trainer.accelerator.autocast_handler = _NoAutocast()
        trainer.train()
        trainer.accelerator.state._mixed_precision = "no"
        ends.append((net, trainer.state.log_history[-2]["grad_norm"]))
    assert_weights(ends[1][0], weights(ends[0][0]), atol=0)
    assert ends[1][1] == ends[0][1]


def _NoAutocast():
    from accelerate.utils import AutocastKwargs

    return AutocastKwargs(enabled=False)


@pytest.mark.cell("HF Trainer", "resume")
@pytest.mark.parametrize("method", ["looksam", *slow("sam", "fsam")])
def test_a_run_resumes_bit_for_bit(tmp_path: Path, method: str) -> None:
    """In the middle of an epoch, with dropout, another order of the samples in each epoch, and accumulation."""
    options = {
        "method": method, "rho": 0.1, "gradient_accumulation_steps": 2, "num_train_epochs": 2,
        "train_sampling_strategy": "random", "max_grad_norm": 0.05, "lr_scheduler_type": "cosine",
    }  # fmt: skip
    straight = hf.Net(dropout=0.2)
    hf.trainer(tmp_path / "a", straight, save_strategy="steps", save_steps=7, **options).train()
    resumed = hf.Net(dropout=0.2)
    trainer = hf.trainer(tmp_path / "b", resumed, **options)
    trainer.train(str(tmp_path / "a" / "checkpoint-7"))
    assert trainer.state.global_step == 22
    assert_weights(resumed, weights(straight), atol=0)


def test_the_optimizer_of_the_trainer_is_wrapped(tmp_path: Path) -> None:
    net = hf.Net()
    trainer = hf.trainer(tmp_path, net, rho=0.3, method_options={"telemetry_every": 0})
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is SAM
    assert isinstance(optimizer.base, torch.optim.AdamW)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert [g["sam_rho"] for g in optimizer.param_groups] == [0.3, 0.3]
    assert optimizer.telemetry_every == 0
    assert optimizer.model is net


@pytest.mark.parametrize("how", ["optimizers", "plain optimizers", "class", "factory", "method"])
def test_other_ways_to_give_an_optimizer(tmp_path: Path, how: str) -> None:
    """All of them the same numbers as SAM around SGD in the plain loop."""
    net, expected = hf.MeanNet(), hf.MeanNet()

    def base(m):
        return torch.optim.SGD(m.parameters(), lr=0.1)

    def factory():
        return lambda model, **kwargs: SAM(base(model), model=model, **kwargs)

    given = {
        "optimizers": {"optimizers": (SAM(base(net), rho=0.1, model=net), None)},
        "plain optimizers": {"optimizers": (base(net), None), "rho": 0.1},
        "class": {
            "optimizer_cls_and_kwargs": (SAM, {"base_optimizer": torch.optim.SGD, "rho": 0.1, "lr": 0.1}),
            "weight_decay": 0.0,
        },
        "factory": {"optimizer_cls_and_kwargs": (factory, {"rho": 0.1})},
        "method": {
            "optimizers": (base(net), None),
            "method": lambda base, model: SAM(base, rho=0.1, model=model),
        },
    }[how]
    trainer = hf.trainer(tmp_path, net, lr_scheduler_type="constant", **given)
    trainer.train()
    assert type(unwrapped(trainer.optimizer)) is SAM
    optimizer = SAM(base(expected), rho=0.1)
    for i in range(0, hf.NUM, hf.SIZE):
        batch = hf.stacked(hf.data()[i : i + hf.SIZE])
        for _ in optimizer.passes():
            expected(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_weights(net, weights(expected))


def test_training_twice_goes_on(tmp_path: Path) -> None:
    net, expected = hf.Net(), hf.Net()
    trainer = hf.trainer(tmp_path, net, rho=0.1)
    trainer.train()
    first = trainer.optimizer
    trainer.train()
    assert unwrapped(trainer.optimizer) is unwrapped(first)
    assert type(unwrapped(trainer.optimizer)) is SAM
    hf.plain(expected, "sam", whole=hf.SIZE, counted=True)
    assert not torch.equal(weights(net)[0], weights(expected)[0])


def test_an_error_in_the_second_pass_leaves_the_weights(tmp_path: Path) -> None:
    """As an accelerator that is out of memory."""
    net = hf.Net()
    start = weights(net)
    trainer = hf.trainer(tmp_path, net, rho=0.1)

    def fail(module: nn.Module, args: object) -> None:
        if unwrapped(trainer.optimizer).is_perturbed:
            raise MemoryError("in the second pass")

    net.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        trainer.train()
    assert_weights(net, start, atol=0)


@pytest.mark.cell("HF Trainer", "SAM phase", "refused")
def test_a_trainer_without_the_mixin_names_it(tmp_path: Path) -> None:
    net = hf.Net()
    start = weights(net)
    optimizer = SAM(torch.optim.SGD(net.parameters(), lr=0.1), model=net)
    trainer = hf.trainer(tmp_path, net, cls=Trainer, optimizers=(optimizer, None))
    with pytest.raises(RuntimeError, match="SAMTrainer of optland"):
        trainer.train()
    assert_weights(net, start, atol=0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"method": "samm"}, "unknown two-pass method: 'samm'.*sam"),
        ({"method_options": {"rhoo": 1}}, "rhoo"),
        ({"rho": -1.0}, r"rho=-1\.0"),
        ({"method": LookSAM, "rho": 0.1}, "belong to a method by name"),
    ],
)
def test_wrong_options_are_refused_at_once(tmp_path: Path, given, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        hf.trainer(tmp_path, hf.Net(), **given)


def test_options_beside_an_optimizer_that_has_its_own_are_refused(tmp_path: Path) -> None:
    net = hf.Net()
    own = SAM(torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"\['rho'\] to that one"):
        hf.trainer(tmp_path, net, optimizers=(own, None), rho=0.1)


def test_the_mixin_serves_another_trainer(tmp_path: Path) -> None:
    seen = []

    class Other(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            seen.append(len(inputs.pop("labels").shape))  # takes something out, as some do
            return super().compute_loss(
                model, inputs | {"labels": self.labels}, return_outputs, num_items_in_batch
            )

    class Both(SAMTrainer, Other):
        labels = torch.zeros(hf.SIZE, 3, dtype=torch.long)

    net = hf.MeanNet()
    hf.trainer(tmp_path, net, cls=Both, rho=0.1).train()
    assert len(seen) == 2 * 22


@pytest.mark.distributed
@pytest.mark.cell("HF Trainer", "2 processes")
@pytest.mark.cell("HF Trainer", "accumulation")
def test_two_processes(tmp_path: Path) -> None:
    run_two(Path(__file__).with_name("transformers_ranks.py"), tmp_path)
