"""The gallery of surfaces: drawn, and refused where a name is not known."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.image import imread

from optland.plots import plot_gallery
from optland.problems import SURFACES


@pytest.mark.parametrize(("names", "shape"), [(None, (968, 1100)), (tuple(SURFACES), (968, 2200))])
def test_a_gallery_is_drawn(tmp_path: Path, names: tuple[str, ...] | None, shape: tuple[int, int]) -> None:
    path = tmp_path / "gallery.png"
    plot_gallery(path, *([names] if names else []), num_points=11)
    picture = imread(path)
    assert picture.shape[:2] == shape
    assert picture[..., :3].std() > 0.05  # it is not blank


def test_a_name_that_is_not_known_is_told_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'sadle'.*Did you mean 'saddle'"):
        plot_gallery(tmp_path / "x.png", ["sadle"])
    with pytest.raises(ValueError, match="empty"):
        plot_gallery(tmp_path / "x.png", [])
