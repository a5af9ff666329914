"""Micro-batches against the batch in one piece, for losses whose weights are not the samples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.batches import split
from optland.optim import SAM
from optland.train import PrecisionConfig
from optland.train.loops.precision import Precision

Batch = tuple[Tensor, Tensor]
Loss = Callable[[nn.Module, Batch], Any]

WEIGHTS = torch.tensor([1.0, 7.0, 0.1], dtype=torch.float64)
CUTS = [{"accumulation": 3}, {"micro_batch": 2}, {"accumulation": 8}]
NO_MEAN = pytest.mark.filterwarnings("ignore:micro-batches. the loss of samples:RuntimeWarning")


def classes() -> tuple[nn.Module, Batch]:
    """Eight samples, of which the third to the sixth have no label: a whole micro-batch of any cut."""
    torch.manual_seed(0)
    return nn.Linear(5, 3).double(), (
        torch.randn(8, 5, dtype=torch.float64),
        torch.tensor([0, 1, -100, -100, -100, -100, 2, 2]),
    )


def sentences() -> tuple[nn.Module, Batch]:
    """Eight sentences of 1 to 6 tokens, padded; the longest come last."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)).double()
    tokens = torch.randint(9, (8, 6))
    lengths = torch.tensor([1, 1, 1, 2, 3, 4, 6, 6])
    return model, (tokens, torch.where(torch.arange(6) < lengths[:, None], tokens.roll(-1, 1), -100))


def masked(m: nn.Module, b: Batch) -> Tensor:
    return F.cross_entropy(m(b[0]).flatten(0, -2), b[1].flatten())


def masked_sum(m: nn.Module, b: Batch) -> tuple[Tensor, int]:
    total = F.cross_entropy(m(b[0]).flatten(0, -2), b[1].flatten(), reduction="sum")
    return total, int((b[1] != -100).sum())


def masked_sum_with_tensor(m: nn.Module, b: Batch) -> list[Tensor]:
    total, _ = masked_sum(m, b)
    return [total, (b[1] != -100).sum()]


def weighted(m: nn.Module, b: Batch) -> Tensor:
    return F.cross_entropy(m(b[0]), b[1], weight=WEIGHTS)


def weighted_sum(m: nn.Module, b: Batch) -> tuple[Tensor, Tensor]:
    known = b[1][b[1] >= 0]
    return F.cross_entropy(m(b[0]), b[1], weight=WEIGHTS, reduction="sum"), WEIGHTS[known].sum()


def masked_by_hand(m: nn.Module, b: Batch) -> Tensor:
    mask = (b[1] >= 0).double()
    return (m(b[0])[:, 0].square() * mask).sum() / mask.sum()


def coupled(m: nn.Module, b: Batch) -> Tensor:
    return torch.logsumexp(m(b[0]).flatten(), 0)


def plain(m: nn.Module, b: Batch) -> Tensor:
    return m(b[0]).square().mean()


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def in_one_piece(loss_fn: Loss, model: nn.Module, batch: Batch) -> tuple[float, Tensor]:
    model.zero_grad()
    loss: Any = loss_fn(model, batch)
    mean = loss[0] / loss[1] if isinstance(loss, list | tuple) else loss
    mean.backward()
    found = gradient(model).clone()
    model.zero_grad()
    return float(mean.detach()), found


def built(model: nn.Module, **options: Any) -> Precision:
    return PrecisionConfig(**options).build(torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize(
    ("problem", "loss_fn"),
    [
        (classes, masked_sum),
        (classes, masked_sum_with_tensor),
        (classes, weighted_sum),
        (sentences, masked_sum),
        (classes, plain),
    ],
)
def test_counts_and_plain_means_are_those_of_the_batch(problem: Any, loss_fn: Loss, cut: Any) -> None:
    model, batch = problem()
    loss, expected = in_one_piece(loss_fn, model, batch)
    for _ in range(2):
        model.zero_grad()
        assert float(built(model, **cut).backward(loss_fn, model, batch)) == pytest.approx(loss, rel=1e-12)
        torch.testing.assert_close(gradient(model), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize(
    ("problem", "loss_fn"),
    [
        (classes, masked),
        (classes, weighted),
        (classes, masked_by_hand),
        (classes, coupled),
        (sentences, masked),
    ],
)
def test_any_other_loss_is_taken_in_one_piece_and_told(problem: Any, loss_fn: Loss, cut: Any) -> None:
    model, batch = problem()
    loss, expected = in_one_piece(loss_fn, model, batch)
    precision = built(model, **cut)
    with pytest.warns(RuntimeWarning, match=r"no mean over samples .* return \(sum of losses, count\)"):
        found = precision.backward(loss_fn, model, batch)
    assert float(found) == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(gradient(model), expected, rtol=1e-12, atol=1e-14)
    model.zero_grad()
    precision.backward(loss_fn, model, batch)  # told once
    torch.testing.assert_close(gradient(model), expected, rtol=1e-12, atol=1e-14)
    again = built(model, **cut)
    again.load_state_dict(precision.state_dict())
    model.zero_grad()
    again.backward(loss_fn, model, batch)
    torch.testing.assert_close(gradient(model), expected, rtol=1e-12, atol=1e-14)


def test_a_micro_batch_without_a_target_is_noticed_in_every_call() -> None:
    model, (x, y) = classes()
    precision = built(model, accumulation=4)
    for _ in range(2):
        precision.backward(masked, model, (x, y.abs() % 3))
    model.zero_grad()
    loss, expected = in_one_piece(masked, model, (x, y))
    before = [torch.ones_like(p) for p in model.parameters()]
    for p, g in zip(model.parameters(), before, strict=True):
        p.grad = g
    with pytest.warns(
        RuntimeWarning, match="no mean over samples"
    ):  # call 3 is no call at which means are compared
        found = precision.backward(masked, model, (x, y))
    assert float(found) == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(gradient(model), expected + 1.0, rtol=1e-12, atol=1e-14)
    assert all(p.grad is g for p, g in zip(model.parameters(), before, strict=True))


def test_what_stood_in_grad_is_added_to_and_not_rescaled() -> None:
    model, batch = classes()
    _, expected = in_one_piece(masked_sum, model, batch)
    precision = built(model, accumulation=3)
    for k in range(1, 4):
        precision.backward(masked_sum, model, batch)
        torch.testing.assert_close(gradient(model), k * expected, rtol=1e-12, atol=1e-14)


def test_a_sample_that_is_not_a_number_is_no_mask() -> None:
    model, (x, y) = classes()
    x[5] = math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = built(model, accumulation=4).backward(plain, model, (x, y))
    assert math.isnan(float(loss))
    assert gradient(model).isnan().any()


def test_a_loss_that_draws_numbers_of_its_own_is_not_judged() -> None:
    model, batch = classes()

    def noisy(m: nn.Module, b: Batch) -> Tensor:
        return F.dropout(m(b[0])).square().mean()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built(model, accumulation=4).backward(noisy, model, batch)


def test_a_loss_that_knows_training_mode_alone_is_not_judged_and_this_is_told() -> None:
    model, batch = classes()

    def training_only(m: nn.Module, b: Batch) -> Tensor:
        if not m.training:
            raise KeyError("no losses in eval mode")
        return plain(m, b)

    _, expected = in_one_piece(training_only, model, batch)
    precision = built(model, accumulation=4)
    with pytest.warns(RuntimeWarning, match="could not be checked, .* 'no losses in eval mode"):
        precision.backward(training_only, model, batch)
    torch.testing.assert_close(gradient(model), expected, rtol=1e-12, atol=1e-14)
    precision.backward(training_only, model, batch)  # told once


def test_the_check_leaves_nothing_behind() -> None:
    """Masks, statistics and gradients are those of a loop over the micro-batches, bit for bit."""

    def make() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).double()

    _, batch = classes()
    ours, theirs = make(), make()
    torch.manual_seed(4)
    built(ours, accumulation=3).backward(plain, ours, batch)
    drawn = torch.rand(1)
    torch.manual_seed(4)
    for part in split(batch, 3):
        (plain(theirs, part) * (len(part[0]) / 8)).backward()
    assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(gradient(ours), gradient(theirs))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))
    assert all(module.training for module in ours.modules())


@NO_MEAN
@pytest.mark.parametrize("loss_fn", [masked_sum, masked])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_both_passes_of_sam_see_the_whole_batch(loss_fn: Loss, precision: Any) -> None:
    """In float64 nothing rounds noticeably; the loss scale takes the phase form."""
    results = []
    for options in ({}, {"micro_batch": 2}):
        model, batch = classes()
        optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.3, model=model)
        parts = PrecisionConfig(precision=precision if options else "fp32", **options).build(optimizer)
        parts.dtype = None  # the scale alone

        def closure(
            parts: Any = parts, optimizer: Any = optimizer, model: Any = model, batch: Any = batch
        ) -> Tensor:
            optimizer.zero_grad()
            return parts.backward(loss_fn, model, batch)

        results.append(
            ([float(parts.step(closure)) for _ in range(3)], [p.detach() for p in model.parameters()])
        )
    (losses, expected), (found, weights) = results
    assert found == pytest.approx(losses, rel=1e-9)
    for a, b in zip(weights, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
