"""Pages of the site that are made when it is built: the API, from the list of public names, and pictures of results."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
ALONE = (
    "objective", "curvature", "landscape", "optim", "pilot", "conformance", "train", "log", "plots", "report",
    "problems", "doctor",
)  # fmt: skip
TOP = re.compile(r"^__all__ = \[\n(.*?)^\]", flags=re.S | re.M)


def public_names() -> dict[str, list[str]]:
    """The public names of each package that docs/api.txt lists, without their members."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in (ROOT / "docs" / "api.txt").read_text().splitlines():
        path = re.match(r"optland[\w.]*", line)
        if path is None:
            continue
        package, name = home(path[0].split("."))
        if not name and line.startswith(f"{path[0]}("):  # a function named as the file that it stands in
            package, _, name = path[0].rpartition(".")
            name = f"{name}.{name}"
        if name and name not in found[package]:
            found[package].append(name)
    return found


def members() -> dict[str, list[str]]:
    """The public methods and properties of each class that docs/api.txt lists, those of a base included."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in (ROOT / "docs" / "api.txt").read_text().splitlines():
        path = re.match(r"(optland[\w.]*\.[A-Z]\w*)\.(\w+)", line)
        if path is not None and path[2] not in found[path[1]]:
            found[path[1]].append(path[2])
    return found


def home(parts: list[str]) -> tuple[str, str]:
    """The package of a dotted path, as far as it is files and folders, and the first name after it."""
    depth = len(parts)
    while depth and not is_module(parts[:depth]):
        depth -= 1
    return ".".join(parts[:depth]), parts[depth] if depth < len(parts) else ""


def is_module(parts: list[str]) -> bool:
    """Whether a dotted path is a package or a file."""
    path = ROOT.joinpath(*parts)
    return (path / "__init__.py").exists() or path.with_suffix(".py").exists()


def page(title: str, packages: list[str], names: dict[str, list[str]]) -> str:
    """A heading, and a directive per public name."""
    lines, of = [f"# {title}", ""], members()
    for package in packages:
        lines += [
            f"::: {package}",
            "    options: {members: false, show_root_heading: false, heading_level: 2}",
            "",
        ]
        for name in names[package]:
            inherited = ", ".join(f"{member!r}" for member in of[f"{package}.{name}"])  # on is a word of YAML
            options = [f"    options: {{inherited_members: [{inherited}]}}"] if inherited else []
            lines += [f"::: {package}.{name}", *options, ""]
    return "\n".join(lines)


def api_pages() -> dict[str, str]:
    """The text of every page under reference/api."""
    names = public_names()
    pages = {}
    for name in ALONE:
        package = f"optland.{name}"
        packages = sorted(
            p for p in names if p == package or (p.startswith(f"{package}.") and p != "optland.optim.saddle")
        )
        pages[name] = page(package, packages, names)
    pages["saddle"] = page("optland.optim.saddle", ["optland.optim.saddle"], names)
    pages["integrations"] = page(
        "optland.integrations", sorted(p for p in names if p.startswith("optland.integrations")), names
    )
    pages["foundations"] = page("Foundations", foundations(names), names)
    pages["optland"] = top_page(names)
    left = [p for p in names if p != "optland" and not any(f"::: {p}\n" in text for text in pages.values())]
    if left:
        raise ValueError(f"no page of the API has {left}; add them to docs/site_pages.py")
    return pages


def foundations(names: dict[str, list[str]]) -> list[str]:
    """What stands directly below ``optland`` and has no page of its own."""
    with_page = {"optland", "optland.integrations", *(f"optland.{name}" for name in ALONE)}
    return sorted(p for p in names if p.count(".") < 2 and p not in with_page)


def top_page(names: dict[str, list[str]]) -> str:
    """The names that most people need, with links to where they are described."""
    found = TOP.search((ROOT / "optland" / "__init__.py").read_text())
    wanted = re.findall(r'"(\w+)"', found[1]) if found else []
    lines = ["# optland", "", "The names that most people need, imported from `optland` itself.", ""]
    for name in (n for n in wanted if not n.startswith("_")):
        package = next(p for p in sorted(names, key=len) if name in names[p] and p != "optland")
        lines.append(f"- [`{name}`][{package}.{name}], from `{package}`")
    return "\n".join([*lines, ""])


def on_files(files: Files, config: Any) -> Files:
    """Add what is made to the files of the site."""
    for name, text in api_pages().items():
        files.append(File.generated(config, f"reference/api/{name}.md", content=text))
    demo = ROOT / "benchmarks" / "results" / "demo.png"
    files.append(File.generated(config, "pictures/demo.png", abs_src_path=str(demo)))
    return files
