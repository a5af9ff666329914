"""``benchmarks/gpu.py`` at the size that a processor can do: every part, and its eigenvalue against a literal one."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pages import ROOT
from torch.nn import functional as F

SHIFT = 60.0


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


@pytest.mark.slow
def test_the_command_fills_every_part(tmp_path: Path) -> None:
    result = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--size", "tiny", "--result", str(result)]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads(result.read_text())
    nets = {"ResNet-18", "ViT", "GPT, bf16"}
    assert set(found["step cost"]) == set(found["rates"]) == set(found["survival"]) == nets
    assert "not reached" not in found
    for net in nets:
        assert found["step cost"][net]["base"]["ratio"] == 1
        assert set(found["step cost"][net]) == {"base", "SAM", "LookSAM, k = 5", "MSAM", "auto_lr"}
        assert all(row["ms"] > 0 for row in found["step cost"][net].values())
        rates = found["rates"][net]
        assert len(rates) == 6
        plain = {row["ge"] for name, row in rates.items() if name != "auto_lr"}
        assert len(plain) == 1, "equal cost"
        assert 0 < rates["auto_lr"]["ge"] <= plain.pop(), (
            "probes are counted, and the run is shorter for them"
        )
        assert all(math.isfinite(row["loss"]) for row in rates.values())
        for row in found["survival"][net].values():
            assert {"clean", "4 bits", "3 bits", "2 bits", "pruned 85%", "noise 0.4"} <= set(row)


def test_the_eigenvalue_is_that_of_a_power_iteration(gpu: ModuleType) -> None:
    """The same net in float64, products by two backward passes, shifted by more than the lowest eigenvalue."""
    size = gpu.SIZES["tiny"]
    device = torch.device("cpu")
    found = gpu.largest_eigenvalue(size, device)
    windows, _ = gpu.texts(size, device)
    torch.manual_seed(0)
    model = size.large.build(size.vocabulary, size.context).double()
    x, y = next(windows.batches("train", size.probed))
    params = list(model.parameters())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        g = torch.autograd.grad(loss, params, create_graph=True)
    v, value = [torch.randn_like(p) for p in params], math.nan
    for _ in range(300):
        length = torch.sqrt(sum((t * t).sum() for t in v))
        v = [t / length for t in v]
        Hv: Any = torch.autograd.grad(g, params, v, retain_graph=True)
        value = float(sum((a * b).sum() for a, b in zip(v, Hv, strict=True)))
        v = [a + SHIFT * b for a, b in zip(Hv, v, strict=True)]
    assert value > -SHIFT / 2
    assert found["converged"]
    assert found["value"] == pytest.approx(value, rel=0.02)
    assert found["weights"] == sum(p.numel() for p in params)


def test_what_does_not_fit_into_the_minutes_is_named(gpu: ModuleType) -> None:
    found = gpu.measure(gpu.SIZES["tiny"], torch.device("cpu"), 0.0)
    assert len(found["not reached"]) == 7, (
        "three costs, an eigenvalue, three sets of rates; damage follows rates"
    )
    assert found["largest eigenvalue"] is None


def test_the_full_size_without_a_gpu_is_refused(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as left:
        gpu.main()
    assert left.value.code == 2
    assert "--size tiny" in capsys.readouterr().err
