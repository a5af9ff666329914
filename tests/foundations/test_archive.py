"""Results on disk: every result of the curvature package, taken for real, comes back bit for bit."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import optland.curvature as curvature
from optland import archive, vectors
from optland.archive import Archived, load, save
from optland.estimate import Estimate, Provenance
from optland.objective import Objective
from optland.problems import quadratic, saddle

SOURCE = Provenance("by hand")


def objective(dtype: torch.dtype = torch.float32, sizes: tuple[int, ...] = (24, 9)) -> Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    batches = [(torch.randn(n, 4, dtype=dtype), torch.randint(3, (n,))) for n in sizes]
    return Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), batches)


def hessian() -> Any:
    return curvature.hessian(objective())


def sgd(L: Objective) -> torch.optim.Optimizer:
    return torch.optim.SGD(L.params, lr=0.1, momentum=0.9)


def points() -> list[Any]:
    return curvature.find_critical_points(saddle(), [[torch.tensor([1.0, 0.5], dtype=torch.float64)]])


def critical_step() -> Any:
    L = objective()
    return curvature.critical_step(L, vectors.scaled(-0.1, L.gradient()))


def certificate() -> Any:
    L = objective(sizes=(8, 8, 8))
    return curvature.certify(vectors.random_unit(L.params, 0), L)


RESULTS: dict[str, Callable[[], Any]] = {
    "Certificate": certificate,
    "CriticalPoint": lambda: curvature.classify(objective()),
    "CriticalStep": critical_step,
    "Curve": lambda: curvature.density(hessian(), num_steps=8, num_starts=1).curve(),  # its errors are NaN
    "Density": lambda: curvature.density(hessian(), num_steps=8, num_starts=2),
    "Diagonal": lambda: curvature.diagonal(hessian(), max_matvecs=20),
    "FoundPoint": lambda: points()[0],
    "GradientNoise": lambda: curvature.gradient_noise(objective()),
    "NoiseScale": lambda: curvature.noise_scale(objective()),
    "OperatorCheck": lambda: hessian().check(),
    "Portrait": lambda: curvature.portrait(objective(), k=1),
    "PowerIteration": lambda: curvature.power_iteration(hessian()),
    "SpectralSummary": lambda: curvature.spectral_summary(hessian()),
    "Spectrum": lambda: curvature.lanczos(curvature.hessian(objective(torch.bfloat16)), k=2),
    "Spike": lambda: curvature.density(curvature.hessian(quadratic(torch.eye(3))), num_steps=3).spikes[0],
    "StabilityRatio": lambda: curvature.stability_ratio(L := objective(), sgd(L)),
    "StableRate": lambda: curvature.stable_rate(L := objective(), sgd(L), {"last": 0.1, "peak": 0.5}),
    "Threshold": lambda: curvature.stability_threshold(sgd(objective()))[0],
    "Trace": lambda: curvature.trace_per_layer(hessian(), max_matvecs=20),
    "Tracked": lambda: curvature.SpectrumTracker().probe(hessian()),
    "Estimate": lambda: curvature.trace(hessian(), max_matvecs=1),  # its error is NaN
}


@cache
def result(name: str) -> Any:
    return RESULTS[name]()


def bits(value: Any) -> Any:
    """All that a value is made of, types and bits, without a line of the archive."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value), [(f.name, bits(getattr(value, f.name))) for f in dataclasses.fields(value)]
    if isinstance(value, Tensor):
        content = value.detach().contiguous().reshape(-1).view(torch.uint8).tolist()
        return Tensor, value.dtype, tuple(value.shape), content
    if isinstance(value, np.ndarray | np.generic):
        return type(value), value.dtype, value.shape, value.tobytes()
    if isinstance(value, tuple | list):
        return type(value), [bits(item) for item in value]
    if isinstance(value, dict):
        return dict, [(bits(key), bits(item)) for key, item in value.items()]
    return type(value), struct.pack("<d", value) if isinstance(value, float) else value


def kinds(of: type) -> Iterator[type]:
    for kind in of.__subclasses__():
        yield kind
        yield from kinds(kind)


def test_there_is_a_case_for_every_result() -> None:
    results = {kind.__name__ for kind in kinds(Archived) if kind.__module__.startswith("optland.curvature.")}
    assert results | {"Estimate"} == set(RESULTS)


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    made = result(name)
    assert type(made).__name__ == name
    made.save(tmp_path / "of a run" / "result")
    again = type(made).load(tmp_path / "of a run" / "result")
    assert bits(again) == bits(made)
    assert str(again) == str(made)
    assert [type(getattr(again, f.name)) for f in dataclasses.fields(again)] == [
        type(getattr(made, f.name)) for f in dataclasses.fields(made)
    ]
    assert sorted(p.name for p in (tmp_path / "of a run").iterdir()) == ["result.json", "result.npz"]


@dataclasses.dataclass(frozen=True)
class Anything(archive.Archived):
    """Stands for a result of the package; the tests say that it is one."""

    value: Any


@pytest.fixture
def anything(monkeypatch: pytest.MonkeyPatch) -> type[Anything]:
    monkeypatch.setattr(Anything, "__module__", "optland.anything")
    monkeypatch.setitem(__import__("sys").modules, "optland.anything", __import__("sys").modules[__name__])
    return Anything


@pytest.mark.parametrize(
    "value",
    [
        math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1, 2**80, True, None, "", "\u00e9\n\"", (), [], {}, [None, ()],
        {1: "one", "1": "word", 2.5: (1, [2])}, {"type": "a word", "tensor": "array_0"},
        np.float64(0.1), np.zeros((0, 3)), np.array([1 + 2j, math.nan]), np.array(3, dtype=np.int8),
        torch.tensor([math.nan, -0.0, math.inf]), torch.zeros(0, 2), torch.tensor(2.0), torch.tensor([True, False]),
        torch.tensor([[1.0, math.nan], [-0.0, 3.0]], dtype=torch.bfloat16), torch.tensor(1.5, dtype=torch.bfloat16),
        torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn), torch.arange(6).reshape(2, 3).T, torch.ones(2) * 1j,
        Estimate(math.nan, math.inf, "none", False, 0.0, SOURCE),
    ],
)  # fmt: skip
def test_every_kind_of_value_comes_back(value: Any, anything: type[Anything], tmp_path: Path) -> None:
    anything(value).save(tmp_path / "x.json")
    assert bits(anything.load(tmp_path / "x.npz").value) == bits(value)


def test_the_json_is_json_for_everybody(tmp_path: Path) -> None:
    result("Curve").save(tmp_path / "x")

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    document = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert (document["format"], document["version"]) == ("optland result", 1)
    assert document["result"]["type"].endswith(":Curve")


@pytest.mark.parametrize("value", [{1, 2}, object(), np.array([object()]), Path("x"), lambda: 0, b"bytes"])
def test_what_has_no_place_in_a_file_is_refused_before_one_is_written(
    value: Any, anything: type[Anything], tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match="cannot be saved"):
        anything(value).save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_only_results_of_the_package_are_saved(tmp_path: Path) -> None:
    for other in (Anything(1), 3.0, Estimate):
        with pytest.raises(TypeError, match="pass a result of optland"):
            save(other, tmp_path / "x")


def spoil_json(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = folder / "x.json"
        file.write_text(json.dumps(change(json.loads(file.read_text()))))

    return spoil


def resum(document: dict[str, Any], packed: bytes) -> dict[str, Any]:
    """A file by somebody who knows the format: only the class that it names is wrong."""
    return {**document, "sum": archive._sum(document["result"], packed)}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "x.json").write_text("{"), "damaged or no JSON"),
        (lambda f: (f / "x.json").write_bytes(b"\xff\xfe\x00"), "damaged or no JSON"),
        (lambda f: (f / "x.json").write_text("[1, 2]"), "no result of optland"),
        (lambda f: (f / "x.json").write_text('{"loss": 3}'), "no result of optland"),
        (spoil_json(lambda d: {**d, "version": 99}), "has version 99"),
        (spoil_json(lambda d: {**d, "result": {**d["result"], "type": "os:path"}}), "not what was saved together"),
        (lambda f: (f / "x.npz").write_bytes((f / "x.npz").read_bytes()[:-7]), "not what was saved together"),
        (lambda f: result("Diagonal").save(f / "y") or (f / "y.npz").replace(f / "x.npz"), "not what was saved"),
    ],
)  # fmt: skip
def test_damaged_and_foreign_files_are_refused(
    spoil: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    result("Spectrum").save(tmp_path / "x")
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        curvature.Spectrum.load(tmp_path / "x")


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "subprocess:Popen",
        "optland.train.runs.settings:RunConfig.x",
        "optland.archive:save",
        "optland.no:Such",
    ],
)
def test_a_file_cannot_make_anything_but_a_result(name: str, tmp_path: Path) -> None:
    result("Threshold").save(tmp_path / "x")
    packed = (tmp_path / "x.npz").read_bytes()
    spoil_json(lambda d: resum({**d, "result": {**d["result"], "type": name}}, packed))(tmp_path)
    with pytest.raises(ValueError, match="no result that this version"):
        type(result("Threshold")).load(tmp_path / "x")


def test_a_file_from_before_products_were_called_matvecs_is_read(tmp_path: Path) -> None:
    made = result("Trace")
    made.save(tmp_path / "x")
    assert made.num_matvecs == 20

    def as_before(document: dict[str, Any]) -> dict[str, Any]:
        fields = document["result"]["fields"]
        fields["num_products"] = fields.pop("num_matvecs")
        return resum(document, (tmp_path / "x.npz").read_bytes())

    spoil_json(as_before)(tmp_path)
    assert bits(curvature.Trace.load(tmp_path / "x")) == bits(made)


def test_another_type_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    result("Threshold").save(tmp_path / "x")
    with pytest.raises(TypeError, match="holds a Threshold, not a Spectrum"):
        load(tmp_path / "x", curvature.Spectrum)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "y", curvature.Spectrum)
