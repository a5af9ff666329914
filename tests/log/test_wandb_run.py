"""Real offline runs, read back with wandb's own viewer."""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
import sys
import textwrap
import types
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
    # Not wandb's own note of its service: put back after the test, it would name one that is gone.
    for variable in {name for name in os.environ if name.startswith("WANDB_")} - {"WANDB_SERVICE"}:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))


def inspect(log: WandbLogger, *options: str) -> str:
    command = [*LEET, "inspect", "--json", *options, str(log.run_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def summary(log: WandbLogger) -> dict[str, Any]:
    return json.loads(inspect(log, "--summary"))


def one_row(log: WandbLogger) -> None:
    """A whole run: it connects in the background, so what that has to say comes by its end."""
    log.log({"step": 1, "train/loss": 0.5})
    log.finish({})


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
        one_row(log)
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
    monkeypatch.setattr(wandb_run, "silence", lambda url: "")
    log = WandbLogger(tmp_path, mode="online")
    with pytest.warns(RuntimeWarning, match=r"did not answer \(Timed out\)"):
        one_row(log)
    assert calls == ["online", "offline"]
    assert summary(log)["summary"]["train/loss"] == 0.5


ABANDONED = """
    import sys
    from optland.log import WandbLogger

    log = WandbLogger(sys.argv[1])
    log.log({"step": 30})
    log.event({"step": 30, "policy": "safe_lr", "actuator": "lr", "old": 1, "new": 2, "reason": "x", "taken": True})
    raise KeyboardInterrupt
"""


def test_a_run_that_dies_keeps_its_decisions(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(ABANDONED), str(tmp_path)]
    died = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert died.returncode != 0
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    command = [*LEET, "inspect", "--json", "--summary", str(folder)]
    run = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (run["state"], run["exit_code"]) == ("failed", 1)
    assert run["summary"]["ctl/events_text"] == "step 30: safe_lr: lr 1 -> 2: x"


class Hanging:
    """A run whose service accepts calls and never returns from them."""

    disabled = False
    settings = types.SimpleNamespace(sync_dir="offline-run-x")

    def define_metric(self, *arguments: object, **options: object) -> None:
        """Return at once, as the real one does."""

    def log(self, row: object) -> None:
        """Hang."""
        Event().wait()


def test_a_hanging_service_does_not_stop_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_run.WandbLogger, "_connected", lambda self: Hanging())
    monkeypatch.setattr(
        wandb_run, "_end_service", lambda *_, **__: None
    )  # other tests of this process use it
    group = LoggerGroup([WandbLogger(tmp_path, timeout=0.01)])
    group.log({"step": 1})
    with pytest.warns(RuntimeWarning, match=r"did not answer for 0\.01 s; .*wandb sync .*offline-run-x"):
        group.finish({})


def test_a_failed_run_raises_an_alert_with_its_reason(tmp_path: Path) -> None:
    log = WandbLogger(tmp_path)
    log.log({"step": 1, "train/loss": 1.0})
    log.finish({"summary/error": "RuntimeError: the loss is gone"}, exit_code=1)
    (alert,) = alerts(log)
    assert "the loss is gone" in alert


def alerts(log: WandbLogger) -> list[str]:
    records = [json.loads(line) for line in inspect(log).splitlines()]
    return [json.dumps(record) for record in records if record["type"] == "alert"]


def test_the_first_loss_that_is_not_finite_raises_an_alert(tmp_path: Path) -> None:
    log = WandbLogger(tmp_path)
    for step, loss in enumerate([1.0, float("nan"), float("inf")]):
        log.log({"step": step, "train/loss": loss, "edge/ratio": float("nan")})
    log.finish({})
    (alert,) = alerts(log)
    assert "the loss is nan at step 1" in alert


def test_no_secret_is_in_any_file_of_the_run(tmp_path: Path) -> None:
    secret = {
        name: f"{name.lower()}-0123456789abcdef" for name in ("CONFIG", "NAME", "WANDB_API_KEY", "HF_TOKEN")
    }
    known = {name: value for name, value in secret.items() if name.endswith(("KEY", "TOKEN"))}
    command = [sys.executable, "-c", textwrap.dedent(SECRETIVE), str(tmp_path), *secret.values()]
    subprocess.run(command, check=True, timeout=60, env={**os.environ, **known})
    content = b"".join(path.read_bytes() for path in (tmp_path / "wandb").rglob("*") if path.is_file())
    assert b"rather long label" in content
    for value in secret.values():
        assert value.encode() not in content


SECRETIVE = """
    import sys
    from optland.log import WandbLogger

    folder, config, name, key, token = sys.argv[1:]
    del sys.argv[1:]  # as the command line of optland does with a secret in it
    log = WandbLogger(
        folder, config={"hub": {"api_key": config, "url": f"https://me:{config}@host/x"}, "token": token},
        name=f"https://me:{name}@host", tags=["rather long label"],
    )
    log.log({"step": 1})
    log.event({"step": 1, "policy": "p", "actuator": "rewind", "reason": f"got {token}", "taken": True})
    log.finish({"summary/error": f"refused {key}"}, exit_code=1)
"""


def test_a_service_of_another_process_is_not_relied_on(tmp_path: Path) -> None:
    gone = {**os.environ, "WANDB_SERVICE": f"3-1-unix-{tmp_path / 'gone'}"}
    command = [sys.executable, "-c", textwrap.dedent(ALONE), str(tmp_path)]
    subprocess.run(command, check=True, timeout=60, env=gone)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


ALONE = """
    import sys
    from optland.log import WandbLogger

    log = WandbLogger(sys.argv[1])
    log.log({"step": 1})
    log.finish({})
"""


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="WANDB_DIR"):
        WandbLogger(tmp_path).log({"step": 1})
