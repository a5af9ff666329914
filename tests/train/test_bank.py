"""The bank: a run is what its key says, costs its budget, and is neither lost nor trained twice."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optland.config import load
from optland.optim import SAM
from optland.train import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TextConfig,
    TransformerConfig,
    seed_everything,
)
from optland.train.experiments.bank import Bank, score
from optland.train.experiments.bank_run import BankRun, load_splits
from optland.train.experiments.bank_training import train_run
from optland.train.experiments.kept import Kept

TEACHER = DataConfig("teacher", num_samples=100)  # 70 to train on
NET = ModelConfig("mlp", width=8, depth=1)
SMALL = BankRun(budget=200, batch_size=32, data=TEACHER, net=NET)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# What a run is --------------------------------------------------------------------------------------


CHANGES = {
    "budget": 201, "seed": 1, "batch_size": 16, "schedule": "linear", "data": DataConfig("teacher", num_samples=110),
    "net": ModelConfig("mlp", width=9, depth=1), "text": TextConfig(context=16), "halved": True, "turned": True,
    "optimizer": OptimizerConfig("sgd", lr=0.2), "strength": 0.1, "passes": 1.5, "clip": 1.0, "averages": (0.9,),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_the_key_says_every_setting(name: str) -> None:
    assert replace(SMALL, **{name: CHANGES[name]}).key != SMALL.key


def test_the_key_depends_on_values_alone() -> None:
    again = BankRun(
        200, batch_size=32, data=DataConfig("teacher", num_samples=100), net=ModelConfig("mlp", 8, 1)
    )
    assert again.key == SMALL.key
    assert replace(SMALL, optimizer=OptimizerConfig("sgd")).key == SMALL.key


@pytest.mark.parametrize("name", CHANGES)
def test_a_line_says_enough_to_repeat_the_run(name: str, tmp_path: Path) -> None:
    given = (
        {name: CHANGES[name]}
        if name != "text"
        else {name: CHANGES[name], "transformer": TransformerConfig(depth=1)}
    )
    run = replace(SMALL, **given)
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(run.given()), encoding="utf-8")
    assert load(BankRun, file) == run


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"budget": 0}, "budget: 0 must be at least 1"),
        ({"passes": 0.5}, "passes: 0.5 per step are too few"),
        ({"clip": 0.0}, "clip: 0.0 must be above 0"),
        ({"schedule": "cosin"}, "schedule: 'cosin' is not known"),
        ({"text": TextConfig(), "halved": True}, "halved, turned: a text has no pixels"),
        ({"data": DataConfig("cifar10", augment="standard")}, "data.augment: standard is not done"),
        ({"method": "mine"}, "passes: the cost per step of method: 'mine' is not known"),
        (
            {"optimizer": OptimizerConfig("sam", options={"gate": "every(5)"})},
            "passes: the cost per step of gate",
        ),
    ],
)
def test_what_cannot_be_is_refused(given: dict, says: str) -> None:
    with pytest.raises(ValueError, match="^" + says.replace("(", r"\(")):
        replace(SMALL, **given)


# Training -------------------------------------------------------------------------------------------


TAIL = OptimizerConfig("sam", lr=0.1, rho=0.05, options={"gate": "tail(share=0.2)"})


@pytest.mark.parametrize(
    ("optimizer", "passes"),
    [
        (OptimizerConfig("sgd"), None),
        (OptimizerConfig("sam", rho=0.05), None),
        (OptimizerConfig("msam"), None),
        (TAIL, 1.2),
        (OptimizerConfig("sam", rho=0.05, options={"ascent_share": 0.25}), 1.25),
    ],
)
def test_a_run_costs_its_budget(optimizer: OptimizerConfig, passes: float | None) -> None:
    run = replace(SMALL, budget=3000, optimizer=optimizer, passes=passes)
    facts = train_run(run, load_splits(run)).facts
    assert facts["ge"] == pytest.approx(3000, abs=2 * 32)
    assert facts["steps"] == run.steps(70)


def test_a_wrong_cost_is_refused() -> None:
    run = replace(SMALL, budget=3000, optimizer=TAIL, passes=2.0)
    with pytest.raises(
        ValueError, match=r"passes: .* was to cost 2 gradient evaluations .* and took 1\.[12]"
    ):
        train_run(run, load_splits(run))


def test_training_is_the_loop_written_out() -> None:
    run = replace(
        SMALL, seed=3, optimizer=OptimizerConfig("sam", lr=0.2, rho=0.1, weight_decay=1e-3), averages=(0.5,)
    )
    splits = load_splits(run)
    trained = train_run(run, splits)

    seed_everything(3)
    model = splits.build(run)
    base = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3)
    optimizer = SAM(base, rho=0.1, model=model)
    x, y = splits.train
    served, average, count = 0, weights(model) * 0, 0
    for epoch in range(2):
        order = torch.randperm(70, generator=torch.Generator().manual_seed((3 * 0x9E3779B1 + epoch) % 2**63))
        for part in order.split(32):
            progress = (served + 16) / 100
            base.param_groups[0]["lr"] = 0.2 * (
                progress / 0.05
                if progress < 0.05
                else 0.5 * (1 + math.cos(math.pi * min((progress - 0.05) / 0.95, 1)))
            )

            def closure(part: torch.Tensor = part) -> torch.Tensor:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x[part]), y[part])
                loss.backward()
                return loss

            optimizer.step(closure)
            served += len(part)
            decay = min(0.5, (1 + count) / (10 + count))
            average = weights(model) if count == 0 else decay * average + (1 - decay) * weights(model)
            count += 1
            if served >= 100:
                break
    assert torch.equal(weights(trained.model), weights(model))
    torch.testing.assert_close(weights(trained.averages[0.5]), average)
    assert trained.facts["norm"] == pytest.approx(float(weights(model).norm()), rel=1e-5)
    assert len(trained.facts["curve"]) == trained.facts["steps"] == count


def test_text_is_trained_too() -> None:
    run = BankRun(
        budget=64, batch_size=8, text=TextConfig(tokens="bytes", context=16, max_bytes=50_000),
        transformer=TransformerConfig(depth=1, width=16, heads=2), optimizer=OptimizerConfig("adamw", lr=1e-3),
        clip=1.0,
    )  # fmt: skip
    splits = load_splits(run)
    trained = train_run(run, splits)
    assert trained.facts["steps"] == 8
    found = score("val", 10)(trained.model, splits)
    x, y = splits.val[0][:10], splits.val[1][:10]
    with torch.no_grad():
        logits = trained.model(x)
    assert found["loss"] == pytest.approx(float(F.cross_entropy(logits.transpose(1, 2), y)), rel=1e-5)
    assert found["acc"] == pytest.approx(100 * float((logits.argmax(2) == y).double().mean()))


def test_images_can_be_halved_and_turned() -> None:
    plain, other = (load_splits(replace(SMALL, **given)) for given in ({}, {"halved": True, "turned": True}))
    x = plain.test[0][0, 0]
    corner = x[0:2, 6:8].mean()  # turned to the left, the upper right corner comes to the upper left
    assert other.test[0].shape[1:] == (1, 4, 4)
    assert float(other.test[0][0, 0, 0, 0]) == pytest.approx(float(corner), rel=1e-5)


# Keeping --------------------------------------------------------------------------------------------


def test_measures_do_not_disturb_each_other(tmp_path: Path) -> None:
    def wreck(model: nn.Module, splits: object) -> dict[str, float]:
        model.train()
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(float(torch.rand(())))
        return {"norm": float(weights(model).norm())}

    measures = {"a": score("test"), "wreck": wreck, "b": score("test"), "again": wreck}
    run = replace(SMALL, averages=(0.9,))
    bank = Bank(tmp_path / "bank.jsonl", measures, start={"first": score("test")})
    assert bank.make([run])
    line = bank.of(run)
    assert line["end"]["a"] == line["end"]["b"] != line["start"]["first"]
    assert line["end"]["wreck"] == line["end"]["again"], "the random state is given again to each"
    assert line["averages"]["0.9"]["a"] == line["averages"]["0.9"]["b"] != line["end"]["a"]
    splits = load_splits(run)
    assert line["end"]["a"] == pytest.approx(
        score("test")(train_run(run, splits).model.eval(), splits), rel=1e-6
    )


def test_what_is_there_is_not_trained_again(tmp_path: Path) -> None:
    seen = []
    file = tmp_path / "bank.jsonl"
    runs = [replace(SMALL, seed=seed) for seed in (0, 1, 2)]
    bank = Bank(file, {"val": score("val")}, watch=seen.append)
    assert not bank.make(runs, minutes=0)
    assert seen == []
    assert bank.make([runs[0], runs[1], runs[0]])
    assert len(seen) == 2
    torn = file.read_text()[:-40]  # as a kill in the middle of the last line would leave it
    file.write_text(torn)
    with pytest.warns(RuntimeWarning, match="a torn line is dropped"):
        bank = Bank(file, {"val": score("val")}, watch=seen.append)
    assert bank.missing(runs) == runs[1:]
    with pytest.raises(KeyError, match=r"no finished run of: teacher mlp, sgd, lr 0\.1, seed 2"):
        bank.of(runs[2])
    assert bank.make(runs)
    assert [line.split(":")[0].split(", ")[3] for line in seen] == ["seed 0", "seed 1", "seed 1", "seed 2"]
    assert [json.loads(line)["key"] for line in file.read_text().splitlines()] == [run.key for run in runs]
    more = Bank(file, {"val": score("val"), "test": score("test")})
    assert more.missing(runs) == runs, "a measure that a line lacks is one more run"


def test_a_dead_run_is_kept_and_counted(tmp_path: Path) -> None:
    run = replace(SMALL, budget=3200, optimizer=OptimizerConfig("sgd", lr=1e30))
    bank = Bank(tmp_path / "bank.jsonl", {"val": score("val")})
    assert bank.make([run])
    line = bank.of(run)
    assert line["dead"] is True
    assert line["facts"]["train_loss"] is None
    assert line["end"] == {}
    assert "NaN" not in bank.kept.path.read_text()
    assert bank.missing([run]) == []


def test_a_method_of_ones_own(tmp_path: Path) -> None:
    def make(run: BankRun, model: nn.Module, steps: int) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=run.optimizer.lr, momentum=run.strength)

    mine = replace(SMALL, method="heavy", strength=0.9, passes=1.0)
    bank = Bank(tmp_path / "bank.jsonl", {"test": score("test")}, methods={"heavy": make})
    assert bank.make([mine, SMALL])
    assert bank.of(mine)["end"] == bank.of(SMALL)["end"]
    with pytest.raises(
        ValueError, match=r"method: 'light' is not in the table of methods, which has \['heavy'\]"
    ):
        bank.make([replace(mine, method="light")])


PROCESS = """
import sys
from pathlib import Path
from optland.train import DataConfig, ModelConfig
from optland.train.experiments.bank import Bank, score
from optland.train.experiments.bank_run import BankRun

mine, other, seeds = sys.argv[1], sys.argv[2], [int(s) for s in sys.argv[3:]]
data, net = DataConfig("teacher", num_samples=100), ModelConfig("mlp", width=8, depth=1)
bank = Bank(mine, {"val": score("val")}, also=[other])
assert bank.make([BankRun(200, s, 32, data=data, net=net) for s in seeds])
"""


@pytest.mark.slow
def test_two_processes_write_to_files_of_their_own(tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    orders = [[str(s) for s in range(6)], [str(s) for s in reversed(range(6))]]
    running = [
        subprocess.Popen([sys.executable, "-c", PROCESS, *pair, *order])
        for pair, order in zip((files, files[::-1]), orders, strict=True)
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    runs = [replace(SMALL, seed=seed) for seed in range(6)]
    here, there = (Kept(Path(file)).done for file in files)
    assert {run.key for run in runs} == here.keys() | there.keys()
    for key in here.keys() & there.keys():  # begun by both at once
        assert here[key]["end"] == there[key]["end"]
    reader = Bank(tmp_path / "c.jsonl", {"val": score("val")}, also=files)
    assert reader.missing(runs) == []
