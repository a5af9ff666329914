"""Train two nets of the same architecture, and measure whether they lie in one valley.

Two seeds are trained with no learning rate to choose. Then: the straight line between them, a curve trained to stay
low, and the line again after the units of the second net were renumbered to match the first's.

    optland run connect_minima configs/connect_minima/digits.yaml
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.cli import run_script
from optland.landscape import CurveConfig, align, connect, linear_path
from optland.objective import Objective
from optland.pilot import Pilot
from optland.plots import plot
from optland.train import (
    BatchLoader,
    DataConfig,
    ImageData,
    ModelConfig,
    RunConfig,
    RunFolder,
    build_model,
    check_model,
    choose_device,
    evaluate,
    load_data,
    seed_everything,
)


@dataclass(frozen=True)
class Config(RunConfig):
    """Two nets and a curve: every key of RunConfig, and these.

    Attributes:
        other_seed: Seed of the second net; the first has ``seed``.
        shared_epochs: Epochs that both train alike before their batches differ; 0 shares the start alone, null nothing.
        data: Images and labels.
        model: The classifier.
        curve: The curve.
    """

    epochs: int = 15
    can_grow = False  # its nets are trained one after another
    other_seed: int = 1
    shared_epochs: int | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    curve: CurveConfig = field(default_factory=CurveConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.other_seed == self.seed:
            raise ValueError(f"other_seed: {self.other_seed} is the first net's seed too; take another one")
        if self.shared_epochs is not None and not 0 <= self.shared_epochs < self.epochs:
            raise ValueError(
                f"shared_epochs: {self.shared_epochs} must be null or from 0 to {self.epochs - 1}"
            )
        check_model(self.model, self.data.image_shape)


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of a batch."""
    x, y = batch
    return F.cross_entropy(model(x), y)


def trained(config: Config, data: ImageData, seed: int, run: RunFolder) -> nn.Module:
    """One net; a run that was stopped finds the finished ones in its checkpoint."""
    shared = config.shared_epochs
    start = seed if shared is None else config.seed
    seed_everything(start)
    model = build_model(config.model, data.image_shape, data.num_classes).to(data.train_x.device)
    nets: dict[Any, Any] = run.saved()
    if seed in nets:
        model.load_state_dict(nets[seed])
        return model
    images = [data.normalise(data.train_x), data.train_y]
    loader = BatchLoader(
        images, config.batch_size, epochs=config.epochs, seed=config.seed if shared else seed
    )
    net = config.precision.prepare(model)
    optimizer: Any = config.optimizer.build(net, loader.total_steps)
    precision = config.precision.build(optimizer, data.train_x.device)
    pilot = Pilot(
        optimizer, net, loss_fn, policies=config.pilot.build_policies(), mode=config.pilot.mode,
        budget=config.pilot.budget, seed=start,
    )  # fmt: skip
    for batch in pilot.batches(loader):

        def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
            optimizer.zero_grad()
            return precision.backward(loss_fn, net, batch, loader.weight)

        pilot.after_step(batch, precision.step(closure))
        if loader.epoch == shared:
            loader.seed = seed  # from here on the batches differ
    model.zero_grad(set_to_none=True)
    run.save(nets | {seed: model.state_dict()})
    return model


def main(config: Config, *, resume: bool = False) -> int:
    """Train both nets, look between them, draw and summarise."""
    torch.set_num_threads(config.threads)
    data = load_data(config.data).to(choose_device(config.device))
    run = RunFolder(config.out, config, config.log, recipe=__file__, length=3, resume=resume)
    if run.finished:
        print(f"the run in {run.path} is finished; start a new one without --resume")
        return 0
    with run:
        first, second = (trained(config, data, seed, run) for seed in (config.seed, config.other_seed))
        run.go_on_alone()
        images, size = data.normalise(data.train_x), config.batch_size
        batches = [
            (images[i : i + size], data.train_y[i : i + size]) for i in range(0, min(len(images), 2000), size)
        ]
        objective = Objective(first, loss_fn, batches, data="training", seed=config.seed)
        found = connect(objective, second, **asdict(config.curve), seed=config.seed)
        aligned = linear_path(
            objective, align(first, second, images[:1]).state, threshold=config.curve.threshold
        )
        print(f"{found}\nafter alignment, {aligned}")
        curve = found.curve or found.linear
        summary = {f"test/acc_{i}": evaluate(m, data.test_x, data.test_y, normalise=data.normalise)["acc"]
                   for i, m in enumerate((first, second))}  # fmt: skip
        run.finish(summary | {"landscape/barrier": found.linear.above, "landscape/barrier_curve": curve.above,
                              "landscape/barrier_aligned": aligned.above,
                              "landscape/connected": float(found.connected)})  # fmt: skip
        for name, result in {"connection": found, "aligned": aligned}.items():
            with run.attempt(f"{name}.npz") as file:
                result.save(file)
            with run.attempt(f"{name}.png") as picture:
                plot(result, picture)
                run.log.image(f"landscape/{name}", picture)
    print(run.where())
    return run.exit_code


if __name__ == "__main__":
    raise SystemExit(run_script(__file__))
