"""The pilot in Lightning's trainer is that of the plain loop."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiers import slow
from torch import nn
from wandb_reader import inspect

pytest.importorskip("lightning")

import lightning as L
from integrations.lightning_runs import (
    BATCH,
    Bare,
    Net,
    apart,
    half,
    loader,
    loss_of,
    net,
    optimizer,
    trainer,
)
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from torch.optim.lr_scheduler import ExponentialLR

from optland.integrations.lightning import PilotCallback
from optland.integrations.trainer_host import TrainerHost
from optland.log.logger import LoggerGroup
from optland.pilot import Pilot, Policy, Proposal
from optland.pilot.contract import check_host

STEPS = 40
BUDGET = 1.0  # so that the probes run often in a short run


class Rows(LoggerGroup):
    def __init__(self) -> None:
        super().__init__([])
        self.rows: list[dict[str, Any]] = []

    def log(self, row: Any) -> None:
        self.rows.append({name: value for name, value in row.items() if not name.endswith("_ms")})


class Dropping(Net):
    """Has buffers, draws random numbers, and counts its batches."""

    def __init__(self, method: str = "sam") -> None:
        super().__init__(method, net(nn.BatchNorm1d(8), nn.Dropout(0.2)))


def plain(
    method: str, model: nn.Module, *, accumulation: int, log: Any, num_steps: int = STEPS, **options: Any
) -> Pilot:
    made = optimizer(method, model.parameters(), model=model)
    schedule = ExponentialLR(made, 1.0)
    pilot = Pilot(made, model, loss_of, total_steps=num_steps, dataset_size=40 * BATCH, log=log, **options)
    batches = list(loader())
    for step in range(num_steps):
        micro = [batches[(step * accumulation + i) % len(batches)] for i in range(accumulation)]
        made.zero_grad()
        losses = []
        for number in made.passes():
            for batch in micro:
                loss = loss_of(model, batch)
                if number == 0:
                    losses.append(loss.detach())
                (loss / accumulation).backward()
        made.restore()
        made.step()
        pilot.after_step(micro if accumulation > 1 else micro[0], torch.stack(losses).mean())
        schedule.step()
    pilot.close()
    return pilot


@pytest.mark.cell("Lightning", "pilot control")
@pytest.mark.parametrize(
    ("method", "accumulation"), [("sam", 1), ("looksam", 4), *slow(("sam", 4), ("asam", 1), ("msam", 4))]
)
def test_decisions_weights_and_rows_are_those_of_the_plain_loop(method: str, accumulation: int) -> None:
    theirs, ours = Rows(), Rows()
    callback = PilotCallback(policies=["auto_lr"], log=theirs, budget=BUDGET)
    module, other = Net(method), net()
    trainer(STEPS, accumulate_grad_batches=accumulation, callbacks=[callback]).fit(module, loader())
    pilot = plain(method, other, accumulation=accumulation, log=ours, policies=["auto_lr"], budget=BUDGET)
    assert callback.pilot is not None
    assert list(callback.pilot.decisions) == list(pilot.decisions)
    assert len(theirs.rows) == len(ours.rows) > 3
    for row, expected in zip(theirs.rows, ours.rows, strict=True):
        if method == "msam":  # that of the last micro-batch in Lightning, of all of them in the plain loop
            assert row.pop("update/grad_norm") > 0.0 < expected.pop("update/grad_norm")
        inside = {k.replace(" net_", " "): v for k, v in row.items()}  # the net is a part of the module
        assert inside == pytest.approx(expected, rel=1e-9, nan_ok=True)
    assert apart(module.net, other) < 1e-10
    free = Net(method)
    trainer(STEPS, accumulate_grad_batches=accumulation).fit(free, loader())
    assert apart(module.net, free.net) > 1e-3  # it has turned the rate


@pytest.mark.cell("Lightning", "pilot monitor")
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("kind", [Dropping, Bare])
def test_monitoring_changes_no_bit(kind: Any, accumulation: int) -> None:
    if kind is Bare and accumulation > 1:
        kind = PlainAdam

    def run(**options: Any) -> tuple[Any, Any]:
        torch.manual_seed(7)
        module = kind()
        made = trainer(STEPS, accumulate_grad_batches=accumulation, **options)
        made.fit(module, loader())
        assert made.callback_metrics.keys() == {"train/loss"}
        return module, made

    rows = Rows()
    callback = PilotCallback(policies=["auto_lr"], mode="monitor", log=rows, budget=BUDGET)
    watched, _ = run(callbacks=[callback])
    free, _ = run()
    assert any("edge/ratio" in row or "noise/b_simple" in row for row in rows.rows)
    for p, q in zip(watched.state_dict().values(), free.state_dict().values(), strict=True):
        assert torch.equal(p, q)
    assert callback.pilot is not None
    assert callback.pilot.step == STEPS


class PlainAdam(Bare):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


@pytest.mark.cell("Lightning", "pilot control", "refused")
def test_a_policy_that_turns_the_batch_is_refused_at_the_start() -> None:
    module = Net()
    with pytest.raises(
        TypeError, match=r"noise_batch turns batch_size.*: in a trainer it belongs to the loader"
    ):
        trainer(callbacks=[PilotCallback(policies=["noise_batch"])]).fit(module, loader())
    assert module.calls == 0
    callback = PilotCallback(policies=["noise_batch"], mode="shadow", budget=BUDGET)
    trainer(callbacks=[callback]).fit(module, loader())
    assert module.calls > 0


class ByHand(Bare):
    """Manual optimization; returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        opt: Any = self.optimizers()

        def closure() -> Any:
            opt.zero_grad()
            loss = loss_of(self, batch)
            self.manual_backward(loss)
            return loss

        return opt.step(closure)


@pytest.mark.cell("Lightning manual", "pilot control")
def test_manual_optimization_needs_a_loss_for_the_probes() -> None:
    with pytest.raises(TypeError, match=r"PilotCallback\(loss_fn=\.\.\.\)"):
        trainer(callbacks=[PilotCallback()]).fit(ByHand(), loader())
    callback = PilotCallback(loss_fn=loss_of, budget=BUDGET)
    module, other = ByHand(), net()
    trainer(STEPS, callbacks=[callback]).fit(module, loader())
    pilot = plain("sam", other, accumulation=1, log=None, policies=["auto_lr"], budget=BUDGET)
    assert callback.pilot is not None
    assert list(callback.pilot.decisions) == list(pilot.decisions)
    assert apart(module.net, other) < 1e-10


@pytest.mark.cell("Lightning manual", "pilot monitor")
def test_monitoring_of_manual_optimization_changes_no_bit() -> None:
    watched, free = ByHand(), ByHand()
    callback = PilotCallback(loss_fn=loss_of, mode="monitor", budget=BUDGET)
    trainer(STEPS, callbacks=[callback]).fit(watched, loader())
    trainer(STEPS).fit(free, loader())
    assert apart(watched.net, free.net) == 0.0
    assert callback.pilot is not None
    assert callback.pilot.step == STEPS
    assert callback.pilot.budget.probe_ge > 0


def test_a_second_fit_goes_on_with_the_pilot() -> None:
    callback = PilotCallback(policies=["auto_lr"], budget=BUDGET, total_steps=20)
    module = Net()
    made = trainer(-1, max_epochs=1, callbacks=[callback])
    with pytest.warns(RuntimeWarning, match="ended after 50%"):
        made.fit(module, loader(10))
    made.fit_loop.max_epochs = 2
    made.fit(module, loader(10))
    assert callback.pilot is not None
    assert callback.pilot.step == 20


@pytest.mark.cell("Lightning", "resume")
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_piloted_run_resumes_bit_for_bit(accumulation: int, tmp_path: Path) -> None:
    def run(num_epochs: int, **options: Any) -> tuple[Any, L.Trainer, Any]:
        torch.manual_seed(2)
        module = Net(gamma=0.99)
        callback = PilotCallback(policies=["auto_lr"], budget=BUDGET, total_steps=4 * -(-10 // accumulation))
        made = trainer(-1, max_epochs=num_epochs, accumulate_grad_batches=accumulation, callbacks=[callback])
        made.fit(module, loader(10), **options)
        return module, made, callback.pilot

    whole, _, unbroken = run(4)
    with pytest.warns(RuntimeWarning, match="ended after 50%"):
        _, first, _ = run(2)
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _, pilot = run(4, ckpt_path=tmp_path / "half.ckpt")
    assert apart(whole.net, resumed.net) == 0.0
    assert list(pilot.decisions) == list(unbroken.decisions)
    assert pilot.step == unbroken.step == 4 * -(-10 // accumulation)


@pytest.mark.cell("Lightning", "pilot control")
@pytest.mark.cell("Lightning", "fp16 scaler")
def test_with_a_scaler_left_out_steps_are_no_updates() -> None:
    callback = PilotCallback(policies=["auto_lr"], budget=BUDGET, total_steps=60)
    module = Net(model=net().float())
    with pytest.warns(RuntimeWarning, match="not finite"):
        trainer(60, plugins=[half(init_scale=2.0**22)], accumulate_grad_batches=2, callbacks=[callback]).fit(
            module, loader(dtype=torch.float32)
        )
    pilot = callback.pilot
    assert pilot is not None
    assert pilot.step + pilot.lost == 60
    assert 0 < pilot.lost < 60 / 2
    assert apart(module.net, net().float()) > 1e-2


def test_a_batch_that_is_not_finite_is_taken_away() -> None:
    broken: list[Any] = [[x.clone(), y] for x, y in loader()]
    broken[9][0][0, 0] = float("nan")
    callback = PilotCallback(policies=["auto_lr"], budget=BUDGET, total_steps=10)
    module = Dropping()
    data = torch.utils.data.DataLoader(broken, batch_size=None)
    with pytest.warns(RuntimeWarning, match="not finite"):
        trainer(10, accumulate_grad_batches=4, callbacks=[callback]).fit(module, data)
    assert callback.pilot is not None
    assert callback.pilot.lost == 1
    assert all(x.isfinite().all() for x in module.state_dict().values())


def test_the_trainers_loggers_get_the_rows(tmp_path: Path) -> None:
    callback = PilotCallback(policies=["auto_lr"], budget=BUDGET)
    module = Net()
    made = trainer(
        STEPS, logger=CSVLogger(tmp_path, name="", version=""), log_every_n_steps=10, callbacks=[callback]
    )
    made.fit(module, loader())
    with (tmp_path / "metrics.csv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    ours = [row for row in found if row["optland/step"]]
    assert [row for row in found if row["train/loss"]], "Lightning's own rows are gone"
    assert float(ours[-1]["optland/step"]) == STEPS
    assert all(float(row["step"]) == float(row["optland/step"]) for row in ours)
    applied = [float(row["optland/lr/applied"]) for row in ours if row["optland/lr/applied"]]
    assert len(set(applied)) > 3  # auto_lr's, which follows no schedule here


class Broken(CSVLogger):
    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        if any(name.startswith("optland/") for name in metrics):
            raise OSError("the disk is full")
        super().log_metrics(metrics, step)


def test_a_logger_that_fails_costs_a_warning(tmp_path: Path) -> None:
    callback = PilotCallback(policies=["auto_lr"], budget=BUDGET)
    made = trainer(STEPS, logger=Broken(tmp_path), callbacks=[callback])
    with pytest.warns(RuntimeWarning, match="the disk is full"):
        made.fit(Net(), loader())
    assert made.global_step == STEPS


class Ending(Policy):
    """Ends the run."""

    name = "ending"
    turns = frozenset({"stop"})

    def decide(self, history: Any) -> list[Proposal]:
        return [Proposal("stop", 1.0, "enough")] if history.step == 6 else []


def test_a_policy_may_stop_the_trainer() -> None:
    made = trainer(STEPS, callbacks=[PilotCallback(policies=[Ending()], budget=BUDGET)])
    with pytest.warns(RuntimeWarning, match="ended after 15%"):
        made.fit(Net(), loader())
    assert made.global_step == 6


def test_the_host_keeps_the_contract() -> None:
    check_host(TrainerHost)


@pytest.mark.cell("Lightning", "own wandb run")
def test_rows_go_into_the_users_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, project="lightning")
    callback = PilotCallback(policies=["auto_lr"], budget=BUDGET)
    made = trainer(STEPS, logger=logger, log_every_n_steps=5, callbacks=[callback])
    made.fit(Net(), loader())
    folder = Path(logger.experiment.settings.sync_dir)
    wandb.finish()
    records = [json.loads(line) for line in inspect(folder).splitlines()]
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    ours = [row for row in rows if "optland/step" in row]
    assert len([row for row in rows if "train/loss" in row]) == STEPS / 5
    assert ours[-1]["optland/step"] == STEPS
    assert len({row["optland/lr/applied"] for row in ours if "optland/lr/applied" in row}) > 1
