"""What the package uses of others is public, but for a short list with reasons."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ALLOWED = {
    # torch: operations on a list of tensors in one call; torch.optim is built on them and there are no others
    **dict.fromkeys(
        ["_foreach_add", "_foreach_add_", "_foreach_copy_", "_foreach_mul", "_foreach_mul_", "_foreach_neg_"],
        "one kernel for a list of tensors",
    ),
    **dict.fromkeys(
        ["_foreach_div", "_foreach_norm", "_foreach_sqrt", "_foreach_sub", "_foreach_sub_", "_foreach_zero_"],
        "one kernel for a list of tensors",
    ),
    # torch: a wrapper runs the hooks that were registered on it; they can be registered and removed, not called
    "_optimizer_step_pre_hooks": "hooks of a wrapper's own step",
    "_optimizer_step_post_hooks": "hooks of a wrapper's own step",
    "_optimizer_state_dict_pre_hooks": "hooks of a wrapper's own state dict",
    "_optimizer_state_dict_post_hooks": "hooks of a wrapper's own state dict",
    "_optimizer_load_state_dict_pre_hooks": "hooks of a wrapper's own state dict",
    "_optimizer_load_state_dict_post_hooks": "hooks of a wrapper's own state dict",
    "_optimizer_": "the names of all of these, to leave them out of copies",
    "_opt_called": "a scheduler's mark of a step that was made, where a loss scale has left the first one out",
    # torch: no public question has the answer
    "_is_view": "whether DDP will write to a gradient's memory again",
    "_buffers": "buffers that are None, and their names, module by module in no time",
    "_modules": "as _buffers",
    "_parameters": "as _buffers; a stand-in that is no nn.Parameter has no other way in",
    "_version": "whether a tensor was written since; torch documents it and gives no public name",
    "_backward_hooks": "whether a hook waits for a tensor's gradient",
    "_post_accumulate_grad_hooks": "whether a hook waits for a tensor's gradient",
    "_forward_pre_hooks": "which modules compute a weight before their forward, as the older norms do",
    "_orig_mod": "the module inside a compiled one; its name is part of every compiled state dict",
}

IN_ONE_FILE = {"ctypes": "optland/context/numpy_state.py"}
"""Memory is read only at the address that NumPy documents for the state of its generators."""

PUBLIC = {"_exit", "_fields", "_replace", "_asdict"}
"""Names with an underscore that their package documents: os._exit, and what named tuples have."""

ENDINGS = {"_converged", "_made", "_test", "_x", "_y"}
"""Ends of keys, which only look like names."""


def own_names(trees: Iterable[ast.AST]) -> set[str]:
    """Every private name that the package defines itself: functions, classes, variables, attributes, files."""
    names = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                names.add(node.attr)
    return names


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_" and name.isidentifier()


def foreign(tree: ast.AST, own: set[str]) -> Iterator[tuple[int, str]]:
    """Line and name of everything private that is not the package's own; of ``ctypes`` too."""
    for node in ast.walk(tree):
        names: list[str] = []
        known = own
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]  # getattr(module, "_orig_mod")
        elif isinstance(node, ast.Import):
            names, known = [part for alias in node.names for part in alias.name.split(".")], set()
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("optland"):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            known = set()
        line = getattr(node, "lineno", 0)
        yield from (
            (line, name) for name in names if name == "ctypes" or (is_private(name) and name not in known)
        )


@cache
def survey() -> tuple[set[str], list[tuple[str, str]]]:
    """The package's own private names, and the place and name of every other that it uses."""
    trees = {
        str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf-8"))
        for file in sorted((ROOT / "optland").rglob("*.py"))
    }
    own = own_names(trees.values()) | ENDINGS | PUBLIC | {"_optland_spent", "_bundled"}
    found = [(f"{file}:{line}", name) for file, tree in trees.items() for line, name in foreign(tree, own)]
    return own, found


def test_only_listed_private_names_of_other_packages_are_used() -> None:
    found = [
        f"{place}: {name}"
        for place, name in survey()[1]
        if name not in ALLOWED and not place.startswith(f"{IN_ONE_FILE.get(name, 'nowhere')}:")
    ]
    assert not found, (
        "private names of other packages; use what is public, or list them with a reason:\n"
        + "\n".join(found)
    )


def test_every_listed_name_is_used() -> None:
    own, found = survey()
    unused = set(ALLOWED) - own - {name for _, name in found}
    assert not unused, f"not used any more: {sorted(unused)}"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import ctypes", "ctypes"),
        ("state.ctypes.state_address", "ctypes"),
        ("import _random", "_random"),
        ("from torch._utils import flatten", "_utils"),
        ("from numpy.random.mtrand import _rand", "_rand"),
        ("torch._utils.flatten(x)", "_utils"),
        ("getattr(model, '_secret', None)", "_secret"),
    ],
)
def test_a_violation_is_noticed(source: str, name: str) -> None:
    assert [found for _, found in foreign(ast.parse(source), survey()[0])] == [name]


def test_what_is_the_packages_own_is_left_alone() -> None:
    source = "from optland.cli.grid import _name\nself._x = 1\nfor _ in y: z.__dict__\nitem._fields"
    assert not list(foreign(ast.parse(source), survey()[0]))
