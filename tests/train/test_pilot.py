"""The pilot: looking changes nothing, control does what the formulas say, and a resume is exact."""

from __future__ import annotations

import copy
import io
import itertools
import math
from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch
from scripted import WRECK, GrowsOnce
from tiers import slow
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from optland.context import load_rng_state, rng_state
from optland.control import AutoLR, NoiseBatch, SafeLR, Signal
from optland.optim import SAM
from optland.train import BatchLoader, DataConfig, Pilot, evaluate, load_data
from optland.train.models import ModelConfig, build_model
from optland.train.probes import Reading

LOADS_OF_PROBES = 5.0  # a budget of 500 %: every probe runs as often as its spacing allows


def images(n: int = 256) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 1, 8, 8, generator=generator)
    teacher = torch.randn(64, 4, generator=generator)
    return x, (x.flatten(1) @ teacher).argmax(1)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


class Recorder:
    """A logger that keeps what it gets."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []

    def log(self, row: Any) -> None:
        self.rows.append(dict(row))

    def event(self, event: Any) -> None:
        self.events.append(dict(event))

    def image(self, name: str, path: Any) -> None: ...

    def table(self, name: str, columns: Any, rows: Any) -> None: ...

    def finish(self, summary: Any, exit_code: int = 0) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


class Run:
    """A small training run with everything in reach."""

    def __init__(
        self,
        model: str = "mlp",
        *,
        base: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
        rho: float | None = None,
        epochs: int = 5,
        batch: int = 32,
        dropout: float = 0.0,
        seed: int = 0,
        options: dict[str, Any] | None = None,
        schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
        wrecks: Collection[int] = (),
        **pilot: Any,
    ) -> None:
        torch.manual_seed(seed)
        x, y = images()
        self.model = build_model(
            ModelConfig(name=model, width=4 if model == "resnet8" else 8, dropout=dropout), (1, 8, 8), 4
        )
        options = {"lr": 0.05, **({"momentum": 0.9} if base is torch.optim.SGD else {}), **(options or {})}
        self.optimizer: torch.optim.Optimizer = base(self.model.parameters(), **options)
        if rho is not None:
            self.optimizer = SAM(self.optimizer, rho=rho, model=self.model)
        self.loader = BatchLoader([x, y], batch, epochs=epochs, seed=seed)
        self.scheduler = schedule(self.optimizer) if schedule else None
        self.log = Recorder()
        arguments = {
            "total_samples": self.loader.total_samples,
            "log": self.log,
            "seed": seed,
            "log_every": 1,
        }
        self.pilot = Pilot(self.optimizer, self.model, cross_entropy, **(arguments | pilot))
        self.wrecks = wrecks  # steps whose loss is told to the pilot as one that calls for a rewind
        self.losses: list[float] = []
        self.rates: list[float] = []

    def train(self, steps: int | None = None) -> Run:
        for batch in self.pilot.batches(self.loader):

            def closure(batch: Any = batch) -> Tensor:
                self.optimizer.zero_grad()
                loss = cross_entropy(self.model, batch)
                loss.backward()
                return loss

            loss = self.optimizer.step(closure)
            if self.scheduler is not None:
                self.scheduler.step()
            self.pilot.after_step(batch, WRECK if self.pilot.step + 1 in self.wrecks else loss)
            self.losses.append(float(loss.detach()))
            self.rates.append(self.optimizer.param_groups[0]["lr"])
            if steps is not None and self.pilot.step >= steps:
                break
        return self

    def bits(self) -> dict[str, Any]:
        """Everything that looking may not change."""
        return {
            "model": copy.deepcopy(self.model.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "grad": [None if p.grad is None else p.grad.clone() for p in self.model.parameters()],
            "modes": [m.training for m in self.model.modules()],
            "rng": rng_state(),
            "losses": list(self.losses),
            "loader": self.loader.state_dict(),
        }


def assert_same_bits(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same_bits(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_bits(x, y, f"{where}[{k}]")
    else:
        assert a == b or (a != a and b != b), where


# ---------------------------------------------------------------- looking changes nothing


@pytest.mark.parametrize(("rho", "steps"), [(0.05, 40), *slow((0.05, 200), (None, 200))])
def test_monitor_mode_is_bit_identical_to_no_pilot(rho: float | None, steps: int) -> None:
    """A net with BatchNorm and dropout, probes at every opportunity, SGD and SAM."""
    common: dict[str, Any] = {"model": "resnet8", "dropout": 0.3, "rho": rho, "epochs": 25, "batch": 32}
    off = Run(**common, mode="off").train(steps)
    looking = Run(**common, mode="monitor", budget=LOADS_OF_PROBES).train(steps)
    assert off.pilot.step == steps
    assert_same_bits(off.bits(), looking.bits())
    counts = looking.pilot.probes.count
    assert counts["edge"] >= 0.15 * steps
    assert counts["noise"] >= 0.075 * steps
    assert counts["curvature"] >= 0.025 * steps


def test_shadow_mode_decides_and_changes_nothing() -> None:
    policies = [AutoLR(), GrowsOnce(20)]
    off = Run(mode="off", batch=8).train()
    shadow = Run(mode="shadow", batch=8, policies=policies, budget=LOADS_OF_PROBES, wrecks=[50]).train()
    assert_same_bits(off.bits(), shadow.bits())
    would = {event["actuator"] for event in shadow.log.events}
    assert would >= {"batch_size", "rewind"}, "shadow mode logs what it would have done"
    assert not any(event["taken"] for event in shadow.log.events)
    assert any("ctl/lr_would_be" in row for row in shadow.log.rows)


# ---------------------------------------------------------------- auto_lr


@pytest.mark.parametrize(
    ("base", "options"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 5e-4}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.Adam, {}),
    ],
)
@pytest.mark.parametrize("rho", [None, 0.05])
def test_auto_lr_makes_every_step_the_scheduled_relative_length(
    base: Any, options: Any, rho: float | None
) -> None:
    """Root-sum-square of |dw_l|/|w_l| over the matrices is s_k tau, measured from outside."""
    run = Run(base=base, options=options, rho=rho, policies=[AutoLR(tau=0.03)], epochs=3)
    matrices = [p for p in run.model.parameters() if p.ndim >= 2]
    total, seen = run.loader.total_samples, 0
    for _ in range(20):
        before = [p.detach().double().clone() for p in matrices]
        run.train(run.pilot.step + 1)
        moved = math.sqrt(
            sum(
                float((p.detach().double() - w).norm() / w.norm()) ** 2
                for p, w in zip(matrices, before, strict=True)
            )
        )
        progress = (seen + 16) / total  # the middle of a batch of 32
        shape = progress / 0.05 if progress < 0.05 else (1 - progress) / 0.95
        seen += 32
        assert moved == pytest.approx(0.03 * shape, rel=1e-3)


@pytest.mark.parametrize("lr", [1e-5, 1e3])
def test_auto_lr_does_not_depend_on_the_users_rate(lr: float) -> None:
    reference = Run(policies=["auto_lr"], options={"lr": 0.1}).train()
    other = Run(policies=["auto_lr"], options={"lr": lr}).train()
    assert other.losses == pytest.approx(reference.losses, rel=1e-4)
    assert other.losses[-1] < other.losses[0] - 0.05


def test_auto_lr_keeps_the_ratio_between_groups() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    groups = [{"params": model[0].parameters(), "lr": 0.4}, {"params": model[1].parameters(), "lr": 0.1}]
    optimizer = torch.optim.SGD(groups)
    pilot = Pilot(optimizer, model, lambda m, b: m(b).pow(2).mean(), policies=["auto_lr"], total_samples=1000)
    x = torch.randn(8, 4)
    before = [p.detach().clone() for p in model.parameters()]
    loss = model(x).pow(2).mean()
    loss.backward()
    optimizer.step()
    pilot.after_step(x, loss)
    rates = [
        float(((w - p.detach()) * p.grad).sum() / p.grad.square().sum())
        for p, w in zip(model.parameters(), before, strict=True)
        if p.grad is not None
    ]
    assert rates[0] / rates[1] == pytest.approx(4.0, rel=1e-2)


@pytest.mark.parametrize("policy", ["auto_lr", "safe_lr"])
def test_the_users_scheduler_never_sees_the_pilots_rate(policy: str) -> None:
    def cosine(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)

    alone = Run(mode="off", schedule=cosine).train()
    steered = Run(policies=[policy], schedule=cosine, budget=LOADS_OF_PROBES).train()
    assert steered.rates == alone.rates
    assert any(row["lr/applied"] != row["lr/user"] for row in steered.log.rows)


def test_auto_lr_takes_the_shape_of_the_users_schedule() -> None:
    def steps(optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, 20, gamma=0.1)

    run = Run(policies=[AutoLR(tau=0.02)], schedule=steps).train()
    relative = [row["lr/applied"] for row in run.log.rows]
    before, after = relative[18:20], relative[20:22]
    assert sum(after) / sum(before) == pytest.approx(0.1, rel=0.5)


def test_trouble_is_rewound_with_half_the_pace_and_the_run_still_trains() -> None:
    """On real digits: the loss that is told twice calls for a rewind each time."""
    data = load_data(DataConfig())
    run = Run(wrecks=[60, 150])
    run.model = build_model(ModelConfig(), data.image_shape, 10)
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=1.0, momentum=0.9)
    run.loader = BatchLoader([data.train_x, data.train_y], 64, epochs=10, seed=0)
    run.pilot = Pilot(run.optimizer, run.model, cross_entropy, policies=["auto_lr"], budget=0.0, log=run.log,
                      total_samples=run.loader.total_samples)  # fmt: skip
    run.train()
    rewinds = {e["step"]: e for e in run.log.events if e["actuator"] == "rewind"}
    assert rewinds.keys() >= {60, 150}
    assert all(e["taken"] and e["new"] == e["old"] / 2 for e in rewinds.values())
    assert "go back to step" in rewinds[60]["reason"]
    assert evaluate(run.model, data.test_x, data.test_y)["acc"] > 80


def test_a_rewind_restores_weights_and_optimizer_but_not_the_schedule() -> None:
    run = Run(policies=["auto_lr"], epochs=10, budget=0.0).train(20)
    steering = run.pilot.steering
    kept = steering.snapshots.recent[-2]
    group = run.optimizer.param_groups[0]
    group["lr"] = 0.0123
    decision = None
    while decision is None:
        decision = steering.rewound(50.0, 21, interval=1000)
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, kept["model"][name])
    state = run.optimizer.state_dict()["state"]
    for index, slot in kept["optimizer"].items():
        assert torch.equal(state[index]["momentum_buffer"], slot["momentum_buffer"])
    assert group["lr"] == 0.0123


# ---------------------------------------------------------------- safe_lr


def test_safe_lr_on_a_quadratic_settles_below_the_edge() -> None:
    """User rate 1e3 on eigenvalues 0.1 to 10: the cap is half of 2 g'g / g'Hg, inside [1/10, 1/0.1]."""
    curvature = torch.logspace(-1, 1, 20, dtype=torch.float64)
    model = nn.ParameterList([nn.Parameter(torch.ones(20, dtype=torch.float64))])

    def loss_fn(m: nn.Module, batch: Tensor) -> Tensor:
        return 0.5 * (curvature * m[0] ** 2).sum()  # type: ignore[index]

    optimizer = torch.optim.SGD(model.parameters(), lr=1e3)
    pilot = Pilot(
        optimizer, model, loss_fn, policies=[SafeLR(start=1e-4)], budget=1e3, log=(log := Recorder())
    )
    losses, batch = [], torch.zeros(1)
    for _ in range(300):
        optimizer.zero_grad()
        loss = loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        pilot.after_step(batch, loss)
        losses.append(float(loss.detach()))
    caps = [row["lr/ceiling"] for row in log.rows]
    # One step may overshoot where the edge falls between two probes; the guard takes it back before the next.
    high = [loss > 3 * losses[0] for loss in losses]
    assert not any(a and b for a, b in itertools.pairwise(high))
    assert losses[-1] < 1e-2 * losses[0]
    assert 0.05 <= caps[-1] <= 10.0
    assert optimizer.param_groups[0]["lr"] == 1e3


# ---------------------------------------------------------------- a run of unknown length


def open_ended(steps: int, decay_at: int, *, resume_at: int | None = None) -> tuple[list[float], list[float]]:
    """Relative length of every step, and the last weights, on a quadratic whose end is called at a step."""

    def make() -> tuple[nn.ParameterList, torch.optim.Optimizer, Pilot]:
        model = nn.ParameterList([nn.Parameter(torch.ones(4, 4, dtype=torch.float64))])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        pilot = Pilot(
            optimizer,
            model,
            lambda m, b: (m[0] ** 2).sum(),
            policies=[AutoLR(tau=0.01)],
            budget=0.0,
            open_ended=True,
        )
        return model, optimizer, pilot

    model, optimizer, pilot = make()
    speeds, batch = [], torch.zeros(8, 1)
    for step in range(steps):
        if step == resume_at:
            saved, weights = pilot.state_dict(), [p.detach().clone() for p in model]
            base = optimizer.state_dict()
            model, optimizer, pilot = make()
            for p, w in zip(model, weights, strict=True):
                p.data.copy_(w)
            optimizer.load_state_dict(base)
            pilot.load_state_dict(saved)
        if step == decay_at:
            pilot.decay(8 * (steps - decay_at))
        before = model[0].detach().clone()
        optimizer.zero_grad()
        loss = (model[0] ** 2).sum()
        loss.backward()
        optimizer.step()
        pilot.after_step(batch, loss)
        speeds.append(float((model[0].detach() - before).norm() / before.norm()))
    return speeds, model[0].detach().flatten().tolist()


def test_without_a_horizon_the_height_is_held_until_the_end_is_called() -> None:
    speeds, weights = open_ended(200, 150)
    assert speeds[10] == pytest.approx(0.01 * 0.11, rel=0.02)  # a warm-up of 100 steps
    assert speeds[100:150] == pytest.approx([0.01] * 50, rel=1e-6)
    assert speeds[150:] == pytest.approx([0.01 * (1 - (k + 0.5) / 50) for k in range(50)], rel=1e-6)
    assert open_ended(200, 150, resume_at=170) == (speeds, weights)
    assert open_ended(200, 150, resume_at=120) == (speeds, weights)


def test_an_end_that_cannot_be_called_says_why() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def pilot(**options: Any) -> Pilot:
        return Pilot(optimizer, model, lambda m, b: m(b).sum(), open_ended=True, **options)

    with pytest.raises(ValueError, match="samples 0 must be at least 1"):
        pilot().decay(0)
    with pytest.raises(RuntimeError, match="without total_samples and without a scheduler"):
        pilot(total_samples=100).decay(10)
    with pytest.raises(RuntimeError, match="is for auto_lr"):
        pilot(policies=["edge_monitor"]).decay(10)
    ending = pilot()
    ending.decay(10)
    with pytest.raises(RuntimeError, match="the end of this run began at sample 0"):
        ending.decay(10)


# ---------------------------------------------------------------- noise_batch


def test_noise_batch_grows_the_loaders_batch_and_says_why() -> None:
    """With probes that always read a noise scale of 100: it is above the batch, up to the largest allowed."""

    def noise(step: int, batch: Any) -> Reading:
        signals = {name: Signal(name, value, step) for name, value in (("trace_cov", 50.0), ("grad_sq", 0.5))}
        return Reading("noise", signals, {}, float(len(batch[0])))

    policies = [NoiseBatch(margin=1.0, patience=1, interval=1, max_batch=64)]
    run = Run(policies=policies, batch=8, epochs=4, budget=LOADS_OF_PROBES)
    run.pilot.probes.noise = noise  # type: ignore[method-assign]
    run.train()
    changes = [e for e in run.log.events if e["actuator"] == "batch_size"]
    assert [(e["old"], e["new"]) for e in changes] == [(8, 16), (16, 32), (32, 64)]
    assert all(e["taken"] and "noise scale 100" in e["reason"] for e in changes)
    assert run.loader.batch_size == 64
    assert run.loader.samples_served == run.loader.total_samples


@pytest.mark.parametrize("kind", ["a DataLoader", "a list"])
def test_the_passes_over_the_data_are_known_where_the_loader_says_its_size(kind: str) -> None:
    x = torch.randn(64, 3)
    loader = DataLoader(TensorDataset(x), batch_size=8) if kind == "a DataLoader" else [(x[:8],)]
    model = nn.Linear(3, 1)
    optimizer = SAM(torch.optim.SGD(model.parameters(), 0.1), rho=0.05)
    policy = AutoLR(two_pass=True)
    pilot = Pilot(
        optimizer, model, lambda net, b: net(b[0]).square().mean(), policies=[policy], total_samples=320
    )
    for batch in pilot.batches(loader):

        def closure(batch: Any = batch) -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(batch[0]).square().mean()
            loss.backward()
            return loss

        pilot.after_step(batch, optimizer.step(closure))
    assert policy.steps == 40
    assert policy.passes == (5 if kind == "a DataLoader" else None)


def test_noise_batch_refuses_a_loader_that_cannot_change() -> None:
    run = Run(policies=["noise_batch"])
    loader = DataLoader(TensorDataset(*images(8)), batch_size=4)
    with pytest.raises(TypeError, match=r"cannot change the batch size of a DataLoader.*GroupedLoader"):
        next(run.pilot.batches(loader))


# ---------------------------------------------------------------- budget and record


@pytest.mark.parametrize(("budget", "epochs"), [(0.0, 2), (0.4, 12), *slow((0.02, 12))])
def test_probes_stay_within_the_budget(budget: float, epochs: int) -> None:
    run = Run("cnn", rho=0.05, epochs=epochs, budget=budget, policies=["auto_lr", "noise_batch"]).train()
    assert run.pilot.budget.probe_ge <= budget * run.pilot.budget.train_ge
    assert run.pilot.budget.train_ge == 2 * run.loader.total_samples  # two passes of SAM, every sample
    if budget == 0.4:  # which affords a probe of each kind, with the comparison that the first one declares
        assert min(run.pilot.probes.count.values()) >= 1
        assert run.pilot.budget.used > 0.15


def test_curvature_probes_are_warm_and_audited_and_cost_no_more_than_declared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every eighth probe has two runs, and the budget waits until it can pay for both."""
    run = Run(batch=8, epochs=8, budget=2 * LOADS_OF_PROBES, policies=["auto_lr"])
    probes, seen = run.pilot.probes, []
    probe = probes.tracker.probe

    def watched(H: Any) -> Any:
        declared = probes.declared("curvature", 8)
        assert run.pilot.budget.affords("curvature", declared)
        found = probe(H)
        assert found.cost_ge <= declared
        seen.append((found.why, found.spectrum.cold, declared))
        return found

    monkeypatch.setattr(probes.tracker, "probe", watched)
    run.train()
    whys = [why for why, _, _ in seen]
    assert whys[0] == "first"
    # A jump is audited with the probe after it, and puts off the audit that would have been due.
    assert {"due", "jump"} & set(whys)
    assert set(whys) <= {"first", "", "due", "jump"}
    assert all(why or not cold for why, cold, _ in seen)
    cheapest = min(declared for _, _, declared in seen)
    assert all(declared > 1.5 * cheapest for why, _, declared in seen if why in ("due", "jump"))
    assert run.pilot.budget.probe_ge <= 2 * LOADS_OF_PROBES * run.pilot.budget.train_ge


def test_a_resumed_pilot_audits_when_the_unbroken_one_does() -> None:
    def fresh() -> Run:
        return Run(mode="monitor", batch=8, epochs=8, budget=2 * LOADS_OF_PROBES)

    def spectra(run: Run, after: int) -> list[dict[str, float]]:
        rows = [row for row in run.log.rows if row["step"] > after and row.get("probe/age_curvature") == 0]
        return [{k: v for k, v in row.items() if k.startswith("curv/")} for row in rows]

    whole, resumed, stop = fresh().train(), fresh(), 101
    saved = _state(fresh().train(stop))
    for name in ("model", "optimizer", "loader", "pilot"):
        getattr(resumed, name).load_state_dict(saved[name])
    load_rng_state(saved["rng"])
    resumed.train()
    tracker = whole.pilot.probes.tracker
    assert_same_bits(tracker.state_dict(), resumed.pilot.probes.tracker.state_dict())
    assert tracker.num_audits >= 2
    assert len(spectra(whole, stop)) >= 5
    assert_same_bits(spectra(whole, stop), spectra(resumed, stop))


def test_rows_carry_the_vocabulary_and_every_probe_its_error_and_age() -> None:
    run = Run(rho=0.05, policies=["auto_lr"], budget=LOADS_OF_PROBES).train()
    keys = set().union(*run.log.rows)
    wanted = {
        "step", "samples", "train/loss", "train/loss_ema", "lr/user", "lr/applied", "lr/ceiling", "lr/binding",
        "edge/ratio", "edge/eta_c", "edge/eta_c_error", "edge/lambda_c", "curv/lambda_max", "curv/lambda_max_error",
        "curv/lambda_max_converged", "curv/lambda_min", "curv/ncr", "curv/eta_lambda", "noise/b_simple",
        "noise/b_current", "noise/trace_cov", "noise/trace_cov_error", "noise/grad_sq", "update/rel",
        "update/grad_norm", "sam/rho", "sam/loss_gap", "sam/stability", "budget/ge", "budget/probe_frac",
        "budget/probe_ms", "probe/age_edge", "probe/age_noise", "probe/age_curvature",
    }  # fmt: skip
    assert wanted <= keys
    last = run.log.rows[-1]
    assert last["probe/age_curvature"] == run.pilot.step - run.pilot._last_probe["curvature"]


# ---------------------------------------------------------------- resume


def _state(run: Run) -> dict[str, Any]:
    parts = {"model": run.model, "optimizer": run.optimizer, "loader": run.loader, "pilot": run.pilot}
    buffer = io.BytesIO()
    torch.save({**{k: v.state_dict() for k, v in parts.items()}, "rng": rng_state()}, buffer)
    buffer.seek(0)
    return dict(torch.load(buffer, weights_only=True))


@pytest.mark.parametrize("stop", [1, 40])
def test_a_resumed_run_is_bit_identical_with_controllers_in_play(stop: int) -> None:
    """A rewind and a change of the batch behind the stop, and before it where it is late."""

    def fresh(seed: int) -> Run:
        policies = [AutoLR(tau=0.05), GrowsOnce(45)]
        return Run("cnn", rho=0.05, dropout=0.2, epochs=4, batch=8, seed=seed, policies=policies, budget=0.5,
                   wrecks=[30, 60])  # fmt: skip

    whole = fresh(0).train()
    saved = _state(fresh(0).train(stop))
    resumed = fresh(5)
    resumed.model.load_state_dict(saved["model"])
    resumed.optimizer.load_state_dict(saved["optimizer"])
    resumed.loader.load_state_dict(saved["loader"])
    resumed.pilot.load_state_dict(saved["pilot"])
    resumed.pilot.probes.seed = resumed.pilot.probes.tracker.seed = whole.pilot.probes.seed
    load_rng_state(saved["rng"])
    resumed.train()
    one, two = whole.bits(), resumed.bits()
    one["losses"] = one["losses"][stop:]
    assert_same_bits(one, two)
    assert_same_bits(
        *([d.to_dict() for d in run.pilot.decisions] for run in (whole, resumed)), where="decisions"
    )
    assert {"rewind", "batch_size"} <= {d.actuator for d in whole.pilot.decisions if d.step > stop}


# ---------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("pilot", "message"),
    [
        ({"mode": "steer"}, "mode 'steer' is not known"),
        ({"policies": ["auto_rl"]}, "policy 'auto_rl' is not known"),
        ({"policies": "auto_lr"}, r"use a list: \['auto_lr'\]"),
        ({"total_samples": None}, "auto_lr needs to know the length of the run"),
        ({"policies": ["auto_lr", "safe_lr"]}, "both set the learning rate"),
        ({"budget": -0.1}, "budget -0.1 is negative"),
        ({"total_samples": 0}, "total_samples 0"),
    ],
)
def test_misuse_is_named(pilot: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Run(**pilot)


def test_a_closure_that_raises_leaves_the_users_rate_for_the_next_step() -> None:
    run = Run(policies=["auto_lr"]).train(3)

    def broken() -> Tensor:
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        run.optimizer.step(broken)
    run.train(4)
    assert run.optimizer.param_groups[0]["lr"] == 0.05


def test_coherence_is_that_of_the_gradients_that_the_steps_left() -> None:
    """The moving average of the cosines, taken from ``.grad`` outside the pilot, is what is logged."""
    run = Run(policies=["auto_lr"], epochs=3, budget=0.0)
    last: Tensor | None = None
    total = weight = 0.0
    for batch in run.pilot.batches(run.loader):

        def closure(batch: Any = batch) -> Tensor:
            run.optimizer.zero_grad()
            loss = cross_entropy(run.model, batch)
            loss.backward()
            return loss

        loss = run.optimizer.step(closure)
        now = torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None]).clone()
        run.pilot.after_step(batch, loss)
        if last is not None:
            total += float(F.cosine_similarity(now, last, dim=0))
            weight += 1.0
        last = now
    assert weight > 0
    assert run.log.rows[-1]["noise/coherence"] == pytest.approx(total / weight, rel=1e-5)
    assert run.log.rows[-1]["ctl/pace"] == run.pilot.steering.policy.pace
