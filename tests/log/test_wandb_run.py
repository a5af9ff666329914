"""Real offline runs, read back with wandb's own viewer."""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from optland.log import LoggerGroup, WandbLogger, wandb_run

LEET = [str(Path(sys.executable).with_name("wandb")), "leet"]
REWIND = {
    "step": 30,
    "policy": "rewind_guard",
    "actuator": "rewind",
    "old": 0.1,
    "new": 0.05,
    "reason": "the loss rose by a half",
    "taken": True,
    "signals": {"train/loss": 2.0},
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))


def inspect(log: WandbLogger, *options: str) -> str:
    command = [*LEET, "inspect", "--json", *options, str(log.run_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def summary(log: WandbLogger) -> dict[str, Any]:
    return json.loads(inspect(log, "--summary"))


def test_an_offline_run_holds_what_was_logged(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "slice.png")
    python, numpy = random.getstate(), np.random.get_state()[1]  # noqa: NPY002 (the state a user may rely on)
    log = WandbLogger(
        tmp_path, config={"train": {"lr": 0.1}}, group="digits", job_type="train", tags=["sam"], name="first"
    )
    assert log.run_dir is None
    assert log.view_command() is None
    for step in (10, 20, 30):
        log.log({"step": step, "samples": step * 64, "train/loss": 1 / step, "edge/ratio": float("nan")})
    log.event(REWIND)
    log.image("landscape/slice", tmp_path / "slice.png")
    log.table("landscape/path", ["t", "loss"], [[0, 1.5], ["half", 2]])
    log.finish({"summary/advice": "raise the batch size", "summary/robust_ok": True}, exit_code=3)
    assert random.getstate() == python
    assert np.array_equal(np.random.get_state()[1], numpy)  # noqa: NPY002

    run = summary(log)
    assert run["config"] == {"train": {"lr": 0.1}}
    assert (run["project"], run["tags"], run["name"]) == ("optland", ["sam"], "first")
    assert (run["run_id"], run["exit_code"]) == (log.state_dict()["run_id"], 3)
    values = run["summary"]
    assert (values["step"], values["samples"], values["train/loss"]) == (30, 1920, 1 / 30)
    assert values["edge/ratio"] == "NaN"
    assert values["summary/advice"] == "raise the batch size"
    assert values["summary/robust_ok"] is True
    assert values["ctl/events_text"] == "step 30: rewind_guard: rewind 0.1 -> 0.05: the loss rose by a half"
    assert (values["ctl/events"]["nrows"], values["ctl/events"]["ncols"]) == (1, 8)
    assert (values["landscape/path"]["nrows"], values["landscape/slice"]["_type"]) == (2, "image-file")
    records = [json.loads(line) for line in inspect(log).splitlines()]
    metrics = [record["metric"] for record in records if record["type"] == "metric"]
    axes = {metric["glob_name"]: metric["step_metric"] for metric in metrics if "glob_name" in metric}
    assert axes["train/*"] == axes["curv/*"] == axes["budget/*"] == "step"
    assert [record for record in records if record["type"] == "alert"]

    view = shlex.split(log.view_command() or "")
    assert view[1] == "leet"
    assert view[2] == os.path.relpath(log.run_dir or "")


def test_a_resumed_run_keeps_its_id_and_its_decisions(tmp_path: Path) -> None:
    first = WandbLogger(tmp_path)
    first.log({"step": 30, "train/loss": 2.0})
    first.event(REWIND)
    state = json.loads(json.dumps(first.state_dict()))
    first.finish({})
    second = WandbLogger(tmp_path)
    second.load_state_dict(state)
    second.log({"step": 31, "train/loss": 1.0})
    second.event({**REWIND, "step": 31, "actuator": "lr", "taken": False})
    second.finish({})
    assert first.run_dir != second.run_dir
    run = summary(second)
    assert run["run_id"] == first.state_dict()["run_id"]
    told = run["summary"]["ctl/events_text"].splitlines()
    assert [line.split(": ")[2] for line in told] == ["rewind 0.1 -> 0.05", "would set lr 0.1 -> 0.05"]
    with pytest.raises(RuntimeError, match="before the first row"):
        second.load_state_dict(state)


def test_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"PROJECT": "mine", "NAME": "called", "TAGS": "a,b", "RUN_ID": "abc123", "MODE": "offline"}
    for name, value in said.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "there"))
    log = WandbLogger(tmp_path / "here", project="x", name="y", tags=["z"], run_id="w", mode="online")
    log.log({"step": 1, "train/loss": 1.0})
    log.finish({})
    run = summary(log)
    assert (run["project"], run["name"], run["tags"], run["run_id"]) == (
        "mine",
        "called",
        ["a", "b"],
        "abc123",
    )
    assert log.run_dir is not None
    assert log.run_dir.is_relative_to(tmp_path / "there")


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    log = WandbLogger(tmp_path, mode="disabled")
    log.log({"step": 1, "train/loss": 1.0})
    log.event(REWIND)
    log.finish({"summary/advice": "x"})
    assert log.run_dir is None
    assert log.view_command() is None
    assert list(tmp_path.rglob("*.wandb")) == []


def test_online_without_a_login_is_offline_with_a_warning(tmp_path: Path) -> None:
    log = WandbLogger(tmp_path, mode="online")
    with pytest.warns(RuntimeWarning, match=r"no login was found.*wandb login.*written offline"):
        log.log({"step": 1, "train/loss": 0.5})
    log.finish({})
    assert log.run_dir is not None
    assert log.run_dir.name.startswith("offline-run")


def test_a_server_that_does_not_answer_means_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    calls: list[str] = []
    real = wandb.init

    def unreachable(**arguments: Any) -> Any:
        calls.append(arguments["mode"])
        if arguments["mode"] == "online":
            raise wandb.errors.CommError("Timed out")
        return real(**arguments)

    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", unreachable)
    log = WandbLogger(tmp_path, mode="online")
    with pytest.warns(RuntimeWarning, match=r"did not answer \(Timed out\)"):
        log.log({"step": 1, "train/loss": 0.5})
    log.finish({})
    assert calls == ["online", "offline"]
    assert summary(log)["summary"]["train/loss"] == 0.5


KILLED = """
    import subprocess, sys, time, warnings

    started = []

    class Noted(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    subprocess.Popen = Noted
    from optland.log import JsonlLogger, LoggerGroup, WandbLogger, read_jsonl

    folder, record = sys.argv[1], JsonlLogger(sys.argv[1] + "/log.jsonl")
    group = LoggerGroup([WandbLogger(folder, timeout=1.0), record])
    group.log({"step": 0})
    (service,) = [process for process in started if "wandb-core" in str(process.args)]
    service.kill()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, 50):
            group.log({"step": step})
            time.sleep(0.01)
        group.finish({})
    print(len(caught), "WandbLogger failed" in str(caught[0].message), len(read_jsonl(record.path, kind="row")))
"""


def test_a_killed_service_does_not_stop_training(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.stdout.split() == ["1", "True", "50"]
    assert run.returncode == 0


ABANDONED = """
    import sys
    from optland.log import WandbLogger

    log = WandbLogger(sys.argv[1])
    log.log({"step": 30})
    log.event({"step": 30, "policy": "safe_lr", "actuator": "lr", "old": 1, "new": 2, "reason": "x", "taken": True})
    print(log.run_dir, flush=True)
    raise KeyboardInterrupt
"""


def test_a_run_that_dies_keeps_its_decisions(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(ABANDONED), str(tmp_path)]
    died = subprocess.run(command, capture_output=True, text=True, timeout=60)
    command = [*LEET, "inspect", "--json", "--summary", died.stdout.strip()]
    run = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (run["state"], run["exit_code"]) == ("failed", 1)
    assert run["summary"]["ctl/events_text"] == "step 30: safe_lr: lr 1 -> 2: x"


class Hanging:
    """A run whose service accepts calls and never returns from them."""

    def define_metric(self, *arguments: object, **options: object) -> None:
        """Return at once, as the real one does."""

    def log(self, row: object) -> None:
        """Hang."""
        Event().wait()


def test_a_hanging_service_does_not_stop_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_run.WandbLogger, "_start", lambda self: Hanging())
    group = LoggerGroup([WandbLogger(tmp_path, timeout=0.01)])
    group.log({"step": 1})
    with pytest.warns(RuntimeWarning, match=r"did not answer for 0\.01 s"):
        group.finish({})
