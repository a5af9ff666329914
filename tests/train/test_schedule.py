"""Schedules by name: torch's own schedulers where one exists, closed forms elsewhere, whatever the batch size does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
)

from optland.train import BatchLoader
from optland.train.loops.schedule import (
    SHAPES,
    ScheduleName,
    check_schedule,
    schedule_by_name,
    shape,
)

STEPS = 40


def optimizer(lr: float = 1.0) -> SGD:
    return SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def rates(make: Callable[[SGD], Any], steps: int = STEPS) -> list[float]:
    """Learning rates of each step under one of torch's schedulers."""
    opt = optimizer()
    scheduler, seen = make(opt), []
    for _ in range(steps):
        seen.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    return seen


WITHOUT_WARMUP = {
    "constant": lambda opt: ConstantLR(opt, factor=1.0),
    "linear": lambda opt: LinearLR(opt, start_factor=1.0, end_factor=0.0, total_iters=STEPS),
    "cosine": lambda opt: CosineAnnealingLR(opt, T_max=STEPS),
    "step": lambda opt: MultiStepLR(opt, milestones=[STEPS // 2, 3 * STEPS // 4], gamma=0.1),
    "exponential": lambda opt: ExponentialLR(opt, gamma=0.01 ** (1 / STEPS)),
    "wsd": lambda opt: SequentialLR(
        opt,
        [
            ConstantLR(opt, factor=1.0),
            LinearLR(opt, start_factor=1.0, end_factor=0.0, total_iters=STEPS // 5),
        ],
        milestones=[4 * STEPS // 5],
    ),
}


@pytest.mark.parametrize("name", WITHOUT_WARMUP)
def test_shape_is_that_of_torchs_scheduler(name: str) -> None:
    ours = [shape(name, k / STEPS, warmup=0.0) for k in range(STEPS)]
    assert ours == pytest.approx(rates(WITHOUT_WARMUP[name]), abs=1e-12)


@pytest.mark.parametrize("name", [n for n in SHAPES if n not in ("one_cycle", "inverse_sqrt", "step")])
def test_warmup_is_torchs_linear_one_and_the_decay_fills_the_rest(name: str) -> None:
    rise = STEPS // 4
    ours = [shape(name, k / STEPS, warmup=0.25) for k in range(STEPS)]
    warm = rates(lambda opt: LinearLR(opt, start_factor=1e-12, total_iters=rise), rise)
    assert ours[:rise] == pytest.approx(warm, abs=1e-9)
    if name in ("linear", "cosine", "exponential"):
        rest = [shape(name, k / (STEPS - rise), warmup=0.0) for k in range(STEPS - rise)]
        assert ours[rise:] == pytest.approx(rest, abs=1e-12)
    else:
        assert ours[rise : STEPS // 2] == [1.0] * (STEPS // 2 - rise)


def test_one_cycle_is_torchs() -> None:
    # Torch lets the rise end at step 0.3 x 40 - 1 and the run at step 39, both counted from 0.
    theirs = rates(lambda opt: OneCycleLR(opt, max_lr=1.0, total_steps=STEPS, cycle_momentum=False))
    ours = [shape("one_cycle", k / (STEPS - 1), warmup=(0.3 * STEPS - 1) / (STEPS - 1)) for k in range(STEPS)]
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_inverse_sqrt_is_the_rule_of_the_paper() -> None:
    """Vaswani et al. 2017, eq. 3: lr ~ min(k^-1/2, k warmup^-3/2)."""
    warmup_steps = 10
    paper = [min(k**-0.5, k * warmup_steps**-1.5) * warmup_steps**0.5 for k in range(1, STEPS)]
    assert [shape("inverse_sqrt", k / STEPS, 0.25) for k in range(1, STEPS)] == pytest.approx(paper)


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_peaks_at_one_and_stays_in_range_beyond_the_ends(name: str) -> None:
    values = [shape(name, k / 1000, warmup=0.1) for k in range(-50, 1051)]
    assert max(values) == pytest.approx(1.0)
    assert min(values) >= 0.0
    assert values[-50:] == [values[-51]] * 50


@pytest.mark.parametrize("name", SHAPES)
def test_the_rate_follows_the_samples_when_the_batch_grows_and_a_resume_continues_it(name: str) -> None:
    def run(stop: int | None = None, state: Any = None) -> tuple[list[float], Any]:
        opt = optimizer(lr=0.3)
        loader = BatchLoader([torch.arange(60)], 4, epochs=2)
        scheduler = schedule_by_name(name, opt, loader, warmup=0.1)
        assert scheduler is not None
        if state is not None:
            loader.load_state_dict(state[0])
            scheduler.load_state_dict(state[1])
            opt.load_state_dict(state[2])
        seen = []
        for k, (batch,) in enumerate(loader):
            served = loader.samples_served - len(batch)
            middle = (served + 0.5 * loader.batch_size) / 120
            assert opt.param_groups[0]["lr"] == pytest.approx(0.3 * shape(name, middle, 0.1))
            seen.append(opt.param_groups[0]["lr"])
            if loader.samples_served == 60:
                loader.set_batch_size(10)
            opt.step()
            scheduler.step()
            if k + 1 == stop:
                break
        return seen, (loader.state_dict(), scheduler.state_dict(), opt.state_dict())

    whole, _ = run()
    assert len(whole) == 15 + 6
    head, state = run(stop=17)
    tail, _ = run(state=state)
    assert head + tail == whole


def test_names_are_checked_and_none_is_no_scheduler() -> None:
    loader = BatchLoader([torch.arange(4)], 2, epochs=1)
    assert schedule_by_name("none", optimizer(), loader) is None
    assert set(get_args(ScheduleName)) == {"none", *SHAPES}
    with pytest.raises(ValueError, match=r"^schedule: 'cosin' is not known.*Did you mean 'cosine'\?"):
        check_schedule("cosin")
    for warmup in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"^warmup: "):
            schedule_by_name("cosine", optimizer(), loader, warmup=warmup)
    with pytest.raises(ValueError, match=r"^warmup: inverse_sqrt"):
        schedule_by_name("inverse_sqrt", optimizer(), loader, warmup=0.0)
