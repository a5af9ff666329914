"""The averaged weights: the formula written out, torch's own average, a resume and a rewind."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from optland.optim import SAM
from optland.pilot import Pilot
from optland.train import BatchLoader
from optland.train.loops.ema import Ema
from optland.train.runs.checkpoint import Checkpoint


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))


def wander(model: nn.Module, k: int) -> None:
    """Some other weights and statistics at every step."""
    generator = torch.Generator().manual_seed(k)
    with torch.no_grad():
        for t in [*model.parameters(), *model.buffers()]:
            if t.is_floating_point():
                t.add_(torch.randn(t.shape, generator=generator))


def floats(model: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in model.state_dict().values() if t.is_floating_point()]


def test_average_is_the_formula_written_out_weights_and_buffers() -> None:
    model = net()
    ema = Ema(model, decay=0.7)
    expected: list[Tensor] = []
    for n in range(30):
        wander(model, n)
        ema.update()
        d = min(0.7, (1 + n) / (10 + n))
        now = floats(model)
        expected = now if n == 0 else [d * a + (1 - d) * w for a, w in zip(expected, now, strict=True)]
    for a, b in zip(floats(ema.model), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_after_its_rise_it_is_torchs_own_average() -> None:
    model = net()
    ema = Ema(model, decay=0.05)  # (1 + n) / (10 + n) is above it from the start
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.05), use_buffers=True)
    for n in range(10):
        wander(model, n)
        ema.update()
        theirs.update_parameters(model)
    assert all(torch.equal(a, b) for a, b in zip(floats(ema.model), floats(theirs.module), strict=True))


def test_weights_that_are_not_finite_are_left_out() -> None:
    model = net()
    ema = Ema(model, decay=0.9)
    ema.update()
    before = floats(ema.model)
    nn.init.constant_(model[0].weight, float("nan"))
    ema.update()
    assert ema.updates == 1
    assert all(torch.equal(a, b) for a, b in zip(floats(ema.model), before, strict=True))


def test_training_does_not_see_the_average() -> None:
    def train(decay: float | None) -> list[Tensor]:
        model = nn.Sequential(net(), nn.Dropout(0.5))
        optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.1, model=model)
        ema = None if decay is None else Ema(model, decay)
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        for _ in range(5):
            optimizer.step(closure)
            if ema is not None:
                ema.update()
                ema.model.eval()(x)  # an evaluation in between
        return floats(model)

    assert all(torch.equal(a, b) for a, b in zip(train(None), train(0.9), strict=True))


def test_resume_goes_on_with_the_same_bits(tmp_path) -> None:
    def steps(model: nn.Module, ema: Ema, numbers: range) -> None:
        for n in numbers:
            wander(model, n)
            ema.update()

    model = net()
    whole = Ema(model, decay=0.9)
    steps(model, whole, range(20))

    model = net()
    ema = Ema(model, decay=0.9)
    steps(model, ema, range(12))
    Checkpoint(tmp_path / "c.pt", every=1, model=model, ema=ema).save(12)
    model = net()
    resumed = Ema(model, decay=0.9)
    assert Checkpoint(tmp_path / "c.pt", every=1, model=model, ema=resumed).load() == 12
    assert resumed.updates == 12
    steps(model, resumed, range(12, 20))
    assert all(torch.equal(a, b) for a, b in zip(floats(whole.model), floats(resumed.model), strict=True))


def test_what_the_pilot_rewinds_does_not_live_on_in_the_average() -> None:
    """The loss explodes for a while; the pilot rewinds; the average is then one of good weights only."""
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    y = (x @ torch.tensor([1.0, -2.0, 0.5]) > 0).long()
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = BatchLoader([x, y], 16, epochs=30)

    def loss_fn(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(m(batch[0]), batch[1])

    pilot = Pilot(optimizer, model, loss_fn, total_samples=loader.total_samples)
    ema = Ema(model, decay=0.99)
    rewound, calls = [], 0
    for batch in pilot.batches(loader):

        def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            return loss

        seen = len(pilot.decisions)
        loss = optimizer.step(closure)
        if any(d.actuator == "rewind" for d in list(pilot.decisions)[seen:]):
            rewound.append(calls)
            assert ema.updates == 0
        pilot.after_step(batch, loss)
        ema.update()
        calls += 1
        if calls == 60:
            with torch.no_grad():
                model[3].weight.mul_(1e6)  # a disaster that no guard saw coming
            ema.update()
    assert len(rewound) == 1
    assert rewound[0] >= 60
    assert max(float(t.abs().max()) for t in floats(ema.model)) < 1e3
    assert ema.updates == calls - rewound[0]


def test_a_copy_of_the_model_has_nothing_to_do_with_the_average() -> None:
    model = net()
    ema = Ema(model, decay=0.9)
    ema.update()
    saved = pickle.loads(pickle.dumps(model))  # what torch.save(model) does
    for copied in (copy.deepcopy(model), saved):
        copied.load_state_dict(model.state_dict())
    assert ema.updates == 1
    model.load_state_dict(model.state_dict())
    assert ema.updates == 0


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_decay_is_checked(decay: float) -> None:
    with pytest.raises(ValueError, match=r"^ema: .*for example 0.999"):
        Ema(net(), decay)
