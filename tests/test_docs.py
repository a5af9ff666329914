"""The docs stay true: blocks run, commands are valid, links lead somewhere, pages are short."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import optland
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


@pytest.fixture(scope="module")
def own_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module that the page on own models and data shows."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "wine.py").write_text(blocks(RECIPE_PAGE)[0])
    return folder


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_every_command_is_valid(
    words: tuple[str, ...], own_module: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optland.cli import main

    if "data.name=wine:load" in words:
        monkeypatch.chdir(own_module)
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


def test_a_model_and_data_of_ones_own_take_ten_lines_and_no_change_of_the_recipe(own_module: Path) -> None:
    (command,) = [words for words in commands(RECIPE_PAGE) if "data.name=wine:load" in words]
    code = [line for line in (own_module / "wine.py").read_text().splitlines() if line.strip()]
    assert len(code) + len(command[4:]) <= 10
    run = optland(*command[1:], "epochs=10", "log.wandb=disabled", cwd=own_module)
    assert run.returncode == 0, run.stderr
    summary = json.loads((own_module / "runs/landscape_train/digits/summary.json").read_text())
    # Always the commonest of the three classes would get 40 % right.
    assert summary["test/acc last epoch"] > 50


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None or shutil.which("git") is None:
        pytest.skip("mkdocs is not installed")
    words = ["-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    run = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
