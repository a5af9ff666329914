"""Rules on trainings whose fault is known in closed form, on real runs, and on healthy ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optland.doctor import Diagnosis, Symptom, diagnose, watch
from optland.doctor.histories import Histories
from optland.doctor.several import between
from optland.train.loops.evaluate import accuracy_error


def descent(eta: float, curvature: float, num_steps: int = 60) -> Diagnosis:
    """Gradient descent on lambda x^2 / 2, whose loss changes by (1 - eta lambda)^2 per step."""
    run, x = Histories({"lr": eta, "optimizer": "SGD"}), 1.0
    for step in range(1, num_steps + 1):
        run.put(
            step, {"train/loss": curvature * x * x / 2, "edge/ratio": eta * curvature / 2, "lr/user": eta}
        )
        x -= eta * curvature * x
    return diagnose(run)


@pytest.mark.parametrize("excess", [0.02, 0.1, 1.0])
def test_descent_above_the_edge_is_told_a_rate_below_it(excess: float) -> None:
    curvature = 5.0
    first = descent((2 + excess) / curvature, curvature).findings[0]
    assert first.symptom == Symptom.RATE_ABOVE_EDGE
    assert first.action.startswith("optimizer.lr=")
    assert float(first.action.partition("=")[2]) < 2 / curvature


@pytest.mark.parametrize("ratio", [0.05, 0.3])
def test_descent_below_the_edge_raises_nothing(ratio: float) -> None:
    assert descent(2 * ratio / 5.0, 5.0).findings == ()


def test_descent_far_below_the_edge_is_told_a_rate_that_many_times_higher() -> None:
    first = descent(1e-5, 5.0).findings[0]
    assert first.symptom == Symptom.RATE_BELOW_EDGE
    assert float(first.action.partition("=")[2]) == pytest.approx(0.04, rel=0.1)  # a tenth of the edge, 2 / 5


def product_of_weights(depth: int, start: float, num_steps: int, lr: float = 0.01) -> Diagnosis:
    """(w_1 ... w_depth - 1)^2 / 2 from equal weights: a plateau of ln(1 / start) / lr steps for two of them."""
    layers = [nn.Linear(1, 1, bias=False) for _ in range(depth)]
    for layer in layers:
        nn.init.constant_(layer.weight, start)
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr)
    x, y = torch.ones(4, 1), torch.ones(4, 1)
    with watch(model, optimizer) as doctor:
        for _ in range(num_steps):
            optimizer.zero_grad()
            loss = 0.5 * F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            doctor.after_step((x,), loss)
    return doctor.diagnosis


def test_the_plateau_of_two_small_factors_is_a_saddle_and_no_minimum() -> None:
    found = product_of_weights(2, 1e-6, num_steps=400)  # of about 1388
    assert found.findings[0].symptom == Symptom.SADDLE_PLATEAU


def test_the_gradient_of_a_long_product_of_small_weights_has_vanished() -> None:
    found = product_of_weights(12, 0.5, num_steps=60)  # its derivative is 0.5^11 = 4.9e-4
    assert found.findings[0].symptom == Symptom.VANISHING_GRADIENTS


def blobs(
    model: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int = 80, batch: int = 64
) -> Diagnosis:
    torch.manual_seed(1)
    y = torch.arange(960) % 3
    x = torch.randn(960, 8) + 2 * F.one_hot(y, 8)
    with watch(model, optimizer) as doctor:
        for _ in range(num_steps):
            chosen = torch.randint(960, (batch,))
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            doctor.after_step((x[chosen], y[chosen]), loss)
    return doctor.diagnosis


def net(depth: int = 2, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    hidden = [layer for _ in range(depth - 1) for layer in (nn.Linear(16, 16), activation())]
    return nn.Sequential(nn.Linear(8, 16), activation(), *hidden, nn.Linear(16, 3))


def test_units_that_never_fire_are_dead() -> None:
    model = net()
    for layer in (model[0], model[2]):
        assert isinstance(layer, nn.Linear)
        nn.init.constant_(layer.bias, -50.0)
    found = blobs(model, torch.optim.SGD(model.parameters(), 0.05))
    assert found.findings[0].symptom == Symptom.DEAD_UNITS
    assert "100 % of the units" in found.findings[0].evidence


def test_sigmoids_without_end_let_the_gradient_vanish() -> None:
    model = net(12, nn.Sigmoid)
    found = blobs(model, torch.optim.SGD(model.parameters(), 0.05))
    assert found.findings[0].symptom == Symptom.VANISHING_GRADIENTS


def test_weights_eight_times_too_large_explode() -> None:
    model = net(4)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(8)
    found = blobs(model, torch.optim.SGD(model.parameters(), 1e-5))
    assert found.findings[0].symptom == Symptom.EXPLODING_GRADIENTS


def test_an_update_of_two_samples_is_below_the_noise() -> None:
    model = net()
    found = blobs(model, torch.optim.SGD(model.parameters(), 0.05), batch=2)
    assert found.findings[0].symptom == Symptom.BATCH_BELOW_NOISE


@pytest.mark.parametrize("beta", [0.99, 0.998])
def test_a_momentum_that_forgets_nothing_is_stale(beta: float) -> None:
    model = net()
    found = blobs(model, torch.optim.SGD(model.parameters(), 0.02, momentum=beta))
    assert Symptom.STALE_MOMENTUM in [f.symptom for f in found.findings[:2]]


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw"])
def test_a_healthy_run_raises_nothing(name: str) -> None:
    weights = (model := net()).parameters()
    optimizer: torch.optim.Optimizer
    if name == "adamw":
        optimizer = torch.optim.AdamW(weights, 3e-3)
    else:
        optimizer = (
            torch.optim.SGD(weights, 0.1) if name == "sgd" else torch.optim.SGD(weights, 0.02, momentum=0.9)
        )
    assert blobs(model, optimizer).findings == ()


def fitted(train: float, val: float, train_acc: float, val_acc: float) -> Diagnosis:
    run = Histories({"chance": math.log(10)})
    for step in range(1, 101):
        run.put(step, {"train/loss": train + (2.3 - train) * 0.9**step})
    run.put(100, {"train/eval": train, "val/loss": val, "train/acc": train_acc, "val/acc": val_acc})
    return diagnose(run)


def test_training_data_that_are_fitted_worse_than_unseen_ones_have_wrong_labels() -> None:
    assert fitted(1.5, 0.6, 60.0, 93.0).findings[0].symptom == Symptom.WRONG_LABELS


def test_training_data_that_are_fitted_far_better_than_unseen_ones() -> None:
    assert fitted(0.01, 1.2, 100.0, 75.0).findings[0].symptom == Symptom.POOR_GENERALISATION


@pytest.mark.parametrize(("samples", "found"), [(20, False), (1000, True)])
def test_a_gap_of_accuracies_counts_where_it_exceeds_its_sampling_error(samples: int, found: bool) -> None:
    run = Histories({"chance": math.log(10)})
    for step in range(1, 101):
        run.put(step, {"train/loss": 0.01 + 2.29 * 0.9**step})
    run.put(100, {"train/eval": 0.01, "val/loss": 1.2, "train/acc": 100.0, "val/acc": 90.0})
    unknown = [finding.symptom for finding in diagnose(run).findings]
    run.put(100, {"val/acc_error": accuracy_error(90.0, samples)})
    known = [finding.symptom for finding in diagnose(run).findings]
    assert unknown == [Symptom.POOR_GENERALISATION]
    assert known == unknown * found


def test_a_loss_that_jumps_in_single_updates_has_corrupt_batches() -> None:
    run = Histories({"chance": 2.3})
    for step in range(1, 101):
        run.put(step, {"train/loss": 50.0 if step in (40, 70) else 0.3 + 2 * 0.9**step})
    found = diagnose(run).findings[0]
    assert found.symptom == Symptom.CORRUPT_BATCHES
    assert "2 single updates (the first: 40)" in found.evidence


def test_nothing_is_said_of_a_run_of_which_nothing_is_known() -> None:
    assert diagnose(Histories()).findings == ()


def test_runs_that_agree_are_not_inconsistent() -> None:
    runs = {name: Histories() for name in "abc"}
    for acc, run in zip((91.0, 92.5, 90.1), runs.values(), strict=True):
        run.put(10, {"val/acc": acc})
    assert between(runs) == []


def test_histories_stay_bounded_and_keep_their_ends() -> None:
    run = Histories()
    for step in range(1, 20_001):
        run.put(step, {"train/loss": float(step)})
    kept = run.values("train/loss")
    assert len(kept) <= 2048
    assert kept[0] < 20
    assert kept[-1] > 19_900


def test_histories_resume() -> None:
    run, other = Histories({"lr": 0.1}), Histories()
    run.put(3, {"train/loss": 1.0})
    other.load_state_dict(run.state_dict())
    assert (other.facts, other.step, other.values("train/loss")) == ({"lr": 0.1}, 3, [1.0])
