"""What all recipes' configurations share: impossible values are refused, and shapes are known before data are read."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from train.made_once import mnist1d_made_once

from optland.config import ConfigError, load, to_yaml
from optland.optim import ASAM, available
from optland.optim.registry import BASES, SOLVERS
from optland.train import BatchLoader, DataConfig, ModelConfig, OptimizerConfig, PilotConfig, load_data
from optland.train.models.build import check_model
from optland.train.models.registry import MODELS
from optland.train.runs.settings import RunConfig


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"epochs": 0}, "^epochs: 0 must be at least 1"),
        ({"checkpoint_every": 0}, "^checkpoint_every: 0 must be at least 1"),
        ({"checkpoint_seconds": 0.0}, "^checkpoint_seconds: 0.0 s must be above 0, for example 60"),
        ({"threads": 5000}, "^threads: 5000 are too many; use at most 1024"),
        ({"out": " "}, "^out: ' ' names no folder"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RunConfig(**values)


def test_a_rate_that_is_asked_for_where_auto_lr_finds_it_is_refused() -> None:
    given = OptimizerConfig(lr=0.5)
    with pytest.raises(
        ValueError, match=r"^optimizer.lr: 0.5 beside auto_lr, which finds the learning rate.*pilot.tau"
    ):
        RunConfig(optimizer=given)
    assert RunConfig(schedule="cosine").optimizer.lr == 0.1
    for pilot in (PilotConfig(mode="off"), PilotConfig(mode="shadow"), PilotConfig(policies=["noise_batch"])):
        assert RunConfig(pilot=pilot, optimizer=given).optimizer.lr == 0.5


def test_one_rule_for_a_rate_in_a_file_and_on_the_command_line(tmp_path: Path) -> None:
    """Refused in both places with the place named; what is printed of a run without one is a config again."""
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 2\noptimizer:\n  lr: 0.5\n")
    with pytest.raises(ConfigError, match=r"mine.yaml, line 3: optimizer.lr: 0.5 beside auto_lr"):
        load(RunConfig, file)
    assert load(RunConfig, file, ["pilot.mode=off"]).optimizer.lr == 0.5
    file.write_text("epochs: 2\n")
    with pytest.raises(ConfigError, match=r"^override 'optimizer.lr=0.5': optimizer.lr: 0.5 beside auto_lr"):
        load(RunConfig, file, ["optimizer.lr=0.5"])
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(to_yaml(load(RunConfig, file)))
    assert load(RunConfig, resolved) == load(RunConfig, file)


@pytest.mark.parametrize("name", available())
def test_an_optimizer_that_its_constructor_refuses_is_no_configuration(name: str) -> None:
    """Every name over every base, with and without momentum: refused by name when it is read, or it can be built."""
    refusals, taken = [], 0
    for base, momentum in itertools.product(BASES, (0.0, 0.9)):
        try:
            config = OptimizerConfig(name=name, base=base, momentum=momentum)
        except ValueError as error:
            refusals.append(str(error))
        else:
            config.build(torch.nn.Linear(2, 2))
            taken += 1
    assert all(refusal.startswith(f"name: {name!r}") for refusal in refusals)
    assert (taken == 0) == (name in SOLVERS or name == "eigensam")  # what a configuration cannot hold


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"name": "adam_sam"},
            "name: 'adam_sam' over base: 'sgd' .* use for example torch.optim.AdamW, or SAM",
        ),
        ({"name": "adam_sam", "base": "rmsprop"}, "name: 'adam_sam' over base: 'rmsprop' .* second moment"),
        ({"name": "msam", "momentum": 0.0}, "name: 'msam' over base: 'sgd' .* momentum"),
        ({"name": "eigensam"}, "name: 'eigensam' .* needs objective=; give it to optland.optim.create"),
        ({"name": "cubic_newton"}, "name: 'cubic_newton' makes its steps without a base"),
        ({"name": "adamw", "options": {"eps": -1.0}}, r"options: \{'eps': -1.0\} of 'adamw' cannot be used"),
    ],
)
def test_the_refusal_names_the_pair_and_what_works(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{says}"):
        OptimizerConfig(**values)


def test_a_schedule_is_free_where_auto_lr_does_not_act() -> None:
    assert RunConfig(schedule="cosine", pilot=PilotConfig(mode="shadow")).checkpoint_every is None


@pytest.mark.parametrize(
    "config",
    [
        DataConfig("digits"),
        DataConfig("mnist1d"),
        DataConfig("teacher", num_samples=40),
        DataConfig("teacher", num_samples=40, image_size=5),
        DataConfig("fake", num_samples=40),
    ],
    ids=lambda config: f"{config.name}-{config.image_size}",
)
def test_the_shape_that_is_said_is_the_one_that_is_read(config: DataConfig) -> None:
    with mnist1d_made_once():
        assert load_data(config).image_shape == config.image_shape


@pytest.mark.parametrize("name", ["vit", "mlp", "cnn", "resnet8"])
@pytest.mark.parametrize("shape", [(1, 1, 40), (3, 2, 2), (1, 9, 9), (3, 16, 16)])
def test_what_is_not_refused_ahead_can_be_built_and_used(name: str, shape: tuple[int, int, int]) -> None:
    config = ModelConfig(name=name)
    try:
        check_model(config, shape)
    except ValueError:
        assert min(side for side in shape[1:] if side > 1) < 10  # nothing of a usual size is refused
        return
    out = MODELS[name].make(shape, 10, config.plan()).eval()(torch.zeros(1, *shape))
    assert out.shape == (1, 10)


def test_any_option_of_the_method_and_of_its_base_is_taken_by_name() -> None:
    options = {"eta": 0.0, "nesterov": True}
    config = OptimizerConfig(name="asam", lr=0.3, rho=0.7, options=options)
    model = torch.nn.Linear(2, 1)
    optimizer = config.build(model)
    assert isinstance(optimizer, ASAM)
    assert optimizer.model is model
    group = optimizer.param_groups[0]
    assert [group[k] for k in ("lr", "sam_rho", "sam_eta", "nesterov", "momentum")] == [
        0.3,
        0.7,
        0.0,
        True,
        0.9,
    ]
    alone = config.alone().build(model)
    assert type(alone) is torch.optim.SGD
    assert alone.param_groups[0]["nesterov"]
    assert alone.param_groups[0]["lr"] == 0.3


def test_without_a_radius_a_method_takes_its_own() -> None:
    rhos = {
        name: OptimizerConfig(name).build(torch.nn.Linear(2, 1)).param_groups[0]["sam_rho"]
        for name in ("sam", "asam")
    }
    assert rhos == {"sam": 0.05, "asam": 0.5}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"options": {"etta": 0.5}},
            r"^options: 'asam' over 'sgd' has no option 'etta' \(given: 0.5\).*Did you mean 'eta'",
        ),
        ({"options": {"eta": -1}}, "^options: .*eta=-1.0 is not possible; use a finite value >= 0"),
        ({"options": {"eta": "wide"}}, "^options: .*'wide'"),
        ({"options": {"rho": 0.5}}, "^options: rho is a key of this section; write rho: 0.5 outside"),
        ({"options": {"model": 1}}, "^options: .* has no option 'model'"),
        (
            {"momentum": 0.0, "options": {"nesterov": True}},
            "^options: .*Nesterov momentum requires a momentum",
        ),
    ],
)
def test_an_option_that_cannot_be_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        OptimizerConfig(**{"name": "asam", **values})


def test_a_gate_that_counts_from_the_end_takes_the_length_of_the_run() -> None:
    config = OptimizerConfig("sam", options={"gate": "tail(share=0.25)"})
    loader = BatchLoader([torch.zeros(10, 1)], 4, epochs=4, seed=0)
    assert loader.total_steps == len(list(loader)) == 12
    optimizer: Any = config.build(torch.nn.Linear(1, 1), loader.total_steps)
    assert repr(optimizer.gate) == "Tail(total_steps=12, share=0.25)"
    said: Any = OptimizerConfig("sam", options={"gate": "tail(1000)"}).build(torch.nn.Linear(1, 1), 12)
    assert said.gate.total_steps == 1000
    with pytest.raises(ValueError, match="total_steps"):
        config.build(torch.nn.Linear(1, 1))
