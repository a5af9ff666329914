"""The configuration: every way to write one that is right, and one clear message for every way that is wrong."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optland.config import ConfigError, UserError, load, to_yaml


@dataclass(frozen=True)
class Train:
    batch_size: int = 32
    epochs: int = 1
    lr: float = 0.1
    nesterov: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.nesterov and self.lr == 0:
            raise ValueError("with nesterov the lr must not be 0")


@dataclass(frozen=True)
class Sam:
    rho: float = 0.05


@dataclass(frozen=True)
class Config:
    name: str
    mode: Literal["off", "monitor", "control"] = "monitor"
    order: Literal[1, 2] = 1
    seed: int | None = None
    lr: float | Literal["auto"] = "auto"
    note: str | float = ""
    policies: list[str] = field(default_factory=list)
    betas: tuple[float, float] = (0.9, 0.999)
    sizes: tuple[int, ...] = ()
    weights: dict[str, float] = field(default_factory=lambda: {"edge": 1.0, "noise": 2.0})
    limit: float = field(default=math.inf, metadata={"allow_nonfinite": True})
    out: Path = Path("runs")
    extra: Any = None
    sam: Sam | None = None
    train: Train = field(default_factory=lambda: Train(batch_size=64))
    stages: list[Train] = field(default_factory=list)


def written(folder: Path, text: str) -> Path:
    path = folder / "digits.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def loaded(folder: Path, text: str, *overrides: str, recipe: str | None = None) -> Config:
    return load(Config, written(folder, text), overrides, recipe=recipe)


def test_defaults_fill_what_the_file_leaves_out(tmp_path: Path) -> None:
    config = loaded(tmp_path, "name: a\ntrain: {epochs: 3}")
    assert config == Config(name="a", train=Train(batch_size=64, epochs=3))
    assert type(config.train) is Train


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("lr: 1", "lr", 1.0),
        ("lr: 1e-3", "lr", 0.001),
        ("lr: '1e-3'", "lr", 0.001),
        ("lr: auto", "lr", "auto"),
        ("mode: off", "mode", "off"),
        ("order: 2", "order", 2),
        ("note: on", "note", "on"),
        ("note: 0.5", "note", 0.5),
        ("note: '0.5'", "note", "0.5"),
        ("seed: null", "seed", None),
        ("seed: 3", "seed", 3),
        ("policies: [auto_lr, on, 1.10]", "policies", ["auto_lr", "on", "1.10"]),
        ("betas: [0.8, 1e-2]", "betas", (0.8, 0.01)),
        ("sizes: [1, 2, 3]", "sizes", (1, 2, 3)),
        ("weights: {edge: 3}", "weights", {"edge": 3.0}),
        ("limit: .inf", "limit", math.inf),
        ("out: a/b", "out", Path("a/b")),
        ("extra: {any: [1, {thing: x}]}", "extra", {"any": [1, {"thing": "x"}]}),
        ("sam: {rho: 1}", "sam", Sam(1.0)),
        ("train:", "train", Train(batch_size=64)),
        ("stages: [{lr: 1}, {epochs: 2}]", "stages", [Train(lr=1.0), Train(epochs=2)]),
        ("seed: ${train.epochs}", "seed", 1),
    ],
)
def test_values_become_what_the_schema_says(tmp_path: Path, text: str, key: str, value: object) -> None:
    source = f"name: a\n{text}" + ("\ntrain: {epochs: 1}" if "${" in text else "")
    got = getattr(loaded(tmp_path, source), key)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["train.epochs=5"], "train", Train(batch_size=2, epochs=5)),
        (["train={epochs: 5}"], "train", Train(batch_size=2, epochs=5)),
        (["mode=off"], "mode", "off"),
        (["name=off"], "name", "off"),
        (["name=a=b"], "name", "a=b"),
        (["lr=-1e-3"], "lr", -0.001),
        (["seed=1", "seed=null"], "seed", None),
        (["policies=[x, y]"], "policies", ["x", "y"]),
        (["policies=[2.50]"], "policies", ["2.50"]),
        (["weights.edge=5"], "weights", {"edge": 5.0, "noise": 2.0}),
        (["weights={edge: 5}"], "weights", {"edge": 5.0, "noise": 2.0}),
        (["stages.0.lr=5"], "stages", [Train(lr=5.0)]),
        (["sam.rho=2"], "sam", Sam(2.0)),
    ],
)
def test_overrides_win_over_the_file(tmp_path: Path, overrides: list[str], key: str, value: object) -> None:
    config = loaded(
        tmp_path, "name: 7\ntrain: {batch_size: 2}\nstages: [{lr: 1}]\npolicies: [1.10]", *overrides
    )
    assert getattr(config, key) == value


BAD = {
    "an alias inside itself": ("train: &a\n  epochs: *a", [], ["alias inside itself", "Check"]),
    "brackets without end": ("note: " + "[" * 2000 + "]" * 2000, [], ["nested too deep", "Check"]),
    "thousands of digits": ("order: " + "9" * 5000, [], ["4300 digits"]),
    "a section in a number": ("train: {epochs: 3}", ["train.epochs.x=3"], ["'train.epochs.x=3'", "{'x': 3}"]),
    "an empty name": ("", ["train..epochs=3"], ["'train..epochs' is no key", "as in data.name=VALUE"]),
    "an index": ("", ["policies[0]=x"], ["'policies[0]' is no key"]),
    "an alias of nothing": ("", ["order=*a"], ["'order=*a'", "undefined alias"]),
    "misspelt key": ("trian: {}", [], ["line 2", "'trian'", "Did you mean 'train'"]),
    "misspelt nested key": (
        "train:\n  batchsize: 3",
        [],
        ["line 3", "'train.batchsize'", "'train.batch_size'"],
    ),
    "key of another section": ("epochs: 3", [], ["'epochs'", "Did you mean 'train.epochs'"]),
    "unknown key": ("zzz: 3", [], ["'zzz'", "Keys at the top: name, mode"]),
    "misspelt override": ("", ["train.epoch=3"], ["override 'train.epoch=3'", "'train.epochs'"]),
    "text for a number": (
        "train: {epochs: many}",
        [],
        ["line 2", "train.epochs", "'many'", "a whole number"],
    ),
    "bool for a number": ("train: {epochs: true}", [], ["train.epochs", "'true'", "a whole number"]),
    "bool for a float": ("train: {lr: yes}", [], ["train.lr", "'yes'", "a number"]),
    "a whole too large": (
        "train: {epochs: 9223372036854775808}",
        [],
        ["train.epochs", "'9223372036854775808'", "64 bits"],
    ),
    "float for a whole": ("train: {epochs: 1e2}", [], ["train.epochs", "'1e2'", "Write 100"]),
    "quoted number": ("train: {epochs: '7'}", [], ["train.epochs", "'7'", "Write 7"]),
    "number for a bool": ("train: {nesterov: 1}", [], ["train.nesterov", "'1'", "true or false"]),
    "null for a number": ("train: {epochs: null}", [], ["train.epochs", "nothing"]),
    "null for a text": ("", ["name="], ["override 'name='", "text", "Write ''"]),
    "list for a text": ("", ["name=[a]"], ["override 'name=[a]'", "text", "got ['a']"]),
    "scalar for a section": ("train: 3", [], ["line 2", "train:", "a section", "batch_size", "'3'"]),
    "scalar for a list": ("policies: auto_lr", [], ["policies", "a list of text", "'auto_lr'"]),
    "wrong item": ("sizes: [1, x]", [], ["sizes.1", "'x'", "a whole number"]),
    "wrong length": ("betas: [1, 2, 3]", [], ["betas", "a list of a number and a number"]),
    "wrong entry": ("weights: {edge: high}", [], ["weights.edge", "'high'", "a number"]),
    "entry name": ("weights: {1: 2}", [], ["weights", "the name 1", "quotes"]),
    "choice": ("mode: contrl", [], ["mode", "'contrl'", "off, monitor, control", "Did you mean 'control'"]),
    "choice of numbers": ("order: true", [], ["order", "'true'", "one of 1, 2"]),
    "union": ("lr: fast", [], ["lr", "'fast'", "a number or one of auto"]),
    "nan": ("train: {lr: .nan}", [], ["train.lr", "'.nan'", "finite"]),
    "infinity as text": ("train: {lr: 'inf'}", [], ["train.lr", "'inf'", "finite"]),
    "impossible": ("train:\n  batch_size: 0", [], ["line 3", "train.batch_size must be at least 1, got 0"]),
    "impossible override": (
        "",
        ["train.batch_size=0"],
        ["override 'train.batch_size=0'", "train.batch_size must"],
    ),
    "impossible together": ("train: {lr: 0, nesterov: true}", [], ["line 2", "train: with nesterov the lr"]),
    "required": ("name: ???", [], ["name is missing", "name=VALUE", "text"]),
    "not YAML": ("train: [1, 2\nseed: 1", [], ["line 3", "not valid YAML"]),
    "twice": ("name: b", [], ["line 2", "duplicate key", "name"]),
    "tab": ("train:\n\tepochs: 1", [], ["line 3", "not valid YAML"]),
    "no equals": ("", ["train.epochs"], ["'train.epochs'", "expected key=value", "'train.epochs=VALUE'"]),
    "dashes": ("", ["--seed=3"], ["'--seed=3'", "Write 'seed=3'"]),
    "no key": ("", ["=3"], ["'=3'", "expected key=value"]),
    "inside a merged section": (
        "train: {lr: 1}",
        ["train={lr: x}"],
        ["override 'train={lr: x}'", "train.lr", "'x'"],
    ),
    "beside a merged section": ("train: {lr: x}", ["train={epochs: 2}"], ["line 2", "train.lr", "'x'"]),
    "inside a list": ("sizes: [1]", ["sizes=[x]"], ["override 'sizes=[x]'", "sizes.0", "'x'"]),
    "broken value": ("", ["policies=[a"], ["override 'policies=[a'", "as in YAML"]),
    "index out of range": ("policies: [a]", ["policies.4=b"], ["override 'policies.4=b'", "out of range"]),
    "lost reference": ("seed: ${nowhere}", [], ["line 2", "seed", "nowhere"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_gives_one_message_with_the_fix(tmp_path: Path, case: str) -> None:
    text, overrides, parts = BAD[case]
    head = "name: a\n" if "???" not in text else ""
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, head + text, *overrides)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    if not overrides:
        assert "digits.yaml" in message


def test_a_key_by_its_old_name_is_told_the_new_one(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Survey:
        max_matvecs: int = 100
        points: int = 21

    with pytest.raises(ConfigError, match=r"no key 'products'\. Did you mean 'max_matvecs'"):
        load(Survey, written(tmp_path, "products: 20"))


def test_a_file_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    written(tmp_path, "name: a")
    with pytest.raises(
        ConfigError, match=r"digit\.yaml: there is no such file\. Did you mean 'digits\.yaml'"
    ):
        load(Config, tmp_path / "digit.yaml")
    with pytest.raises(ConfigError, match=r"there are: digits\.yaml"):
        load(Config, tmp_path / "something_else.yaml")
    with pytest.raises(ConfigError, match=r"no YAML files"):
        load(Config, tmp_path / "nowhere" / "digits.yaml")
    with pytest.raises(ConfigError, match=r"is a folder.*digits\.yaml"):
        load(Config, tmp_path)


@pytest.mark.parametrize(
    ("text", "says"), [("", "is empty"), ("# only this\n", "is empty"), ("- a", "a sequence")]
)
def test_a_file_without_keys_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        loaded(tmp_path, text)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        load(Config, path)


def test_the_file_names_its_recipe(tmp_path: Path) -> None:
    assert loaded(tmp_path, "recipe: train\nname: a", recipe="train").name == "a"
    assert loaded(tmp_path, "recipe: train\nname: a").name == "a"
    with pytest.raises(
        ConfigError, match=r"line 1.*for 'probe', not 'train'.*optland run probe .*digits\.yaml"
    ):
        loaded(tmp_path, "recipe: probe\nname: a", recipe="train")
    with pytest.raises(ConfigError, match="Add the line 'recipe: train' on top"):
        loaded(tmp_path, "name: a", recipe="train")


def test_config_errors_are_user_errors_and_value_errors() -> None:
    assert issubclass(ConfigError, UserError)
    assert issubclass(ConfigError, ValueError)


def test_a_schema_that_no_file_can_fill_is_a_defect_not_a_user_error(tmp_path: Path) -> None:
    schema = dataclasses.make_dataclass("Strange", [("name", set)])
    with pytest.raises(TypeError, match=r"name the type .*set"):
        load(schema, written(tmp_path, "name: a"))


def test_yaml_keeps_the_order_of_the_schema_and_the_recipe_on_top(tmp_path: Path) -> None:
    text = to_yaml(Config(name="a"), recipe="train")
    keys = [line.split(":")[0] for line in text.splitlines() if not line.startswith((" ", "-"))]
    assert keys == ["recipe", *(field.name for field in dataclasses.fields(Config))]
    assert loaded(tmp_path, text, recipe="train") == Config(name="a")


whole = st.integers(-(2**63), 2**63 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12) | st.sampled_from(
    ["off", "null", "1e-3", "${x}", r"\${x}", r"\\${x", "~", "0x1f", "1:30", "- a", "a: b", "#", "", "\\"]
)
trains = st.builds(
    Train, batch_size=st.integers(1, 2**63 - 1), epochs=whole, lr=finite, nesterov=st.just(False)
)
configs = st.builds(
    Config,
    name=words,
    mode=st.sampled_from(["off", "monitor", "control"]),
    order=st.sampled_from([1, 2]),
    seed=st.none() | whole,
    lr=finite | st.just("auto"),
    note=words | finite,
    policies=st.lists(words, max_size=3),
    betas=st.tuples(finite, finite),
    sizes=st.lists(whole, max_size=3).map(tuple),
    weights=st.dictionaries(st.text("abcxyz_", min_size=1, max_size=4), finite, max_size=3),
    limit=st.floats(allow_nan=False),
    sam=st.none() | st.builds(Sam, rho=finite),
    train=trains,
    stages=st.lists(trains, max_size=2),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs)
def test_what_is_written_is_read_back_equal(tmp_path: Path, config: Config) -> None:
    again = loaded(tmp_path, to_yaml(config))
    assert again == config
    assert to_yaml(again) == to_yaml(config)
