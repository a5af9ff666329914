"""`make demo` says how many learning rates the tuned row really had, in its text, its table and its picture."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "benchmarks" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    return module


def trained(demo: ModuleType, rates: list[float], seeds: list[int]) -> list[dict[str, Any]]:
    """Runs as they come back from the workers; the rate 0.05 is the best by validation."""
    return [
        {
            "data": data, "seed": seed, "lr": lr, "last": 90.0 if lr != 0.05 else 95.0, "best": 96.0,
            "val_last": 80.0 if lr != 0.05 else 85.0, "val_best": 85.0, "ge": 1000, "probe_frac": 0.04,
            "probe_wall_share": 0.04, "seconds": 5.0, "curve": [(500, 50.0), (1000, 90.0)], "out": "x", "wandb": None,
        }
        for data in demo.CONFIGS for seed in seeds for lr in (None, *rates)
    ]  # fmt: skip


@pytest.mark.parametrize("rates", [[0.01, 0.05, 0.1], [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]], ids=len)
def test_every_text_has_the_number_of_rates_that_were_trained(
    demo: ModuleType, rates: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = trained(demo, rates, [0, 1])
    console = Console(record=True, width=200, file=io.StringIO())
    legends: list[str] = []

    def drawn(panels: dict[str, dict[str, Any]], path: Path) -> None:
        legends.extend(name for panel in panels.values() for name in panel)

    monkeypatch.setattr("optland.plots.plot_comparison", drawn)
    demo.greet([0, 1], rates, console)
    summary = demo.summarise(runs, [0, 1], rates)
    demo.show(summary, console)
    demo.draw(runs, [0, 1], tmp_path / "demo.png")
    said = " ".join(console.export_text().split())

    assert f"{4 * (1 + len(rates))} trainings" in said
    assert f"SGD gets {len(rates)} learning rates" in said
    assert f"SGD, best of {len(rates)} rates" in said
    assert said.count(f"the best of {len(rates)} rates: 95.0") == 2
    assert f"for {len(rates)} times the compute" in said
    assert legends == 2 * ["SGD, lr 0.1", f"SGD, best of {len(rates)} rates", "landscape_train, no rate"]


def test_the_short_form_has_the_rates_that_validation_takes(demo: ModuleType) -> None:
    """Fewer rates must not make tuned SGD worse than it is: in the full comparison these are the best ones."""
    result = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text())
    taken = [
        demo.rows_of(result["runs"], data, seed)[demo.tuned(len(demo.LEARNING_RATES))][column]
        for data in demo.CONFIGS for seed in result["seeds"] for column in ("lr_last", "lr_best")
    ]  # fmt: skip
    assert len(taken) == 20
    assert sum(lr in demo.FEW_RATES for lr in taken) >= 19
    assert demo.USUAL in demo.FEW_RATES


def test_rates_without_that_of_the_plain_row_are_refused(
    demo: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["demo.py", "--rates", "0.2", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        demo.main()
    assert "--rates needs 0.1" in capsys.readouterr().err
