"""Real offline runs, read back with wandb's own viewer."""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from wandb_reader import inspect

from optland.log import WandbLogger, wandb_run
from optland.log.logger import LoggerGroup

REWIND = {
    "step": 30,
    "policy": "guard",
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


def summary(log: WandbLogger) -> dict[str, Any]:
    return json.loads(inspect(log.run_dir, "--summary"))


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
    assert values["ctl/events_text"] == "step 30: guard: rewind 0.1 -> 0.05: the loss rose by a half"
    assert (values["ctl/events"]["nrows"], values["ctl/events"]["ncols"]) == (1, 8)
    assert (values["landscape/path"]["nrows"], values["landscape/slice"]["_type"]) == (2, "image-file")
    records = [json.loads(line) for line in inspect(log.run_dir).splitlines()]
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
    """With a wandb that cannot reach its server."""
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
    log = WandbLogger(tmp_path, mode="online", run_id="first")
    with pytest.warns(RuntimeWarning, match=r"did not answer \(Timed out\); the run is written offline"):
        one_row(log)
    assert calls == ["online", "offline"]
    assert log.state_dict()["run_id"] != "first"  # the service may still try to open that one
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
    died = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert died.returncode != 0
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    run = json.loads(inspect(folder, "--summary"))
    assert (run["state"], run["exit_code"]) == ("failed", 1)
    assert run["summary"]["ctl/events_text"] == "step 30: safe_lr: lr 1 -> 2: x"


ENDS_AT_ONCE = """
    import sys
    from optland.log import WandbLogger

    WandbLogger(sys.argv[1]).log({"step": 7})
    sys.exit(3)
"""


def test_a_script_that_ends_without_finish_is_closed_with_its_own_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(ENDS_AT_ONCE), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (ended.returncode, ended.stderr) == (3, "")
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    run = json.loads(inspect(folder, "--summary"))
    assert (run["state"], run["summary"]["step"]) == ("failed", 7)


def test_a_wandb_that_hangs_does_not_stop_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = Event()
    monkeypatch.setattr(wandb_run.Run, "log", lambda run, row: go_on.wait(60))
    group = LoggerGroup([WandbLogger(tmp_path, timeout=0.01)])
    started = time.monotonic()
    group.log({"step": 1})
    with pytest.warns(RuntimeWarning, match=r"did not answer for 0\.01 s") as warned:
        group.finish({})
    go_on.set()
    assert len([one for one in warned if "WandbLogger" in str(one.message)]) == 1
    assert time.monotonic() - started < 10


def three_rows(group: LoggerGroup) -> None:
    for step in range(3):
        group.log({"step": step})
    group.finish({})


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError("not yours"), r"PermissionError\('not yours'\)"),
        (UnicodeEncodeError("ascii", "é", 0, 1, "no"), "UnicodeEncodeError"),
        (SystemExit(4), r"SystemExit\(4\)"),
    ],
)
def test_a_failure_of_wandb_is_told_once_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, said: str
) -> None:
    def fail(run: wandb_run.Run, row: object) -> None:
        raise error

    monkeypatch.setattr(wandb_run.Run, "log", fail)
    group = LoggerGroup([WandbLogger(tmp_path)])
    with pytest.warns(RuntimeWarning, match=said) as warned:
        three_rows(group)
    # What wandb imports may warn of its own, in whichever test imports it first.
    assert len([one for one in warned if "WandbLogger" in str(one.message)]) == 1


def test_a_run_that_failed_is_not_given_to_the_next_who_asks_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a service that another run uses, which is therefore not ended."""
    import wandb

    other = wandb.init(
        mode="offline", dir=tmp_path, reinit="create_new", settings=wandb.Settings(console="off")
    )
    ours = WandbLogger(tmp_path / "ours")
    group = LoggerGroup([ours])

    def fail(run: wandb_run.Run, row: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(wandb_run.Run, "log", fail)
    with pytest.warns(RuntimeWarning, match="no room"):
        three_rows(group)
    until = time.monotonic() + 30
    while wandb.setup().most_recent_active_run is not other and time.monotonic() < until:
        time.sleep(0.05)
    assert wandb.init(mode="offline", dir=tmp_path) is other
    other.finish()


def test_a_users_own_run_in_the_same_process_goes_on(tmp_path: Path) -> None:
    """The service is shared: it outlives a run of ours, whether that ends well or not."""
    import wandb

    ours = WandbLogger(tmp_path / "ours")
    ours.log({"step": 1})
    theirs = wandb.init(
        mode="offline", dir=tmp_path, reinit="create_new", settings=wandb.Settings(console="off")
    )
    for step in range(3):
        theirs.log({"loss": step}, step=step)
        if step == 1:
            ours.finish({})
    folder = Path(theirs.settings.sync_dir)
    theirs.finish()
    assert [row["item"]["loss"] for row in records(folder, "history")] == [0, 1, 2]
    assert wandb.run is None


def records(folder: Path | None, kind: str) -> list[dict[str, Any]]:
    return [
        record[kind] for line in inspect(folder).splitlines() if (record := json.loads(line))["type"] == kind
    ]


def test_every_row_arrives_as_its_own_history_row(tmp_path: Path) -> None:
    log = WandbLogger(tmp_path)
    for step in range(10, 3010, 10):
        log.log({"step": step, "train/loss": np.float32(1 / step), "sam/active": step % 20 == 0})
    log.finish({})
    rows = [item["item"] for item in records(log.run_dir, "history")]
    assert [(row["step"], row["train/loss"], row["sam/active"]) for row in rows] == [
        (step, float(np.float32(1 / step)), step % 20 == 0) for step in range(10, 3010, 10)
    ]


def test_the_command_line_on_record_is_that_of_the_run_and_no_service_of_another_process_is_relied_on(
    tmp_path: Path,
) -> None:
    script = tmp_path / "mine.py"
    script.write_text(textwrap.dedent(ALONE))  # no guard: what it starts must not run it again
    gone = {**os.environ, "WANDB_SERVICE": f"3-1-unix-{tmp_path / 'gone'}"}
    command = [sys.executable, str(script), str(tmp_path), "lr=0.1"]
    subprocess.run(command, check=True, timeout=240, env=gone)
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    recorded = {key: value for item in records(folder, "environment") for key, value in item.items()}
    assert recorded["args"] == [str(tmp_path), "lr=0.1"]
    assert recorded["program"] == str(script)


def test_a_forked_process_leaves_the_run_alone(tmp_path: Path) -> None:
    log = WandbLogger(tmp_path)
    log.log({"step": 1, "train/loss": 2.0})
    if (pid := os.fork()) == 0:  # as a loader's worker is made
        try:
            log.log({"step": 2})
        except RuntimeError as error:
            os._exit(5 if "belongs to process" in str(error) else 6)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    log.log({"step": 3, "train/loss": 1.0})
    log.finish({})
    assert summary(log)["summary"]["step"] == 3


def test_an_image_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="landscape/slice"):
        WandbLogger(tmp_path).image("landscape/slice", tmp_path / "none.png")


def test_the_first_loss_that_is_not_finite_and_the_reason_of_a_failure_raise_alerts(tmp_path: Path) -> None:
    log = WandbLogger(tmp_path)
    for step, loss in enumerate([1.0, float("nan"), float("inf")]):
        log.log({"step": step, "train/loss": loss, "edge/ratio": float("nan")})
    log.finish({"summary/error": "RuntimeError: the loss is gone"}, exit_code=1)
    not_finite, failed = alerts(log)
    assert "the loss is nan at step 1" in not_finite
    assert "the loss is gone" in failed


def alerts(log: WandbLogger) -> list[str]:
    return [json.dumps(alert) for alert in records(log.run_dir, "alert")]


def test_no_secret_is_in_any_file_of_the_run(tmp_path: Path) -> None:
    secret = {
        name: f"{name.lower()}-0123456789abcdef" for name in ("CONFIG", "NAME", "WANDB_API_KEY", "HF_TOKEN")
    }
    known = {name: value for name, value in secret.items() if name.endswith(("KEY", "TOKEN"))}
    command = [sys.executable, "-c", textwrap.dedent(SECRETIVE), str(tmp_path), *secret.values()]
    subprocess.run(command, check=True, timeout=240, env={**os.environ, **known})
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
