"""The docs stay true: blocks run, commands are valid, links lead somewhere, pages are short."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pages import PAGES, ROOT, anchors, blocks, commands, links, marks, text_of

RECIPE_PAGE = "docs/how-to/recipe.md"
WITH_BLOCKS = [
    pytest.param(page, marks=[pytest.mark.slow] if marks(page) & {"slow"} else [])
    for page in PAGES
    if page != "README.md" and blocks(page) and "torchrun" not in marks(page)
]


@pytest.mark.parametrize("page", WITH_BLOCKS)
def test_every_python_block_runs_in_order(
    page: str, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of a page share their names, and write into a folder of their own."""
    for mark in marks(page):
        if mark.startswith("needs "):
            pytest.importorskip(mark.removeprefix("needs "))
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "docs"}
    for block in blocks(page):
        exec(compile(block, page, "exec"), namespace)  # the documentation is the test
    printed = capsys.readouterr().out
    for said in re.findall(r"It prints `(.*?)`\.", text_of(page)):
        assert said in printed


def test_most_pages_have_something_to_run() -> None:
    assert len(WITH_BLOCKS) >= 15


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("page", [page for page in PAGES if "torchrun" in marks(page)])
def test_a_program_for_several_processes_runs_in_two(page: str, tmp_path: Path) -> None:
    (block,) = blocks(page)
    (tmp_path / "train.py").write_text(block)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    run = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert len(set(re.findall(r"weights (\S+)", run.stdout))) == 1, run.stdout  # the replicas are the same
    assert run.stdout.count("weights") == 2


RUN = {"run", "validate"}
LINES = sorted({tuple(words) for page in PAGES for words in commands(page)})
OWN = {"mine"}
"""Copies of recipes that a page makes before it runs them."""


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_every_command_is_valid(words: tuple[str, ...], capsys: Any) -> None:
    from optland.cli import main

    if words[1] not in RUN:  # the folders of runs that the others take are not there
        with pytest.raises(SystemExit, match="0"):
            main([words[1], "--help"])
        said = capsys.readouterr().out
        assert [word for word in words if word.startswith("--") and word not in said] == []
        return
    line = re.sub(r"--resume|--dry-run|--(grid|seeds) \S+", "", " ".join(words[2:])).split()
    recipe = "landscape_train" if line[0] in OWN else line[0]
    assert main(["validate", recipe, *line[1:]]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if file.name == "demo.png" and file.parent.name == "pictures":  # the site copies it there
            file = ROOT / "benchmarks" / "results" / "demo.png"
        if "reference/api/" in str(file):  # made with the site
            continue
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(file), f"{page}: {target}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    missing = [page for page in PAGES if page != "README.md" and page.removeprefix("docs/") not in navigation]
    assert missing == []


def applied(text: str, diff: str) -> str:
    """``text`` after one hunk, whose lines start with a space, a minus or a plus."""
    lines = diff.splitlines(keepends=True)
    before = "".join(line[line[0] in " -" :] for line in lines if line[0] != "+")
    after = "".join(line[line[0] in " +" :] for line in lines if line[0] != "-")
    assert text.count(before) == 1, before
    return text.replace(before, after)


def test_a_recipe_with_a_model_and_data_of_ones_own_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from optland.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["cp", "landscape_train", "mine"]) == 0
    script = tmp_path / "mine" / "landscape_train.py"
    text = script.read_text()
    for diff in blocks(RECIPE_PAGE, "diff"):
        text = applied(text, diff)
    script.write_text(text)
    assert main(["run", "mine", "digits", "epochs=10", "log.wandb=disabled"]) == 0, capsys.readouterr().err
    (summary,) = tmp_path.glob("runs/mine/digits/summary.json")
    assert '"test_acc' in summary.read_text() or "test/acc" in summary.read_text()


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None or shutil.which("git") is None:
        pytest.skip("mkdocs is not installed")
    words = ["-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    run = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
