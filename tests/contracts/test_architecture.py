"""The rules that keep the package in shape, and proof that each of them notices a violation."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LEVELS = {
    "vectors": -1,
    "files": -2,
    "flat": -2,
    "words": -2,
    "archive": -1,
    "derivatives": 0,
    "estimate": 0,
    "batches": 0,
    "config": 0,
    "context": -1,
    "failpoints": 0,
    "objective": 1,
    "pilot": 4,
    "processes": 0,
    "ranks": 0,
    "statistics": 0,
    "log": 1,
    "losses": 0,
    "curvature": 2,
    "problems": 2,
    "doctor": 3,
    "optim": 3,
    "conformance": 4,
    "landscape": 3,
    "train": 5,
    "integrations": 5,
    "plots": 6,
    "report": 7,  # draws its pictures with plots
    "cli": 8,
    "__init__": 9,
}

ONLY_IN = {
    "wandb": ("optland/log/wandb_run.py", "optland/log/guest_wandb.py"),
    "torchvision": ("optland/train/data/", "optland/train/models/"),
    "sklearn": ("optland/train/data/", "optland/train/models/"),
    "matplotlib": ("optland/plots/", "optland/report/"),
    "plotly": ("optland/plots/", "optland/report/"),
    "transformers": ("optland/integrations/transformers",),
    "accelerate": ("optland/integrations/accelerate.py",),
    "timm": ("optland/integrations/timm.py",),
    "lightning": ("optland/integrations/lightning_unseen.py",),
    "torchmetrics": ("optland/integrations/lightning_unseen.py",),
}

PURE = (
    "optland/pilot/policies/",
    "optland/doctor/rules/",
    *(f"optland/doctor/{name}.py" for name in ("finding", "histories", "diagnose", "calibration")),
    *(
        f"optland/pilot/{name}.py"
        for name in ("guards", "budget", "history", "filters", "decision", "signal", "scaling", "progress")
    ),
)
"""Where decisions are made: plain numbers, no tensor."""

MAX_LINES = {"optland/": 600, "recipes/": 150}


@lru_cache(maxsize=1)
def parsed(source: str) -> ast.Module:
    """The tree of a file, which one check after another looks at."""
    return ast.parse(source)


def statements(source: str) -> Iterator[ast.stmt | ast.ExceptHandler | ast.match_case]:
    """Every statement, at the top or inside others. An expression holds none, and most of the nodes are in those."""
    waiting: list[ast.AST] = [parsed(source)]
    while waiting:
        node = waiting.pop()
        for part in ("body", "handlers", "orelse", "finalbody", "cases"):
            inner = getattr(node, part, [])
            waiting += inner
            yield from inner


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported, at the top or inside functions."""
    for node in statements(source):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def level_of(file: str) -> tuple[str, int | None]:
    """The part of the package that a file belongs to, and its level."""
    part = Path(file).parts[1].removesuffix(".py")
    return part, LEVELS.get(part)


def check_levels(file: str, source: str) -> list[str]:
    """A module imports only from a lower level or from its own folder."""
    if not file.startswith("optland/"):
        return []
    part, level = level_of(file)
    if level is None:
        return [f"{file}: '{part}' has no level; add it to LEVELS and to the design"]
    problems = []
    for line, name in imports(source):
        pieces = name.split(".")
        if not pieces[0]:
            problems.append(f"{file}:{line}: relative import; write optland.{name.strip('.')}")
        elif pieces[0] == "optland" and len(pieces) > 1 and pieces[1] in LEVELS:
            other = pieces[1]
            if other != part and LEVELS[other] >= level:
                problems.append(f"{file}:{line}: {part} (level {level}) imports {other} ({LEVELS[other]})")
    return problems


def check_circles(sources: Mapping[str, str]) -> list[str]:
    """No files import each other, by whatever way round, not even for types alone: then none is read without the rest.

    Args:
        sources: Text by file, of all files that may import each other.
    """
    imported = {file: imported_files(file, source, sources) for file, source in sources.items()}
    problems = []
    while True:
        try:
            TopologicalSorter(imported).prepare()
        except CycleError as error:
            circle = error.args[1][::-1]  # each imports the next
            problems.append(f"import each other: {' -> '.join(circle)}")
            imported[circle[0]].remove(circle[1])  # and look for the next one
        else:
            return problems


def imported_files(file: str, source: str, known: Mapping[str, str]) -> set[str]:
    """The known files that a file imports, or imports something from."""
    found = set()
    for _, name in imports(source):
        pieces = name.split(".")
        for length in range(len(pieces), 0, -1):  # what is imported from a file is no part of its path
            path = "/".join(pieces[:length])
            if homes := {f"{path}.py", f"{path}/__init__.py"} & known.keys():
                found |= homes
                break
    return found - {file}


def check_homes(file: str, source: str) -> list[str]:
    """Some packages are imported in one place only; what decides knows no torch; recipes are never imported."""
    problems = []
    for line, name in imports(source):
        package = name.split(".")[0]
        homes = ONLY_IN.get(package, ("",))
        if file.startswith("optland/") and not file.startswith(homes):
            problems.append(f"{file}:{line}: {package} may only be imported in {' and '.join(homes)}")
        if package == "torch" and file.startswith(PURE):
            problems.append(f"{file}:{line}: what decides is plain numbers and imports no torch")
        if package == "recipes" or name.startswith("optland._bundled"):
            problems.append(f"{file}:{line}: recipes are scripts and never imported")
    return problems


def check_size(file: str, source: str) -> list[str]:
    """Modules and recipes stay readable in one sitting."""
    lines = len(source.splitlines())
    limits = [limit for folder, limit in MAX_LINES.items() if file.startswith(folder)]
    return [f"{file}: {lines} lines, at most {limit} allowed" for limit in limits if lines > limit]


def check_exceptions(file: str, source: str) -> list[str]:
    """No error disappears: no bare ``except`` and none that does nothing."""
    problems = []
    if "except" not in source:
        return problems
    for node in statements(source):
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                problems.append(f"{file}:{node.lineno}: bare except; name the exceptions")
            if all(isinstance(line, ast.Pass) or is_ellipsis(line) for line in node.body):
                problems.append(f"{file}:{node.lineno}: the exception is swallowed; handle it or let it go")
    return problems


def check_warnings(file: str, source: str) -> list[str]:
    """Our warnings are of the kind that the tests take for ours wherever they are raised: see pyproject.toml."""
    if not file.startswith("optland/") or "warn" not in source:
        return []
    problems = []
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn":
            given = [*node.args[1:2], *(k.value for k in node.keywords if k.arg == "category")]
            if [ast.unparse(kind) for kind in given] != ["RuntimeWarning"]:
                problems.append(f"{file}:{node.lineno}: our warnings are RuntimeWarning; pass it as category")
    return problems


def is_ellipsis(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is ...


def check_paths(file: str, source: str) -> list[str]:
    """No file knows the machine that it was written on."""
    machine = re.compile(r"(?<![\w.])/(" + "|".join(["work", "root", "home"]) + r")/")
    found = [number for number, line in enumerate(source.splitlines(), 1) if machine.search(line)]
    return [f"{file}:{number}: absolute path of a machine" for number in found]


def project_files() -> list[str]:
    """Files that are, or are about to be, under version control."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listing.stdout.splitlines() if (ROOT / name).is_file()]


def texts(suffix: str = "") -> Iterator[tuple[str, str]]:
    for name in project_files():
        content = (ROOT / name).read_bytes()
        if name.endswith(suffix) and b"\0" not in content:
            yield name, content.decode("utf-8")


def test_the_files_that_decide_are_there() -> None:
    """A rule about a file that was renamed would hold of nothing."""
    names = project_files()
    assert all(any(name.startswith(pure) for name in names) for pure in PURE)


CODE_CHECKS = [check_levels, check_homes, check_size, check_exceptions, check_warnings]


def test_code_keeps_the_rules() -> None:
    files = list(texts(".py"))
    assert any(name.startswith("optland/") for name, _ in files)
    assert [
        problem for file, source in files for check in CODE_CHECKS for problem in check(file, source)
    ] == []


def test_no_files_import_each_other() -> None:
    sources = {file: source for file, source in texts(".py") if file.startswith("optland/")}
    assert "optland/optim/gates.py" in imported_files("", "from optland.optim.gates import Gate", sources)
    assert check_circles(sources) == []


def test_no_file_names_a_machine_path() -> None:
    assert [problem for file, source in texts() for problem in check_paths(file, source)] == []


@pytest.mark.parametrize(
    ("check", "file", "source", "says"),
    [
        (
            check_levels,
            "optland/vectors.py",
            "from optland.train import loader",
            "vectors (level -1) imports train",
        ),
        (check_levels, "optland/log/x.py", "def f():\n    from optland.pilot import y", "imports pilot"),
        (check_levels, "optland/optim/x.py", "from optland import landscape", "imports landscape"),
        (check_levels, "optland/optim/x.py", "from ..curvature import trace", "relative import"),
        (check_levels, "optland/helpers.py", "", "has no level"),
        (check_homes, "optland/log/console.py", "def f():\n    import wandb", "wandb may only"),
        (
            check_homes,
            "optland/train/loops/loader.py",
            "from torchvision.datasets import MNIST",
            "torchvision may only",
        ),
        (check_homes, "optland/landscape/x.py", "import matplotlib.pyplot as plt", "matplotlib may only"),
        (check_homes, "optland/pilot/policies/x.py", "from torch import Tensor", "imports no torch"),
        (check_homes, "optland/pilot/guards.py", "import torch", "imports no torch"),
        (check_homes, "tests/x.py", "import recipes.digits", "never imported"),
        (check_homes, "tests/x.py", "from recipes import digits", "never imported"),
        (check_size, "optland/x.py", "\n" * 601, "601 lines"),
        (check_size, "recipes/x.py", "\n" * 151, "151 lines"),
        (check_exceptions, "x.py", "try:\n    f()\nexcept:\n    g()", "bare except"),
        (check_exceptions, "x.py", "try:\n    f()\nexcept ValueError:\n    pass", "swallowed"),
        (check_exceptions, "x.py", "try:\n    f()\nexcept ValueError:\n    ...", "swallowed"),
        (check_warnings, "optland/x.py", "warnings.warn('so', stacklevel=2)", "RuntimeWarning"),
        (check_warnings, "optland/x.py", "warnings.warn('so', category=UserWarning)", "RuntimeWarning"),
        (check_paths, "README.md", "see /ho" + "me/me/data", "absolute path"),
        (check_paths, "configs/x.yaml", "root: /wo" + "rk/data", "absolute path"),
    ],
)
def test_a_violation_is_noticed(
    check: Callable[[str, str], list[str]], file: str, source: str, says: str
) -> None:
    (problem,) = check(file, source)
    assert says in problem
    assert file in problem


@pytest.mark.parametrize(
    ("check", "file", "source"),
    [
        (check_levels, "optland/train/x.py", "from optland.optim import SAM\nimport optland.log.jsonl"),
        (check_levels, "optland/optim/x.py", "from optland.optim.two_pass import TwoPass"),
        (check_levels, "optland/cli.py", "from optland import __version__"),
        (check_homes, "optland/log/wandb_run.py", "def f():\n    import wandb"),
        (check_homes, "optland/report/x.py", "import plotly"),
        (check_homes, "optland/pilot/host.py", "import torch"),
        (check_homes, "tests/x.py", "import wandb"),
        (check_size, "optland/x.py", "\n" * 600),
        (check_exceptions, "x.py", "try:\n    f()\nexcept ValueError:\n    x = None"),
        (check_warnings, "optland/x.py", "warnings.warn('so', RuntimeWarning, stacklevel=2)"),
        (check_paths, "README.md", "frame/wo" + "rk/x and https://example.org/home"),
    ],
)
def test_what_is_allowed_passes(check: Callable[[str, str], list[str]], file: str, source: str) -> None:
    assert check(file, source) == []


TYPES_ONLY = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "


@pytest.mark.parametrize(
    "sources",
    [
        {"a": "from optland.x.b import f", "b": "import optland.x.a"},
        {"a": "from optland.x.b import f", "b": "def f():\n    from optland.x import a"},
        {"a": "from optland.x.b import f", "b": TYPES_ONLY + "from optland.x.a import A"},
        {"a": "from optland.x import b", "b": "from optland.x import c", "c": "from optland.x.a import f"},
        {"__init__": "from optland.x.a import f", "a": "from optland.x import f"},
    ],
    ids=["two", "in a function", "types", "three", "the folder's own name"],
)
def test_a_circle_is_noticed(sources: Mapping[str, str]) -> None:
    (problem,) = check_circles({f"optland/x/{name}.py": source for name, source in sources.items()})
    assert all(f"optland/x/{name}.py" in problem for name in sources)


def test_every_circle_is_told() -> None:
    pairs = {"a": "b", "b": "a", "c": "d", "d": "c"}
    assert len(check_circles({f"{one}.py": f"import {other}" for one, other in pairs.items()})) == 2


def test_imports_without_a_circle_pass() -> None:
    diamond = {"a": "bc", "b": "d", "c": "d", "d": ""}
    files = {
        f"optland/{name}.py": "\n".join(f"from optland import {x}" for x in of)
        for name, of in diamond.items()
    }
    assert check_circles(files | {"optland/__init__.py": "from optland.a import f"}) == []
    assert (
        check_circles({"optland/a.py": "from optland.a_b import c", "optland/a_b.py": "import torch"}) == []
    )
