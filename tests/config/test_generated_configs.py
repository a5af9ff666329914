"""Generated configurations of the real recipes: each is refused with its key, value and fix, or sets up and is ready.

The strategy is built from the fields of a recipe's ``Config``, so that a new field is covered by being there. What is
accepted goes through the recipe's own ``main`` up to the first batch.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import sklearn.datasets
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from optland.cli.recipes import Recipe
from optland.config import UserError, load, to_yaml
from optland.log.logger import LoggerGroup
from optland.optim import available
from optland.pilot import Pilot
from optland.pilot.policies import POLICIES

ROOT = Path(__file__).resolve().parents[2]

Values = tuple[list[Any], list[Any]]
"""Values that some configuration can have, and values that none, or only a rare one, can."""

WHOLE: Values = ([1, 2, 3, 4, 8, 16, 20], [-(2**70), -1, 0, 7, 64, 2**31, 2**40, 2**63, 2**70, 1.5, 10.0])
REAL: Values = ([0.05, 0.5, 0.9, 1e-3, 1], [-1.0, -1e-9, 0.0, 1e-300, 0.999, 1.0, 1.5, 100.0, 1e300])
NOT_A_NUMBER = ["many", "nan", ".inf", "1e999", "", True, [], [1], {"a": 1}]
WRONG_TEXT = ["", "nonsense", "x" * 300, "a/b", "a: b", None, [], {"a": 1}, "${seed}", "${nowhere}", "???", 3]
BASES = ["sgd", "adam", "adamw", "rmsprop"]
NAMES: dict[str, Values] = {
    # Texts whose values the annotations do not tell. Data sets that lie in files are not there in a test.
    "data.name": (["digits", "teacher", "fake"], ["mnist", "digitz", "cifar"]),
    "data.root": ([None], ["nowhere"]),
    "data.label_noise": ([0.0, 0.3, 1.0], [*REAL[1], *NOT_A_NUMBER]),
    "model.name": (
        ["cnn", "mlp", "resnet8", "resnet", "densenet", "vit"],
        ["resnet9", "torchvision:resnet18", "torchvision:vit_b_16", ""],
    ),
    "model.init": (
        ["default", "kaiming_normal", "xavier_uniform", "orthogonal", "normal:0.02"], ["normal:", "normal:-1"],
    ),
    "optimizer.name": (available(), ["samm", "Adam"]),
    "optimizer.base": (BASES, ["none", "asam", "lion"]),
    "precision.ema": ([None, 0.0, 0.9], [1.0, -0.1, 2, *NOT_A_NUMBER]),
    "pilot.policies": (
        [[], *([name] for name in POLICIES), ["auto_lr", "noise_batch"]],
        [list(POLICIES), ["auto_lr", "auto_lr"], ["autolr"], [3], "auto_lr"],
    ),
    "log.project": (["mine"], ["a/b", "x" * 200, ""]),
    "log.group": ([None, "seeds"], ["", "x" * 200]),
    "log.tags": ([[], ["a", "b"]], [["a", "a"], [""], ["x" * 70], [3]]),
    "threads": ([1, 2], [-1, 0, 10**6, 2**70]),
    "out": (["run", "runs/here"], ["", ".", "/dev/null/run", "nul\0run", "x" * 300]),
}  # fmt: skip
TEXT_NAMES: dict[str, Values] = {
    "data.paths": ([["text.txt"], ["text.txt", "*.txt"]], [["nowhere"], [""], ["nul\0"], "text.txt", [3]]),
    "data.context": ([1, 8, 32], [0, -1, 1_000, 10**6, 2**40, 2**70, *NOT_A_NUMBER]),
    "data.max_bytes": ([10_000, 2**40], [0, -1, 1, 60, 2**70, *NOT_A_NUMBER]),
    "model.depth": ([1, 2], [0, -1, 10**6, 2**40, 2**70, *NOT_A_NUMBER]),
    "model.width": ([8, 16, 24], [0, -1, 7, 10**6, 2**40, 2**70, *NOT_A_NUMBER]),
    "model.heads": ([1, 2, 4], [0, -1, 3, 5, 10**6, 2**70, *NOT_A_NUMBER]),
}
BASES_OF = {
    "landscape_train": "recipe: landscape_train\n",
    "language_model": "recipe: language_model\ndata: {paths: [text.txt], context: 8}\nmodel: {width: 16, depth: 1}\n",
}


def leaves(schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key that holds a value, with its annotation."""
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        key, kind = prefix + field.name, hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from leaves(kind, f"{key}.")
        else:
            yield key, kind


def values(key: str, kind: Any, names: dict[str, Values]) -> Values:
    """Good and bad values for one key."""
    if key in names:
        good, bad = names[key]
        return good, [*bad, {"a": 1}]
    if get_origin(kind) in (Union, types.UnionType):
        kinds = [values(key, member, names) for member in get_args(kind) if member is not type(None)]
        return [None, *itertools.chain(*(good for good, _ in kinds))], [
            *itertools.chain(*(bad for _, bad in kinds))
        ]
    if get_origin(kind) is Literal:
        return list(get_args(kind)), [str(get_args(kind)[0])[:-1] + "x", 3, None]
    if get_origin(kind) in (list, tuple):
        return [[]], [["a"], [1, 2], "a", 3]
    if kind is bool:
        return [True, False], ["maybe", 1, None]
    if kind is int:
        return WHOLE[0], [*WHOLE[1], *NOT_A_NUMBER]
    if kind is float:
        return REAL[0], [*REAL[1], *NOT_A_NUMBER]
    return ["text"], WRONG_TEXT


def misspelt(key: str) -> list[str]:
    """Keys that are not there: a letter lost, a letter doubled, another section's, one too deep."""
    return [key[:-1] + "_", key + key[-1], f"nothing.{key}", f"{key}.more", key.rpartition(".")[2][::-1]]


def load_module(recipe: Recipe) -> types.ModuleType:
    """The recipe as a module, for its ``Config`` and ``main``."""
    spec = importlib.util.spec_from_file_location(f"generated_configs_{recipe.name}", recipe.script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # annotations are looked up there
    spec.loader.exec_module(module)
    return module


class Subject:
    """A recipe and what its keys can hold."""

    def __init__(self, name: str) -> None:
        self.recipe = Recipe(ROOT / "recipes" / f"{name}.py")
        self.module = load_module(self.recipe)
        self.base = BASES_OF[name]
        names = NAMES | (TEXT_NAMES if name == "language_model" else {})
        self.values = {key: values(key, kind, names) for key, kind in leaves(self.module.Config)}
        self.sections = sorted({key.partition(".")[0] for key in self.values if "." in key})
        # Keys that can contradict each other are drawn together more often than chance would.
        groups = [("data", "model"), ("optimizer", "precision", "pilot", "schedule", "batch_size", "data")]
        near = [[key for key in self.values if key.partition(".")[0] in group] for group in groups]
        self.pools = [sorted(self.values), *map(sorted, near)]


SUBJECTS = {name: Subject(name) for name in BASES_OF}


@st.composite
def changes(draw: st.DrawFn, subject: Subject) -> list[tuple[str, Any]]:
    """A few keys with values: mostly known keys, sometimes a wrong one or a value instead of a section."""
    pool = draw(st.sampled_from(subject.pools))
    chosen = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=6, unique=True))
    bad = draw(st.sampled_from([*[0] * 8, 1, 1, 2]))
    made = []
    for number, key in enumerate(chosen):
        made.append((key, draw(st.sampled_from(subject.values[key][number < bad]))))
    odd = draw(st.integers(0, 19))
    if odd == 0:
        made.append((draw(st.sampled_from(misspelt(chosen[0]))), 1))
    elif odd == 1:
        wrong = draw(st.sampled_from([3, "text", [1], {"nonsense": 1}]))
        made.append((draw(st.sampled_from(subject.sections)), wrong))
    return made


class Ready(BaseException):
    """The set-up is through: the first batch was asked for."""


def set_up(subject: Subject, text: str, folder: Path) -> None:
    """Run the recipe on a resolved configuration up to its first batch."""
    (folder / "resolved.yaml").write_text(text, encoding="utf-8")
    config = load(subject.module.Config, folder / "resolved.yaml", recipe=subject.recipe.name)
    subject.module.main(config)


def stop(self: Pilot, loader: Any, epochs: int | None = None) -> Iterator[Any]:
    raise Ready


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to run in, with nothing trained, nothing logged, and the data in memory."""
    monkeypatch.setattr(Pilot, "batches", stop)
    monkeypatch.setattr(LoggerGroup, "finish", lambda self, summary, exit_code=0: None)
    monkeypatch.setattr(sklearn.datasets, "load_digits", functools.cache(sklearn.datasets.load_digits))
    monkeypatch.setenv("OPTLAND_DATA", str(tmp_path / "no_data"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("".join(f"line {n} of {n * n}\n" for n in range(1000)))
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def written(key: str, value: Any) -> str:
    """An override as it is typed."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return f"{key}={text.rstrip().removesuffix('...').strip()}"


FIX = re.compile(
    r"\b(use|choose|write|expected|must|did you mean|give|leave|put|name|set|keys|run|install|check|download|fetch|"
    r"for example)\b",
    re.IGNORECASE,
)


def check_refusal(message: str, made: list[tuple[str, Any]]) -> None:
    """One message that names a key that was set, its value, and what to do."""
    assert len(message.splitlines()) <= 2, message
    assert FIX.search(message), message
    named = [(key, value) for key, value in made if key.rpartition(".")[2] in message]
    assert named, f"no key in: {message}"
    assert any(shown(value, message) for _, value in named), f"no value in: {message}"


def shown(value: Any, message: str) -> bool:
    """Whether the value can be seen; a long one in part, an empty one in words."""
    if isinstance(value, list | dict):
        return not value or any(
            shown(item, message) for item in (value if isinstance(value, list) else [*value])
        )
    if value is None or value == "":
        return True
    text = str(value)
    return text[:20] in message or text.lower() in message.lower() or repr(value)[:20] in message


def check_absence(message: str, made: dict[str, Any]) -> str:
    """Only what a configuration cannot know may come up later: data and folders that are not there."""
    keys = ("data.name", "data.paths", "out")
    named = [
        name for key in keys if key in made for name in (made[key] if key == "data.paths" else [made[key]])
    ]
    named += ["text.txt"] * ("data.context" in made)  # the base's own text can be too short for a long window
    assert any(str(name)[:100] in message for name in named), message
    assert FIX.search(message), message
    return "not there"


def check_one(subject: Subject, scratch: Path, made: list[tuple[str, Any]]) -> str:
    """Refused well, or ready to train; says which."""
    out = [("out", f"run{next(numbers)}")] if "out" not in dict(made) else []
    base = scratch / "base.yaml"
    base.write_text(subject.base)
    overrides = [written(key, value) for key, value in made + out]
    try:
        found = subject.recipe.load_config(str(base), overrides, subject.module.Config)
        text = to_yaml(found, recipe=subject.recipe.name)
    except UserError as error:
        check_refusal(str(error), made)
        return "refused"
    try:
        set_up(subject, text, scratch)
    except Ready:
        return "ready"
    except UserError as error:
        return check_absence(str(error), dict(made))
    raise AssertionError("the set-up came to an end without a batch")


numbers = itertools.count()


def check_many(subject: Subject, scratch: Path, count: int) -> None:
    """Draw and check ``count`` configurations, the same ones every time."""

    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck],
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(made=changes(subject))
    def check(made: list[tuple[str, Any]]) -> None:
        check_one(subject, scratch, made)

    check()


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_configuration_is_refused_well_or_sets_up(scratch: Path, name: str) -> None:
    check_many(SUBJECTS[name], scratch, 50)


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBJECTS)
def test_five_hundred_configurations_are_refused_well_or_set_up(scratch: Path, name: str) -> None:
    check_many(SUBJECTS[name], scratch, 500)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "key"), [(name, key) for name, it in SUBJECTS.items() for key in it.values])
def test_every_value_of_a_key_alone(scratch: Path, name: str, key: str) -> None:
    """Exhaustive where the generated ones sample: no key hides a value that was never drawn."""
    good, bad = SUBJECTS[name].values[key]
    # Under auto_lr, which the default has, no learning rate is accepted.
    beside = [("pilot.policies", ["noise_monitor"])] if key == "optimizer.lr" else []
    outcomes = [check_one(SUBJECTS[name], scratch, [(key, value), *beside]) for value in good + bad]
    assert "refused" in outcomes
    assert set(outcomes) & {"ready", "not there"}
