"""The README stays true: its code runs, its commands are valid, its figures are measured."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_every_python_block_runs_in_order(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
    assert len(blocks) >= 3
    namespace: dict[str, Any] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)  # the documentation is the test
    printed = capsys.readouterr().out
    assert "probes cost" in printed
    assert "negative curvature" in printed
    assert "critical step" in printed
    assert "aligned: distance" in printed
    assert "worst(m=32, radius=0.05, p=2, T=I, eval)" in printed
    assert (tmp_path / "plane.png").exists()


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^    (optland run .*?)$", TEXT, flags=re.M))))
def test_every_command_is_valid(line: str, capsys: Any) -> None:
    from optland.cli import main

    words = shlex.split(re.sub(r"--resume|--dry-run|--(grid|seeds) \S+", "", line), comments=True)
    assert main(["validate", *words[2:]]) == 0, capsys.readouterr().err


def test_the_loop_around_a_scheduler_that_kills_goes_on_until_the_run_is_done(tmp_path: Path) -> None:
    """The shell line of the README, with a program instead of ``optland`` that is stopped three times."""
    (line,) = re.findall(r"```sh\n(.*?)\n```", TEXT, flags=re.S)
    program = tmp_path / "optland"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n[ $(wc -l < {tmp_path}/calls) = 4 ] || exit 75\n'
    )
    program.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert subprocess.run(["sh", "-c", line], env={**os.environ, "PATH": path}, check=False).returncode == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["run landscape_train digits"] + 3 * ["run landscape_train digits --resume"]


def test_every_measured_table_is_that_of_its_result_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "benchmarks" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.filled(TEXT) == TEXT, "run: python benchmarks/readme.py"


def test_every_path_in_the_layout_exists() -> None:
    layout = TEXT[TEXT.index("## Layout") :]
    for path in re.findall(r"(?:optland/)?[\w/]+(?:\.py|/)(?=\s)", layout):
        assert (ROOT / path).exists() or (ROOT / "optland" / path).exists(), path
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (ROOT / target).exists(), target
