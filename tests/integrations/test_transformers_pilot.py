"""The pilot as a callback of ``SAMTrainer``: monitor changes nothing, control is the pilot of a plain loop."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from integrations import hf
from integrations.plain import assert_weights, weights
from integrations.processes import run_two
from torch import nn
from transformers import Trainer, TrainerCallback

from optland import SAM, Pilot
from optland.integrations.transformers import PilotCallback

PILOT = {"policies": ["auto_lr"], "seed": 1, "budget": 0.3}


def run(folder: Path, net: nn.Module, *callbacks: TrainerCallback, resume: str | None = None, **given):
    trainer = hf.trainer(
        folder, net, callbacks=list(callbacks),
        **{"rho": 0.1, "gradient_accumulation_steps": 2, "num_train_epochs": 3, "max_grad_norm": 1.0, **given},
    )  # fmt: skip
    trainer.train(resume)
    return trainer


@pytest.mark.cell("HF Trainer", "pilot monitor")
@pytest.mark.parametrize("method", ["sam", None])
def test_monitor_changes_nothing(tmp_path: Path, method: str | None) -> None:
    ends = []
    for callbacks in ([], [PilotCallback(mode="monitor", **PILOT)]):
        net = hf.Net(dropout=0.2)
        trainer = run(tmp_path, net, *callbacks, method=method, **({"rho": None} if method is None else {}))
        ends.append((net, [r["loss"] for r in trainer.state.log_history if "loss" in r]))
    assert_weights(ends[1][0], weights(ends[0][0]), atol=0)
    assert ends[1][1] == ends[0][1]
    keys = {k for row in trainer.state.log_history for k in row}
    assert {"optland/step", "optland/train/loss", "optland/edge/ratio"} <= keys


@pytest.mark.cell("HF Trainer", "pilot control")
@pytest.mark.parametrize("kind", [hf.Net, hf.MeanNet])
def test_control_is_the_pilot_of_the_plain_loop(tmp_path: Path, kind: type[hf.Net]) -> None:
    net, expected = kind(), kind()
    callback = PilotCallback(**PILOT)
    trainer = run(tmp_path, net, callback, logging_steps=5, lr_scheduler_type="constant")
    samples = hf.data()
    chunks = [samples[i : i + 8] for i in range(0, len(samples), 8)] * 3
    base = torch.optim.AdamW(hf.groups(expected), lr=1e-2)
    optimizer = SAM(base, rho=0.1, model=expected)

    def loss_fn(model, batch):
        mean = model(**batch)["loss"]
        count = (batch["labels"] != -100).sum()
        return (mean * count, count) if kind is hf.Net else mean

    # So that facts are the same: a schedule without an end has a scheduler as the trainer's does.
    torch.optim.lr_scheduler.LambdaLR(base, lambda k: 1.0)
    pilot = Pilot(optimizer, expected, loss_fn, total_steps=33, dataset_size=len(samples), **PILOT)
    expected.train()
    for chunk in chunks:
        parts = [hf.stacked(chunk[i : i + 4]) for i in range(0, len(chunk), 4)]
        items = sum((p["labels"] != -100).sum() for p in parts)
        total = 0.0
        for k in optimizer.passes():
            for part in parts:
                if kind is hf.Net:
                    loss = expected(**part, num_items_in_batch=items)["loss"]
                else:
                    loss = expected(**part)["loss"] / 2
                loss.backward()
                total = total + loss.detach() if k == 0 else total
        optimizer.restore()
        nn.utils.clip_grad_norm_(expected.parameters(), 1.0)
        optimizer.step()
        pilot.after_step(parts, total)
        optimizer.zero_grad()
    pilot.close()
    assert callback.pilot.step == pilot.step == trainer.state.global_step == 33
    assert_weights(net, weights(expected), atol=1e-9)
    made = [(d.step, d.actuator, d.taken) for d in callback.pilot.decisions]
    assert made == [(d.step, d.actuator, d.taken) for d in pilot.decisions]
    assert (
        any(actuator == "step_length" or taken for _, actuator, taken in made) or pilot.host.applied != 1e-2
    )


def test_rows_are_those_of_their_updates_and_the_trainers_own_stay(tmp_path: Path) -> None:
    net = hf.Net()
    trainer = run(tmp_path, net, PilotCallback(mode="monitor"), logging_steps=3)
    rows = trainer.state.log_history
    ours = [r for r in rows if "optland/step" in r]
    assert all(r["optland/step"] == r["step"] for r in ours)
    assert [r["step"] for r in rows if "loss" in r] == [1, *range(3, 34, 3)]
    assert {r["step"] for r in ours} >= set(range(3, 34, 3))


@pytest.mark.cell("HF Trainer", "pilot control")
@pytest.mark.cell("HF Trainer", "resume")
def test_a_piloted_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    straight, resumed = hf.Net(dropout=0.2), hf.Net(dropout=0.2)
    first, second = PilotCallback(**PILOT), PilotCallback(**PILOT)
    run(tmp_path, straight, first, save_strategy="steps", save_steps=13)
    checkpoint = tmp_path / "checkpoint-13"
    run(tmp_path / "b", resumed, second, resume=str(checkpoint))
    assert_weights(resumed, weights(straight), atol=0)
    assert [d.to_dict() for d in second.pilot.decisions] == [d.to_dict() for d in first.pilot.decisions]


def test_a_checkpoint_without_a_pilot_is_told(tmp_path: Path) -> None:
    run(tmp_path, hf.Net(), save_strategy="steps", save_steps=13)
    with pytest.warns(RuntimeWarning, match=r"pilot_0\.pt is not there, so the pilot begins anew"):
        run(tmp_path / "b", hf.Net(), PilotCallback(mode="monitor"), resume=str(tmp_path / "checkpoint-13"))


@pytest.mark.cell("HF Trainer", "pilot control", "refused")
def test_what_a_trainer_has_fixed_is_refused_before_the_first_batch(tmp_path: Path) -> None:
    model = hf.Net()
    before = weights(model)
    with pytest.raises(
        TypeError, match=r"noise_batch turns batch_size.*: in a trainer it belongs to the loader"
    ):
        run(tmp_path, model, PilotCallback(policies=["noise_batch"]))
    assert_weights(model, before, atol=0)
    PilotCallback(policies=["noise_batch"], mode="shadow")
    with pytest.raises(ValueError, match="total_steps= comes from the trainer"):
        PilotCallback(total_steps=10)
    with pytest.raises(ValueError, match="auto_lrr"):
        PilotCallback(policies=["auto_lrr"])


def test_the_advice_of_a_policy_that_cannot_act_is_logged(tmp_path: Path) -> None:
    run(tmp_path, hf.Net(), PilotCallback(policies=["noise_batch"], mode="shadow"))


@pytest.mark.cell("HF Trainer", "pilot control", "refused")
def test_a_trainer_without_the_mixin_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="use SAMTrainer"):
        hf.trainer(tmp_path, hf.Net(), callbacks=[PilotCallback()], cls=Trainer).train()


class Ignoring(hf.Net):
    """Takes the number of items and makes nothing of it, as classifiers of transformers do."""

    def forward(self, x, labels, **kwargs):
        return super().forward(x, labels)


def test_a_model_that_ignores_the_items_has_a_pilot(tmp_path: Path) -> None:
    """The trainer then adds up the means of an update's micro-batches; the pilot has their mean."""
    callback = PilotCallback(mode="monitor")
    trainer = run(tmp_path, Ignoring(), callback)
    rows = trainer.state.log_history
    theirs = {r["step"]: r["loss"] for r in rows if "loss" in r}
    ours = {r["step"]: r["optland/train/loss"] for r in rows if "optland/train/loss" in r}
    assert len(ours) == 33
    for step, loss in ours.items():
        assert loss == pytest.approx(theirs[step] / 2, rel=1e-6)


def test_training_twice_has_a_pilot_each_time(tmp_path: Path) -> None:
    callback = PilotCallback(mode="monitor")
    trainer = hf.trainer(tmp_path, hf.Net(), callbacks=[callback], rho=0.1)
    trainer.train()
    first = callback.pilot
    trainer.train()
    assert callback.pilot is not first
    assert callback.pilot.step == first.step == 22


def test_a_policy_may_end_the_run(tmp_path: Path) -> None:
    from optland.pilot import Policy, Proposal

    class Enough(Policy):
        name = "enough"
        reads = frozenset()
        turns = frozenset({"stop"})

        def decide(self, history):
            return [Proposal("stop", 1.0, "seen enough", {})] if history.step == 5 else []

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # it ends before its length
        trainer = run(tmp_path, hf.Net(), PilotCallback(policies=[Enough()]))
    assert trainer.state.global_step == 5


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.cell("HF Trainer", "2 processes")
def test_two_processes_have_one_pilot(tmp_path: Path) -> None:
    run_two(Path(__file__).with_name("transformers_pilot_ranks.py"), tmp_path)
