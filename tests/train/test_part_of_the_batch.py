"""SAM's first pass over a part of the batch, in the loop of the recipes: what each pass sees, costs and returns."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import optland
from distributed.launched import doubled
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional as F

from optland.batches import portion
from optland.log import read_jsonl
from optland.optim import SAM
from optland.pilot import Pilot
from optland.train import (
    BatchLoader,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
    RunConfig,
    build_model,
    load_data,
    seed_everything,
)
from optland.train.loops.precision import Precision
from optland.train.runs.checkpoint import load_checkpoint

SHARE, RHO = 0.25, 0.1
Batch = tuple[Tensor, Tensor]


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def task(dtype: torch.dtype = torch.float64) -> tuple[nn.Module, list[Batch]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    return model, [(torch.randn(16, 4, dtype=dtype), torch.randint(3, (16,))) for _ in range(6)]


def sam(model: nn.Module) -> Any:
    sgd = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    return SAM(sgd, rho=RHO, ascent_share=SHARE, model=model)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def as_recipes_do(
    config: PrecisionConfig, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, list[int], Any]:
    """Weights at the end, the samples of every forward pass, and the optimizer."""
    model, batches = task(dtype)
    seen: list[int] = []
    model.register_forward_pre_hook(
        lambda module, args: seen.append(len(args[0])) if torch.is_grad_enabled() else None
    )
    optimizer = sam(model)
    precision = config.build(optimizer)
    for batch in batches:

        def closure(batch: Batch = batch) -> Tensor:
            optimizer.zero_grad()
            return precision.backward(loss_fn, model, batch)

        with torch.no_grad():
            of_part = loss_fn(model, portion(batch, SHARE))
        torch.testing.assert_close(
            precision.step(closure), of_part, rtol=2e-2, atol=1e-6
        )  # bf16 has three digits
    return flat(model), seen, optimizer


def by_hand() -> Tensor:
    """The same steps in phases, in float64."""
    model, batches = task()
    optimizer = sam(model)
    for batch in batches:
        optimizer.zero_grad()
        for _ in optimizer.passes():
            loss_fn(model, portion(batch, optimizer.pass_share)).backward()
        optimizer.step()
    return flat(model)


@pytest.mark.parametrize(
    ("config", "of_one_step"),
    [
        (PrecisionConfig(), [4, 16]),
        (PrecisionConfig(accumulation=4), [4, 4, 4, 4, 4]),
        (PrecisionConfig(accumulation=2), [4, 8, 8]),
        (PrecisionConfig(micro_batch=3), [2, 2, 3, 3, 2, 3, 3, 2]),
        (PrecisionConfig(clip=1e9), [4, 16]),
    ],
)
def test_the_loop_stays_as_it_is_and_each_pass_sees_what_is_told(
    config: PrecisionConfig, of_one_step: list[int]
) -> None:
    found, seen, optimizer = as_recipes_do(config)
    torch.testing.assert_close(found, by_hand(), rtol=0, atol=1e-13)
    assert seen == of_one_step * 6
    assert optimizer.last_evaluations == sum(of_one_step) / 16 == 1.25


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_has_the_bits_of_the_loop_in_phases(precision: Any) -> None:
    found, seen, optimizer = as_recipes_do(PrecisionConfig(precision=precision), torch.float32)
    model, batches = task(torch.float32)
    by_phases, scaler = sam(model), GradScaler("cpu", enabled=precision == "fp16")
    for batch in batches:
        by_phases.zero_grad()
        for _ in by_phases.passes(loss_scale=scaler.get_scale()):
            with torch.autocast("cpu", dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision]):
                loss = loss_fn(model, portion(batch, by_phases.pass_share))
            scaler.scale(loss).backward()
        by_phases.restore()
        scaler.step(by_phases)
        scaler.update()
    assert torch.equal(found, flat(model))
    assert seen == [4, 16] * 6
    assert optimizer.last_evaluations == 1.25


def test_a_closure_that_takes_the_share_takes_its_part_itself() -> None:
    model, batches = task()
    optimizer = sam(model)
    precision = PrecisionConfig().build(optimizer)
    for batch in batches:

        def closure(share: float = 1.0, batch: Batch = batch) -> Tensor:
            optimizer.zero_grad()
            return precision.backward(loss_fn, model, portion(batch, share))

        precision.step(closure)
    torch.testing.assert_close(flat(model), by_hand(), rtol=0, atol=1e-13)


def test_a_closure_that_fails_leaves_no_share_behind() -> None:
    model, batches = task()
    optimizer = sam(model)
    precision = PrecisionConfig().build(optimizer)

    def broken() -> Tensor:
        precision.backward(loss_fn, model, batches[0])
        raise KeyError("labels")

    before = flat(model)
    with pytest.raises(KeyError, match="labels"):
        precision.step(broken)
    assert torch.equal(flat(model), before)
    optimizer.zero_grad()
    whole = precision.backward(loss_fn, model, batches[0])
    assert whole == loss_fn(model, batches[0]).detach()


def steered(factor: float, losses: list[float]) -> Pilot:
    """Some steps of a pilot that is told the losses of the parts, times a factor."""
    model, batches = task()
    optimizer = sam(model)
    precision: Precision = PrecisionConfig().build(optimizer)
    (x, y), rest = batches[0], batches[1:]
    with torch.no_grad():
        for p in model.parameters():
            p *= 5
    y = model(x).argmax(1)
    for k in range(0, 16, 4):  # the part is hard, and the whole of it is not
        y[k] = (y[k] + 1) % 3
    pilot = Pilot(optimizer, model, loss_fn, policies=["auto_lr"], total_steps=6, budget=0.0)
    for batch in [(x, y), *rest]:

        def closure(batch: Batch = batch) -> Tensor:
            optimizer.zero_grad()
            return precision.backward(loss_fn, model, batch)

        losses += [float(loss_fn(model, batch).detach())]
        loss = precision.step(closure)
        losses += [float(loss)]
        pilot.after_step(batch, factor * loss)
    return pilot


def test_a_pilot_takes_the_loss_of_the_part_and_no_other() -> None:
    losses: list[float] = []
    pilot = steered(1.0, losses)
    assert losses[1] > 2 * losses[0], "the first batch is to tell them apart"
    assert pilot.budget.train_ge == 6 * 16 * 1.25
    with pytest.raises(ValueError, match="the loss given to after_step is"):
        steered(0.1, [])


# ---------------------------------------------------------------- the configuration


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"ascent_share": 1.5}, r"ascent_share=1\.5 is not a share of the batch; use 0\.25"),
        ({"ascent_share": "a quarter"}, "cannot be used"),
        ({"ascent_share": 0.25, "gate": "every(2)"}, "with a gate: a step without a second pass"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_read(section: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        OptimizerConfig(options=section)


def test_other_methods_have_no_such_option() -> None:
    with pytest.raises(ValueError, match="'asam' over 'sgd' has no option 'ascent_share'"):
        OptimizerConfig("asam", options={"ascent_share": 0.25})


def test_a_part_without_a_sample_is_refused() -> None:
    optimizer = OptimizerConfig(options={"ascent_share": 0.01})
    with pytest.raises(ValueError, match=r"ascent_share: 0\.01 of batch_size: 64 is less than one sample"):
        RunConfig(optimizer=optimizer)
    RunConfig(optimizer=optimizer, batch_size=100)


# ---------------------------------------------------------------- a run

RUN = ["data.name=digits", "data.subset=100", "model.name=mlp", "model.width=8", "batch_size=16", "epochs=2"]
RUN += [
    "schedule=none",
    "optimizer.lr=0.05",
    f"optimizer.rho={RHO}",
    f"optimizer.options.ascent_share={SHARE}",
]
RUN += ["compare=null", "device=cpu", "log.wandb=disabled", "log.every=1", "seed=3"]


def literal() -> Tensor:
    """The run again, from its data and its first weights on, with nothing of the engine: in float64."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        seed_everything(3)
        data = load_data(DataConfig(name="digits", subset=100))
        model = build_model(ModelConfig("mlp", width=8), data.image_shape, data.num_classes)
    finally:
        torch.set_default_dtype(dtype)
    loader = BatchLoader(
        [data.train_x.double(), data.train_y], 16, epochs=2, seed=3, transform=data.transform
    )
    params, velocity = list(model.parameters()), [torch.zeros_like(p) for p in model.parameters()]
    for x, y in loader:
        taken = max(round(SHARE * len(x)), 1)
        part = [k * len(x) // taken for k in range(taken)]
        g = torch.autograd.grad(loss_fn(model, (x[part], y[part])), params)
        length = torch.cat([t.flatten() for t in g]).norm()
        away = copy.deepcopy(model)
        with torch.no_grad():
            for p, t in zip(away.parameters(), g, strict=True):
                p += RHO * t / length
        h = torch.autograd.grad(loss_fn(away, (x, y)), list(away.parameters()))
        with torch.no_grad():
            for p, v, t in zip(params, velocity, h, strict=True):
                v.mul_(0.9).add_(t)
                p -= 0.05 * v
    return flat(model)


@pytest.mark.slow
def test_a_recipe_makes_the_steps_and_tells_their_cost(tmp_path: Path) -> None:
    ran = optland("run", "train_sam", "smoke", "out=run", *RUN, cwd=tmp_path, before=doubled)
    assert ran.returncode == 0, ran.stderr
    saved = load_checkpoint(tmp_path / "run/checkpoint.pt")["parts"]["model"]
    model, expected = torch.cat([t.flatten() for t in saved.values()]), literal()
    torch.testing.assert_close(model, expected, rtol=0, atol=1e-12)
    costs = [
        (row["samples"], row["budget/ge"])
        for row in read_jsonl(tmp_path / "run/log.jsonl", kind="row")
        if "budget/ge" in row
    ]
    assert costs[-1] == (200, 250.0)
    assert all(ge == 1.25 * samples for samples, ge in costs)
