r"""The trial of ``adam_guard``: does the curvature along the gradient, in Adam's metric, foresee spikes of the loss?

.. math:: r = \frac{\eta\,(1 - \beta_1)}{2\,(1 + \beta_1)} \cdot \frac{g^\top P^{-1} H g}{\lVert g \rVert^2}, \qquad
          P = (1 - \beta_1^t)\bigl(\sqrt{v / (1 - \beta_2^t)} + \epsilon\bigr)

Three looks in a row with r above 1 are an alarm: beta2 becomes 0.9 for 30 updates, so that v follows the gradients. v
then holds squared gradients whose weights sum to :math:`W_t = \beta_2 W_{t-1} + 1 - \beta_2`, which PyTorch takes for
:math:`1 - \beta_2^t` with the beta2 of the moment: a change would make early updates several times longer. The policy
takes that back by a factor :math:`\sqrt{W_t / (1 - \beta_2^t)}` on the rate.

Two nets: a tanh MLP of 8 layers on 512 digits, full batch, 1,000 updates; a GPT of 12 layers, 32 wide, on bytes of
Python sources, batch 16, 200 updates. Adam with beta2 0.999, at the rate of the lowest training loss on seed 100 and at
twice that, constant. Beside ``adam_guard``: nothing; the same action when the gradient's norm is above so many medians
of the last 64 that seed 100 has as many actions; the same action at random, as often; beta2 0.95; gradients clipped to
twice the median norm of the plain run of seed 100; ``spike_guard``; half of the rate. A seed has the same weights and
batches in all rows.

A spike begins where the loss is above so many times the least of the last 20 updates (MLP 3, GPT 1.3), and ends where
it is below that again. Lead is the number of updates from the first alarm of the 50 before a spike to it. Loss at the
end: mean over the last tenth of the updates; a run that is not finite counts as infinite.

It passes on a net where at both rates its spikes are fewer than those of every other row of the same action, and fewer
than without any, and its loss at the end is not above that of the run without; all by means over the seeds.
"""

from __future__ import annotations

import itertools
import json
import math
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from kept import Kept
from torch import Tensor, nn
from torch.nn import functional as F

from optland import vectors
from optland.curvature import hessian
from optland.curvature.operators.hessian import declared_product_cost
from optland.curvature.stability.ratio import thresholds_of
from optland.pilot import Pilot, Policy, Probe, Proposal, Signal
from optland.train import BatchLoader, DataConfig, TextConfig, TransformerConfig, load_data, load_text

__all__ = ["AdamGuard", "GradientEdge", "adam_guard_trial"]

RESULT = Path(__file__).parent / "results" / "adam_guard.json"
RUNS = RESULT.with_name("adam_guard_runs.jsonl")
CHOICE_SEED, MULTIPLES = 100, (1.0, 2.0)
LRS = (0.001, 0.002, 0.004, 0.008, 0.016)
LOW, FOR, IN_A_ROW, OWN = 0.9, 30, 3, 0.999
MEDIANS = (1.5, 2.0, 3.0, 5.0)
WINDOW, RECENT, LEAD = 64, 20, 50


# The probe and the policy ---------------------------------------------------------------------------


class GradientEdge(Probe):
    """r of the module's docstring on a part of the batch; near the edge every second update, else every tenth.

    Args:
        part: Share of the batch that is looked at.
    """

    name = "gradient_edge"
    yields = frozenset({"edge/gradient_ratio"})
    reads_rate = True

    def __init__(self, part: float = 0.5) -> None:
        self.part, self.every = part, 10
        self.looks = 0

    def _objective(self, host: Any) -> Any:
        batch = host.some(host.batch, max(1, round(self.part * host.count(host.batch))))
        return host.over([batch], mode="train", seed=host.step)

    def cost(self, host: Any) -> float:
        if host.batch is None:
            return math.inf
        L = self._objective(host)
        return float(L.num_samples + declared_product_cost(L, 1))

    def measure(self, host: Any) -> list[Signal]:
        L, (adam,) = self._objective(host), host.inner
        host.hold_rate(adam, host.applied, host.rate)
        try:
            scale, _ = thresholds_of(
                L, adam
            )  # P^-1/2 over the root of the threshold, 2 (1 + b1) / (eta (1 - b1))
        finally:
            host.release_rate(adam)
        g = L.gradient()
        with hessian(L) as H:
            turned = [s * s * x for s, x in zip(scale, H.matvec(g), strict=True)]
            r = float(vectors.dot(g, turned)) / float(vectors.dot(g, g))
        self.spent, self.looks = L.cost_ge, self.looks + 1
        self.every = 2 if r > 0.7 else 10
        return [Signal("edge/gradient_ratio", r, host.step, 0.0, math.isfinite(r))]


class _Action(Policy):
    """beta2 = 0.9 for 30 updates where :meth:`alarmed` says so."""

    turns = frozenset({"beta2", "lr_factor"})
    kept: ClassVar[tuple[str, ...]] = ("until", "weight", "beta2", "alarms")

    def __init__(self) -> None:
        self.until, self.weight, self.beta2 = 0, 0.0, OWN
        self.alarms: list[int] = []

    def alarmed(self, history: Any) -> bool:
        raise NotImplementedError

    def decide(self, history: Any) -> list[Proposal]:
        step, alarm = history.step, self.alarmed(history)
        self.weight = self.beta2 * self.weight + 1 - self.beta2
        asked = []
        if alarm and step >= self.until:
            self.until, self.beta2 = step + FOR, LOW
            self.alarms = [*self.alarms, step]
            asked.append(Proposal("beta2", LOW, f"alarm at update {step}: v is to follow the gradients"))
        elif self.beta2 == LOW and step >= self.until:
            self.beta2 = OWN
            asked.append(Proposal("beta2", OWN, f"{FOR} updates since the alarm"))
        if self.alarms:
            weight = self.beta2 * self.weight + 1 - self.beta2
            factor = math.sqrt(weight / (1 - self.beta2 ** (step + 1)))
            asked.append(Proposal("lr_factor", factor, "what v's weights sum to"))
        return asked


class AdamGuard(_Action):
    """Acts where r is above 1 in three looks in a row.

    Args:
        smooth: Share of the last value in a running mean of r, for batches that are not the whole data.
    """

    name = "adam_guard"
    reads = frozenset({"edge/gradient_ratio"})
    kept: ClassVar[tuple[str, ...]] = (*_Action.kept, "row", "mean")

    def __init__(self, smooth: float = 0.0) -> None:
        super().__init__()
        self.smooth, self.row, self.mean = smooth, 0, 0.0

    def alarmed(self, history: Any) -> bool:
        r = history.new("edge/gradient_ratio")
        if r is not None and r.valid:
            self.mean = self.smooth * self.mean + (1 - self.smooth) * r.value
            self.row = self.row + 1 if self.mean > 1 else 0
        return self.row >= IN_A_ROW


class NormGuard(_Action):
    """Acts where the gradient's norm is above some medians of the last 64.

    Args:
        medians: How many.
    """

    name = "norm_guard"
    reads = frozenset({"update/grad_norm"})
    kept: ClassVar[tuple[str, ...]] = (*_Action.kept, "norms")

    def __init__(self, medians: float) -> None:
        super().__init__()
        self.medians = medians
        self.norms: list[float] = []

    def alarmed(self, history: Any) -> bool:
        norm = history.new("update/grad_norm")
        if norm is None or not math.isfinite(norm.value):
            return False
        high = len(self.norms) == WINDOW and norm.value > self.medians * statistics.median(self.norms)
        self.norms = [*self.norms, norm.value][-WINDOW:]
        return high


class RandomGuard(_Action):
    """Acts at random updates.

    Args:
        at: Which.
    """

    name = "random_guard"
    reads = frozenset({"train/loss"})

    def __init__(self, at: Sequence[int]) -> None:
        super().__init__()
        self.at = frozenset(at)

    def alarmed(self, history: Any) -> bool:
        return history.step in self.at


# The nets -------------------------------------------------------------------------------------------

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """A net and its data.

    Attributes:
        title: As people read it.
        steps: Updates.
        seeds: That are reported.
        spike: Times the least recent loss from which it is a spike.
        smooth: Of ``AdamGuard``.
        start: Makes the net and its batches from a seed.
    """

    title: str
    steps: int
    seeds: tuple[int, ...]
    spike: float
    smooth: float
    start: Callable[[int, int], tuple[nn.Module, Iterator[Batch]]]


def deep_mlp(seed: int, steps: int, *, depth: int = 8, width: int = 64) -> tuple[nn.Module, Iterator[Batch]]:
    """Tanh layers on the first 512 digits."""
    data = load_data(DataConfig("digits"))
    x, y = data.normalise(data.train_x)[:512].flatten(1), data.train_y[:512]
    torch.manual_seed(seed)
    sizes = [x.shape[1], *[width] * depth]
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(width, 10)), iter([(x, y)] * steps)


def deep_gpt(seed: int, steps: int) -> tuple[nn.Module, Iterator[Batch]]:
    """Twelve narrow blocks on bytes."""
    windows = load_text(TextConfig(tokens="bytes", context=32, max_bytes=1_000_000)).windows("train")
    torch.manual_seed(seed)
    model = TransformerConfig(depth=12, width=32, heads=2).build(256, 32)
    loader = BatchLoader(windows, 16, epochs=1, seed=seed)
    return model, ((x, y) for (x, y), _ in zip(loader, range(steps), strict=False))


TASKS = {
    "mlp": Task("tanh MLP, 8 layers, full batch", 1000, (0, 1, 2, 3, 4), 3.0, 0.0, deep_mlp),
    "gpt": Task("GPT, 12 layers, batch 16", 200, (0, 1, 2), 1.3, 0.9, deep_gpt),
}


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


# One run --------------------------------------------------------------------------------------------


def trained(
    task: Task, seed: int, lr: float, *, policies: Sequence[str | Policy] = (), beta2: float = OWN,
    clip: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train once; a row without policies is the plain loop."""
    model, batches = task.start(seed, task.steps)
    optimizer = torch.optim.Adam(model.parameters(), lr, betas=(0.9, beta2))
    mode: Any = "control" if policies else "off"
    probe = GradientEdge()
    pilot = Pilot(
        optimizer, model, cross_entropy, policies=list(policies), mode=mode, total_steps=task.steps,
        budget=1.0 if policies else 0.0, probes=[probe] if any(_reads_edge(p) for p in policies) else [],
    )  # fmt: skip
    losses, norms = [], []
    with pilot:
        for batch in batches:
            optimizer.zero_grad()
            loss = cross_entropy(model, batch)
            loss.backward()
            limit = math.inf if clip is None else clip
            norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), limit)))
            optimizer.step()
            pilot.after_step(batch, loss)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                break
    alarms = [step for p in policies if isinstance(p, _Action) for step in p.alarms]
    starts = spikes(losses, task.spike)
    tail = losses[-max(1, task.steps // 10) :]
    return {
        "seed": seed, "lr": lr, "spikes": len(starts), "actions": len(alarms),
        "leads": [min(before) for s in starts if (before := [s - a for a in alarms if 0 < s - a <= LEAD])],
        "end": statistics.fmean(tail) if math.isfinite(losses[-1]) else None,
        "median norm": statistics.median(norms), "looks": probe.looks, "rewinds": _rewinds(pilot),
        "probe share": round(pilot.budget.used, 4),
    }  # fmt: skip


def _reads_edge(policy: str | Policy) -> bool:
    return isinstance(policy, AdamGuard)


def _rewinds(pilot: Pilot) -> int:
    return sum(d.actuator == "rewind" for d in pilot.decisions)


def spikes(losses: Sequence[float], times: float) -> list[int]:
    """The updates, counted from 1, at which a spike begins."""
    found, inside = [], False
    for i in range(1, len(losses)):
        least = min(losses[max(0, i - RECENT) : i])
        high = not losses[i] <= times * least
        if high and not inside:
            found.append(i + 1)
        inside = high
    return found


# All runs -------------------------------------------------------------------------------------------


def chosen(kept: Kept, name: str) -> dict[str, float]:
    """What seed 100 decides: the rate, where clipping begins, and the medians of the norm's trigger at each rate."""
    task = TASKS[name]
    plain = {lr: kept.of(f"{name} choice {lr:g}", partial(trained, task, CHOICE_SEED, lr)) for lr in LRS}
    best = min(LRS, key=lambda lr: math.inf if plain[lr]["end"] is None else plain[lr]["end"])
    found = {"lr": best, "clip": 2 * plain[best]["median norm"]}
    for times in MULTIPLES:

        def actions(what: str, policy: Policy, lr: float = times * best) -> int:
            made = partial(trained, task, CHOICE_SEED, lr, policies=[policy])
            return int(kept.of(f"{name} choice {what} {lr:g}", made)["actions"])

        ours = actions("guard", AdamGuard(task.smooth))
        counts = {m: actions(f"norm {m:g}", NormGuard(m)) for m in MEDIANS}
        found[f"medians {times:g}"] = min(MEDIANS, key=lambda m: abs(counts[m] - ours))
    return found


ROWS = ("none", "adam_guard", "gradient norm", "random", "beta2 0.95", "clip", "spike_guard", "half the rate")
SAME_ACTION = ("gradient norm", "random")


def one(
    kept: Kept, name: str, settings: dict[str, float], times: float, seed: int, row: str
) -> dict[str, Any]:
    """A run of the table."""
    task, lr = TASKS[name], times * settings["lr"]

    def make() -> dict[str, Any]:
        if row == "adam_guard":
            return trained(task, seed, lr, policies=[AdamGuard(task.smooth)])
        if row == "gradient norm":
            return trained(task, seed, lr, policies=[NormGuard(settings[f"medians {times:g}"])])
        if row == "random":
            count = one(kept, name, settings, times, seed, "adam_guard")["actions"]
            at = random.Random(seed).sample(range(1, task.steps), min(count, task.steps - 1))
            return trained(task, seed, lr, policies=[RandomGuard(at)])
        if row == "beta2 0.95":
            return trained(task, seed, lr, beta2=0.95)
        if row == "clip":
            return trained(task, seed, lr, clip=settings["clip"])
        if row == "spike_guard":
            return trained(task, seed, lr, policies=["spike_guard"])
        return trained(task, seed, lr / 2 if row == "half the rate" else lr)

    return kept.of(f"{name} {times:g} {seed} {row}", make)


def make(kept: Kept, name: str, end: float) -> list[int]:
    """Make what is missing, seed by seed, and begin nothing after ``end``; returns the seeds that are whole."""
    settings = chosen(kept, name)
    whole: list[int] = []
    for seed in TASKS[name].seeds:
        for times, row in itertools.product(MULTIPLES, ROWS):
            if f"{name} {times:g} {seed} {row}" not in kept.done and time.monotonic() >= end:
                return whole
            one(kept, name, settings, times, seed, row)
        whole.append(seed)
    return whole


def table(kept: Kept, name: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Means over the seeds that are whole of every row at both rates."""
    task, settings = TASKS[name], chosen(kept, name)
    found: dict[str, Any] = {
        "title": task.title,
        "chosen": settings,
        "seeds": len(seeds),
        "of": len(task.seeds),
    }
    found["rates"] = {
        f"{times:g}": {row: summed([one(kept, name, settings, times, s, row) for s in seeds]) for row in ROWS}
        for times in MULTIPLES
    }
    found["passes"] = all(passes(rows) for rows in found["rates"].values())
    return found


def summed(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    ends = [r["end"] for r in runs]
    leads = [lead for r in runs for lead in r["leads"]]
    return {
        "spikes": statistics.fmean(r["spikes"] for r in runs),
        "actions": statistics.fmean(r["actions"] for r in runs),
        "foreseen": [len(leads), sum(r["spikes"] for r in runs)],
        "lead": statistics.median(leads) if leads else None,
        "end": None if None in ends else statistics.fmean(ends),
        "probe share": statistics.fmean(r["probe share"] for r in runs),
        "rewinds": sum(r["rewinds"] for r in runs),
    }


def passes(rows: dict[str, dict[str, Any]]) -> bool:
    """The rule of the module's docstring at one rate."""
    ours, none = rows["adam_guard"], rows["none"]
    fewer = all(ours["spikes"] < rows[row]["spikes"] for row in ("none", *SAME_ACTION))
    end, plain = (math.inf if r["end"] is None else r["end"] for r in (ours, none))
    return fewer and end <= plain


def adam_guard_trial(nets: Sequence[str] = tuple(TASKS), minutes: float = math.inf) -> None:
    """Make what is missing, and write the result file of the seeds that are whole."""
    torch.set_num_threads(1)
    kept, end = Kept(RUNS), time.monotonic() + 60 * minutes
    whole = {name: make(kept, name, end) for name in nets}
    result = {
        "benchmark": "adam_guard", "torch": torch.__version__, "python": platform.python_version(),
        "nets": {name: table(kept, name, seeds) for name, seeds in whole.items() if seeds},
        "missing": [TASKS[name].title for name in TASKS if not whole.get(name)],
    }  # fmt: skip
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
