"""The parts of ``benchmarks/survival.py``, each against what its sentence says, written out."""

from __future__ import annotations

import importlib
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pages import ROOT
from torch import nn
from torch.nn import functional as F

from optland.optim import SAM
from optland.train import DataConfig, ModelConfig, OptimizerConfig, seed_everything
from optland.train.experiments.bank_run import BankRun, Splits, load_splits
from optland.train.experiments.bank_training import train_run
from optland.train.experiments.kept import Kept

RUN = BankRun(
    400, batch_size=16, data=DataConfig("teacher", num_samples=100), net=ModelConfig("cnn", width=4)
)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def module(name: str) -> ModuleType:
        return importlib.import_module(name)

    return module


@pytest.fixture
def measures(bench: Any) -> Any:
    return bench("survival_measures")


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# Inputs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("down", "right"), [(0, 1), (0, -1), (1, 0), (-1, 0), (2, -1)])
def test_a_shift_pixel_by_pixel(measures: Any, down: int, right: int) -> None:
    x = torch.randn(2, 3, 4, 5)
    moved = measures.shifted(x, down, right)
    for i in range(4):
        for j in range(5):
            row, column = min(max(i - down, 0), 3), min(max(j - right, 0), 4)
            assert torch.equal(moved[:, :, i, j], x[:, :, row, column])


def test_a_blur_pixel_by_pixel(measures: Any) -> None:
    x = torch.randn(2, 1, 4, 5, dtype=torch.float64)
    weights = {-1: 0.25, 0: 0.5, 1: 0.25}
    found = measures.blurred(x)
    for i in range(4):
        for j in range(5):
            expected = sum(
                a * b * x[:, :, min(max(i + di, 0), 3), min(max(j + dj, 0), 4)]
                for di, a in weights.items()
                for dj, b in weights.items()
            )
            torch.testing.assert_close(found[:, :, i, j], expected)
    signal = torch.tensor([[[[0.0, 4.0, 0.0, 0.0]]]])
    assert measures.blurred(signal).flatten().tolist() == [1.0, 2.0, 1.0, 0.0], "a signal has one axis"


def test_noise_has_its_size_and_its_seed(measures: Any) -> None:
    x = torch.zeros(100, 1, 10, 10)
    noise = measures.noisy(x, 0.5, seed=3)
    assert float(noise.std()) == pytest.approx(0.5, rel=0.05)
    assert torch.equal(noise, measures.noisy(x, 0.5, seed=3))
    assert not torch.equal(noise, measures.noisy(x, 0.5, seed=4))


def test_fgsm_is_the_worst_step_for_a_linear_net(measures: Any) -> None:
    """For two classes the loss falls with the margin (w_y - w_other) x, so every pixel goes against its weight."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    x, y = torch.randn(6, 1, 2, 2), torch.tensor([0, 1, 0, 1, 1, 0])
    w = net[1].weight.detach()
    against = -(w[y] - w[1 - y]).sign().view(6, 1, 2, 2)
    torch.testing.assert_close(measures.fgsm(net, (x, y), 0.1), x + 0.1 * against)
    assert net[1].weight.grad is None


def test_replaced_tokens(measures: Any) -> None:
    x = torch.arange(1000).view(10, 100)
    changed = measures.replaced(x, 0.2, seed=1)
    assert float((changed != x).double().mean()) == pytest.approx(0.2, abs=0.05)
    assert set(changed.flatten().tolist()) <= set(range(1000))
    assert torch.equal(measures.replaced(x, 0.0), x)


def test_every_damage_is_measured_once_and_leaves_the_net_alone(measures: Any) -> None:
    splits = load_splits(RUN)
    seed_everything(0)
    model = splits.build(RUN).eval()
    before = flat(model)
    found = measures.survives(model, splits)
    assert torch.equal(flat(model), before)
    names = {key.rpartition("/")[0] for key in found}
    assert names == {
        "clean", "4 bits", "3 bits", "2 bits", "pruned 50%", "pruned 70%", "pruned 85%", "noise 0.1", "noise 0.2",
        "noise 0.3", "noise 0.4", "shift", "blur", "input noise", "FGSM 0.1", "FGSM 0.2",
    }  # fmt: skip
    with torch.no_grad():
        logits = model(splits.test[0])
        low = torch.cat([p.flatten() for p in model.parameters() if p.ndim > 1]).abs().quantile(0.5)
        half = splits.build(RUN).eval()
        half.load_state_dict(
            {k: v * (v.abs() > low) if v.ndim > 1 else v for k, v in model.state_dict().items()}
        )
    assert found["clean/acc"] == pytest.approx(
        100 * float((logits.argmax(1) == splits.test[1]).double().mean())
    )
    assert found["clean/loss"] == pytest.approx(float(F.cross_entropy(logits, splits.test[1])), rel=1e-5)
    with torch.no_grad():
        pruned = F.cross_entropy(half(splits.test[0]), splits.test[1])
    assert found["pruned 50%/loss"] == pytest.approx(float(pruned), rel=1e-5)


# The second task ------------------------------------------------------------------------------------


def test_what_is_left_is_taken_where_the_new_loss_is_the_target(measures: Any) -> None:
    """One weight w; the losses of both tasks are known functions of it, and each look is one step."""
    held = torch.ones(4, 1), torch.zeros(4).long()
    splits = Splits((torch.zeros(8, 1), torch.zeros(8).long()), held, held, num_outputs=2)
    new = replace(
        splits, train=(torch.ones(8, 1), torch.ones(8).long()), val=(torch.ones(4, 1), torch.ones(4).long())
    )

    class Logit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(-2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.zeros_like(x), self.w * x], dim=1)

    def task(target: float, **more: Any) -> Any:
        return measures.SecondTask(
            lambda: new,
            lambda model: torch.optim.SGD(model.parameters(), 0.5),
            target,
            batch_size=8,
            every=1,
            **more,
        )

    w, losses, old = -2.0, [], []
    for _ in range(40):
        losses.append(math.log1p(math.exp(-w)))
        old.append(math.log1p(math.exp(w)))
        w += 0.5 / (1 + math.exp(w))
    after = next(k for k, loss in enumerate(losses) if loss <= 0.4)
    share = (losses[after - 1] - 0.4) / (losses[after - 1] - losses[after])
    found = measures.forgetting(task(0.4))(Logit(), splits)
    assert found["reached"] == 1
    assert found["steps"] == pytest.approx(after - 1 + share, rel=1e-4)
    assert found["loss"] == pytest.approx((1 - share) * old[after - 1] + share * old[after], rel=1e-4)
    late = measures.forgetting(task(0.001, max_steps=7))(Logit(), splits)
    assert (late["reached"], late["steps"]) == (0, 7)
    assert late["loss"] == pytest.approx(old[7], rel=1e-4)
    assert measures.forgetting(task(9.0))(Logit(), splits)["steps"] == 0


# Controls -------------------------------------------------------------------------------------------


def test_random_sam_takes_the_gradient_at_a_random_point_of_sams_radius(bench: Any) -> None:
    methods = bench("survival_methods")
    net = nn.Linear(3, 2)
    w = [p.detach().clone() for p in net.parameters()]
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1])
    optimizer = methods.RandomSAM(torch.optim.SGD(net.parameters(), lr=0.5), rho=0.3, seed=7, model=net)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    generator = torch.Generator().manual_seed(7)
    u = [torch.randn(p.shape, generator=generator) for p in w]
    length = torch.cat([t.flatten() for t in u]).norm()
    there = [(p + 0.3 * t / length).requires_grad_() for p, t in zip(w, u, strict=True)]
    F.cross_entropy(F.linear(x, *there), y).backward()
    for p, before, at in zip(net.parameters(), w, there, strict=True):
        torch.testing.assert_close(p.detach(), before - 0.5 * at.grad)
    assert optimizer.last_evaluations == 2


def test_weight_noise_takes_the_gradient_at_noisy_matrices(bench: Any) -> None:
    methods = bench("survival_methods")
    net = nn.Linear(3, 2)
    weight, bias = net.weight.detach().clone(), net.bias.detach().clone()
    x, y = torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 1])
    optimizer = methods.WeightNoise(torch.optim.SGD(net.parameters(), lr=0.5), net, sigma=0.2, seed=7)
    seen = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        seen.append(net.weight.detach().clone())
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    noise = seen[0] - weight
    assert 0 < float(noise.norm()) < 3 * 0.2 * float(weight.norm())
    there, b = seen[0].clone().requires_grad_(), bias.clone().requires_grad_()
    F.cross_entropy(F.linear(x, there, b), y).backward()
    torch.testing.assert_close(net.weight.detach(), weight - 0.5 * there.grad)
    torch.testing.assert_close(net.bias.detach(), bias - 0.5 * b.grad)
    optimizer.param_groups[0]["lr"] = 0.0  # as a schedule does
    stay = net.weight.detach().clone()
    optimizer.step(closure)
    assert torch.equal(net.weight, stay), (
        "the weights come back by copy, and the base has the schedule's rate"
    )
    assert not torch.equal(seen[1] - stay, noise), "noise is drawn anew"


@pytest.mark.parametrize(("method", "passes"), [("random", 2.0), ("weight noise", 1.0)])
def test_a_control_costs_what_is_declared(bench: Any, method: str, passes: float) -> None:
    run = replace(RUN, method=method, strength=0.05, passes=passes, optimizer=OptimizerConfig("sgd", lr=0.05))
    trained = train_run(run, load_splits(run), bench("survival_methods").METHODS)
    assert trained.facts["ge"] == pytest.approx(400, abs=32)
    assert not trained.dead


# The verdict ----------------------------------------------------------------------------------------


def rows(bench: Any, ours: dict[str, float], clean: float) -> dict[str, dict[str, list[float]]]:
    """Rows of eight seeds: the base, ``random`` and SAM with these gains, each within 0.1 on every seed."""
    survival = bench("survival")
    wiggle = [0.1, -0.1, 0.05, -0.05, 0.02, -0.02, 0.08, -0.08]
    base = {f"{name}/acc": [80.0 + k for k in range(8)] for name in ("clean", *survival.PRIMARY)}
    gain = {**dict.fromkeys(survival.PRIMARY, 0.0), **ours, "clean": clean}
    sam = {
        f"{name}/acc": [a + gain[name] + w for a, w in zip(base[f"{name}/acc"], wiggle, strict=True)]
        for name in gain
    }
    return {"base": base, "random": base, "sam": sam}


@pytest.mark.parametrize(
    ("ours", "clean", "stands"),
    [
        ({"3 bits": 1.0, "2 bits": 1.0}, 0.0, True),
        ({"3 bits": 1.0}, 0.0, False),
        ({"3 bits": -1.0, "2 bits": -1.0}, 0.0, False),
        ({"3 bits": 1.0, "2 bits": 1.0}, -0.9, False),
        ({"3 bits": 1.0, "2 bits": 1.0}, -0.7, True),
    ],
)
def test_the_claim_stands_where_two_damages_are_better(
    bench: Any, ours: dict, clean: float, stands: bool
) -> None:
    assert bench("survival").verdict(rows(bench, ours, clean))["stands"] is stands


def test_intervals_are_corrected_over_the_four_damages(bench: Any) -> None:
    survival = bench("survival")
    table = rows(bench, {"3 bits": 1.0, "2 bits": 0.06}, 0.0)
    found = survival.gains(table["sam"], table["base"])
    t = {0.05 / 4: 3.3353, 0.05 / 3: 3.1276}  # of 7 degrees of freedom, two-sided
    spread = (
        torch.tensor([0.1, -0.1, 0.05, -0.05, 0.02, -0.02, 0.08, -0.08], dtype=torch.float64).std() / 8**0.5
    )
    assert found["3 bits"]["error"] == pytest.approx(t[0.05 / 4] * float(spread), rel=1e-3)
    assert found["2 bits"]["error"] == pytest.approx(t[0.05 / 3] * float(spread), rel=1e-3)
    assert found["2 bits"]["above"] is (found["2 bits"]["error"] < 0.06)


def test_every_row_spends_the_budget_of_its_net(bench: Any) -> None:
    survival, nets = bench("survival"), bench("survival_nets").NETS
    for net in nets.values():
        made = [
            net.run, survival.sam(net.run, 0.1), survival.tail(net.run, 0.1),
            survival.own(net.run, "random", 0.1, 2.0), survival.own(net.run, "weight noise", 0.1, 1.0),
        ]  # fmt: skip
        assert len({run.key for run in made}) == 5
        for run in made:
            assert run.cost * run.samples == pytest.approx(net.run.budget, rel=1e-3)


# SAM with wrong labels ------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [1, 4, 8])
def test_the_gradient_of_m_sharpness_is_that_of_the_librarys_micro_batches(bench: Any, m: int) -> None:
    noise = bench("sam_noise")
    seed_everything(0)
    model = load_splits(RUN).build(RUN)
    x, y = (t[:8] for t in load_splits(RUN).train)
    found = noise.sam_gradient(model, (x, y), m, 0.2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=1.0), rho=0.2)
    for xs, ys in zip(x.split(m), y.split(m), strict=True):

        def closure(xs: torch.Tensor = xs, ys: torch.Tensor = ys) -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(xs), ys) * len(ys) / 8
            loss.backward()
            return loss

        optimizer.accumulate(closure, share=m / 8)
    optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(before[name] - p.detach(), found[name], atol=1e-6, rtol=1e-4)
    with pytest.raises(ValueError, match="m 3 does not go into a batch of 8"):
        noise.sam_gradient(model, (x, y), 3, 0.2)


def test_forty_per_cent_of_the_labels_are_wrong_and_the_test_is_clean(bench: Any) -> None:
    noise = bench("sam_noise")
    data, other = noise.load("digits", 3), noise.load("digits", 4)
    wrong = float((data.train[1] != data.right).double().mean())
    assert wrong == pytest.approx(0.4, abs=0.03)
    clean = noise.load_data(DataConfig("digits"))
    assert float((data.val[1] != clean.val_y).double().mean()) == pytest.approx(0.4, abs=0.1)
    assert torch.equal(data.test[1], clean.test_y)
    assert not torch.equal(data.train[1], other.train[1])


@pytest.mark.slow
def test_a_run_with_wrong_labels_repeats_itself(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = bench("sam_noise")
    job = noise.Job("digits", "sam, whole batch", 0.05, 0.1, seed=10, epochs=2)
    found = noise.run(job)
    assert found["ge"] == 2 * 2 * 1200
    assert {k: v for k, v in found.items() if k != "seconds"} == {
        k: v for k, v in noise.run(job).items() if k != "seconds"
    }


# The whole of it ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_net_goes_all_the_way_to_the_table_and_on_where_it_was(
    bench: Any, measures: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    survival, nets, pages = bench("survival"), bench("survival_nets"), bench("readme_survival")
    run = replace(RUN, budget=160, optimizer=OptimizerConfig("sgd"))
    second = measures.SecondTask(nets.turned(run), nets.sgd(0.05), target=2.2, batch_size=16, max_steps=20)
    monkeypatch.setattr(survival, "NETS", {"small": nets.Net("small", run, (0.05, 0.1), second)})
    monkeypatch.setattr(survival, "REPORT_SEEDS", (10, 11, 12))
    monkeypatch.setattr(survival, "RHOS", (0.05, 0.1))
    runs, result = tmp_path / "runs.jsonl", tmp_path / "survival.json"

    told: list[str] = []

    def say(line: str) -> None:
        """Breaks the work off after every seventh run."""
        told.append(line)
        if len(told) % 7 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(survival, "say", say)
    endless, whole, parts = survival.Clock(math.inf), False, []
    while not whole:
        try:
            whole = survival.make(["small"], runs, endless)
        except KeyboardInterrupt:
            assert len(told) < 100
            parts.append(survival.summarise("small", runs))
            whole = parts[-1] is not None  # where it was broken off after the last run
    assert parts[0] is None, "a table is of a net that is whole"
    lines = runs.read_text().splitlines()
    assert len(lines) == len({json.loads(line)["key"] for line in lines}), "no run is made twice"
    survival.write(runs, result)
    found = json.loads(result.read_text())
    net = found["nets"]["small"]
    assert list(net["rows"]) == ["base", "average", "high rate", "sam", "sam, tail", "random", "weight noise"]
    assert net["chosen"]["random"]["strength"] == net["chosen"]["sam"]["strength"]
    for row in net["rows"].values():
        assert row["ge"]["mean"] == pytest.approx(160, abs=32)
    text = pages.survival_table(found)
    assert "Complete nets: 1 of 1 (small)." in text
    of_base = next(line for line in text.splitlines() if line.startswith("| base |")).split("|")
    assert float(of_base[2]) == pytest.approx(net["rows"]["base"]["clean/acc"]["mean"], abs=0.05)


@pytest.mark.slow
def test_the_table_of_wrong_labels_goes_on_where_it_was(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    noise, pages = bench("sam_noise"), bench("readme_survival")
    for name, value in {"EPOCHS": 1, "REPORT_SEEDS": (10, 11), "LRS": (0.05,), "RHOS": (0.1,)}.items():
        monkeypatch.setattr(noise, name, value)
    small = replace(noise.TASKS["digits"], methods=(noise.LONGER, "sam, m = 8"), choice_seeds=(0,))
    monkeypatch.setattr(noise, "TASKS", {"digits": small})
    monkeypatch.setattr(
        noise, "run", lambda job, run=noise.run: run(replace(job, epochs=1)) | {"key": job.key}
    )
    kept = Kept(tmp_path / "runs.jsonl")
    with pytest.raises(noise.OutOfTime):
        noise.table(noise.Runs(kept, time.monotonic() - 1), "digits")
    found = noise.table(noise.Runs(kept, math.inf), "digits")
    assert found == noise.table(noise.Runs(Kept(tmp_path / "runs.jsonl"), 0.0), "digits"), "all of it is kept"
    assert list(found["rows"]) == ["sgd", "sgd, 120 epochs", "sam, m = 8"]
    machine = {"torch": "2"}
    text = pages.sam_noise_table(
        {
            "tasks": {"digits": found},
            "missing": [],
            "seeds": [10, 11],
            "published": "nothing",
            "machine": machine,
        }
    )
    assert f"| {found['rows']['sam, m = 8']['last']:.1f} |" in text
