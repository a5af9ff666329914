"""The README stays true and short: its code runs, its figures are measured. All pages are in test_docs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pages import ROOT, blocks, text_of

LONGEST = 150


def test_it_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= LONGEST


def test_every_python_block_runs_in_order(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "readme"}
    for block in blocks("README.md"):
        exec(compile(block, "README.md", "exec"), namespace)  # the documentation is the test
    printed = capsys.readouterr().out
    assert "auto_lr" in printed
    assert float(printed.splitlines()[-1]) == float(printed.splitlines()[-1])  # a curvature, and no NaN


def test_what_it_has_make_do_the_makefile_can() -> None:
    wanted = set(re.findall(r"\bmake ([a-z-]+)", text_of("README.md")))
    assert wanted <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert wanted


def test_the_extras_that_it_names_are_there() -> None:
    extras = set(re.findall(r"\[(\w+)\](?!\()", "".join(blocks("README.md", "sh"))))
    declared = (
        (ROOT / "pyproject.toml")
        .read_text()
        .split("[project.optional-dependencies]")[1]
        .split("[dependency")[0]
    )
    assert extras <= set(re.findall(r"^(\w+) = ", declared, flags=re.M))
    assert "lightning" in extras


def test_the_loop_around_a_scheduler_that_kills_goes_on_until_the_run_is_done(tmp_path: Path) -> None:
    """The shell line of the page, with a program instead of ``optland`` that is stopped three times."""
    (line,) = (block for block in blocks("docs/how-to/resume.md", "sh") if "while" in block)
    program = tmp_path / "optland"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n[ $(wc -l < {tmp_path}/calls) = 4 ] || exit 75\n'
    )
    program.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert subprocess.run(["sh", "-c", line], env={**os.environ, "PATH": path}, check=False).returncode == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["run landscape_train digits"] + 3 * ["run landscape_train digits --resume"]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "benchmarks" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_measured_table_is_that_of_its_result_file(tables: ModuleType) -> None:
    texts = tables.pages()
    new = tables.filled(texts)
    assert [str(path) for path in texts if texts[path] != new[path]] == [], "run: python benchmarks/readme.py"
    assert tables.brought_up_to_date() == tables.recorded(), "run: python benchmarks/readme.py"


def test_the_readme_has_one_table_of_at_most_eight_rows(tables: ModuleType) -> None:
    lines = [line for line in text_of("README.md").splitlines() if line.startswith("|")]
    assert lines == tables.summary_table().splitlines()
    assert len(lines) <= 2 + 8


def test_every_path_in_the_layout_exists() -> None:
    for path in re.findall(r"(?:optland/)?[\w/]+(?:\.py|/)(?=\s)", text_of("docs/reference/layout.md")):
        assert (ROOT / path).exists() or (ROOT / "optland" / path).exists(), path
