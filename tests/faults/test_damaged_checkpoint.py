"""A checkpoint not to be trusted, met by ``--resume``: named, set aside, the previous used, nothing executed."""

from __future__ import annotations

import hashlib
import io
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.runs import assert_same_end, run
from tiers import slow

from optland.train.runs.checkpoint import load_checkpoint


class Touch:
    """Leaves a file where it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return Path.touch, (self.witness,)


def signed(content: object) -> bytes:
    """A file with a right header and a right sum, whatever it holds."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    payload = buffer.getvalue()
    return b"optland-checkpoint-1 " + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


def flipped(good: Path, witness: Path) -> bytes:
    raw = bytearray(good.read_bytes())
    raw[len(raw) // 2] ^= 1
    return bytes(raw)


def truncated(good: Path, witness: Path) -> bytes:
    return good.read_bytes()[: good.stat().st_size // 2]


def empty(good: Path, witness: Path) -> bytes:
    return b""


def of_another_model(good: Path, witness: Path) -> bytes:
    state = load_checkpoint(good)
    first = next(name for name, value in state["parts"]["model"].items() if value.ndim > 0)
    state["parts"]["model"][first] = torch.zeros(7, 7)
    return signed(state)


def hostile(good: Path, witness: Path) -> bytes:
    return signed({**load_checkpoint(good), "step": Touch(witness)})


TABLE = [
    (flipped, r"its checksum does not match: the file is damaged or cut short"),
    (hostile, r"it holds more than tensors and plain values, which is refused"),
]
MORE = [  # the last two are also among what leaves no good checkpoint, below
    (truncated, r"its checksum does not match: the file is damaged or cut short"),
    (empty, r"this is not an optland checkpoint, or its first line is damaged"),
    (of_another_model, r"it is of another model: "),
]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed near its end, with two good checkpoints."""
    folder = tmp_path_factory.mktemp("broken")
    assert run(folder, fail_at="checkpoint.after:46").code == -signal.SIGKILL
    return folder


@pytest.mark.parametrize(
    ("damage", "named"), [*TABLE, *slow(*MORE)], ids=lambda value: getattr(value, "__name__", "said")
)
def test_resume_goes_on_from_the_previous_one(
    whole: Path, broken: Path, tmp_path: Path, damage: Callable[[Path, Path], bytes], named: str
) -> None:
    folder, witness = tmp_path / "copy", tmp_path / "executed"
    shutil.copytree(broken, folder)
    newest = folder / "run" / "checkpoint.pt"
    before = load_checkpoint(newest.with_name("checkpoint.pt.previous"))["step"]
    damaged = damage(newest, witness)
    newest.write_bytes(damaged)
    ended = run(folder, "--resume")
    assert ended.code == 0, ended.printed
    assert f"checkpoint checkpoint.pt: {named}" in ended.printed
    assert "using checkpoint.pt.previous" in ended.printed
    assert f"resuming run after step {before}\n" in ended.printed
    assert newest.with_name("checkpoint.pt.unusable").read_bytes() == damaged, "kept for a look"
    assert not witness.exists(), "the file ran code"
    assert_same_end(whole, folder, damage.__name__)


def test_with_no_good_one_left_resume_says_why_for_each_and_changes_nothing(
    broken: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(broken, folder)
    newest, previous = (folder / "run" / f"checkpoint.pt{ending}" for ending in ("", ".previous"))
    newest.write_bytes(of_another_model(newest, tmp_path))
    previous.write_bytes(empty(previous, tmp_path))
    before = {file.name: file.read_bytes() for file in (folder / "run").iterdir()}
    ended = run(folder, "--resume")
    assert ended.code == 2, ended.printed
    assert "checkpoint.pt: it is of another model: " in ended.printed
    assert "start a new run" in ended.printed
    assert "checkpoint.pt.previous: this is not an optland checkpoint" in ended.printed
    assert "Traceback" not in ended.printed
    assert {file.name: file.read_bytes() for file in (folder / "run").iterdir()} == before
