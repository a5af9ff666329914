"""Every result about the landscape has a picture, and what is drawn is what was measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optland.landscape import (
    checkpoint_plane,
    connect,
    effective_dimension,
    line,
    linear_path,
    plane,
    random_direction,
    rays,
    sam_sharpness,
    worst_sharpness,
)
from optland.objective import Objective
from optland.plots import plot


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = torch.randn(24, 4).double(), torch.randint(0, 3, (24,))
    L = Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(x, y)])
    other = [p.detach() + 0.3 * torch.randn_like(p) for p in L.params]
    third = [p.detach() + 0.3 * torch.randn_like(p) for p in L.params]
    u, v = random_direction(L, seed=1), random_direction(L, seed=2)
    broken = line(L, u, num_points=5)
    broken.surfaces["loss"][0] = math.nan
    return {
        "line": line(L, u, num_points=9, others={"again": L}),
        "line with holes": broken,
        "plane": plane(L, u, v, num_points=5),
        "checkpoints": checkpoint_plane(L, other, third, num_points=5),
        "path": linear_path(L, other, num_points=5),
        "connection": connect(L, other, num_steps=3, num_points=5),
        "rays": rays(L, num_rays=4),
        "dimension": effective_dimension(torch.randn(8, 20)),
        "sharpness": [worst_sharpness(L, 0.1, num_steps=3), sam_sharpness(L, 0.1, m=6)],
    }


NAMES = [
    "line",
    "line with holes",
    "plane",
    "checkpoints",
    "path",
    "connection",
    "rays",
    "dimension",
    "sharpness",
]


@pytest.mark.parametrize("name", NAMES)
def test_there_is_a_picture_that_is_not_empty(name: str, results: dict[str, Any], tmp_path: Path) -> None:
    from matplotlib.image import imread

    file = tmp_path / "picture.png"
    plot(results[name], file, title="a title" if name == "line" else "")
    pixels = imread(file)
    assert min(pixels.shape[:2]) > 100
    assert float(pixels[..., :3].std()) > 0.02


def test_what_has_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="holds rank correlations"):
        plot({}, tmp_path / "x.png")
    with pytest.raises(TypeError, match="holds nothing"):
        plot([], tmp_path / "x.png")
