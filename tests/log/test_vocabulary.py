"""A run writes the keys that the vocabulary names, the same ones to the record and to wandb."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted import Asks
from torch import Tensor, nn
from torch.nn import functional as F

from optland.log import JsonlLogger, read_jsonl
from optland.log.meanings import GROUPS, VOCABULARY
from optland.log.vocabulary import is_chart, key_of
from optland.optim import SAM
from optland.pilot import NoiseBatch, Pilot, Plateau
from optland.train import BatchLoader

# What every run under SAM, auto_lr and noise_batch must show, and what it shows where the probe is asked for.
PANELS = {
    "lr/user", "lr/applied", "lr/binding", "ctl/pace",
    "noise/coherence", "noise/b_simple", "noise/b_current", "noise/trace_cov", "noise/grad_sq", "noise/resolved",
    "noise/efficiency",
    "train/loss", "train/loss_ema",
    "update/rel", "update/grad_norm", "sam/rho", "sam/rho_realised", "sam/loss_gap", "sam/curvature", "sam/stability",
    "budget/ge", "budget/probe_frac", "budget/allowed", "budget/probe_ms", "probe/age_noise",
}  # fmt: skip
ASKED_FOR = {
    "edge/ratio", "edge/eta_c", "edge/lambda_c", "edge/resolved", "edge/not_descent",
    "curv/lambda_max", "curv/lambda_min", "curv/ncr", "curv/eta_lambda", "curv/products",
    "probe/age_edge", "probe/age_curvature",
}  # fmt: skip
EVALUATED = {"val/loss", "val/acc", "test/loss", "test/acc"}
AXES = {"step", "samples", "epoch", "kind"}
INDIRECT = {"curv/<end>_converged", "ctl/events_text"}
"""Keys that are put together from others."""


def check_named(keys: Iterable[str]) -> None:
    for key in set(keys) - AXES:
        assert key_of(key) is not None, f"{key} is not in the vocabulary"


def test_every_key_is_in_a_group_and_the_groups_keep_their_order() -> None:
    groups = [key.name.partition("/")[0] for key in VOCABULARY]
    assert set(groups) == set(GROUPS)
    assert len({key.name for key in VOCABULARY}) == len(VOCABULARY)


def test_every_key_is_written_somewhere() -> None:
    """What no line of the package or of a recipe writes has no place in the vocabulary."""
    root = Path(__file__).resolve().parents[2]
    files = [file for folder in ("optland", "recipes") for file in (root / folder).rglob("*.py")]
    text = "\n".join(file.read_text() for file in files if file.name != "meanings.py")
    by_split = {
        f"{split}/{name}" for split in ("val", "test") for name in ("loss", "acc", "bpc", "perplexity")
    }
    for key in VOCABULARY:
        written = key.name.partition("<")[0]
        assert key.name in by_split or f'"{written}' in text or key.name in INDIRECT, key.name
    for name in INDIRECT:
        assert key_of(name) is not None


def test_few_keys_have_a_chart() -> None:
    """Of what a run of everything writes; 56 charts in alphabetical order showed nobody anything."""
    drawn = {key for key in PANELS | ASKED_FOR | EVALUATED if is_chart(key)}
    assert {"val/acc", "val/loss", "test/acc", "train/loss", "lr/applied", "edge/ratio"} <= drawn
    assert len(drawn) <= 16


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def written(path: Path, policies: list[Any], **options: Any) -> set[str]:
    """The keys of a small run under SAM."""
    torch.manual_seed(0)
    x = torch.randn(512, 6)
    y = (x[:, 0] + 0.5 * torch.randn(512) > 0).long()
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05, model=model)
    loader = BatchLoader([x, y], 32, epochs=4, seed=0)
    log = JsonlLogger(path)
    pilot = Pilot(optimizer, model, loss_fn, policies=policies, budget=1.0, log=log, **options)
    for batch in pilot.batches(loader):

        def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            return loss

        pilot.after_step(batch, optimizer.step(closure))
    return set().union(*read_jsonl(log.path, kind="row"))


@pytest.mark.parametrize("mode", ["control", "shadow"])
def test_a_pilot_writes_what_the_vocabulary_names(tmp_path: Path, mode: str) -> None:
    policies = ["auto_lr", "noise_batch", "noise_monitor", "edge_monitor", "curvature_monitor"]
    keys = written(tmp_path / "log.jsonl", policies, mode=mode)
    assert keys >= PANELS | ASKED_FOR | {"edge/ratio_ema"}
    assert ("ctl/lr_would_be" in keys) == (mode == "shadow")
    check_named(keys)


@pytest.mark.parametrize("mode", ["control", "shadow"])
def test_so_does_one_with_the_other_policies(tmp_path: Path, mode: str) -> None:
    others = [Plateau(window=16), "safe_lr", "spike_guard", NoiseBatch(scale="curvature", scale_lr=False)]
    keys = written(tmp_path / "log.jsonl", others, mode=mode)
    assert keys >= {"lr/ceiling", "test/slope", "noise/b_curvature"}
    factor = {"control": "ctl/lr_factor", "shadow": "ctl/lr_factor_would_be"}
    once = Asks({1: [("lr_factor", 0.5)]})
    keys |= written(tmp_path / "other.jsonl", [once], mode=mode, total_steps=64)
    assert keys & set(factor.values()) == {factor[mode]}
    check_named(keys)


@pytest.mark.slow
def test_a_run_writes_the_same_keys_to_the_record_and_to_wandb(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "optland.cli", "run", "landscape_train", "smoke", f"out={tmp_path / 'run'}"]
    subprocess.run(run, check=True, capture_output=True, timeout=240)
    rows = read_jsonl(tmp_path / "run" / "log.jsonl", kind="row")
    keys = set().union(*rows)
    assert keys >= PANELS | EVALUATED
    check_named(keys)
    (summary,) = read_jsonl(tmp_path / "run" / "log.jsonl", kind="summary")
    check_named(set(summary) - {"exit_code", "epoch best by validation"})

    (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    leet = [
        str(Path(sys.executable).with_name("wandb")),
        "leet",
        "inspect",
        "--json",
        "--summary",
        str(folder),
    ]
    shown = json.loads(subprocess.run(leet, check=True, capture_output=True, text=True).stdout)["summary"]
    assert set(shown) >= keys - {"kind"}
    for key in ("train/loss", "val/acc", "lr/applied", "edge/ratio"):
        assert shown[key] == [row[key] for row in rows if key in row][-1]
