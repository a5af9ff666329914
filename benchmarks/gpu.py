"""What a GPU decides, in one command of ten minutes: cost of a step, auto_lr on large nets, what SAM's nets bear.

    python benchmarks/gpu.py                       # needs a GPU and Fashion-MNIST; writes benchmarks/results/gpu.json
    python benchmarks/gpu.py --download            # fetches Fashion-MNIST
    python benchmarks/gpu.py --size tiny           # the same on a processor, in seconds: shows that it runs, no more

Nets: ResNet-18 and a ViT of 6 blocks on Fashion-MNIST (54,000 training images), and a GPT of 12 blocks on the standard
library's sources, in bfloat16. In this order, as far as the minutes go:

1. cost of a step of SAM, LookSAM, MSAM and of the pilot with ``auto_lr``, over the base: means of interleaved steps;
2. the largest eigenvalue of the Hessian of a GPT of 124 million weights, in single precision, with its residual;
3. validation loss with ``auto_lr`` and at five rates, cosine, at equal gradient evaluations. The constants of
   ``auto_lr`` were chosen on nets of 5 to 70 thousand weights;
4. test accuracy of SAM and of a base of twice the steps, at the best of those rates, after rounding, pruning and noise.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from step_loop import Closure, timed, turns
from survival_measures import scored, tested, weight_damages
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from optland.curvature import hessian, lanczos
from optland.landscape import damaged
from optland.objective import Objective
from optland.optim import MSAM, SAM, LookSAM
from optland.pilot import Pilot
from optland.train import (
    BatchLoader,
    DataConfig,
    ModelConfig,
    TextConfig,
    TransformerConfig,
    build_model,
    load_data,
    load_text,
)
from optland.train.experiments.bank_run import Splits

RESULT = Path(__file__).resolve().parent / "results" / "gpu.json"
WARMUP, BUDGET = 0.05, 0.05
SGD_LRS, ADAMW_LRS = (0.02, 0.05, 0.1, 0.2, 0.5), (0.0003, 0.001, 0.002, 0.004, 0.01)

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Size:
    """How large everything is.

    Attributes:
        data: Images.
        resnet: The residual net.
        vit: The transformer on images.
        gpt: The transformer on text.
        large: The one whose eigenvalue is sought.
        vocabulary: Of the large one; the text uses the first 256 tokens of it.
        context: Tokens of a window.
        batches: Images and windows per step.
        steps: Of a run.
        timed: Steps of each method, after a tenth as many.
        probed: Windows under the eigenvalue.
        max_bytes: Of text.
        seeds: Of the runs that are damaged.
    """

    data: DataConfig = field(default_factory=lambda: DataConfig("fashion_mnist"))
    resnet: ModelConfig = field(default_factory=lambda: ModelConfig("torchvision:resnet18"))
    vit: ModelConfig = field(default_factory=lambda: ModelConfig("vit", depth=6, width=192))
    gpt: TransformerConfig = field(default_factory=lambda: TransformerConfig(depth=12, width=384, heads=6))
    large: TransformerConfig = field(default_factory=lambda: TransformerConfig(depth=12, width=768, heads=12))
    vocabulary: int = 50_257
    context: int = 256
    batches: tuple[int, int] = (256, 32)
    steps: int = 400
    timed: int = 60
    probed: int = 8
    max_bytes: int = 20_000_000
    seeds: tuple[int, ...] = (0, 1)


SIZES = {
    "full": Size(),
    "tiny": Size(
        DataConfig("digits"), ModelConfig("resnet8", width=4), ModelConfig("vit", depth=1, width=16),
        TransformerConfig(depth=1, width=8, heads=1), TransformerConfig(depth=1, width=8, heads=1), 256, 8, (32, 4),
        steps=4, timed=2, probed=4, max_bytes=20_000, seeds=(0,),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A net with its data, on the device.

    Attributes:
        title: As people read it.
        splits: Its data.
        make: A fresh net from torch's random state.
        adamw: Whether its base is AdamW; else SGD with momentum.
        batch_size: Samples per step.
        half: Whether its passes are in bfloat16.
    """

    title: str
    splits: Splits
    make: Callable[[], nn.Module]
    adamw: bool
    batch_size: int
    half: bool = False

    @property
    def device(self) -> torch.device:
        return self.splits.train[0].device

    @property
    def lrs(self) -> tuple[float, ...]:
        return ADAMW_LRS if self.adamw else SGD_LRS

    @property
    def rho(self) -> float:
        return 0.05 if self.adamw else 0.1

    def fresh(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return self.make().to(self.device)

    def base(self, model: nn.Module, lr: float) -> Optimizer:
        if self.adamw:
            return torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
        return torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            logits = model(batch[0])
        return F.cross_entropy(logits.flatten(0, -2).float(), batch[1].flatten())


def problems(size: Size, device: torch.device) -> Iterator[Problem]:
    """The three nets."""
    data = load_data(size.data).to(device)
    pairs: Any = {s: data.sample(s, data.size(s)) for s in ("train", "val", "test")}
    images = Splits(**pairs, num_outputs=data.num_classes)

    def net(config: ModelConfig) -> Callable[[], nn.Module]:
        return lambda: build_model(config, data.image_shape, data.num_classes)

    yield Problem("ResNet-18", images, net(size.resnet), False, size.batches[0])
    yield Problem("ViT", images, net(size.vit), True, size.batches[0])
    windows, text = texts(size, device)
    make = lambda: size.gpt.build(text, size.context)  # noqa: E731 - as the other two
    yield Problem("GPT, bf16", windows, make, True, size.batches[1], half=True)


def texts(size: Size, device: torch.device) -> tuple[Splits, int]:
    """Windows of bytes on the device, and how many tokens there are."""
    data = load_text(TextConfig(tokens="bytes", context=size.context, max_bytes=size.max_bytes)).to(device)
    parts: Any = {s: data.windows(s) for s in ("train", "val", "test")}
    return Splits(**parts, num_outputs=data.vocabulary), data.vocabulary


# Cost of a step -------------------------------------------------------------------------------------

METHODS: dict[str, Callable[[Problem, Optimizer, nn.Module], Optimizer]] = {
    "base": lambda problem, base, model: base,
    "SAM": lambda problem, base, model: SAM(base, rho=problem.rho, model=model),
    "LookSAM, k = 5": lambda problem, base, model: LookSAM(base, rho=problem.rho, k=5, model=model),
    "MSAM": lambda problem, base, model: MSAM(base, rho=0.5, model=model),
}
PILOT = "auto_lr"


def waited(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def stepper(problem: Problem, method: str, steps: int) -> Callable[[], None]:
    """A function that makes one step and waits for it."""
    model = problem.fresh(0)
    base = problem.base(model, problem.lrs[0])
    optimizer: Any = base if method == PILOT else METHODS[method](problem, base, model)
    pilot = Pilot(optimizer, model, problem.loss, total_steps=steps) if method == PILOT else None
    batch = next(problem.splits.batches("train", problem.batch_size))
    closure = Closure(optimizer, lambda: problem.loss(model, batch))

    def step() -> None:
        loss = optimizer.step(closure)
        if pilot is not None:
            pilot.after_step(batch, loss)
        waited(problem.device)

    return step


def step_cost(problem: Problem, num_timed: int) -> dict[str, dict[str, float]]:
    """Means, since a method may cost more in some steps only; the steps of all methods take turns."""
    warm = max(2, num_timed // 10)
    sides = {method: timed(stepper(problem, method, num_timed + warm)) for method in (*METHODS, PILOT)}
    times = turns(sides, num_timed + warm, 1)
    means = {method: statistics.fmean(of[warm:]) for method, of in times.items()}
    return {method: {"ms": 1e3 * t, "ratio": t / means["base"]} for method, t in means.items()}


# The largest eigenvalue -----------------------------------------------------------------------------


def largest_eigenvalue(size: Size, device: torch.device) -> dict[str, Any]:
    """Of the large net's Hessian at its initial weights."""
    windows, _ = texts(size, device)
    torch.manual_seed(0)
    model = size.large.build(size.vocabulary, size.context).to(device)
    batch = next(windows.batches("train", size.probed))
    objective = Objective(model, lambda m, b: F.cross_entropy(m(b[0]).flatten(0, 1), b[1].flatten()), [batch])
    started = time.perf_counter()
    with hessian(objective) as H:
        found = lanczos(H, k=1, ends="top", max_matvecs=30)
    waited(device)
    top = found.values[0]
    return {
        "weights": sum(p.numel() for p in model.parameters()), "value": top.value, "residual": top.error,
        "converged": top.converged, "products": found.num_matvecs, "method": str(H.method),
        "seconds": time.perf_counter() - started,
        "peak GiB": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
    }  # fmt: skip


# Runs -----------------------------------------------------------------------------------------------


def train(
    problem: Problem, steps: int, seed: int, lr: float | None, *, sam: bool = False
) -> tuple[nn.Module, float]:
    """A trained net, and the gradient evaluations that it took; without a rate ``auto_lr`` finds one."""
    model, per_step = problem.fresh(seed), problem.batch_size
    base = problem.base(model, lr or 1e-3)
    optimizer: Any = SAM(base, rho=problem.rho, model=model) if sam else base
    pilot, scheduler = None, None
    if lr is None:
        steps = int(steps / (1 + BUDGET))
        size = len(problem.splits.train[1])
        pilot = Pilot(
            optimizer, model, problem.loss, budget=BUDGET, total_steps=steps, seed=seed, dataset_size=size
        )
    else:
        scheduler = LambdaLR(optimizer, lambda step: shape((step + 0.5) / steps))
    epochs = math.ceil(steps * per_step / len(problem.splits.train[1])) + 1
    loader = BatchLoader(problem.splits.train, per_step, epochs=epochs, seed=seed)
    ge = 0.0
    model.train()
    batch: Any
    for batch in itertools.islice(loader, steps):
        loss = optimizer.step(Closure(optimizer, functools.partial(problem.loss, model, batch)))
        ge += len(batch[1]) * float(getattr(optimizer, "last_evaluations", 1))
        if scheduler is not None:
            scheduler.step()
        if pilot is not None:
            pilot.after_step(batch, loss)
    if pilot is not None:
        ge += pilot.budget.probe_ge
        pilot.close()
    return model.eval(), ge


def shape(progress: float) -> float:
    """Warm-up over 5 % of the run, then cosine to 0."""
    if progress < WARMUP:
        return progress / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))


def rates(problem: Problem, steps: int) -> dict[str, dict[str, float]]:
    """Validation loss and accuracy at every rate, and with ``auto_lr``."""
    found = {}
    for lr in (*problem.lrs, None):
        model, ge = train(problem, steps, 0, lr)
        found["auto_lr" if lr is None else f"{lr:g}"] = {**scored(model, validated(problem)), "ge": ge}
    return found


def validated(problem: Problem) -> list[Batch]:
    return list(problem.splits.batches("val", num=2000))


def best_rate(found: dict[str, dict[str, float]]) -> float:
    """The rate of the lowest validation loss."""
    losses = {
        name: row["loss"] for name, row in found.items() if name != "auto_lr" and math.isfinite(row["loss"])
    }
    return float(min(losses, key=losses.__getitem__))


def survival(
    problem: Problem, steps: int, lr: float, seeds: Sequence[int]
) -> dict[str, dict[str, list[float]]]:
    """Test accuracy after every damage to the weights, by row and damage, one number per seed."""
    rows: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        for row, (length, sam) in {"base, twice the steps": (2 * steps, False), "SAM": (steps, True)}.items():
            model, _ = train(problem, length, seed, lr, sam=sam)
            for name, acc in borne(model, tested(problem.splits)):
                rows.setdefault(row, {}).setdefault(name, []).append(acc)
    return rows


def borne(model: nn.Module, batches: list[Batch]) -> Iterator[tuple[str, float]]:
    yield "clean", scored(model, batches)["acc"]
    for name, several in weight_damages(model):
        found = []
        for weights in several:
            with damaged(model, weights):
                found.append(scored(model, batches)["acc"])
        yield name, statistics.fmean(found)


# All of it ------------------------------------------------------------------------------------------


def measure(
    size: Size, device: torch.device, minutes: float, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Every part that is begun within the minutes."""
    end = time.monotonic() + 60 * minutes
    found: dict[str, Any] = {"step cost": {}, "rates": {}, "survival": {}}
    every = list(problems(size, device))

    def part(what: str, make: Callable[..., Any], *given: Any) -> Any:
        if time.monotonic() >= end:
            found.setdefault("not reached", []).append(what)
            return None
        made = make(*given)
        say(f"{what}: {json.dumps(made)}")
        return made

    for problem in every:
        name = problem.title
        found["step cost"][name] = part(f"step cost, {name}", step_cost, problem, size.timed)
    found["largest eigenvalue"] = part("largest eigenvalue", largest_eigenvalue, size, device)
    for problem in every:
        name = problem.title
        found["rates"][name] = part(f"rates, {name}", rates, problem, size.steps)
    for problem in every:
        name, rated = problem.title, found["rates"][problem.title]
        if rated is not None:
            given = (problem, size.steps, best_rate(rated), size.seeds)
            found["survival"][name] = part(f"survival, {name}", survival, *given)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument("--minutes", type=float, default=8.5, help="no part is begun after these")
    parser.add_argument("--download", action="store_true", help="fetch the images where they are not there")
    parser.add_argument(
        "--result", type=Path, help="the file; by default that of benchmarks/results, of the full size"
    )
    arguments = parser.parse_args()
    size = SIZES[arguments.size]
    if arguments.size == "full" and not torch.cuda.is_available():
        parser.error("--size full needs a GPU, and torch sees none; use --size tiny to see that it runs")
    if arguments.download:
        load_data(DataConfig(size.data.name, download=True))
    device = torch.device("cuda" if arguments.size == "full" else "cpu")
    found = measure(size, device, arguments.minutes)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "processor"
    about = {"size": arguments.size, "data": size.data.name, "device": name, "torch": torch.__version__}
    content = {"benchmark": "gpu", **about, **found}
    result = arguments.result or (RESULT if arguments.size == "full" else None)
    if result is not None:
        result.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
