"""The version is in one place, and what repeats it agrees; a tag of another version is not published."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import optland

ROOT = Path(__file__).resolve().parents[2]


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "optland/__init__.py"
    assert (
        re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)[1]
        == optland.__version__
    )


@pytest.mark.parametrize(
    ("tag", "code"), [(f"v{optland.__version__}", 0), ("v9.9", 1), (optland.__version__, 1)]
)
def test_a_release_needs_the_tag_of_its_version(tag: str, code: int) -> None:
    """The lines of the workflow themselves, run by a shell."""
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    lines = workflow.partition("The tag is the version\n        run: |\n")[2].splitlines()[:2]
    script = "\n".join(line.strip() for line in lines)
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env={**os.environ, "GITHUB_REF_NAME": tag}, check=False
    )
    assert done.returncode == code
