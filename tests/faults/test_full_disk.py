"""A disk that takes no more, in the middle of a run: it trains on, says what is missing, and can be gone on with.

The limits are the kernel's: a greatest file size (``EFBIG``), a small file system (``ENOSPC``), a folder that may not
be written to any more (``EACCES``, for a user who is not root).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faults.limited import limited_run
from safetensors.torch import load_file
from torch import nn

from optland.files import ASIDE, write_whole
from optland.log import JsonlLogger, read_jsonl
from optland.train import GracefulStop
from optland.train.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from optland.train.runs.weights import about_weights, save_weights


def test_a_full_disk_costs_what_it_does_not_take_and_the_run_is_gone_on_with(tmp_path: Path) -> None:
    out, fresh = tmp_path / "run", tmp_path / "fresh"
    full = limited_run(out, 4000)
    assert full.code == 1, full.printed
    assert "Traceback" not in full.printed
    for name in ("checkpoint.pt", "best.safetensors", "model.safetensors"):
        assert full.printed.count(f"RuntimeWarning: {name} cannot be written ([Errno 27] File too large") == 1
        assert f"NOT WRITTEN  {name}: [Errno 27] File too large" in full.printed
    assert "NOT WRITTEN  curves.png: [Errno 27]" in full.printed
    assert "; the one of step 2 stays" in full.printed
    assert not list(out.glob(f"*{ASIDE}"))
    assert json.loads((out / "summary.json").read_text()) == {"test/acc": 90.0}
    assert [row["step"] for row in read_jsonl(out / "log.jsonl", kind="row")] == [1, 2, 3, 4, 5, 6]
    assert load_checkpoint(out / "checkpoint.pt")["step"] == 2
    assert about_weights(out / "best.safetensors")["epoch"] == "2"
    (out / "summary.json").unlink()
    resumed = limited_run(out, resume=True)
    assert resumed.code == 0, resumed.printed
    assert "begins after step 2" in resumed.printed
    assert "NOT WRITTEN" not in resumed.printed
    assert limited_run(fresh).code == 0
    ours, theirs = (load_checkpoint(folder / "checkpoint.pt") for folder in (out, fresh))
    assert torch.equal(ours["parts"]["model"]["weight"], theirs["parts"]["model"]["weight"])
    for name in ("best.safetensors", "model.safetensors"):
        assert about_weights(out / name) == about_weights(fresh / name)
        assert torch.equal(load_file(out / name)["weight"], load_file(fresh / name)["weight"])
    assert read_jsonl(out / "log.jsonl", kind="row") == read_jsonl(fresh / "log.jsonl", kind="row")


def test_a_stop_says_what_there_is_to_go_on_from(tmp_path: Path) -> None:
    out = tmp_path / "run"
    stopped = limited_run(out, 4000, stop_at=5)
    assert stopped.code == 75
    assert (
        "stopped by SIGTERM after step 5, which could not be saved; --resume goes on from step 2"
        in stopped.printed
    )
    (summary,) = read_jsonl(out / "log.jsonl", kind="summary")
    assert summary["summary/stopped"].startswith("after a whole step, which could not be saved")
    assert "begins after step 2" in limited_run(out, resume=True).printed


def test_where_nothing_fits_the_result_is_shown_and_can_be_written_later(tmp_path: Path) -> None:
    """The printed text has no file then; what it says is looked at in this process below."""
    out = tmp_path / "run"
    full = limited_run(out, 10)
    assert full.code == 1
    assert not (out / "summary.json").exists()
    resumed = limited_run(out, resume=True)
    assert resumed.code == 0, resumed.printed
    assert json.loads((out / "summary.json").read_text()) == {"test/acc": 90.0}
    assert [row["step"] for row in read_jsonl(out / "log.jsonl", kind="row")] == [1, 2, 3, 4, 5, 6]


def test_without_any_checkpoint_a_stop_is_not_said_to_be_resumable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("a file, where the folder would have to be")
    checkpoint = Checkpoint(tmp_path / "taken" / "c.pt", every=1)
    with pytest.warns(RuntimeWarning, match=r"c\.pt cannot be written .*there is none yet"):
        assert checkpoint.save(1) is None
    stop = GracefulStop()
    stop.request("SIGINT")
    with pytest.raises(SystemExit) as end:
        stop.leave(checkpoint, 4)
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert (
        said
        == "stopped by SIGINT after step 4; no checkpoint could be written, so there is nothing to resume\n"
    )


def test_a_config_that_cannot_be_written_is_refused_and_claims_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert limited_run(out, config=10).code != 0
    assert [file.name for file in out.iterdir()] == [".lock"]
    assert limited_run(out).code == 0


SMALL_DISK = """
set -e
mkdir -p "$1"
mount -t tmpfs -o size=400k tmpfs "$1"
shift
exec "$@"
"""

ON_SMALL_DISK = """
import os, sys, warnings
from pathlib import Path
from torch import nn
from optland.log import JsonlLogger
from optland.train.runs.checkpoint import Checkpoint, load_checkpoint
from optland.train import save_weights

warnings.simplefilter("always")
disk = Path(sys.argv[1])
keeper = Checkpoint(disk / "c.pt", every=1, model=nn.Linear(10_000, 1))  # 40 kB, more than the filler leaves
print([keeper.save(step) for step in (1, 2)])
room = os.statvfs(disk)
(disk / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize - 20 * 1024))
print([keeper.save(step) for step in (3, 4)], sorted(file.name for file in disk.iterdir()))
try:
    save_weights(disk / "w.safetensors", nn.Linear(10_000, 1))
except OSError as error:
    print(error.errno)
log = JsonlLogger(disk / "log.jsonl")
for step in range(3):
    log.log({"step": step, "note": "x" * 10_000})
print([row["step"] for row in log.read("row")])
(disk / "filler").unlink()
log.log({"step": 3})
print([row["step"] for row in JsonlLogger(disk / "log.jsonl").read("row")])
print(load_checkpoint(disk / "c.pt")["step"], keeper.save(5), keeper.unwritten.lines())
"""


def on_a_small_disk(*command: str) -> subprocess.CompletedProcess[str]:
    """A command with a file system of 400 kB of its own, where the system lets us have one."""
    script = ["unshare", "-rm", "sh", "-c", SMALL_DISK, "sh", *command]
    return subprocess.run(script, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_a_file_system_without_room(tmp_path: Path) -> None:
    disk = str(tmp_path / "disk")
    try:
        possible = on_a_small_disk(disk, "true").returncode == 0
    except OSError:
        possible = False
    if not possible:
        pytest.skip("this user may not mount a small file system")
    done = on_a_small_disk(disk, sys.executable, "-c", ON_SMALL_DISK, disk)
    assert done.returncode == 0, done.stderr
    saved, full, weights, kept, later, end = done.stdout.splitlines()
    assert saved == "[1, 2]"
    assert full == "[2, 2] ['c.pt', 'c.pt.previous', 'filler']"
    assert weights == "28"
    assert (kept, later) == ("[0, 1, 2]", "[0, 1, 2, 3]")
    assert end.startswith("2 5 ['written late c.pt: 2 earlier attempts failed ([Errno 28]")
    assert done.stderr.count("c.pt cannot be written") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_folder_that_became_read_only(tmp_path: Path) -> None:
    keeper = Checkpoint(tmp_path / "c.pt", every=1)
    keeper.save(1)
    tmp_path.chmod(0o500)
    try:
        with pytest.warns(RuntimeWarning, match=r"c\.pt cannot be written \(.*Permission denied"):
            assert keeper.save(2) == 1
    finally:
        tmp_path.chmod(0o700)
    assert keeper.save(3) == 3


@pytest.mark.parametrize("kind", ["checkpoint", "weights", "text"])
def test_what_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """At the flush, where a network disk tells its quota."""
    path = tmp_path / "file"
    net = nn.Linear(2, 1)

    def write() -> None:
        if kind == "checkpoint":
            save_checkpoint(path, {"step": 1})
        elif kind == "weights":
            save_weights(path, net)
        else:
            write_whole(path, "text", flush=True)

    def no_quota(_: int) -> None:
        raise OSError(122, "Disk quota exceeded")

    write()
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", no_quota)
        with pytest.raises(OSError, match="quota"):
            write()
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == before


def test_a_record_reads_what_the_disk_has_not_taken(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    log = JsonlLogger(tmp_path / "taken" / "log.jsonl")
    with pytest.warns(RuntimeWarning, match="kept until it can"):
        log.log({"step": 1, "train/loss": float("nan")})
    log.event({"step": 2})
    assert [item["kind"] for item in log.read()] == ["row", "event"]
    assert log.read("row")[0]["train/loss"] != log.read("row")[0]["train/loss"]
