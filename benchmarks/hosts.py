"""Where optland works: every cell of docs/works_with.md, from the tests that are marked with it.

    make hosts                                       # makes the environment that has the trainers
    .venv/hosts/bin/python benchmarks/hosts.py       # about ten minutes on two cores; writes results and the page
    .venv/hosts/bin/python benchmarks/hosts.py --host Lightning timm     # these again; the others stay
    python benchmarks/hosts.py --page                # writes the page from the results alone

A test carries ``@pytest.mark.cell(host, feature)``, with ``"refused"`` as a third word where it shows that something is
refused in words. A cell works where all of its tests pass.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "hosts.json"
PAGE = ROOT / "docs" / "works_with.md"

HOSTS = (
    "plain loop", "Lightning", "Lightning manual", "HF Trainer", "Accelerate", "DDP", "FSDP2", "timm", "torch.compile",
    "PEFT",
)  # fmt: skip
FEATURES = (
    "SAM closure", "SAM phase", "scheduler", "clip", "accumulation", "fp16 scaler", "bf16", "resume", "2 processes",
    "pilot monitor", "pilot control", "own wandb run",
)  # fmt: skip
PACKAGES = ("torch", "lightning", "transformers", "accelerate", "peft", "timm", "wandb")

Cells = dict[str, dict[str, dict[str, Any]]]


class Recorder:
    """Notes what became of the tests of each cell.

    Attributes:
        found: Host, feature and kind ("works" or "refused"), with the outcomes of its tests.
    """

    def __init__(self, hosts: Collection[str] = HOSTS) -> None:
        self.hosts = set(hosts)
        self.found: dict[tuple[str, str, str], list[tuple[str, str]]] = defaultdict(list)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        report = yield
        if report.when == "call" or report.outcome != "passed":
            for cell in item.iter_markers("cell"):
                host, feature, *refused = cell.args
                self.found[host, feature, *(refused or ["works"])].append((item.nodeid, report.outcome))
        return report

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Tests without a cell are left out."""
        kept = [
            item for item in items if any(cell.args[0] in self.hosts for cell in item.iter_markers("cell"))
        ]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


def cells(found: Mapping[tuple[str, str, str], list[tuple[str, str]]]) -> Cells:
    """Every cell with its outcome and the number of tests behind it."""
    table: Cells = {}
    for (host, feature, kind), tests in found.items():
        cell = table.setdefault(host, {}).setdefault(
            feature, {"works": 0, "refused": 0, "failed": [], "skipped": 0}
        )
        for name, outcome in tests:
            if outcome == "passed":
                cell[kind] += 1
            elif outcome == "skipped":
                cell["skipped"] += 1
            else:
                cell["failed"].append(name)
    return table


def shown(cell: Mapping[str, Any] | None) -> str:
    """A cell in a word or two."""
    if cell is None:
        return ""
    if cell["failed"]:
        return "**fails**"
    if cell["works"]:
        return f"works ({cell['works']})" + (", in part refused" if cell["refused"] else "")
    return "refused" if cell["refused"] else "not run"


def page(result: Mapping[str, Any]) -> str:
    """The text of docs/works_with.md."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        "# Works with",
        "",
        f"Tested with {versions} on Python {result['python']}.",
        "",
        "A number says how many tests show it; *refused* means an error, before anything has moved, that names the way",
        "that works. An empty cell is not tested.",
        "",
        "| | " + " | ".join(FEATURES) + " |",
        "|---|" + "---|" * len(FEATURES),
    ]
    for host in HOSTS:
        row = result["cells"].get(host, {})
        lines.append(f"| {host} | " + " | ".join(shown(row.get(feature)) for feature in FEATURES) + " |")
    lines += ["", "Made by `benchmarks/hosts.py` from the tests that carry the mark of a cell."]
    return "\n".join(lines) + "\n"


def measured(hosts: Collection[str] = HOSTS) -> dict[str, Any]:
    """Run the tests of the cells of these hosts."""
    recorder = Recorder(hosts)
    pytest.main(
        [str(ROOT / "tests"), "-q", "-p", "no:cacheprovider", "-m", "cell", "--rootdir", str(ROOT)],
        plugins=[recorder],
    )
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            print(f"{name} is not installed; its cells stay empty", file=sys.stderr)
    return {"python": platform.python_version(), "versions": versions, "cells": cells(recorder.found)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", action="store_true", help="write the page from the results alone")
    parser.add_argument(
        "--host", nargs="+", choices=HOSTS, default=HOSTS, help="measure these again and keep the others"
    )
    options = parser.parse_args()
    if not options.page:
        found = measured(options.host)
        if set(options.host) < set(HOSTS):
            again = {host: found["cells"][host] for host in options.host}
            found["cells"] = json.loads(RESULT.read_text())["cells"] | again
        RESULT.write_text(json.dumps(found, indent=1) + "\n")
    result = json.loads(RESULT.read_text())
    PAGE.write_text(page(result))
    failed = [name for row in result["cells"].values() for cell in row.values() for name in cell["failed"]]
    print(page(result), *failed, sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
