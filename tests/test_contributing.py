"""CONTRIBUTING.md stays true: in a copy of the project its blocks go where they say, and its commands pass.

The first line of a Python block names a file. The block is that file, or with ``in NAME`` an entry of that list, or
with ``before NAME`` it stands before it. Imports of a block go to those of the file.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from contracts.size import size_of
from contracts.test_architecture import project_files

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
HEAD = re.compile(r"# (?P<path>[\w/]+\.py)(?:, (?P<how>in|before) (?P<name>\w+))?\n")
LONGEST = 40
"""Code lines of a method, a probe or a policy."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.S | re.M)


NEW = {
    head["path"]: block[head.end() :]
    for block in blocks("python")
    if (head := HEAD.match(block)) and not head["how"]
}
"""Files that the page makes, with their text."""


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def place(block: str, root: Path) -> str:
    """Do with a block what its first line says; returns the file's path."""
    head = HEAD.match(block)
    assert head, f"the first line of a block names no file: {block.splitlines()[0]!r}"
    path, how, name = head["path"], head["how"], head["name"]
    file, body = root / path, block[head.end() :]
    if how is None:
        assert not file.exists(), f"{path} is there already"
        file.write_text(body, encoding="utf-8")
        return path
    imports = "".join(re.findall(r"^(?:from|import) .*\n", body, flags=re.M))
    file.write_text(with_entry(file.read_text(encoding="utf-8"), imports, body, how, name), encoding="utf-8")
    return path


def with_entry(source: str, imports: str, body: str, how: str, name: str) -> str:
    """``source`` with the lines of a block inside the value of ``name`` or before it."""
    entry = body.replace(imports, "").strip("\n") + "\n"
    tree = ast.parse(source)
    (node,) = (x for x in tree.body if name in targets(x))
    lines = source.split("\n")
    if how == "before":
        lines[node.lineno - 1 : node.lineno - 1] = [*entry.split("\n"), ""]
    else:
        value = node.value  # type: ignore[attr-defined]
        row, column = value.end_lineno - 1, value.end_col_offset - 1
        kept = "\n".join([*lines[:row], lines[row][:column]]).rstrip()
        kept += "" if kept.endswith((",", "(", "[", "{")) else ","
        lines = [kept, entry + lines[row][column:], *lines[row + 1 :]]
    if imports:
        last = max(x.end_lineno or 0 for x in tree.body if isinstance(x, ast.Import | ast.ImportFrom))
        text = "\n".join(lines).split("\n")
        lines = [*text[:last], imports.rstrip("\n"), *text[last:]]
    return "\n".join(lines)


def targets(node: ast.stmt) -> set[str]:
    found = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {x.id for x in found if isinstance(x, ast.Name)}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with all blocks in their places."""
    root = tmp_path_factory.mktemp("project")
    for name in project_files():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)
    lists = [path for block in blocks("python") if (path := place(block, root)) not in NEW]
    tool(root, "-m", "ruff", "check", "--quiet", "--fix", "--select", "I", *lists)  # the order of imports
    tool(root, "-m", "ruff", "format", "--quiet", *lists)
    return root


def tool(root: Path, *words: str) -> None:
    """Run Python with arguments in the copy."""
    # A process of its own, and no part of this run of the tests or of its coverage: the copy is gone afterwards.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV"))
    }
    run = subprocess.run(
        [sys.executable, *words],
        cwd=root,
        env={**environment, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, f"{shlex.join(words)}\n{run.stdout[-3000:]}{run.stderr[-3000:]}"


PROGRAMS = list(dict.fromkeys(tuple(words) for words in commands() if words[0].startswith(".venv/bin/")))
QUICK = ["tests/pilot/test_batch_sharpness.py", "tests/pilot/test_sharpness_monitor.py"]


def test_every_block_is_run() -> None:
    """Nothing that is shown is left out here: Python, commands, and no third language."""
    assert set(re.findall(r"^```(\w+)\n", TEXT, flags=re.M)) == {"python", "sh"}
    rest = [words for words in commands() if tuple(words) not in PROGRAMS]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    assert [words for words in rest if words[0] != "make" or not targets >= set(words[1:])] == []
    assert len(PROGRAMS) >= 4


def test_a_method_a_probe_and_a_policy_are_short() -> None:
    assert len(NEW) >= 5
    assert {path: size for path, block in NEW.items() if (size := size_of(block).code) > LONGEST} == {}


def test_what_is_shown_is_in_the_style_of_the_house(copy: Path) -> None:
    tool(copy, "-m", "ruff", "check", "--quiet", ".")
    tool(copy, "-m", "ruff", "format", "--quiet", "--check", *NEW)


def test_what_is_shown_works(copy: Path) -> None:
    tool(copy, "-m", "pytest", "-q", *QUICK, "tests/optim/test_oracles.py", "-k", "zsharp or sharpness")


@pytest.mark.slow
@pytest.mark.parametrize("words", PROGRAMS, ids=" ".join)
def test_the_commands_pass_where_the_blocks_are_in_their_places(copy: Path, words: Sequence[str]) -> None:
    program = Path(words[0]).name
    tool(copy, *(words[1:] if program == "python" else ["-m", program, *words[1:]]))
