"""A survey: resumed where it was, changing nothing, and what its words say where the answer is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from report.conftest import SMALL, small_objective
from torch import nn

from optland import vectors
from optland.landscape import Slice, connect, line, random_direction, rays
from optland.problems import quadratic, saddle
from optland.problems.critical import two_factor
from optland.report import Findings, SurveySettings, investigate, words
from optland.report.findings import follow
from optland.report.survey import survey

D = torch.float64


def test_a_survey_leaves_the_model_as_it_was_and_costs_no_more_than_declared() -> None:
    L = small_objective()
    before = {k: v.clone() for k, v in L.model.state_dict().items()}
    state = torch.get_rng_state()
    found = survey("net", L, SMALL)
    assert all(torch.equal(v, before[k]) for k, v in L.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in L.params)
    assert 0 < L.cost_ge <= survey.cost(L, SMALL)
    assert found.cost_ge == pytest.approx(L.cost_ge, rel=0.05)


def test_a_survey_goes_on_from_what_is_kept_and_from_nothing_else(tmp_path: Path) -> None:
    L = small_objective()
    whole = survey("net", L, SMALL, partial=tmp_path)
    spent = L.cost_ge
    again = survey("net", L, SMALL, partial=tmp_path)
    assert L.cost_ge == spent
    assert torch.equal(again.random.loss, whole.random.loss)
    assert again.minimum == whole.minimum or str(again.minimum) == str(whole.minimum)
    next(tmp_path.glob("net-*-rays.npz")).write_bytes(b"torn")
    assert survey("net", L, SMALL, partial=tmp_path).rays.mean.value == whole.rays.mean.value
    assert L.cost_ge > spent
    with torch.no_grad():
        L.params[0].add_(0.1)
    other = survey("net", L, SMALL, partial=tmp_path)
    assert not torch.equal(other.random.loss, whole.random.loss)


def test_the_second_plane_runs_along_the_extreme_eigenvectors() -> None:
    A = torch.diag(torch.tensor([6.0, 2.0, -3.0], dtype=D))
    found = survey(
        "q", quadratic(A, torch.ones(3, dtype=D)), SurveySettings(num_points=5, k=1, num_gradients=0)
    )
    assert found.eigen is not None
    assert sorted(found.eigen.curvature) == pytest.approx([-3.0, 6.0])
    assert found.dimension is None


def test_findings_come_back_from_their_files(findings: Findings, tmp_path: Path) -> None:
    findings.save(tmp_path / "findings")
    back = Findings.load(tmp_path / "findings")
    assert str(back.comparison) == str(findings.comparison)
    assert back.results == findings.results
    assert list(back.connections) == ["seed 0 to seed 1"]
    assert back.trajectory is not None
    assert findings.trajectory is not None
    assert torch.equal(back.trajectory.surface.loss, findings.trajectory.surface.loss)


def test_the_path_lies_in_its_plane_at_the_losses_of_its_checkpoints() -> None:
    L = quadratic(torch.diag(torch.tensor([1.0, 4.0, 0.5], dtype=D)), torch.zeros(3, dtype=D))
    path = {
        n: [torch.tensor(w, dtype=D)]
        for n, w in {"a": [2.0, 0, 0], "b": [1.0, 1, 0], "c": [0.0, 0, 0]}.items()
    }
    found = follow(L, path, num_points=5)
    assert sum(found.path.explained) == pytest.approx(1.0)
    for weights, place in zip(path.values(), found.path.coordinates, strict=True):
        moved = vectors.combine(list(place), [d.tensors for d in found.path.directions])
        assert torch.allclose(moved[0], weights[0], atol=1e-9)


def test_words_of_a_saddle_and_of_the_path_over_it() -> None:
    from optland.curvature.points.portrait import portrait

    assert words.point_in_words(portrait(saddle(), k=1)).startswith("A strict saddle at the loss 0")
    wall = connect(two_factor(1.0, 1.0), [-torch.ones(2, dtype=D)], num_steps=20)
    assert "not connected" in words.connection_in_words("a to b", wall)
    valley = connect(
        two_factor(1.0, 1.0), [torch.tensor([1.01, 1 / 1.01], dtype=D)], num_steps=0, threshold=1.1
    )
    assert "rises by" in words.connection_in_words("a to b", valley)


@pytest.mark.parametrize(("act", "says"), [(nn.ReLU, "has kinks"), (nn.GELU, "as smooth as")])
def test_words_of_rays_tell_kinked_nets_from_smooth_ones(act: type[nn.Module], says: str) -> None:
    found = rays(small_objective(act=act).double(), num_rays=12, distance=0.3 if act is nn.ReLU else 0.01)
    assert says in words.rays_in_words(found)


def test_words_of_a_plane_say_that_a_point_lies_lower() -> None:
    L = quadratic(torch.eye(2, dtype=D), torch.ones(2, dtype=D))
    found = line(L, random_direction(L, normalise="unit", seed=1), num_points=5)
    assert isinstance(found, Slice)
    assert "lower than the weights" in words.plane_in_words(found, 2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_points": 4}, "num_points: 4"),
        ({"distance": 0.0}, "distance: 0.0"),
        ({"num_rays": 1}, "num_rays: 1"),
        ({"num_gradients": 3}, "num_gradients: 3"),
        ({"radii": ()}, "radii"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SurveySettings(**options)


def test_nothing_to_look_at_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        investigate("none", {})
