"""``passes`` and ``micro_batches`` in loops with Accelerate, against the plain loop in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from integrations.plain import assert_weights, net_and_data, plain_updates, weights
from integrations.processes import run_two
from tiers import slow
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from optland import SAM
from optland.integrations.accelerate import micro_batches, passes
from optland.optim import ASAM, MSAM, LookSAM
from optland.optim.gates import Every

accelerate = pytest.importorskip("accelerate")

METHODS = {"SAM": SAM, "ASAM": ASAM, "MSAM": MSAM, "LookSAM": LookSAM}
SIZE = 4


@pytest.fixture(autouse=True)
def _fresh():
    """Accelerate keeps the settings of the process in singletons."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def make(method: str = "SAM", **options):
    net, x, y = net_and_data(88)
    base = torch.optim.AdamW(net.parameters(), lr=1e-2)
    return net, METHODS[method](base, model=net, **{"rho": 0.1, **options}), x, y


def loss_fn(model: nn.Module, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def plain(method: str, accumulation: int, clip: float | None, epochs: int = 1, **options):
    """All batches in order, the last update of an epoch from what is left."""
    net, optimizer, x, y = make(method, **options)
    batches = list(zip(x.split(SIZE), y.split(SIZE), strict=True))
    updates = [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)] * epochs
    parts = [[(len(group), part) for part in group] for group in updates]
    plain_updates(optimizer, parts, lambda part: loss_fn(net, part[1]) / part[0], clip=clip)
    return weights(net)


def trained(method: str, accumulation: int, clip: float | None, epochs: int = 1, **options):
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    net, optimizer, x, y = make(method, **options)
    loader = DataLoader(TensorDataset(x, y), SIZE)
    model, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    for _ in range(epochs):
        for batches in micro_batches(loader, accelerator, model):
            for _ in passes(accelerator, optimizer):
                for batch in batches:
                    accelerator.backward(loss_fn(model, batch))
            if clip is not None:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return net


CASES = [("SAM", 1, None), ("SAM", 4, 0.05), ("LookSAM", 4, 0.05)]
MORE = [(m, a, c) for m in METHODS for a in (1, 4) for c in (None, 0.05) if (m, a, c) not in CASES]


@pytest.mark.cell("Accelerate", "SAM phase")
@pytest.mark.cell("Accelerate", "accumulation")
@pytest.mark.cell("Accelerate", "clip")
@pytest.mark.parametrize(("method", "accumulation", "clip"), [*CASES, *slow(*MORE)])
def test_passes_are_the_plain_loop(method: str, accumulation: int, clip: float | None) -> None:
    """22 batches: at 4 of them per update the last update of an epoch has two."""
    epochs = 4 if accumulation == 4 else 1
    assert_weights(trained(method, accumulation, clip, epochs), plain(method, accumulation, clip, epochs))


def test_a_gate_leaves_out_second_passes() -> None:
    assert_weights(trained("SAM", 2, 0.05, gate=Every(3)), plain("SAM", 2, 0.05, gate=Every(3)))


def test_an_optimizer_of_one_pass_has_one() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = accelerator.prepare(torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1))
    assert list(passes(accelerator, optimizer)) == [0]


@pytest.mark.cell("Accelerate", "scheduler")
def test_a_prepared_scheduler_goes_with_the_updates() -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
    net, optimizer, x, y = make()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 1 / (1 + k))
    loader = DataLoader(TensorDataset(x, y), SIZE)
    model, optimizer, loader, scheduler = accelerator.prepare(net, optimizer, loader, scheduler)
    rates = []
    for batches in micro_batches(loader, accelerator, model):
        for _ in passes(accelerator, optimizer):
            for batch in batches:
                accelerator.backward(loss_fn(model, batch))
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-2 / (1 + k) for k in range(1, 7)])


@pytest.mark.cell("Accelerate", "fp16 scaler")
@pytest.mark.parametrize("clip", [None, 0.05])
def test_loss_scaling_changes_nothing_but_overflow(clip: float | None) -> None:
    """GradScaler on the CPU, weights in float32; its scales are powers of two, so numbers are the same bit for bit."""
    ends = []
    for scaled in (False, True):
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        if scaled:
            _scale(accelerator)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        optimizer = SAM(torch.optim.AdamW(net.parameters(), lr=1e-2), rho=0.1, model=net)
        optimizer = accelerator.prepare(optimizer)
        _, x, y = net_and_data(88, dtype=torch.float32)
        loader = accelerator.prepare(DataLoader(TensorDataset(x, y), SIZE))
        for k, batches in enumerate(micro_batches(loader, accelerator, net)):
            for _ in passes(accelerator, optimizer):
                for batch in batches:
                    accelerator.backward(loss_fn(net, batch))
            if scaled and k == 4:  # an overflow: the scaler leaves this update out
                net[0].weight.grad[0, 0] = torch.inf
            if k == 4 and not scaled:
                optimizer.zero_grad()
                continue
            if clip is not None:
                accelerator.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            assert accelerator.optimizer_step_was_skipped == (scaled and k == 4)
            optimizer.zero_grad()
        ends.append(net)
    assert_weights(ends[1], weights(ends[0]), atol=0)


def _scale(accelerator) -> None:
    """As ``mixed_precision="fp16"`` does where there is a GPU."""
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    accelerator.native_amp = True
    accelerator.state._mixed_precision = "fp16"


@pytest.mark.cell("Accelerate", "bf16")
def test_bf16_is_autocast_in_the_plain_loop() -> None:
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    _, x, y = net_and_data(88, dtype=torch.float32)
    loader = DataLoader(TensorDataset(x, y), SIZE)
    ends = []
    for prepared in (False, True):
        net, _, _ = net_and_data(1, dtype=torch.float32)
        optimizer = SAM(torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), rho=0.1, model=net)
        end = net
        if prepared:
            net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
        for batch in loader:
            for _ in passes(accelerator, optimizer):
                with torch.autocast("cpu", torch.bfloat16, enabled=not prepared):
                    out = net(batch[0]).float()
                accelerator.backward(nn.functional.cross_entropy(out, batch[1]))
            optimizer.step()
            optimizer.zero_grad()
        ends.append(end)
    assert_weights(ends[1], weights(ends[0]), atol=0)


@pytest.mark.cell("Accelerate", "resume")
def test_a_saved_state_goes_on_bit_for_bit(tmp_path: Path) -> None:
    def run(start: int, stop: int, load: bool, save: bool) -> nn.Module:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        net, optimizer, x, y = make("LookSAM")
        model, optimizer = accelerator.prepare(net, optimizer)
        if load:
            accelerator.load_state(str(tmp_path))
        loader = accelerator.prepare(DataLoader(TensorDataset(x, y), SIZE))
        for k, batches in enumerate(micro_batches(loader, accelerator, model)):
            if start <= k < stop:
                for _ in passes(accelerator, optimizer):
                    for batch in batches:
                        accelerator.backward(loss_fn(model, batch))
                optimizer.step()
                optimizer.zero_grad()
        if save:
            accelerator.save_state(str(tmp_path))
        return net

    straight = weights(run(0, 11, load=False, save=False))
    run(0, 4, load=False, save=True)
    assert_weights(run(4, 11, load=True, save=False), straight, atol=0)


@pytest.mark.cell("Accelerate", "SAM closure")
def test_the_closure_form_works_without_accumulation() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    net, optimizer, x, y = make()
    model, optimizer = accelerator.prepare(net, optimizer)
    for batch in zip(x.split(SIZE), y.split(SIZE), strict=True):

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            accelerator.backward(loss)
            return loss

        optimizer.step(closure)
    assert_weights(net, plain("SAM", 1, None))


@pytest.mark.cell("Accelerate", "SAM closure", "refused")
def test_a_closure_within_accumulate_is_refused() -> None:
    """It would see one micro-batch of four, its loss divided by four."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
    net, optimizer, x, y = make()
    start = weights(net)
    model, optimizer = accelerator.prepare(net, optimizer)

    def step(batch):
        with accelerator.accumulate(model):

            def closure():
                optimizer.zero_grad()
                loss = loss_fn(model, batch)
                accelerator.backward(loss)
                return loss

            optimizer.step(closure)

    for batch in list(zip(x.split(SIZE), y.split(SIZE), strict=True))[
        :3
    ]:  # Accelerate calls no step for these
        step(batch)
    with pytest.raises(RuntimeError, match=r"one of 4 micro-batches.*optland.integrations.accelerate"):
        step((x, y))
    assert_weights(net, start, atol=0)


def test_a_plain_loop_beside_an_accelerator_is_left_alone() -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
    accelerator.prepare(torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1))
    net, optimizer, x, y = make()

    def closure():
        optimizer.zero_grad()
        loss = loss_fn(net, (x, y))
        loss.backward()
        return loss

    first = optimizer.step(closure)
    for _ in range(5):
        last = optimizer.step(closure)
    assert last < first


def test_passes_within_accumulate_are_refused() -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
    net, optimizer, _, _ = make()
    model, optimizer = accelerator.prepare(net, optimizer)
    with accelerator.accumulate(model), pytest.raises(RuntimeError, match="leave accumulate"):
        next(passes(accelerator, optimizer))


def test_swapped_arguments_are_refused() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    _, optimizer, _, _ = make()
    with pytest.raises(TypeError, match="accelerator is a SAM"):
        next(passes(optimizer, accelerator))
    with pytest.raises(TypeError, match="accelerator is a list"):
        next(micro_batches(accelerator, [1]))


def test_the_phase_form_names_the_way_out() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    net, optimizer, x, y = make()
    model, optimizer = accelerator.prepare(net, optimizer)
    accelerator.backward(loss_fn(model, (x, y)))
    with pytest.raises(RuntimeError, match=r"optland\.integrations\.accelerate"):
        optimizer.step()


@pytest.mark.parametrize("stop", ["error", "break"])
def test_a_pass_that_breaks_off_leaves_the_weights(stop: str) -> None:
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    net, optimizer, x, y = make()
    start = weights(net)
    model, optimizer, loader = accelerator.prepare(net, optimizer, DataLoader(TensorDataset(x, y), SIZE))
    batches = next(micro_batches(loader, accelerator, model))

    def step():
        for k in passes(accelerator, optimizer):
            for batch in batches:
                accelerator.backward(loss_fn(model, batch))
                if k == 1 and stop == "error":
                    raise KeyError("in the second pass")
                if k == 1:
                    return

    if stop == "error":
        with pytest.raises(KeyError):
            step()
    else:
        step()
    assert not optimizer.optimizer.is_perturbed
    assert_weights(net, start, atol=0)


@pytest.mark.distributed
@pytest.mark.cell("Accelerate", "2 processes")
@pytest.mark.cell("Accelerate", "accumulation")
def test_two_processes(tmp_path: Path) -> None:
    run_two(Path(__file__).with_name("accelerate_ranks.py"), tmp_path)
