"""Before a release is built: the repository's address goes into the metadata and into the links of the README.

    python docs/package_links.py https://github.com/OWNER/optland v0.1.0

A package index shows the README away from the repository, where a link to a file leads nowhere. The address is that of
the repository that releases, so it is written when it is known and stands in no file before.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)\s]+)\)")
PLACES = {
    "Homepage": "{url}",
    "Documentation": "{url}/blob/{tag}/docs/index.md",
    "Source": "{url}",
    "Issues": "{url}/issues",
    "Changelog": "{url}/blob/{tag}/CHANGELOG.md",
}


def absolute(text: str, url: str, tag: str) -> str:
    """The text with every link to a file of the repository as an address; of a picture, that of its bytes."""

    def whole(link: re.Match[str]) -> str:
        kind = "raw" if link[1] else "blob"
        return f"{link[1]}[{link[2]}]({url}/{kind}/{tag}/{link[3]})"

    return LINK.sub(whole, text)


def with_urls(project: str, url: str, tag: str) -> str:
    """The text of pyproject.toml with the table ``project.urls``."""
    lines = [f'{name} = "{place.format(url=url, tag=tag)}"' for name, place in PLACES.items()]
    return project.rstrip("\n") + "\n\n[project.urls]\n" + "\n".join(lines) + "\n"


def main(url: str, tag: str, root: Path = ROOT) -> None:
    """Write both files."""
    readme, project = root / "README.md", root / "pyproject.toml"
    readme.write_text(absolute(readme.read_text(encoding="utf-8"), url, tag), encoding="utf-8")
    project.write_text(with_urls(project.read_text(encoding="utf-8"), url, tag), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3 or not sys.argv[1].startswith("https://"):
        sys.exit("write: python docs/package_links.py https://HOST/OWNER/REPOSITORY TAG")
    main(sys.argv[1].rstrip("/"), sys.argv[2])
