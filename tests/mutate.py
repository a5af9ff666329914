"""Mutation check: one place of the code is changed, and the tests that run it are to notice.

    python tests/mutate.py --seed 2026 --count 60 --coverage coverage.db --results mutants.jsonl

The lines are drawn at random, and at each of them one change, so that the share of changes that some test notices
says how much the tests see. The changes are made in a copy of the project in a temporary folder. The same seed draws
the same mutants from the same code; a run that was stopped goes on where it was. What survives is answered in
``mutants.md``.
"""

from __future__ import annotations

import argparse
import ast
import copy
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

KEY = ("file", "line", "operator", "before", "after")
"""What a mutant is known by in the file of results."""

AREAS = ("optland/optim", "optland/curvature", "optland/pilot")

_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", ".hypothesis", "*.db")

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip

_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Mult,
}  # fmt: skip

_EXTREMES = {
    "min": "max",
    "minimum": "maximum",
    "any": "all",
    "amin": "amax",
    "clamp_min": "clamp_max",
    "floor": "ceil",
}
_EXTREMES |= {other: one for one, other in _EXTREMES.items()}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A change of one place of one file.

    Args:
        span: First and last byte of what is changed.
        lines: Lines of the expression or statement, and of the function around it: whose tests run it.
    """

    file: str
    line: int
    operator: str
    before: str
    after: str
    span: tuple[int, int]
    lines: tuple[range, range]

    @property
    def key(self) -> tuple[str, int, str, str, str]:
        """The values of ``KEY``."""
        return self.file, self.line, self.operator, self.before, self.after

    def applied(self, source: bytes) -> bytes:
        """The text of the file with the change in it."""
        return source[: self.span[0]] + self.after.encode() + source[self.span[1] :]


class _Changes(ast.NodeVisitor):
    """All changes of one file, in its order: code alone, neither docstrings, annotations, imports nor decorators."""

    def __init__(self, file: str, source: bytes) -> None:
        self.file, self.source = file, source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.around = range(0)
        self.found: list[Mutant] = []

    def _add(self, node: ast.stmt | ast.expr, operator: str, after: str) -> None:
        last = node.end_lineno or node.lineno
        start = self.starts[node.lineno - 1] + node.col_offset
        end = self.starts[last - 1] + (node.end_col_offset or 0)
        before = self.source[start:end].decode()
        lines = range(node.lineno, last + 1), self.around
        self.found.append(Mutant(self.file, node.lineno, operator, before, after, (start, end), lines))

    def _replace(self, node: ast.expr, operator: str, change: Callable[[Any], object]) -> None:
        changed = copy.deepcopy(node)
        change(changed)
        self._add(node, operator, f"({ast.unparse(changed)})")

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        outer, self.around = self.around, range(node.lineno, (node.end_lineno or node.lineno) + 1)
        for child in (*node.args.defaults, *node.args.kw_defaults, *node.body):
            if child is not None:
                self.visit(child)
        self.around = outer

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for child in node.body:
            self.visit(child)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Words for people, and in Python 3.11 places inside them are not known."""

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg != "strict":  # of zip: it says what holds anyway
            self.visit(node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        names = [ast.unparse(target) for target in node.targets]
        if "__all__" in names:
            return
        if all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets):
            self._add(node, "statement deleted", "pass")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(
            node.value, ast.Constant | ast.Yield | ast.YieldFrom
        ):  # docstrings; a generator stays one
            return
        self._add(node, "statement deleted", "pass")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._add(node, "statement deleted", "pass")

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and ast.unparse(node.value) != "None":
            self._add(node, "return value dropped", "return None")
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._add(node, "statement deleted", "pass")
        if (other := _ARITHMETIC.get(type(node.op))) and not _is_text(node.value):
            changed = copy.deepcopy(node)
            changed.op = other()
            self._add(node, "arithmetic", ast.unparse(changed))
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for index, operator in enumerate(node.ops):
            changed = copy.deepcopy(node)
            changed.ops[index] = _COMPARISONS[type(operator)]()
            self._add(node, "comparison", f"({ast.unparse(changed)})")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if (other := _ARITHMETIC.get(type(node.op))) and not _is_text(node.left) and not _is_text(node.right):
            self._replace(node, "arithmetic", lambda new: setattr(new, "op", other()))
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self._replace(node, "and, or", lambda new: setattr(new, "op", other))
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub):
            name = "not" if isinstance(node.op, ast.Not) else "minus"
            self._add(node, f"{name} dropped", f"({ast.unparse(node.operand)})")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in _EXTREMES:
            attribute = "id" if isinstance(node.func, ast.Name) else "attr"
            self._replace(node, "min, max", lambda new: setattr(new.func, attribute, _EXTREMES[name]))
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._add(node, "branches swapped", f"({ast.unparse(node.orelse)} if {ast.unparse(node.test)} else "
                                            f"{ast.unparse(node.body)})")  # fmt: skip
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._add(node, "constant", str(not node.value))
        elif isinstance(node.value, int | float):
            self._add(
                node,
                "constant",
                repr(node.value + 1 if isinstance(node.value, int) else 2 * node.value or 1.0),
            )


def _is_text(node: ast.expr) -> bool:
    """Whether a sum joins, where a difference is no code that anybody writes."""
    return isinstance(node, ast.JoinedStr | ast.List | ast.Tuple) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def changes(file: str, source: bytes) -> list[Mutant]:
    """All mutants of a file."""
    visitor = _Changes(file, source)
    visitor.visit(ast.parse(source))
    return visitor.found


def draw(root: Path, areas: Sequence[str], seed: int, count: int) -> list[Mutant]:
    """``count`` lines, each with one of its changes."""
    by_line: dict[tuple[str, int], list[Mutant]] = {}
    for area in areas:
        for path in sorted((root / area).rglob("*.py")):
            file = path.relative_to(root).as_posix()
            for mutant in changes(file, path.read_bytes()):
                by_line.setdefault((file, mutant.line), []).append(mutant)
    chance = random.Random(seed)
    lines = chance.sample(sorted(by_line), min(count, len(by_line)))
    return [chance.choice(by_line[line]) for line in lines]


def folders_of(root: Path, file: str, areas: Sequence[str]) -> list[str]:
    """The tests of the same folder, and the examples in the code itself."""
    (area,) = (area for area in areas if Path(file).is_relative_to(area))
    return [name for name in (f"tests/{Path(area).name}", area) if (root / name).exists()]


def collect(root: Path, areas: Sequence[str], database: Path) -> None:
    """Runs the tests of the areas once, noting which of them runs which line."""
    tests = sorted({folder for area in areas for folder in folders_of(root, area, areas)})
    options = ["-p", "no:cacheprovider", "--cov", "--cov-context=test", "--cov-report=", "-n", "0"]
    environment = {**os.environ, "PYTHONPATH": str(root), "COVERAGE_FILE": str(database)}
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options, *tests], cwd=root, env=environment, check=True
    )


def covering(database: Path, mutants: Sequence[Mutant]) -> dict[Mutant, list[str]]:
    """The tests that run each mutant, those that run the fewest lines first: most often the quick ones.

    What runs at the import alone has the tests of the function around it, or else those that run any line of the file.
    """
    from coverage import CoverageData

    data = CoverageData(str(database))
    data.read()
    measured = data.measured_files()
    tests: dict[str, dict[int, set[str]]] = {}
    sizes: Counter[str] = Counter()
    for file in {mutant.file for mutant in mutants}:
        by_line: dict[int, set[str]] = {}
        for path in (path for path in measured if Path(path).as_posix().endswith(f"/{file}")):
            for line, contexts in data.contexts_by_lineno(path).items():
                by_line.setdefault(line, set()).update(name.rpartition("|")[0] for name in contexts if name)
        tests[file] = by_line
        sizes.update(name for names in by_line.values() for name in names)
    return {mutant: _nearest(mutant, tests[mutant.file], sizes) for mutant in mutants}


def _nearest(mutant: Mutant, by_line: Mapping[int, set[str]], sizes: Mapping[str, int]) -> list[str]:
    for lines in ((mutant.line,), *mutant.lines, by_line):
        if found := set().union(*(by_line.get(line, ()) for line in lines)):
            return sorted(found, key=lambda name: (sizes[name], name))
    return []


class Copy:
    """A copy of the project in which one file at a time is changed."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = folder / "project", folder

        def left_out(folder: str, names: list[str]) -> set[str]:
            runs = {"runs"} if Path(folder) == root else set()  # and not the room optland/train/runs
            return runs | _LEFT_OUT(folder, names)

        shutil.copytree(root, self.root, ignore=left_out)

    def check(self, mutant: Mutant, tests: Sequence[str], limit: float) -> dict[str, object]:
        """Whether the tests notice the mutant, and which of them first."""
        path = self.root / mutant.file
        source = path.read_bytes()
        began = time.monotonic()
        self._write(path, mutant.applied(source))
        try:
            noticed, by = self.run(tests, limit)
        finally:
            self._write(path, source)
        row = {name: getattr(mutant, name) for name in KEY}
        outcome = "noticed" if noticed else "survived"
        return {
            **row,
            "outcome": outcome,
            "by": by,
            "tests": len(tests),
            "seconds": round(time.monotonic() - began),
        }

    def run(self, tests: Sequence[str], limit: float, *, first: bool = True) -> tuple[bool, str]:
        """Whether a test fails or the time is over, and what did."""
        names = self.folder / "tests.txt"
        names.write_text("\n".join(tests), encoding="utf-8")
        options = ["-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", f"--basetemp={self.folder / 'temp'}"]
        command = [sys.executable, "-m", "pytest", *options, *["-x"] * first, f"@{names}"]
        environment = {**os.environ, "PYTHONPATH": str(self.root), "COLUMNS": "1000"}
        with subprocess.Popen(
            command, cwd=self.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        ) as process:  # fmt: skip
            try:
                output, _ = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                return True, f"time limit of {limit:g} s"
        failed = re.findall(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", output, flags=re.M)
        if process.returncode == 5:
            raise RuntimeError(f"no test was run:\n{output}")
        if process.returncode == 0:
            return False, ""
        return True, failed[0] if failed and first else ", ".join(
            failed
        ) or f"exit status {process.returncode}"

    @staticmethod
    def _write(path: Path, source: bytes) -> None:
        """Bytecode is known by the second in which its source was written, which two mutants may share."""
        path.write_bytes(source)
        for old in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            old.unlink()


def known(results: Path) -> list[dict[str, object]]:
    """Rows of an earlier run; the last line may have been cut off, and is done again."""
    if not results.exists():
        return []
    whole = [
        line for line in results.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
    ]
    results.write_text("".join(whole), encoding="utf-8")
    return [json.loads(line) for line in whole]


def check(
    root: Path,
    areas: Sequence[str],
    mutants: Sequence[Mutant],
    results: Path,
    database: Path | None,
    limit: float,
) -> list[dict[str, object]]:
    """One row for each mutant, from an earlier run or from this one.

    Raises:
        RuntimeError: If a test that noticed a mutant fails on the code as it is.
    """
    rows = {tuple(row[name] for name in KEY): row for row in known(results)}
    tests = covering(database, mutants) if database else {}
    with tempfile.TemporaryDirectory() as folder:
        project = Copy(root, Path(folder))
        for number, mutant in enumerate(mutants, 1):
            if mutant.key not in rows:
                names = tests.get(mutant) or folders_of(root, mutant.file, areas)
                rows[mutant.key] = project.check(mutant, names, limit)
                with results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[mutant.key]) + "\n")
            print(f"{number:3} {in_words(rows[mutant.key])}", flush=True)
        found = [rows[mutant.key] for mutant in mutants]
        noticing = sorted({str(row["by"]) for row in found if "::" in str(row["by"])})
        if noticing:
            fails, which = project.run(noticing, limit * len(noticing), first=False)
            if fails:
                raise RuntimeError(f"these fail on the code as it is, and so notice nothing: {which}")
    return found


def in_words(row: Mapping[str, object]) -> str:
    before, after = (" ".join(str(row[name]).split()) for name in ("before", "after"))
    by = f" by {row['by']}" if row["by"] else ""
    return f"{row['outcome']}{by}: {row['file']}:{row['line']} {row['operator']}: {before} -> {after}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--count", type=int, default=60, help="mutants")
    parser.add_argument(
        "--only", metavar="AREA", help=f"those of the drawn that are in one of {', '.join(AREAS)}"
    )
    parser.add_argument(
        "--coverage", type=Path, help="database of coverage with contexts; made if it is not there"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("mutants.jsonl"), help="JSON lines, one for each mutant"
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=1800.0,
        help="seconds for each mutant, which is noticed then: more than its tests take",
    )
    parser.add_argument("--list", action="store_true", help="only says which mutants are drawn")
    given = parser.parse_args(arguments)
    mutants = draw(ROOT, AREAS, given.seed, given.count)
    if given.only:
        mutants = [mutant for mutant in mutants if Path(mutant.file).is_relative_to(given.only)]
    if given.list:
        for mutant in mutants:
            print(in_words({**dataclasses.asdict(mutant), "outcome": "drawn", "by": ""}))
        return
    if given.coverage and not given.coverage.exists():
        collect(ROOT, AREAS, given.coverage)
    rows = check(ROOT, AREAS, mutants, given.results, given.coverage, given.limit)
    noticed = sum(row["outcome"] == "noticed" for row in rows)
    print(f"{noticed} of {len(rows)} noticed")


if __name__ == "__main__":
    main()
