"""The README stays true: its code runs, its commands are valid, its figures are measured."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_every_python_block_runs_in_order(capsys: Any) -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
    assert len(blocks) >= 3
    namespace: dict[str, Any] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)  # the documentation is the test
    printed = capsys.readouterr().out
    assert "probes cost" in printed
    assert "negative curvature" in printed
    assert "critical step" in printed


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^    (optland run .*?)$", TEXT, flags=re.M))))
def test_every_command_is_valid(line: str, capsys: Any) -> None:
    from optland.cli import main

    words = [word for word in shlex.split(line)[1:] if word != "--resume"]
    assert main(["validate", *words[1:]]) == 0, capsys.readouterr().err


def test_every_measured_table_is_that_of_its_result_file() -> None:
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
