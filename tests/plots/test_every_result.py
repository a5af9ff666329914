"""Every result that can be saved has a picture, which is returned, can be written, and shows in a notebook."""

from __future__ import annotations

import importlib
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import optland
from optland import curvature as C
from optland import landscape
from optland.archive import Archived
from optland.estimate import Estimate, Provenance
from optland.objective import Objective
from optland.plots import plot


@pytest.fixture(scope="module")
def objective() -> Objective:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(24, 4).double(), torch.randint(0, 3, (24,))
    return Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(x, y)])


@pytest.fixture(scope="module")
def results(objective: Objective) -> dict[str, Any]:
    H = C.hessian(objective)
    sgd = torch.optim.SGD(objective.model.parameters(), lr=0.1)
    gradients = torch.autograd.grad(
        objective.loss_fn(objective.model, objective.batches[0]), objective.params
    )
    density = C.density(H)
    return {
        "density": density,
        "curve": density.curve(),
        "curve of logarithms": density.curve(scale="log", epsilon=1e-6),
        "spectrum": C.lanczos(H, k=2, ends="both"),
        "a spectrum that has not converged": C.lanczos(H, k=2, ends="both", max_matvecs=3),
        "tracked": C.SpectrumTracker(k=1).probe(H),
        "diagonal": C.diagonal(H),
        "portrait": C.portrait(objective),
        "summary": C.spectral_summary(H),
        "critical step": C.critical_step(objective, [-g for g in gradients]),
        "stable rate": C.stable_rate(objective, sgd, {"now": 0.1, "ten times": 1.0}),
        "an estimate": Estimate(2.0, math.nan, "none", False, 3.0, Provenance("power")),
        "sharpness": landscape.sam_sharpness(objective, 0.1, m=6),
        "line": landscape.line(objective, landscape.random_direction(objective, seed=1), num_points=5),
        "damage": landscape.damage(objective, landscape.rounded(objective.model, 3)),
        "minima": landscape.compare_minima({"one": objective}),
    }


def test_each_is_drawn_returned_written_and_shown(results: dict[str, Any], tmp_path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    for name, result in results.items():
        page: Any = plot(result, tmp_path / "picture.png", title="a title" if name == "density" else "")
        assert Figure in type(page).__mro__, name
        written = imread(tmp_path / "picture.png")
        assert min(written.shape[:2]) > 100, name
        assert float(written[..., :3].std()) > 0.02, name
        shown = imread(io.BytesIO(page._repr_png_()))  # what IPython asks an object for
        assert shown.shape == written.shape, name
        assert (
            any(text.get_text() for text in [*page.texts, *(a.title for a in page.axes)])
            or page.get_suptitle()
        ), name
        assert plot(result) is not page, name


def test_nothing_is_written_without_a_path(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    optland.plot(results["spectrum"])
    assert not list(tmp_path.iterdir())


def test_what_is_drawn_is_what_was_measured(results: dict[str, Any]) -> None:
    spectrum = results["a spectrum that has not converged"]
    (axis,) = plot(spectrum).axes
    points = [line for line in axis.get_lines() if line.get_marker() == "o"]
    assert [float(line.get_ydata()[0]) for line in points] == [v.value for v in spectrum.values]
    hollow = [line.get_markerfacecolor() == "none" for line in points]
    assert hollow == [not v.converged for v in spectrum.values]
    assert any(hollow)
    step = results["critical step"]
    (axis,) = plot(step).axes
    drawn = {(float(x), float(y)) for x, y in zip(*axis.get_lines()[0].get_data(), strict=True)}
    assert drawn == set(step.losses)
    found = results["damage"]
    (axis,) = plot(found).axes
    shown = [float(line.get_xdata()[0]) for line in axis.get_lines() if line.get_marker() == "o"]
    assert shown == [
        e.value for e in (found.measured, found.predicted, found.trace_form, *found.per_layer.values())
    ]
    (axis,) = plot(results["curve"]).axes
    assert np.array_equal(axis.get_lines()[0].get_ydata(), results["curve"].value)


def test_a_card_says_every_number_and_what_has_not_converged(results: dict[str, Any]) -> None:
    (axis,) = plot(results["an estimate"]).axes
    said = [text.get_text() for text in axis.texts]
    assert "2" in said
    assert "nan" in said
    ruggedness = landscape.ruggedness(results["line"])
    (axis,) = plot(ruggedness).axes
    assert f"{ruggedness.roughness:.5g}" in [text.get_text() for text in axis.texts]


@pytest.mark.parametrize(
    "name",
    [
        "tracked",
        "curve",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("spectrum", "portrait", "line", "damage")),
    ],
)
def test_no_title_runs_over_the_edge(name: str, results: dict[str, Any]) -> None:
    """A long one neither, on the narrowest picture."""
    title = "lanczos on the Hessian of a net of many layers, 256 samples, eval mode; audited (first)"
    page: Any = plot(results[name], title=title)
    page.canvas.draw()
    words = [*page.texts, *(text for axis in page.axes for text in [axis.title, *axis.texts])]
    assert any(title.split()[-1] in text.get_text() for text in words)
    for text in filter(lambda text: text.get_text(), words):
        box = text.get_window_extent()
        assert box.x0 >= page.bbox.x0, text.get_text()
        assert box.x1 <= page.bbox.x1, text.get_text()


def test_measures_are_drawn_with_their_intervals_and_other_mappings_refused() -> None:
    found = landscape.rank_correlations(
        {"trace": [4.0, 2.0, 6.0, 3.0], "width": [1.0, 2.0, 3.0, 0.0]}, [0.3, 0.1, 0.5, 0.2]
    )
    (axis,) = plot(found).axes
    lines = axis.get_lines()
    drawn = [(*lines[2 * i].get_xdata(), *lines[2 * i + 1].get_xdata()) for i in range(2)]
    assert drawn == [(r.low, r.high, r.tau) for r in found.values()]
    for nothing in ({}, {"a": 1.0}):
        with pytest.raises(TypeError, match="rank correlations"):
            plot(nothing)


def test_no_result_of_the_package_is_without_a_picture() -> None:
    """Every class that can be saved reaches a function of ``plot`` that is not its refusal."""
    root = Path(optland.__file__).parent
    for file in sorted(root.rglob("*.py")):
        if "(Archived):" in file.read_text(encoding="utf-8"):
            importlib.import_module(".".join(["optland", *file.relative_to(root).with_suffix("").parts]))
    waiting, seen = [Archived], set()
    while waiting:
        found = waiting.pop().__subclasses__()
        waiting += found
        seen |= set(found)
    assert len(seen) > 30
    refusal = plot.dispatch(object)
    assert [cls.__name__ for cls in seen if plot.dispatch(cls) is refusal] == []
