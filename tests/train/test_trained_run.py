"""What a probe of a trained run starts from: samples of its data, its checkpoint, the learning rates it logged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optland.config import UserError
from optland.log import JsonlLogger
from optland.train import DataConfig, TextConfig, load_data, load_text
from optland.train.data.splits import random_draw
from optland.train.loops.ema import Ema
from optland.train.runs.checkpoint import save_checkpoint
from optland.train.runs.trained_run import disagreement, find_checkpoint, load_run, probe_objective


def loss_fn(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def net() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_a_draw_is_without_replacement_uniform_and_a_function_of_its_seed() -> None:
    counts = torch.zeros(10)
    for seed in range(1000):
        chosen = random_draw(10, 3, seed)
        assert len(set(chosen.tolist())) == 3
        counts[chosen] += 1
    # Each index is in 3 of 10 draws: 300 of 1000 with a deviation of sqrt(1000 0.3 0.7) = 14.5.
    assert (counts - 300).abs().max() < 5 * 14.5
    assert torch.equal(random_draw(100, 7, 4), random_draw(100, 7, 4))
    with pytest.raises(ValueError, match="0 samples are too few"):
        random_draw(10, 0, 0)


def test_images_are_drawn_standardised_and_never_augmented() -> None:
    data = load_data(DataConfig("fake", num_samples=60, image_size=8, augment="standard"))
    assert data.train_x.dtype == torch.uint8
    x, y = data.sample("train", 9, seed=2)
    chosen = random_draw(len(data.train_y), 9, 2)
    assert torch.equal(x, (data.train_x[chosen].float() - data.mean) / data.std)
    assert torch.equal(y, data.train_y[chosen])
    assert data.size("val") == len(data.sample("val", 10**6)[1]) == len(data.val_y)


def test_windows_are_drawn_with_their_targets() -> None:
    data = load_text(TextConfig(tokens="bytes", max_bytes=20_000, context=16))
    x, y = data.sample("test", 5, seed=1)
    whole, _ = data.windows("test")
    assert x.shape == y.shape == (5, 16)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert all(any(torch.equal(row, window) for window in whole) for row in x)
    assert data.size("test") == len(whole)


def test_the_objective_of_pieces_is_that_of_the_whole_sample() -> None:
    data, model = load_data(DataConfig("digits")), net()
    options = {"split_name": "test", "num_samples": 50, "seed": 1}
    pieces = probe_objective(model, loss_fn, data, batch_size=7, **options)
    assert len(pieces.batches) == 8
    whole = loss_fn(model, data.sample("test", 50, 1)).item()
    assert pieces.value() == pytest.approx(whole, rel=1e-6)


def saved(folder: Path) -> tuple[Path, nn.Module, nn.Module]:
    """A checkpoint of step 5 with an average, a log that goes on to step 9; its model and its average."""
    model = net()
    ema, optimizer = Ema(model, 0.5), torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        loss_fn(model, (torch.randn(4, 1, 8, 8), torch.arange(4))).backward()
        optimizer.step()
        ema.update()
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()}
    save_checkpoint(folder / "checkpoint.pt", {"step": 5, "parts": parts})
    log = JsonlLogger(folder / "log.jsonl")
    for step, rate in ((1, 0.1), (2, 0.4), (3, 0.3), (5, 0.02), (9, 7.0)):
        log.log({"step": step, "lr/applied": rate})
    log.log({"step": 7, "lr/applied": math.nan})
    log.finish({})
    (folder / "summary.json").write_text(json.dumps({"train/steps": 9}))
    return folder / "checkpoint.pt", model, ema.model


def test_a_run_comes_back_with_weights_average_optimizer_and_rates(tmp_path: Path) -> None:
    checkpoint, model, average = saved(tmp_path)
    fresh = net()
    optimizer = torch.optim.SGD(fresh.parameters(), lr=1.0, momentum=0.9)
    run = load_run(find_checkpoint(tmp_path), fresh, optimizer)
    assert run.step == 5
    assert run.averaged
    for mine, theirs in ((run.model, model), (run.evaluated, average)):
        assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    assert not torch.equal(run.model[1].weight, run.evaluated[1].weight)
    assert optimizer.param_groups[0]["lr"] == 0.3
    assert optimizer.state[fresh[1].weight]["momentum_buffer"].abs().sum() > 0
    assert run.rates == {"last": 0.02, "median": pytest.approx(0.2), "peak": 0.4}
    assert [note for note in run.notes if "went on to step 9" in note]
    assert checkpoint.parent == run.folder


def test_the_logged_validation_loss_is_held_against_the_recipe_s(tmp_path: Path) -> None:
    saved(tmp_path)
    data = load_data(DataConfig("digits"))
    fresh = net()
    evaluated = load_run(tmp_path / "checkpoint.pt", fresh).evaluated
    loss = loss_fn(evaluated, data.sample("val", 10**6)).item()
    log = JsonlLogger(tmp_path / "log.jsonl")
    log.log({"step": 5, "val/loss": loss})
    log.finish({})
    run = load_run(tmp_path / "checkpoint.pt", fresh)
    assert run.val_loss == pytest.approx(loss)
    assert disagreement(run, loss_fn, data, 64) == ""
    assert "are not those of the run" in disagreement(run, lambda m, b: 1.01 * loss_fn(m, b), data, 64)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    with pytest.raises(UserError, match="do not fit the model"):
        load_run(tmp_path / "checkpoint.pt", nn.Linear(3, 2))
    fresh = net()
    adam = torch.optim.Adam([{"params": [p]} for p in fresh.parameters()])
    run = load_run(tmp_path / "checkpoint.pt", fresh, adam)
    assert run.optimizer is None
    assert any("optimizer's state could not be loaded" in note for note in run.notes)
    save_checkpoint(tmp_path / "other.pt", {"step": 1, "parts": {"net": {}}})
    with pytest.raises(UserError, match="no 'model'"):
        load_run(tmp_path / "other.pt", net())
