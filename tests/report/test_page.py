"""The page: complete, asking for nothing, and drawn without a complaint in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.image import imread

from optland.report import Findings, charts, log_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Reader(HTMLParser):
    """Headings, table cells, and every attribute that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.loads: list[str] = []
        self.charts = 0
        self._tag = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        for key, value in attrs:
            if key in ("src", "href", "srcset", "data", "action") and not str(value).startswith(
                ("#", "data:")
            ):
                self.loads.append(f"{tag} {key}={value}")
            self.charts += (key, value) == ("class", "chart")

    def handle_data(self, data: str) -> None:
        if self._tag in ("h1", "h2", "h3") and data.strip():
            self.headings.append(data)


def read(page: Path) -> Reader:
    reader = Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    return reader


def figures(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    found = re.search(r"const FIGURES = (\{.*?\});\n", text, flags=re.DOTALL)
    assert found is not None
    return json.loads(found[1].replace("<\\/", "</"))


def test_every_part_is_there_and_names_are_text(written: Path) -> None:
    page = read(written)
    assert page.headings[0] == "Two <small> nets"
    for part in ("Side by side", "Between the checkpoints", "The path of training", "seed 0", "seed 1"):
        assert part in page.headings
    text = written.read_text(encoding="utf-8")
    assert "MLP &amp; more" in text
    assert "A note." in text


def test_the_page_is_one_file_of_at_most_six_megabytes_that_loads_nothing(written: Path) -> None:
    assert written.stat().st_size <= 6e6
    assert read(written).loads == []
    assert "@import" not in written.read_text(encoding="utf-8").split("</style>")[0]


def test_charts_hold_what_was_measured(written: Path, findings: Findings) -> None:
    drawn = figures(written)
    assert len(drawn) == read(written).charts
    surfaces = [f["data"][0] for f in drawn.values() if f["data"][0]["type"] == "surface"]
    assert len(surfaces) == 5  # two planes for each seed, and the path's
    planes = [s.random for s in findings.surveys]
    log = charts.is_log(planes)
    z = planes[0].loss.log10() if log else planes[0].loss
    shown = next(s for s in surfaces if s["z"][0][0] == pytest.approx(float(z[0, 0]), rel=1e-5))
    for i in range(5):
        for j in range(5):
            assert shown["z"][j][i] == pytest.approx(float(z[i, j]), rel=1e-5)


def test_a_summary_comes_first_with_accuracy_optimizer_rate_and_kind_of_point(
    written: Path, findings: Findings
) -> None:
    text = written.read_text(encoding="utf-8")
    summary = text[text.index('id="summary"') : text.index("<nav>")]
    for told in (
        "97.5 %",
        "sgd, momentum 0.9",
        "found by auto_lr: 0.3",
        "largest eigenvalue",
        "kind of point",
    ):
        assert told in summary
    assert str(findings.surveys[1].portrait.point.verdict) in summary
    assert text.index("Summary") < text.index("Side by side")


def test_the_same_chart_of_two_checkpoints_has_one_scale(written: Path, findings: Findings) -> None:
    """Colours and axes agree, hold the data of both, and both heights are logarithms or none is."""
    drawn = list(figures(written).values())
    surfaces = [f for f in drawn if f["data"][0]["type"] == "surface"][1:]  # the path's comes first, alone
    random, eigen = surfaces[0::2], surfaces[1::2]
    assert len(random) == len(eigen) == len(findings.surveys) == 2
    for pair in (random, eigen):
        for axis in ("xaxis", "yaxis", "zaxis"):
            ranges = [f["layout"]["scene"][axis]["range"] for f in pair]
            assert ranges[0] == ranges[1]
            low, high = ranges[0]
            values = [v for f in pair for v in charts._flat(f["data"][0][axis[0]])]
            assert low <= min(values) <= max(values) <= high
        assert len({(f["data"][0]["cmin"], f["data"][0]["cmax"]) for f in pair}) == 1
        assert len({f["layout"]["scene"]["zaxis"]["title"]["text"] for f in pair}) == 1
    maps = [f["data"][0] for f in drawn if f["data"][0]["type"] == "contour"][1:]
    assert maps[0]["contours"] == maps[2]["contours"]
    assert maps[1]["contours"] == maps[3]["contours"]


def test_measures_have_a_name_to_read_and_their_complete_one(written: Path, findings: Findings) -> None:
    labels = findings.surveys[0].minimum.labels
    assert labels["average(m=all, |u|=0.1, p=2, T=I, eval)"] == "noise of length 0.1"
    assert labels["worst(m=all, radius=0.1, p=2, T=|w|, eval)"] == "worst within 0.1, relative to |w|"
    assert len(set(labels.values())) == len(labels) == 6
    text = written.read_text(encoding="utf-8")
    for exact, label in labels.items():
        assert f"<span>rise of the loss: {label}<small>{exact}</small></span>" in text
    bars = next(f for f in figures(written).values() if f["data"][0]["type"] == "bar")
    assert bars["data"][0]["y"][0] == "noise of length 0.1"


def test_what_is_not_finite_stays_empty(findings: Findings) -> None:
    from dataclasses import replace

    plane = findings.surveys[0].random
    loss = plane.loss.clone()
    loss[0, 1] = float("nan")
    holed = replace(plane, surfaces={"loss": loss})
    assert charts.surface(holed)["data"][0]["z"][1][0] is None
    assert charts.contour(holed)["data"][0]["z"][1][0] is None
    json.dumps(charts.surface(holed), allow_nan=False)


def test_every_picture_is_beside_the_page(written: Path) -> None:
    names = {path.name for path in written.parent.glob("*.png")}
    assert {"sharpness.png", "connection_1.png", "trajectory.png"} <= names
    for i in (1, 2):
        assert {
            f"{i}_{part}.png" for part in ("curvature", "plane", "eigen_plane", "rays", "dimension")
        } <= names


def test_a_logger_gets_the_pictures_and_the_tables(written: Path, findings: Findings) -> None:
    images: dict[str, Path] = {}
    tables: dict[str, tuple] = {}

    class Recorder:
        def image(self, name: str, path: Path) -> None:
            assert path.exists()
            images[name] = path

        def table(self, name: str, columns: list, rows: list) -> None:
            assert all(len(row) == len(columns) for row in rows)
            tables[name] = (columns, rows)

    log_report(findings, written.parent, Recorder())
    assert {"landscape/sharpness", "landscape/1_plane", "landscape/trajectory"} <= set(images)
    assert {"landscape/sharpness", "landscape/curvature", "landscape/connections"} == set(tables)
    json.dumps(tables, allow_nan=False)


OWN = ("google.com", "googleapis.com", "gvt1.com")
"""Hosts that the browser itself asks for updates and the time, whatever page it shows."""

HARMLESS = ("GL Driver Message", "willReadFrequently")
"""Remarks on the speed of drawing without a graphics card."""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_draws_it_wide_and_narrow_without_a_complaint_or_a_request(
    written: Path, tmp_path: Path
) -> None:
    frame = tmp_path / "frame.html"  # a window is never narrower than 500 pixels, a frame is
    frames = [
        f'<iframe src="{written.as_uri()}" style="position:absolute;border:0;left:{left}px;top:0;width:{width}px;'
        'height:3600px"></iframe>'
        for left, width in ((0, 1280), (1300, 400))
    ]
    frame.write_text("".join(frames))
    log = tmp_path / "net.json"
    done = subprocess.run(
        [str(CHROMIUM), "--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
         "--disable-background-networking", "--disable-component-update", "--no-first-run",
         "--allow-file-access-from-files", "--enable-logging=stderr", f"--log-net-log={log}",
         f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1720,3600", "--virtual-time-budget=8000",
         f"--screenshot={tmp_path / 'shot.png'}", frame.as_uri()],
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    said = [x for x in done.stderr.splitlines() if "CONSOLE" in x]
    assert [x for x in said if not any(word in x for word in HARMLESS)] == []
    asked = set(re.findall(r'"url":"https?://([^/"]+)', log.read_text(encoding="utf-8", errors="replace")))
    assert [host for host in asked if not host.endswith(OWN)] == []
    picture = (imread(tmp_path / "shot.png")[..., :3] * 255).astype(int)
    for left, width in ((0, 1280), (1300, 400)):
        seen = picture[::5, left : left + width : 5].reshape(-1, 3)
        assert len({tuple(colour) for colour in seen}) > 200  # surfaces are drawn, not the text alone
