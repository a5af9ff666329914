"""Fine-tune a net on a second task and see what is left of the first: replay, SAM, a penalty, a budget, interpolation.

The start is a file of weights, or a net that is trained here first. Weights between start and end are evaluated too,
and the share that is best for both tasks on validation data is given away.

    optland run finetune configs/finetune/digits.yaml
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland import batches
from optland.cli import run_script
from optland.objective import Objective
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
from optland.train.experiments.bank_run import Splits
from optland.train.experiments.finetuning import SHARES, FinetuneConfig, between, tasks, together
from optland.train.experiments.keep_old import KeepOld
from optland.train.models.low_rank import narrow
from optland.train.runs.trained_run import find_checkpoint, load_run


@dataclass(frozen=True)
class Config(FinetuneConfig):
    """One fine-tuning: every key of FinetuneConfig, and these.

    Attributes:
        data: Images and labels, of which both tasks are made.
        model: The classifier.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_model(self.model, self.data.image_shape)


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of a batch, of tokens where the outputs are."""
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def build(config: Config, device: str) -> tuple[nn.Module, ImageData]:
    """The model, freshly initialised, and its data: for ``main``, and for ``optland probe`` after it."""
    data = load_data(config.data).to(device)
    return build_model(config.model, data.image_shape, data.num_classes).to(device), data


def train(config: Config, model: nn.Module, new: Splits, old: Splits | None, run: RunFolder | None) -> int:
    """Fine-tune on ``new``; without an old task, train on it from scratch. Returns the gradient evaluations."""
    way, epochs = (config.way, config.epochs) if old else ("plain", config.start_epochs)
    loader = BatchLoader(new.train, config.batch_size, epochs=(epochs + 1) // 2 if way == "sam" else epochs,
                         seed=config.seed)  # fmt: skip
    base: Any = config.optimizer.build(net := config.precision.prepare(model))
    optimizer = SAM(base, rho=config.amount, model=net) if way == "sam" else base
    lr, total = config.optimizer.lr if old else config.start_lr, loader.total_steps
    moving = [p for p in model.parameters() if p.requires_grad]
    start, keep = [p.detach().clone() for p in moving], None
    generator = torch.Generator().manual_seed(config.seed)
    kept = x, y = batches.take((old or new).train, config.num_kept)
    replayed = config.replayed if way == "replay" else 0
    if way == "keep_old":
        keep = KeepOld(Objective(model, loss_fn, [kept], data="kept"), total, budget=config.amount)
    model.train()
    for step, batch in enumerate(loader, start=1):
        drawn = torch.randint(len(y), (replayed,), generator=generator).to(y.device)
        for group in base.param_groups:
            group["lr"] = lr * (1 - (step - 1) / total) * (keep.factor if keep else 1.0)

        def closure(batch: Any = batch, drawn: Tensor = drawn) -> Tensor:
            optimizer.zero_grad()
            loss = loss_fn(net, batch) * loader.weight
            if replayed:
                share = replayed / (config.batch_size + replayed)
                loss = (1 - share) * loss + share * loss_fn(net, (x[drawn], y[drawn]))
            if way == "l2":
                squares = [((p - q) ** 2).sum() for p, q in zip(moving, start, strict=True)]
                loss = loss + 0.5 * config.amount * torch.stack(squares).sum()
            loss.backward()
            return loss

        loss = keep.step(optimizer, closure) if keep else optimizer.step(closure)
        if run and step % config.log.every == 0:
            run.log.log({"step": step, "train/loss": float(loss.detach()), "lr/applied": group["lr"]})
    cost = loader.samples_served * (2 if way == "sam" else 1) + step * replayed
    return round(cost + (keep.objective.cost_ge if keep else 0.0))


def main(config: Config, *, resume: bool = False) -> int:
    """Train or load the start, fine-tune, evaluate between start and end, give away."""
    torch.set_num_threads(config.threads)
    seed_everything(config.seed)
    model, data = build(config, choose_device(config.device))
    pairs: Any = {s: data.sample(s, data.size(s)) for s in ("train", "val", "test")}
    old, new = tasks(Splits(**pairs, num_outputs=data.num_classes), config.task)
    length = config.epochs * len(new.train[1])
    run = RunFolder(config.out, config, config.log, recipe=__file__, length=length, resume=resume)
    if run.finished:
        print(f"the run in {run.path} is finished; start a new one without --resume")
        return 0
    with run:
        if saved := run.saved():
            model.load_state_dict(saved["start"])
        elif config.start:
            model = load_run(find_checkpoint(Path(config.start)), model).evaluated
        else:
            train(config, model, old, None, None)
        run.save({"start": model.state_dict()})
        start = copy.deepcopy(narrow(model, config.scope, config.rank).state_dict())
        before = together(model, old, new)
        cost = train(config, model, new, old, run)
        end = copy.deepcopy(model.state_dict())
        found = {share: together(between(model, start, end, share), old, new) for share in SHARES}
        best = max(SHARES, key=lambda share: found[share]["val/old_acc"] + found[share]["val/new_acc"])
        names = [f"test/{task}_{what}" for what in ("acc", "loss") for task in ("old", "new")]
        rows = {"start": before, "end": found[1.0], "taken": found[best]}
        summary = {f"{row}: {name}": figures[name] for row, figures in rows.items() for name in names}
        run.finish({**summary, "finetune/share": best, "finetune/ge": cost})
        between(model, start, end, best)
        with run.attempt("finetuned.safetensors") as file:
            save_weights(file, model, {"way": config.way, "share": str(best), **data.inputs})
    print(run.where())
    return run.exit_code


if __name__ == "__main__":
    raise SystemExit(run_script(__file__))
