"""timm's factory and loss scaler, with a real vision model, against the plain loop."""

from __future__ import annotations

import pytest
import torch
from integrations.plain import assert_weights, plain_updates, weights
from torch import nn

from optland.integrations.timm import NativeScaler, create_optimizer_v2
from optland.optim import ASAM, MSAM, SAM, LookSAM, TwoPass, wrap
from optland.pilot import Pilot

pytest.importorskip("timm")

import timm.optim
import timm.scheduler
import timm.utils
from timm.models.vision_transformer import VisionTransformer


def vision(dtype: torch.dtype = torch.float64) -> nn.Module:
    """A small ViT with dropout, made without a download."""
    torch.manual_seed(0)
    net = VisionTransformer(
        img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=3, proj_drop_rate=0.1
    )
    return net.to(dtype).train()


def images(num: int, dtype: torch.dtype = torch.float64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(num, 3, 8, 8, generator=g, dtype=torch.float64).to(dtype)
    return x, torch.randint(3, (num,), generator=g)


def loss_fn(net: nn.Module, x, y):
    return nn.functional.cross_entropy(net(x), y)


@pytest.mark.cell("timm", "SAM phase")
@pytest.mark.parametrize(
    ("name", "method", "base"),
    [
        ("sam_adamw", SAM, torch.optim.AdamW),
        ("asam_sgd", ASAM, torch.optim.SGD),
        ("looksam_lion", LookSAM, timm.optim.Lion),
        ("sam_lookahead_adamw", SAM, timm.optim.Lookahead),
    ],
)
def test_names_are_a_method_and_one_of_timms(name: str, method: type, base: type) -> None:
    net = vision()
    optimizer = create_optimizer_v2(net, name, lr=0.01, weight_decay=0.05, rho=0.3)
    assert isinstance(optimizer, TwoPass)
    assert type(optimizer) is method
    assert type(optimizer.base) is base
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.05}
    assert all(g["lr"] == 0.01 and g["sam_rho"] == 0.3 for g in optimizer.param_groups)
    assert optimizer.model is net


def test_names_of_timm_alone_are_timms() -> None:
    net = vision()
    ours = create_optimizer_v2(net, "lookahead_adamw", lr=0.01, betas=(0.8, 0.9))
    assert type(ours) is timm.optim.Lookahead
    assert ours.param_groups[0]["betas"] == (0.8, 0.9)
    sgd = create_optimizer_v2(net, "sam_sgd", lr=0.01, momentum=0.8)
    assert sgd.param_groups[0]["momentum"] == 0.8
    assert sgd.param_groups[0]["nesterov"]  # timm's default
    with pytest.raises(ValueError, match=r"sgdd not found"):
        create_optimizer_v2(net, "sam_sgdd", lr=0.01)


@pytest.mark.cell("timm", "accumulation")
@pytest.mark.cell("timm", "clip")
@pytest.mark.cell("timm", "scheduler")
@pytest.mark.parametrize("name", ["sam", "looksam"])
@pytest.mark.parametrize(("accumulation", "clip"), [(1, None), (4, 0.5)])
def test_the_scaler_is_the_plain_loop(name: str, accumulation: int, clip: float | None) -> None:
    net, expected = vision(), vision()
    x, y = images(20 * accumulation * 4)
    batches = list(zip(x.split(4), y.split(4), strict=True))

    def made(model):
        return create_optimizer_v2(model, f"{name}_adamw", lr=0.01, weight_decay=0.05, rho=0.1)

    optimizer = made(expected)
    schedule = timm.scheduler.CosineLRScheduler(optimizer, t_initial=20, t_in_epochs=False)
    updates = [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]
    torch.manual_seed(5)
    count = iter(range(1, 21))
    plain_updates(
        optimizer, updates, lambda part: loss_fn(expected, *part) / accumulation, clip=clip,
        after=lambda: schedule.step_update(next(count)),
    )  # fmt: skip

    optimizer = made(net)
    schedule = timm.scheduler.CosineLRScheduler(optimizer, t_initial=20, t_in_epochs=False)
    scaler = NativeScaler("cpu")
    torch.manual_seed(5)
    for k, batch in enumerate(batches, 1):

        def forward(batch=batch):
            return loss_fn(net, *batch) / accumulation

        scaler(
            forward(), optimizer, clip_grad=clip, parameters=net.parameters(), second=forward,
            need_update=k % accumulation == 0,
        )  # fmt: skip
        if k % accumulation == 0:
            optimizer.zero_grad()
            schedule.step_update(k // accumulation)
    assert_weights(net, weights(expected))


@pytest.mark.cell("timm", "SAM closure")
def test_the_closure_form_is_the_plain_loop() -> None:
    net, expected = vision(), vision()
    batches = list(zip(*(t.split(4) for t in images(40)), strict=True))
    torch.manual_seed(5)
    by_phases = create_optimizer_v2(expected, "sam_adamw", lr=0.01, weight_decay=0.05, rho=0.1)
    plain_updates(by_phases, [[batch] for batch in batches], lambda part: loss_fn(expected, *part))
    torch.manual_seed(5)
    optimizer = create_optimizer_v2(net, "sam_adamw", lr=0.01, weight_decay=0.05, rho=0.1)
    for batch in batches:

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = loss_fn(net, *batch)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert_weights(net, weights(expected))


@pytest.mark.cell("timm", "fp16 scaler")
@pytest.mark.parametrize("clip", [None, 0.5])
def test_scaled_and_unscaled_are_the_same_bits(clip: float | None) -> None:
    """Scales are powers of two; an overflow leaves one update out, as timm's own scaler does."""
    ends = []
    for enabled in (True, False):
        net = vision(torch.float32)
        optimizer = create_optimizer_v2(net, "sam_sgd", lr=0.05, rho=0.1)
        scaler = NativeScaler("cpu")
        scaler.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, enabled=enabled)
        torch.manual_seed(5)
        for k, batch in enumerate(zip(*(t.split(4) for t in images(40, torch.float32)), strict=True)):
            bad = 1.0 if k != 3 else float("inf")

            def forward(net=net, batch=batch, bad=bad):
                return loss_fn(net, *batch) * bad

            scaler(forward(), optimizer, clip_grad=clip, parameters=net.parameters(), second=forward)
            optimizer.zero_grad()
        assert not enabled or scaler.state_dict()["scale"] == 2.0**7
        ends.append(net)
    assert_weights(ends[0], weights(ends[1]), atol=0)


def test_its_state_is_timms() -> None:
    theirs, ours = timm.utils.NativeScaler("cpu"), NativeScaler("cpu")
    assert ours.state_dict_key == theirs.state_dict_key
    state = theirs.state_dict() | {"scale": 128.0}
    ours.load_state_dict(state)
    assert ours.state_dict() == state


def test_an_optimizer_of_one_pass_steps_as_with_timms() -> None:
    ends = []
    for scaler in (timm.utils.NativeScaler("cpu"), NativeScaler("cpu")):
        net = vision()
        optimizer = create_optimizer_v2(net, "sgd", lr=0.1)
        x, y = images(8)
        torch.manual_seed(2)
        scaler(loss_fn(net, x, y), optimizer, clip_grad=0.5, parameters=net.parameters())
        ends.append(net)
    assert_weights(ends[1], weights(ends[0]), atol=0)


@pytest.mark.cell("timm", "SAM phase", "refused")
def test_what_cannot_work_is_refused_in_words() -> None:
    net = vision()
    start = weights(net)
    optimizer = create_optimizer_v2(net, "sam_sgd", lr=0.1)
    scaler = NativeScaler("cpu")
    x, y = images(4)
    loss = loss_fn(net, x, y)
    with pytest.raises(TypeError, match="second="):
        scaler(loss, optimizer)
    with pytest.raises(ValueError, match="parameters=model"):
        scaler(loss, optimizer, clip_grad=1.0, second=lambda: loss)
    msam = wrap("msam", torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
    assert type(msam) is MSAM
    with pytest.raises(ValueError, match="before the forward pass"):
        scaler(loss, msam, second=lambda: loss)
    with pytest.raises(RuntimeError, match="second pass"):  # timm's own makes one
        timm.utils.NativeScaler("cpu")(loss, optimizer)
    assert_weights(net, start, atol=0)


def of_batch(net: nn.Module, batch):
    return loss_fn(net, *batch)


def piloted(optimizer, net: nn.Module, *, watched: bool = True, **options) -> Pilot | None:
    """Twenty updates by timm's scaler."""
    scaler, pilot = NativeScaler("cpu"), None
    if watched:
        pilot = Pilot(optimizer, net, of_batch, total_steps=20, budget=0.5, **options)
    torch.manual_seed(5)
    for batch in zip(*(t.split(4) for t in images(80)), strict=True):
        first = None

        def forward(batch=batch):
            nonlocal first
            loss = of_batch(net, batch)
            first = loss.detach() if first is None else first
            return loss

        scaler(forward(), optimizer, second=forward, parameters=net.parameters())
        if pilot is not None:
            pilot.after_step(batch, first)
        optimizer.zero_grad()
    return pilot


@pytest.mark.cell("timm", "pilot monitor")
def test_monitoring_changes_no_bit() -> None:
    ends = []
    for watched in (True, False):
        net = vision()
        optimizer = create_optimizer_v2(net, "sam_adamw", lr=0.01, weight_decay=0.05, rho=0.1)
        pilot = piloted(optimizer, net, watched=watched, policies=["auto_lr", "edge_monitor"], mode="monitor")
        assert pilot is None or pilot.budget.probe_ge > 0
        ends.append(weights(net))
    assert all(torch.equal(p, q) for p, q in zip(*ends, strict=True))


@pytest.mark.cell("timm", "pilot control")
def test_a_pilot_steers_timms_two_groups_as_one() -> None:
    """Norms and biases are in a group of their own, which makes no difference to what is decided and done."""
    net, expected = vision(), vision()
    theirs = create_optimizer_v2(net, "sam_adamw", lr=0.01, weight_decay=1e-12, rho=0.1)
    one = SAM(torch.optim.AdamW(expected.parameters(), lr=0.01, weight_decay=0.0), rho=0.1, model=expected)
    assert (len(theirs.param_groups), len(one.param_groups)) == (2, 1)
    found, alone = piloted(theirs, net, policies=["auto_lr"]), piloted(one, expected, policies=["auto_lr"])
    assert found is not None
    assert alone is not None
    assert found.steering.applied() == pytest.approx(alone.steering.applied(), rel=1e-6)
    assert found.steering.applied() < 0.005  # its end is at zero, and the rate in the groups is 0.01
    assert_weights(net, weights(expected), atol=1e-7)
