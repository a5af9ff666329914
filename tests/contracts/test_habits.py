"""The files that tools outside the package read agree with the project."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import yaml

from optland import __version__

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def lint() -> list[str]:
    """Programs of ``make lint``, each with its subcommand."""
    (recipe,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, flags=re.M)
    return [re.sub(r"^(ruff \w+|mypy).*", r"\1", line) for line in re.findall(r"\$\(BIN\)/(.*)", recipe)]


def test_pre_commit_runs_the_lint_of_make_with_the_tools_of_the_environment() -> None:
    repos = read(".pre-commit-config.yaml")["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]  # nothing is fetched
    entries = [hook["entry"] for hook in repos[0]["hooks"]]
    assert [re.sub(r"^\.venv/bin/(ruff \w+|mypy).*", r"\1", entry) for entry in entries] == lint()


def test_ci_covers_the_versions_that_the_project_admits() -> None:
    jobs = read(".github/workflows/ci.yml")["jobs"]
    matrix = jobs["tests"]["strategy"]["matrix"]
    assert PROJECT["project"]["requires-python"] == f">={matrix['python'][0]}"
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert {(one["python"], one["torch"]) for one in matrix["include"]} == {(matrix["python"][0], "oldest")}


def test_ci_finds_the_oldest_versions_in_the_project(tmp_path: Path) -> None:
    steps = read(".github/workflows/ci.yml")["jobs"]["tests"]["steps"]
    (script,) = (step["run"] for step in steps if step.get("if") == "matrix.torch == 'oldest'")
    places = {"RUNNER_TEMP": str(tmp_path), "GITHUB_ENV": str(tmp_path / "env")}
    subprocess.run(["bash", "-ec", script], cwd=ROOT, env={**os.environ, **places}, check=True)
    assert (tmp_path / "env").read_text() == f"PIP_CONSTRAINT={tmp_path}/constraints.txt\n"
    floors = [name for name in PROJECT["project"]["dependencies"] if name.startswith("torch")]
    wanted = [name.replace(">=", "==") + ".*" for name in floors]
    assert (tmp_path / "constraints.txt").read_text().split() == wanted


def test_ci_calls_targets_of_make() -> None:
    jobs = read(".github/workflows/ci.yml")["jobs"]
    steps = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    called = [target for step in steps for target in re.findall(r"^make ([\w-]+)", step, flags=re.M)]
    assert sorted(called) == ["hosts", "lint", "tier"]
    assert all(re.search(rf"^{target}:", MAKEFILE, flags=re.M) for target in called)


def test_the_citation_is_of_this_version() -> None:
    cited = read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert (cited["version"], cited["license"]) == (__version__, PROJECT["project"]["license"])
