"""Measure a step of the SAM methods: time against the base optimizer and other implementations, and memory.

    python benchmarks/sam_cost.py                       # all nets, about 3 minutes on an idle machine
    python benchmarks/sam_cost.py --nets MLP --rounds 30

Needs `pip install pytorch_optimizer` for the peers; without it they are left out and said so.

Time    Every variant trains its own copy of a net, on one batch, from the same weights, on one thread. In a round all
        variants take a few steps, in an order drawn anew, and the ratios are taken within the round; the table holds
        their medians. "Two passes" is forward and backward twice and one update of the base: what no SAM can go below.
        Ours is built as documented, with ``model=``, so that it also guards BatchNorm statistics and random draws,
        which the peers' SAM does not do. "SAM, bare" is without both that and telemetry, which is what the peers' does.
        Bars hold at the upper end of the 95 % interval of a median over rounds, from order statistics.
Peers   A peer counts where its first step is that of the method's formula, written out here in float64. LookSAM of
        pytorch_optimizer projects tensor by tensor; it is timed all the same, and marked.
Memory  The tensors alive when the closure's backward pass has ended at w + eps, and after the step, beyond those of a
        base step at the same place, in copies of the weights, against what optland/optim/cards.py declares.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.metadata
import json
import math
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.optim import create
from optland.optim.cards import CARDS
from optland.train import ModelConfig, TransformerConfig, build_model

RHO, K = 0.05, 5
PEER = "pytorch_optimizer"
SHORT_STEP = 5e-3
IDLE = 0.98  # share of the CPU below which the machine had other work, and the figures mean nothing
BARS = {"bare": 1.03, "sam": 1.08, "sam_short": 1.15, "looksam": 1.3, "msam": 1.06, "telemetry": 1.02}
"""Of SAM over the peer's (``sam_short`` where a step of the base is short), of LookSAM and MSAM over the base (on nets
whose step is not short), of telemetry over none."""

Step = Callable[[], object]
Maker = Callable[["Net", nn.Module], Step]
"""Makes the step of a variant on its own copy of the net."""


@dataclass(frozen=True)
class Net:
    """A net with its batch and the base optimizer of all its variants."""

    name: str
    model: nn.Module
    batch: tuple[Tensor, Tensor]
    base: str = "sgd"

    def copy(self) -> nn.Module:
        return copy.deepcopy(self.model)

    @property
    def options(self) -> dict[str, Any]:
        return {"lr": 1e-4} if self.base == "adamw" else {"lr": 1e-4, "momentum": 0.9}

    @property
    def base_class(self) -> type[torch.optim.Optimizer]:
        return torch.optim.AdamW if self.base == "adamw" else torch.optim.SGD


def nets() -> list[Net]:
    """Two whose step takes below 5 ms and two above, on random data of the size of digits or characters."""
    torch.manual_seed(0)

    def images(n: int) -> tuple[Tensor, Tensor]:
        return torch.randn(n, 1, 8, 8), torch.randint(10, (n,))

    def net(name: str, config: ModelConfig, n: int) -> Net:
        return Net(name, build_model(config, (1, 8, 8), 10), images(n))

    gpt = TransformerConfig(depth=2, width=64, heads=4).build(vocabulary=65, context=64)
    text = torch.randint(65, (16, 64)), torch.randint(65, (16, 64))
    return [
        net("MLP", ModelConfig("mlp"), 64),
        net("CNN", ModelConfig("cnn", width=16), 64),
        net("ResNet-8", ModelConfig("resnet8"), 64),
        Net("2-layer GPT", gpt, text, "adamw"),
    ]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy."""
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


# ------------------------------------------------------------------ variants


def closure_of(
    model: nn.Module, batch: tuple[Tensor, Tensor], optimizer: torch.optim.Optimizer
) -> Callable[[], Any]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        return loss

    return closure


def base(passes: int = 1) -> Maker:
    """The base optimizer, with forward and backward pass made this often."""

    def make(net: Net, model: nn.Module) -> Step:
        optimizer = net.base_class(model.parameters(), **net.options)
        closure = closure_of(model, net.batch, optimizer)

        def step() -> None:
            for _ in range(passes):
                closure()
            optimizer.step()

        return step

    return make


def ours(method: str, *, guarded: bool = True, **options: Any) -> Maker:
    """One of our methods in closure form."""

    def make(net: Net, model: nn.Module) -> Step:
        guards = {"model": model} if guarded else {}
        optimizer = create(
            method, model.parameters(), base=net.base, **net.options, **guards, **{"rho": RHO} | options
        )
        closure = closure_of(model, net.batch, optimizer)
        return lambda: optimizer.step(closure)

    return make


VARIANTS: dict[str, Maker] = {
    "base": base(),
    "two passes": base(2),
    "SAM": ours("sam"),
    "SAM, no model=": ours("sam", guarded=False),
    "SAM, bare": ours("sam", guarded=False, telemetry_every=0),
    "SAM, telemetry 0": ours("sam", telemetry_every=0),
    "SAM, telemetry 1": ours("sam", telemetry_every=1),
    "ASAM": ours("asam", eta=0.0),
    "GSAM": ours("gsam", alpha=0.01),
    "WSAM": ours("wsam", gamma=0.9),
    "LookSAM": ours("looksam", k=K),
    "MSAM": ours("msam"),
}
"""Every way of stepping that is timed, but for the peers'."""


def peers() -> dict[str, Maker]:
    """The same methods of pytorch_optimizer, each called in its own documented way; foreach is its faster setting."""
    try:
        import pytorch_optimizer as po
    except ImportError:
        return {}

    def gradient_first(cls: Any, **options: Any) -> Maker:
        def make(net: Net, model: nn.Module) -> Step:
            optimizer = cls(
                model.parameters(), net.base_class, rho=RHO, foreach=True, **options, **net.options
            )
            closure = closure_of(model, net.batch, optimizer)

            def step() -> None:
                closure()
                optimizer.step(closure)

            return step

        return make

    def wsam(net: Net, model: nn.Module) -> Step:
        optimizer = po.WSAM(model, model.parameters(), net.base_class, rho=RHO, foreach=True, **net.options)
        closure = closure_of(model, net.batch, optimizer)
        return lambda: optimizer.step(closure)

    def gsam(net: Net, model: nn.Module) -> Step:
        inner = net.base_class(model.parameters(), **net.options)
        optimizer = po.GSAM(model.parameters(), inner, model, _Constant(), alpha=0.01, foreach=True)

        def loss_fn(output: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(output.flatten(0, -2), target.flatten())

        def step() -> None:
            optimizer.set_closure(loss_fn, *net.batch)
            optimizer.step()

        return step

    return {
        f"{PEER} SAM": gradient_first(po.SAM),
        f"{PEER} ASAM": gradient_first(po.SAM, adaptive=True),
        f"{PEER} GSAM": gsam,
        f"{PEER} WSAM": wsam,
        f"{PEER} LookSAM": gradient_first(po.LookSAM, k=K),
    }


class _Constant:
    """The schedule of a radius that stays."""

    def step(self) -> float:
        return RHO


# ------------------------------------------------------------------ time


def timed(
    steps: dict[str, Step], rounds: int, seconds: float, budget: float
) -> tuple[dict[str, list[float]], float]:
    """Seconds per step of every variant in every round, and the share of them that this process had the CPU.

    Args:
        steps: The variants.
        rounds: Largest number of rounds.
        seconds: Time that the base shall take in a round; sets the steps of a round, a multiple of LookSAM's k.
        budget: Seconds after which no further round begins; there are five in any case.
    """
    for step in steps.values():
        for _ in range(2 * K):
            step()
    started = time.perf_counter()
    for _ in range(K):
        steps["base"]()
    blocks = max(1, round(seconds / (time.perf_counter() - started)))
    found: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    began, worked = time.perf_counter(), time.process_time()
    for i in range(rounds):
        if i >= 5 and time.perf_counter() - began > budget:
            break
        random.Random(i).shuffle(order)
        gc.collect()
        for name in order:
            step = steps[name]
            started = time.perf_counter()
            for _ in range(K * blocks):
                step()
            found[name].append((time.perf_counter() - started) / (K * blocks))
    return found, (time.process_time() - worked) / (time.perf_counter() - began)


def interval(values: list[float]) -> tuple[float, float]:
    """95 % interval of the median: the widest pair of order statistics that leaves out at most 2.5 % on each side."""
    n, tail, k = len(values), 0.0, 0
    while (tail := tail + math.comb(n, k) / 2**n) <= 0.025:
        k += 1
    ordered = sorted(values)
    return ordered[max(k - 1, 0)], ordered[min(n - k, n - 1)]


def ratios(a: list[float], b: list[float]) -> dict[str, float]:
    """Of two variants' times in the same round: the median, and the ends of its 95 % interval."""
    found = [x / y for x, y in zip(a, b, strict=True)]
    low, high = interval(found)
    return {"median": statistics.median(found), "low": low, "high": high}


def within_rounds(a: list[float], b: list[float], combine: Callable[[float, float], float]) -> float:
    """Median over rounds of a combination of two variants' times in the same round."""
    return statistics.median(combine(x, y) for x, y in zip(a, b, strict=True))


def ratio(a: list[float], b: list[float]) -> float:
    return within_rounds(a, b, lambda x, y: x / y)


def difference(a: list[float], b: list[float]) -> float:
    return within_rounds(a, b, lambda x, y: x - y)


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, ratios and how they stand to the bars."""
    rows = {
        name: {
            "us": 1e6 * statistics.median(taken),
            "over_base": ratio(taken, times["base"]),
            "us_above_two_passes": 1e6 * difference(taken, times["two passes"]),
        }
        for name, taken in times.items()
    }
    pairs = {name: f"{PEER} {name.split(',')[0]}" for name in times}
    against_peers = {name: ratios(times[name], times[peer]) for name, peer in pairs.items() if peer in times}
    over_base = {name: ratios(times[name], times["base"]) for name in ("SAM", "LookSAM", "MSAM")}
    silent = times["SAM, telemetry 0"]
    telemetry = {"1": ratio(times["SAM, telemetry 1"], silent), "default": ratio(times["SAM"], silent)}
    return {
        "rounds": len(times["base"]), "rows": rows,
        "over_peer": {name: row["median"] for name, row in against_peers.items()},
        "intervals": {"over_peer": against_peers, "over_base": over_base}, "telemetry": telemetry,
    }  # fmt: skip


def held(result: dict[str, Any], memory: dict[str, Any]) -> dict[str, bool]:
    """Which bars hold."""
    short = result["rows"]["base"]["us"] < 1e6 * SHORT_STEP
    high = {name: row["high"] for name, row in result["intervals"]["over_base"].items()}
    bars = {
        "telemetry": result["telemetry"]["default"] <= BARS["telemetry"],
        "memory": all(row["as_declared"] for row in memory.values()),
    }
    if not short:
        bars |= {"LookSAM": high["LookSAM"] <= BARS["looksam"], "MSAM": high["MSAM"] <= BARS["msam"]}
    peer = {name: row["high"] for name, row in result["intervals"]["over_peer"].items()}
    if peer:
        bars["SAM, bare"] = peer["SAM, bare"] <= BARS["bare"]
        bars["SAM"] = peer["SAM"] <= BARS["sam_short" if short else "sam"]
    return bars


# ------------------------------------------------------------------ are the peers right?


def first_step_error(make: Maker, net: Net, wanted: list[Tensor]) -> float:
    """Error of the first update against the formula, relative to its length."""
    model = net.copy()
    make(net, model)()
    steps = [p.detach() - w for p, w in zip(model.parameters(), net.model.parameters(), strict=True)]
    return float(flat(a - b for a, b in zip(steps, wanted, strict=True)).norm() / flat(wanted).norm())


def flat(x: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in x])


def gradient(net: Net, at: list[Tensor]) -> list[Tensor]:
    """The gradient at given weights."""
    model = net.copy()
    with torch.no_grad():
        for p, x in zip(model.parameters(), at, strict=True):
            p.copy_(x)
    return list(torch.autograd.grad(loss_of(model, net.batch), list(model.parameters())))


def formula(net: Net, name: str) -> list[Tensor]:
    """The first update of SGD under the gradient that the method's formula gives."""
    w = [p.detach() for p in net.model.parameters()]
    g = gradient(net, w)
    scaled = {"ASAM": 2, f"{PEER} ASAM": 0}.get(name)  # ours leaves biases as they are
    t = [torch.ones_like(x) if scaled is None or x.ndim < scaled else x.abs() for x in w]
    length = torch.cat([(a * b).flatten() for a, b in zip(t, g, strict=True)]).norm()
    h = gradient(net, [x + RHO * a * a * b / length for x, a, b in zip(w, t, g, strict=True)])
    lr = net.options["lr"]
    if name.endswith("WSAM"):  # decoupled, gamma 0.9: the base takes g, then 9 lr (h - g) is taken off
        return [-lr * (a + 9.0 * (b - a)) for a, b in zip(g, h, strict=True)]
    if name.endswith("GSAM"):
        dot = sum((a * b).sum() for a, b in zip(g, h, strict=True))
        square = sum((b * b).sum() for b in h)
        return [-lr * (b - 0.01 * (a - dot / square * b)) for a, b in zip(g, h, strict=True)]
    return [-lr * b for b in h]


def right_peers() -> dict[str, float]:
    """Error of each peer's first step, and of this package's, in float64 on a net without BatchNorm."""
    torch.manual_seed(0)
    model = build_model(ModelConfig("mlp"), (1, 8, 8), 10).double()
    net = Net("MLP", model, (torch.randn(64, 1, 8, 8).double(), torch.randint(10, (64,))))
    made = {name: VARIANTS[name] for name in ("SAM", "ASAM", "GSAM", "WSAM", "LookSAM")} | peers()
    return {name: first_step_error(make, net, formula(net, name)) for name, make in made.items()}


# ------------------------------------------------------------------ memory


def live_bytes() -> int:
    """Bytes of all storages that tensors known to the garbage collector hold, each once."""
    sizes = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor):  # isinstance would wake lazy module attributes
            storage = thing.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def memory() -> dict[str, Any]:
    """Copies of the weights that each method holds between steps and, at most, during its last backward pass."""
    found = {}
    for card in CARDS:
        if card.name == "eigensam":  # needs an objective, and its memory is that of the Lanczos run
            continue
        between, within = copies("adamw" if card.name == "adam_sam" else "sgd", card.name)
        found[card.name] = {
            "declared_state": card.state,
            "declared_transient": card.transient,
            "state": between,
            "transient": within,
            "as_declared": between <= card.state + 0.1 and within - between <= card.transient + 0.1,
        }
    return found


def copies(base_name: str, method: str) -> tuple[float, float]:
    """Copies of the weights beyond those of the base: after a step, and when the last backward pass has ended."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.Tanh(), nn.Linear(512, 256))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    x = torch.randn(8, 256)
    options = {"lr": 1e-3} if base_name == "adamw" else {"lr": 1e-3, "momentum": 0.9}
    optimizer = create(method, model.parameters(), base=base_name, model=model, **options)
    seen: list[int] = []

    def closure() -> Any:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        if looking:
            # A gradient that nobody has asked for is a tensor in C++ alone, which the collector does not know.
            gradients = [p.grad for p in model.parameters()]
            seen.append(live_bytes())
            del gradients
        return loss.detach()

    looking = False
    for _ in range(2 * K):
        optimizer.step(closure)
    gc.collect()
    looking = True
    optimizer.step(closure)  # LookSAM looks in this one
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None for g in gradients)
    # Weights, gradients, and the base's own state are there with any optimizer.
    own = weights * (2 + (2 if base_name == "adamw" else 1)) + x.numel() * 4
    return (live_bytes() - own) / weights, (max(seen) - own) / weights


# ------------------------------------------------------------------ output


def show(name: str, net: dict[str, Any]) -> None:
    print(f"\n{name}")
    for variant, row in net["rows"].items():
        print(
            f"  {variant:28s} {row['us']:9.1f} us   {row['over_base']:6.3f} x base   "
            f"{row['us_above_two_passes']:+8.1f} us above two passes"
        )
    for what in ("over_peer", "over_base"):
        rows = net["intervals"][what]
        shown = {k: f"{v['median']:.3f} ({v['low']:.3f} to {v['high']:.3f})" for k, v in rows.items()}
        print(f"  {what}:", shown)
    print("  telemetry:", {k: round(v, 4) for k, v in net["telemetry"].items()})
    print("  bars:", net["bars"])
    if not net["idle_machine"]:
        print(
            f"  NOT IDLE: other processes had the CPU for {1 - net['cpu_share']:.0%} of the time; measure again"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", help="some of: MLP, CNN, ResNet-8, 2-layer GPT")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.02, help="of the base in a round")
    parser.add_argument("--budget", type=float, default=40.0, help="seconds per net")
    parser.add_argument("--result", type=Path, default=Path("benchmarks/results/sam_cost.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(arguments.result.read_text()) if arguments.result.exists() else {"nets": {}}
    found = known | {
        "benchmark": "sam_cost",
        "bars": BARS,
        "machine": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "cpus": os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
        },
        "memory": memory(),
        "peer_errors": right_peers(),
    }
    found["peers"] = {PEER: importlib.metadata.version(PEER)} if peers() else {}
    for net in nets():
        if arguments.nets and net.name not in arguments.nets:
            continue
        steps = {name: make(net, net.copy()) for name, make in (VARIANTS | peers()).items()}
        times, share = timed(steps, arguments.rounds, arguments.seconds, arguments.budget)
        result = summary(times)
        result["cpu_share"], result["idle_machine"] = share, share > IDLE
        result["us_of_every_round"] = {n: [round(1e6 * t, 1) for t in row] for n, row in times.items()}
        result["parameters"] = sum(p.numel() for p in net.model.parameters())
        result["base"] = net.base
        result["bars"] = held(result, found["memory"])
        found["nets"][net.name] = result
        show(net.name, result)
    print("\npeers' first step, relative error:", found["peer_errors"])
    for name, row in found["memory"].items():
        print(f"{name:12s} state {row['state']:.2f} transient {row['transient']:.2f} {row['as_declared']}")
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    arguments.result.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
