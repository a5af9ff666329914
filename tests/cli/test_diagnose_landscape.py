"""``optland diagnose --landscape`` on a real run, against its dense Hessian; sharpness and error over several runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from optland import cli
from optland.cli.opened import OpenedRun
from optland.log import JsonlLogger

SMALL = ["log.wandb=disabled", "log.console=false", "model.name=mlp", "model.width=6", "model.depth=1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("landscape") / "run"
    assert cli.main(["run", "landscape_train", "smoke", f"out={out}", *SMALL]) == 0
    return out


def dense_ends(run: Path, samples: int) -> tuple[float, float]:
    """The ends of the spectrum of the mean cross-entropy's Hessian, in float64."""
    opened = OpenedRun(run)
    model = opened.trained.evaluated.double()
    x, y = opened.data.sample("train", samples, 0)
    named = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in named.values()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = {n: v.reshape(p.shape) for (n, p), v in zip(named.items(), flat.split(sizes), strict=True)}
        return F.cross_entropy(functional_call(model, parts, (x.double(),)), y)

    at = torch.cat([p.flatten() for p in named.values()])
    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, at))
    return float(values[-1]), float(values[0])


@pytest.mark.slow
def test_the_curvature_is_that_of_the_dense_hessian(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.main(["diagnose", str(run), "--landscape", "--samples", "60", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["landscape"]
    for name, exact in zip(("largest", "smallest"), dense_ends(run, 60), strict=True):
        assert found[name]["value"] == pytest.approx(exact, rel=0.05, abs=2 * found[name]["error"])
    assert cli.main(["diagnose", str(run), "--landscape", "--samples", "60"]) == 0
    assert "Landscape at update" in capsys.readouterr().out


def logged(folder: Path, sharpness: float, accuracy: float) -> str:
    folder.mkdir()
    log = JsonlLogger(folder / "log.jsonl")
    for step in range(1, 5):
        log.log({"step": step, "train/loss": 1 / step, "curv/lambda_max": sharpness, "test/acc": accuracy})
    return str(folder)


def test_the_order_of_sharpness_and_error_comes_with_its_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [logged(tmp_path / f"r{i}", 10.0 + i, 95.0 - 0.5 * i) for i in range(6)]
    assert cli.main(["diagnose", *runs]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "error (test/acc): tau +1.00 [+1.00, +1.00], p 0.0028, 6 runs; the sharper runs are the worse ones"
        in said
    )
    assert cli.main(["diagnose", *runs, "--json"]) == 0
    order = json.loads(capsys.readouterr().out.splitlines()[-1])["order"]
    assert order["tau"] == pytest.approx(1.0)
    assert (order["num_runs"], order["measured"]) == (6, False)
    assert cli.main(["diagnose", *runs[:2], "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2  # of two runs there is no order


def test_what_has_no_checkpoint_or_two_wishes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.csv").write_text("step,train_loss\n1,0.5\n2,0.4\n")
    assert cli.main(["diagnose", str(tmp_path / "metrics.csv"), "--landscape"]) == 2
    assert cli.main(["diagnose", str(tmp_path), "--landscape", "--preflight"]) == 2
    assert cli.main(["diagnose", str(tmp_path), "--samples", "0"]) == 2
    said = capsys.readouterr().err
    assert "a log of lightning, which names no model" in said
    assert "give one of them" in said
    assert "--samples: 0 is too small" in said
