"""The version is in one place; a tag of another is not published, and what is published says where it comes from."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
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


def test_what_is_published_leads_to_the_repository(tmp_path: Path) -> None:
    """The line of the workflow, on a copy of what it changes."""
    url = "https://example.org/somebody/optland"
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "pyproject.toml", "docs/package_links.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    (line,) = re.findall(r"run: (python docs/package_links.py .*)", workflow)
    assert workflow.index(line) < workflow.index("python -m build")
    known = {"GITHUB_SERVER_URL": "https://example.org", "GITHUB_REPOSITORY": "somebody/optland"}
    subprocess.run(
        ["bash", "-c", line.replace("python", sys.executable, 1)],
        cwd=tmp_path, env={**os.environ, **known, "GITHUB_REF_NAME": "v1.0"}, check=True,
    )  # fmt: skip
    before = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    after = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", (tmp_path / "README.md").read_text())
    assert len(before) > 10
    for (picture, path), (_, address) in zip(before, after, strict=True):
        assert address == f"{url}/{'raw' if picture else 'blob'}/v1.0/{path}"
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())
    urls = project["project"].pop("urls")
    assert project == tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {"Homepage", "Documentation", "Issues", "Changelog"} <= set(urls)
    assert all(address.startswith(url) for address in urls.values())
