"""Train a classifier, or several that differ in skips and normalisation, and look at the landscape around each.

The first net's weights are kept now and then to draw its path; a second seed shows whether both lie in one valley.

    optland run landscape_report configs/landscape_report/digits.yaml
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.cli import run_script
from optland.pilot import Pilot
from optland.report import SurveySettings, investigate, log_report, write_report
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
    probe_objective,
    seed_everything,
)

CHANGES: dict[str, dict[str, Any]] = {
    "as given": {}, "no skips": {"skips": False}, "no norm": {"norm": "none"},
    "no skips, no norm": {"skips": False, "norm": "none"}}  # fmt: skip


@dataclass(frozen=True)
class Config(RunConfig):
    """One report: every key of RunConfig, and these.

    Attributes:
        data: Images and labels.
        model: The classifier.
        variants: What of it to train, of CHANGES.
        other_seed: Seed of one more net, for the paths between two minima; null for none.
        snapshots: Checkpoints of the first net for its path; 0 for none.
        samples: Training samples that the report is measured on.
        survey: How much to look at.
    """

    epochs: int = 15
    can_grow = False  # its nets are trained one after another
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    variants: tuple[Literal["as given", "no skips", "no norm", "no skips, no norm"], ...] = ("as given",)
    other_seed: int | None = None
    snapshots: int = 12
    samples: int = 512
    survey: SurveySettings = field(default_factory=SurveySettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.variants or self.snapshots in (1, 2) or self.samples < 4 or self.other_seed == self.seed:
            raise ValueError(
                f"variants: {self.variants} must not be empty, snapshots: {self.snapshots} be 0 or above 2, samples: "
                f"{self.samples} be above 3, other_seed: {self.other_seed} not be the seed")  # fmt: skip
        for name in self.variants:
            check_model(replace(self.model, **CHANGES[name]), self.data.image_shape)


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of a batch."""
    return F.cross_entropy(model(batch[0]), batch[1])


def trained(
    config: Config, data: ImageData, which: ModelConfig, seed: int, name: str, run: RunFolder
) -> tuple[nn.Module, dict[str, Any], float]:
    """A net, its path and its median rate; a run that was stopped finds those that are done in its checkpoint."""
    seed_everything(seed)
    model = build_model(which, data.image_shape, data.num_classes).to(data.train_x.device)
    if name in (done := run.saved()):
        model.load_state_dict(done[name]["model"])
        return model, done[name]["path"], done[name]["rate"]
    images = [data.normalise(data.train_x), data.train_y]
    loader = BatchLoader(images, config.batch_size, epochs=config.epochs, seed=seed)
    net = config.precision.prepare(model)
    optimizer: Any = config.optimizer.build(net, loader.total_steps)
    precision = config.precision.build(optimizer, data.train_x.device)
    pilot = Pilot(
        optimizer, net, loss_fn, policies=config.pilot.build_policies(), mode=config.pilot.mode,
        budget=config.pilot.budget, seed=seed,
    )  # fmt: skip
    every, path, rates = max(1, loader.total_steps // max(1, config.snapshots)), {}, []
    for batch in pilot.batches(loader):
        if config.snapshots and pilot.step % every == 0:
            path[f"step {pilot.step}"] = [p.detach().clone() for p in model.parameters()]

        def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
            optimizer.zero_grad()
            return precision.backward(loss_fn, net, batch, loader.weight)

        pilot.after_step(batch, precision.step(closure))
        rates.append(pilot.host.read("lr_applied") or optimizer.param_groups[0]["lr"])
    path["end"] = [p.detach().clone() for p in model.parameters()]
    rate = sorted(rates)[len(rates) // 2]
    run.save(done | {name: {"model": model.state_dict(), "path": path, "rate": rate}})
    return model, path, rate


def main(config: Config, *, resume: bool = False) -> int:
    """Train, look, and write the report."""
    torch.set_num_threads(config.threads)
    data = load_data(config.data).to(choose_device(config.device))
    plan = {str(n): (replace(config.model, **CHANGES[n]), config.seed) for n in config.variants}
    if config.other_seed is not None:
        plan[f"seed {config.other_seed}"] = (plan[config.variants[0]][0], config.other_seed)
    run = RunFolder(config.out, config, config.log, recipe=__file__, length=len(plan), resume=resume)
    if run.finished:
        print(f"the run in {run.path} is finished; start a new one without --resume")
        return 0
    with run:
        nets = {name: trained(config, data, *one, name, run) for name, one in plan.items()}
        run.go_on_alone()
        look = {"num_samples": config.samples, "seed": config.seed, "batch_size": config.batch_size}
        losses, tests = ({n: probe_objective(net, loss_fn, data, split_name=split, **look)
                          for n, (net, *_) in nets.items()} for split in ("train", "test"))  # fmt: skip
        first, last, test = config.variants[0], list(plan)[-1], (data.normalise(data.test_x), data.test_y)
        findings = investigate(
            f"Loss landscape: {config.model.name} on {config.data.name}", losses, config.survey, tests=tests,
            is_sample=True, pairs=[] if config.other_seed is None else [(first, last)],
            path=nets[first][1] if config.snapshots else None, partial=run.path / "measured", watch=print,
            results={n: {"test accuracy": f"{evaluate(net, *test)['acc']:.4g} %",
                         **replace(config, seed=plan[n][1], other_seed=None).in_words(rate)}
                     for n, (net, _, rate) in nets.items()},
        )  # fmt: skip
        run.finish({"curv/lambda_max": findings.surveys[0].portrait.spectrum.top.value})
        with run.attempt("report.html"):
            write_report(findings, run.path)
            log_report(findings, run.path, run.log)
    print(run.where())
    return run.exit_code


if __name__ == "__main__":
    raise SystemExit(run_script(__file__))
