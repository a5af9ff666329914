"""The loggers that trainers and users have, as they are installed, read back with their own readers."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from log.guests import history, trained

from optland.log import into

STEPS = 12


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in {name for name in os.environ if name.startswith("WANDB_")} - {"WANDB_SERVICE"}:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("WANDB_SILENT", "true")


def plain(steps: int = STEPS) -> list[tuple[int, float]]:
    """Steps and losses of the same run, as a function of the user's sees them."""
    seen: list[tuple[int, float]] = []
    trained(steps, log=lambda row, step: seen.append((step, row["optland/train/loss"])))
    return seen


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's reader finds."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return found | {tag: events.Tensors(tag) for tag in events.Tags()["tensors"]}


def same(found: list[tuple[int, float]]) -> bool:
    """Whether they are those of the plain run; TensorBoard holds 32 bits."""
    return [n for n, _ in found] == [n for n, _ in plain()] and all(
        math.isclose(value, loss, rel_tol=1e-6) for (_, value), (_, loss) in zip(found, plain(), strict=True)
    )


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    Image.new("RGB", (4, 3)).save(tmp_path / "slice.png")
    with SummaryWriter(tmp_path / "theirs") as writer:
        trained(STEPS, log=writer, after=lambda n, loss: writer.add_scalar("loss", loss, n))
        log = into(writer)
        log.event({"step": 3, "policy": "guard", "actuator": "skip", "reason": "a|b", "taken": True})
        log.image("landscape/slice", tmp_path / "slice.png")
        log.finish({"summary/advice": "none"})
    found = scalars(tmp_path / "theirs")
    assert same(found["optland/train/loss"])
    assert same(found["loss"])
    assert "optland/ctl/events/text_summary" in found


@pytest.mark.cell("Lightning", "own wandb run")
def test_lightning_wandb_logger(tmp_path: Path) -> None:
    """Rows of Lightning's own kind between ours: each is there, and ours have come with them."""
    pytest.importorskip("lightning")
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(project="theirs", save_dir=tmp_path, offline=True)
    trained(
        STEPS, log=logger, after=lambda n, loss: logger.log_metrics({"loss": loss}, n) if n % 3 == 0 else None
    )
    logger.experiment.log({"last": 1.0}, step=5)
    logger.experiment.finish()
    rows = history(tmp_path)
    assert [row["trainer/global_step"] for row in rows if "loss" in row] == [3, 6, 9, 12]
    assert [row["_step"] for row in rows if "last" in row] == [5]
    ours = [(row["optland/step"], row["optland/train/loss"]) for row in rows if "optland/step" in row]
    assert set(ours) <= set(plain())
    assert [step for step, _ in ours] == [
        6,
        9,
        12,
    ]  # from the second of theirs on: the first showed that they log


@pytest.mark.cell("Lightning", "own wandb run")
def test_lightning_csv_logger(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    trained(STEPS, log=logger, after=lambda n, loss: logger.log_metrics({"loss": loss}, n))
    (file,) = tmp_path.rglob("metrics.csv")
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    assert same([(int(row["step"]), float(row["loss"])) for row in rows if row["loss"]])
    key = "optland/train/loss"
    assert same([(int(row["step"]), float(row[key])) for row in rows if row[key]])


def test_lightning_tensorboard_logger(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    pytest.importorskip("tensorboard")
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path)
    trained(STEPS, log=logger)
    assert same(scalars(Path(logger.log_dir))["optland/train/loss"])


@pytest.mark.cell("Accelerate", "own wandb run")
def test_accelerate_tracker(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, log_with="wandb")
    accelerator.init_trackers("theirs", init_kwargs={"wandb": {"mode": "offline", "dir": tmp_path}})
    trained(
        STEPS,
        log=accelerator.get_tracker("wandb"),
        after=lambda n, loss: accelerator.log({"loss": loss}, step=n // 3) if n % 3 == 0 else None,
    )
    accelerator.end_training()
    rows = history(tmp_path)
    assert [row["_step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert [row["optland/step"] for row in rows if "optland/step" in row][-1] == STEPS


TRACKIO = """
    import trackio
    from log.guests import trained
    from optland.log import into

    run = trackio.init(project="theirs", name="a", embed=False)
    trained(12, log=trackio, after=lambda n, loss: trackio.log({"loss": loss}, step=n))
    log = into(run)
    log.event({"step": 12, "policy": "guard", "actuator": "skip", "reason": "why", "taken": True})
    log.close()
    alerting = into(run, alerts=True)
    alerting.event({"step": 12, "policy": "doctor", "actuator": "alarm", "reason": "dead units: 90 %.", "taken": False})
    trackio.finish()
"""


def test_trackio_by_module_and_by_run(tmp_path: Path) -> None:
    """In a process of its own: trackio reads its folder when it is imported. Read by its own command."""
    pytest.importorskip("trackio")
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    env = {**os.environ, "TRACKIO_DIR": str(tmp_path), "PYTHONPATH": path}

    def run(*command: str) -> str:
        return subprocess.run(
            [sys.executable, *command], env=env, check=True, capture_output=True, text=True
        ).stdout

    run("-c", textwrap.dedent(TRACKIO))

    def values(metric: str) -> list[tuple[int, Any]]:
        of = ["--project", "theirs", "--run", "a", "--metric", metric, "--json"]
        said = run("-c", "from trackio.cli import main; main()", "get", "metric", *of)
        return [(point["step"], point["value"]) for point in json.loads(said)["values"]]

    assert same(values("optland/train/loss"))
    assert same(values("loss"))
    (_, table), *_ = values("optland/ctl/events")
    assert "why" in str(table)
    said = run("-c", "from trackio.cli import main; main()", "get", "alerts", "--project", "theirs", "--json")
    assert "doctor: dead units at step 12" in said


def test_an_object_and_a_function() -> None:
    class Theirs:
        def __init__(self) -> None:
            self.rows: list[dict[str, Any]] = []

        def log(self, row: dict[str, Any]) -> None:
            self.rows.append(row)

    theirs = Theirs()
    trained(STEPS, log=theirs)
    assert [(row["optland/step"], row["optland/train/loss"]) for row in theirs.rows] == plain()


def test_one_that_raises_costs_one_warning_and_no_training() -> None:
    def full(row: dict[str, Any], step: int) -> None:
        raise OSError(28, "No space left on device")

    expected = trained(STEPS)
    with pytest.warns(
        RuntimeWarning, match=r"the function full takes no more rows .*No space left"
    ) as caught:
        weights = trained(STEPS, log=full)
    assert len(caught) == 1
    assert weights.equal(expected)
