"""SAM against its base on a GPU, and a scaler's step against single precision: medians of interleaved steps.

python benchmarks/cuda_cost.py            # needs a GPU; writes benchmarks/results/cuda_cost.json
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import torch
from step_loop import Closure, timed, turns
from torch import nn
from torch.nn import functional as F

from optland.optim import MSAM, SAM, LookSAM
from optland.train import ModelConfig, TransformerConfig, build_model

RESULT = Path(__file__).resolve().parent / "results" / "cuda_cost.json"
REPEATS = 60


def nets() -> dict[str, tuple[Any, Any]]:
    """By name: how to make the net, and a batch for it."""
    images = (torch.randn(256, 3, 32, 32).cuda(), torch.randint(0, 10, (256,)).cuda())
    tokens = (torch.randint(0, 256, (32, 128)).cuda(), torch.randint(0, 256, (32, 128)).cuda())
    gpt = TransformerConfig(width=256, depth=4, heads=8)
    return {
        "ResNet-20, 256 images": (
            lambda: build_model(ModelConfig(name="resnet", depth=20), (3, 32, 32), 10),
            images,
        ),
        "4-layer GPT, 32 x 128 tokens": (lambda: gpt.build(256, 128), tokens),
    }


METHODS: dict[str, Any] = {
    "base": lambda base, model: base,
    "SAM": lambda base, model: SAM(base, rho=0.05, model=model),
    "LookSAM, k = 5": lambda base, model: LookSAM(base, rho=0.05, k=5, model=model),
    "MSAM": lambda base, model: MSAM(base, rho=0.5, model=model),
}


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    out = model(batch[0])
    return F.cross_entropy(out.flatten(0, -2), batch[1].flatten())


def stepper(make: Any, batch: Any, method: Any) -> Any:
    """Seconds per step, the wait for it included, over and over."""
    torch.manual_seed(0)
    model = make().cuda()
    optimizer = method(torch.optim.SGD(model.parameters(), 0.01, momentum=0.9), model)
    closure = Closure(optimizer, lambda: loss_of(model, batch))

    def step() -> None:
        optimizer.step(closure)
        torch.cuda.synchronize()

    return timed(step)


def main() -> int:
    table: dict[str, dict[str, Any]] = {}
    for name, (make, batch) in nets().items():
        sides = {method: stepper(make, batch, build) for method, build in METHODS.items()}
        turns(sides, 10, 1)
        times = turns(sides, REPEATS, 1)
        # A method may cost more every k-th step only: means over whole periods.
        base = statistics.fmean(times["base"])
        table[name] = {
            m: {"ms": 1e3 * statistics.fmean(t), "ratio": statistics.fmean(t) / base}
            for m, t in times.items()
        }
        for method, row in table[name].items():
            print(f"{name:<30} {method:<20} {row['ms']:8.2f} ms  {row['ratio']:.2f}x")
    device = torch.cuda.get_device_name()
    content = {"benchmark": "cuda_cost", "device": device, "torch": torch.__version__, "table": table}
    RESULT.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
