"""Train for what comes after training: three ways to end a run, and the one whose net bears rounding (or noise) best.

One run at a constant rate is ended three times from the same weights: the rate straight to 0, to a tenth, and to 0 with
SAM in every step. The net whose validation loss is lowest *after* the damage is taken and exported. Beside it stands
one plain run of as many gradient evaluations as all of these together.

    optland run release configs/release/digits.yaml
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.cli import run_script
from optland.landscape import DamageSpec, damaged
from optland.optim import SAM
from optland.train import (
    BatchLoader,
    DataConfig,
    ImageData,
    ModelConfig,
    RunFolder,
    build_model,
    check_model,
    choose_device,
    load_data,
    save_weights,
    seed_everything,
)
from optland.train.experiments.ends import EndedRunConfig, choose, end_of

BASE = "one long run"
ENDS = {
    "to zero": (0.0, False),
    "to a tenth": (0.1, False),
    "to zero with SAM": (0.0, True),
    BASE: (0.0, False),
}
"""By name: where the rate ends, as a share of its peak, and whether the decay takes SAM steps."""


@dataclass(frozen=True)
class Config(EndedRunConfig):
    """One release: every key of EndedRunConfig, and these.

    Attributes:
        data: Images and labels.
        model: The classifier.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_model(self.model, self.data.image_shape)


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of a batch."""
    return F.cross_entropy(model(batch[0]), batch[1])


def build(config: Config, device: str) -> tuple[nn.Module, ImageData]:
    """The model, freshly initialised, and its data: for ``train``, and for ``optland probe`` after it."""
    data = load_data(config.data).to(device)
    return build_model(config.model, data.image_shape, data.num_classes).to(device), data


def train(
    config: Config, run: RunFolder, nth: int, total: int, until: int, start: Any, end: float, rho: float
) -> Any:
    """Steps of the nth course, of ``total``, up to this one: a warm-up, the peak, in the decay straight to ``end``."""
    seed_everything(config.seed)
    model, data = build(config, choose_device(config.device))
    base = config.optimizer.build(net := config.precision.prepare(model))
    epochs = math.ceil(total / math.ceil(len(data.train_y) / config.batch_size))
    loader = BatchLoader([data.train_x, data.train_y], config.batch_size, epochs=epochs, seed=config.seed,
                         transform=data.transform)  # fmt: skip
    parts: dict[str, Any] = {"model": model, "optimizer": base, "loader": loader}
    for name, part in parts.items() if start else ():
        part.load_state_dict(start[name])
    step = start.get("step", 0)
    optimizer: Any = SAM(base, rho=rho, model=net) if rho else base
    for batch in loader:
        late = max(0.0, step / total - 1 + config.decay) / config.decay
        lr = config.optimizer.lr * min(1.0, (step + 1) / (0.05 * total)) * (1 - (1 - end) * late)
        for group in optimizer.param_groups:
            group["lr"] = lr

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            loss = loss_fn(net, batch)
            (loss * loader.weight).backward()
            return loss

        loss, step = optimizer.step(closure), step + 1
        if step % config.log.every == 0:
            run.log.log({"step": nth * total + step, "train/loss": float(loss.detach()), "lr/applied": lr})
        if step >= until:
            break
    return {name: part.state_dict() for name, part in parts.items()} | {"step": step}


def main(config: Config, *, resume: bool = False) -> int:
    """Train to the decay, end three times and once long, measure, choose, export."""
    torch.set_num_threads(config.threads)
    spec = DamageSpec.parse(config.damage)
    model, data = build(config, choose_device(config.device))
    steps = config.epochs * math.ceil(len(data.train_y) / config.batch_size)
    stem, long = round(steps * (1 - config.decay)), round(steps * (1 + 3 * config.decay))  # two passes of SAM
    run = RunFolder(config.out, config, config.log, recipe=__file__, length=steps + long, resume=resume)
    if run.finished:
        print(f"the run in {run.path} is finished; start a new one without --resume")
        return 0
    with run:
        nets: dict[str, Any] = run.saved()
        if "stem" not in nets:
            nets["stem"] = train(config, run, 0, steps, stem, {}, 1.0, 0.0)
        ends = {}
        for nth, (name, (end, sam)) in enumerate(ENDS.items(), start=1):
            if name not in nets:
                length, start = (long, {}) if name == BASE else (steps, nets["stem"])
                nets[name] = train(config, run, nth, length, length, start, end, config.rho if sam else 0.0)
                run.save(nets)
            model.load_state_dict(nets[name]["model"])
            ends[name] = end_of(name, model, loss_fn, data, spec)
            print(f"{name}: {ends[name].told}")
        best, verdict = choose([end for name, end in ends.items() if name != BASE])
        gain, error = best.beats(ends[BASE])
        verdict += f"; {abs(gain):.3g} ± {error:.2g} {'below' if gain > 0 else 'above'} {BASE} on test data"
        figures = {f"release/{key}": value for end in ends.values() for key, value in end.row().items()}
        found = {"release/taken": best.name, "release/gain": gain, "release/error": error}
        run.finish({**figures, **found, "summary/verdict": verdict})
        model.load_state_dict(nets[best.name]["model"])
        weights = {} if spec.kind == "noise" else spec.weights(model)[0]
        with run.attempt("released.safetensors") as file, damaged(model, weights):
            save_weights(file, model, {"damage": str(spec), "end": best.name, **data.inputs})
    print(run.where())
    return run.exit_code


if __name__ == "__main__":
    raise SystemExit(run_script(__file__))
