"""The mutation check on a project of one function, whose mutants are known."""

from __future__ import annotations

import json
from pathlib import Path

import mutate
import pytest

CODE = '''\
"""Nothing of this is changed: -1 + 2."""

__all__ = ["larger"]


def larger(a: float, b: float = 1) -> float:
    """The larger of two numbers, not the sum a + b."""
    if a > b:
        return a
    return b
'''

TEST = """\
from toy.sums.code import larger


def test_numbers():
    assert larger(3.0, 2.0) == 3.0


def test_default():
    assert larger(0.5) == 1.0
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # The imports of plugins that the toy's tests do not use take longer than the tests.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    root = tmp_path / "root"
    for name, text in {"toy/sums/code.py": CODE, "tests/sums/test_code.py": TEST}.items():
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(text)
    return root


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def check(project: Path, count: int = 10, limit: float = 60.0) -> dict[tuple[str, str], dict[str, object]]:
    """Rows by what the changes put instead of what."""
    mutants = mutate.draw(project, ["toy/sums"], seed=0, count=count)
    rows = mutate.check(project, ["toy/sums"], mutants, project.parent / "results", None, limit)
    return {(str(row["before"]), str(row["after"])): row for row in rows}


@pytest.mark.parametrize(
    ("code", "changed"),
    [
        ("x = a < b <= c", ["x = (a <= b <= c)", "x = (a < b < c)"]),
        ("x = a is None", ["x = (a is not None)"]),
        ("x = a * b + c", ["x = (a * b - c)", "x = (a / b) + c"]),
        ("x = [a] + b; y = 'a' + b", []),
        (
            "x = 2; y = 0.5; z = 0.0",
            ["x = 3; y = 0.5; z = 0.0", "x = 2; y = 1.0; z = 0.0", "x = 2; y = 0.5; z = 1.0"],
        ),
        ("x = True", ["x = False"]),
        ("x = a and b", ["x = (a or b)"]),
        ("x = not a", ["x = (a)"]),
        ("x = -a", ["x = (a)"]),
        ("x = max(a, b)", ["x = (min(a, b))"]),
        ("x = a.any()", ["x = (a.all())"]),
        ("x = a if b else c", ["x = (c if b else a)"]),
        ("x += a", ["pass", "x -= a"]),
        ("a.x = b", ["pass"]),
        ("f(a)", ["pass"]),
        ("raise E", ["pass"]),
        ("def f():\n    return a", ["def f():\n    return None"]),
        ("def f():\n    return None", []),
        ("é = 'é'; x = a or b", ["é = 'é'; x = (a and b)"]),  # places are told in bytes
    ],
)
def test_what_is_changed(code: str, changed: list[str]) -> None:
    source = code.encode()
    assert [mutant.applied(source).decode() for mutant in mutate.changes("code.py", source)] == changed


@pytest.mark.parametrize(
    "code",
    [
        '"""1 + 1"""',
        "import a",
        "__all__ = ['a', *map(str, [1])]",
        "x: Literal[1]",
        "def f(x: Literal[1]) -> Literal[2]: ...",
        "@f(1)\nclass A: ...",
        "zip(a, b, strict=True)",
        "if TYPE_CHECKING:\n    x = 1",
        "x = f'{1 + 1}'",
    ],
)
def test_what_is_let_be(code: str) -> None:
    found = mutate.changes("code.py", code.encode())
    assert [mutant.operator for mutant in found if mutant.operator != "statement deleted"] == []


def test_the_draw_is_that_of_the_seed(project: Path) -> None:
    def lines(seed: int, count: int) -> list[int]:
        return [mutant.line for mutant in mutate.draw(project, ["toy/sums"], seed, count)]

    assert lines(0, 10) == lines(0, 10)
    assert sorted(lines(0, 10)) == [6, 8, 9, 10]  # each line of code once
    assert len({tuple(lines(seed, 2)) for seed in range(10)}) > 1


def test_a_mutant_that_a_test_sees_is_noticed_and_an_equivalent_one_survives(project: Path) -> None:
    before = contents(project)
    rows = check(project)
    assert {change: row["outcome"] for change, row in rows.items()} == {
        ("1", "2"): "noticed",
        ("a > b", "(a >= b)"): "survived",  # equal numbers: either is the larger
        ("return a", "return None"): "noticed",
        ("return b", "return None"): "noticed",
    }
    assert rows["1", "2"]["by"] == "tests/sums/test_code.py::test_default"
    assert contents(project) == before


def test_a_run_goes_on_where_it_was_stopped(project: Path) -> None:
    mutants = mutate.draw(project, ["toy/sums"], seed=0, count=10)
    done = [dict(zip(mutate.KEY, mutant.key, strict=True), outcome="survived", by="") for mutant in mutants]
    kept = [row for row in done if row["before"] != "return b"]
    results = project.parent / "results"
    results.write_text("".join(json.dumps(row) + "\n" for row in kept) + '{"file": "toy/su')
    rows = check(project)
    assert [row for row in rows.values() if row["before"] != "return b"] == kept
    assert rows["return b", "return None"]["by"] == "tests/sums/test_code.py::test_default"
    assert [json.loads(line)["before"] for line in results.read_text().splitlines()] == [
        *(row["before"] for row in kept),
        "return b",
    ]


def test_a_mutant_that_takes_too_long_is_noticed(project: Path) -> None:
    (project / "tests/sums/test_code.py").write_text("import time\n\n\ndef test_it():\n    time.sleep(60)\n")
    (row,) = check(project, count=1, limit=0.5).values()
    assert (row["outcome"], row["by"]) == ("noticed", "time limit of 0.5 s")


def test_the_copy_leaves_out_the_runs_that_lie_beside_the_code_and_no_folder_of_the_code(
    project: Path,
) -> None:
    for name in ("runs/one.txt", "toy/runs/code.py", "toy/__pycache__/code.pyc"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("")
    copy = mutate.Copy(project, project.parent)
    found = {path.relative_to(copy.root).as_posix() for path in contents(copy.root)}
    assert found == {"toy/sums/code.py", "tests/sums/test_code.py", "toy/runs/code.py"}


def test_a_test_that_fails_anyway_is_told(project: Path) -> None:
    (project / "tests/sums/test_code.py").write_text("def test_it():\n    assert False\n")
    with pytest.raises(RuntimeError, match=r"fail on the code as it is.*test_code.py::test_it"):
        check(project, count=1)


def test_the_tests_that_run_a_line_are_found(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the two returns has its test; the default has those of its function."""
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")  # coverage comes as a plugin
    database = project.parent / "coverage.db"
    mutate.collect(project, ["toy/sums"], database)
    mutants = mutate.draw(project, ["toy/sums"], seed=0, count=10)
    tests = {mutant.before: found for mutant, found in mutate.covering(database, mutants).items()}
    numbers, default = (f"tests/sums/test_code.py::{name}" for name in ("test_numbers", "test_default"))
    assert {name: set(found) for name, found in tests.items()} == {
        "1": {numbers, default},
        "a > b": {numbers, default},
        "return a": {numbers},
        "return b": {default},
    }
