"""The console: plain aligned lines in a file, a live block on a terminal, a summary at the end."""

from __future__ import annotations

import io
import math
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from optland.log import ConsoleLogger

ROW = {
    "step": 10,
    "samples": 640,
    "train/loss": 0.51234,
    "val/acc": 0.9,
    "lr/applied": 0.1,
    "lr/binding": 1,
    "noise/b_current": 64,
    "curv/lambda_max": 7.25,
    "curv/lambda_max_error": 0.02,
    "curv/lambda_max_converged": True,
    "noise/b_simple": 120.0,
    "budget/probe_frac": 0.031,
    "budget/allowed": 0.05,
}
EVENT = {
    "step": 10,
    "policy": "noise_batch",
    "actuator": "batch_size",
    "old": 64,
    "new": 128,
    "reason": "the noise scale is [120]",
    "taken": True,
}
EVERYTHING = [
    "0.5123", "0.9", "0.1 (edge)", "64", "7.25 ± 0.02, 0 steps old", "120", "3.1 % of 5 % allowed",
]  # fmt: skip
"""What a live block has room for."""


def plain(**options: int) -> tuple[ConsoleLogger, io.StringIO]:
    file = io.StringIO()
    return ConsoleLogger(1000, file=file, **options), file


def terminal() -> tuple[ConsoleLogger, io.StringIO]:
    file = io.StringIO()
    return ConsoleLogger(1000, console=Console(file=file, force_terminal=True, width=100)), file


def test_a_plain_line_says_where_the_run_is_and_what_fits_into_120_characters() -> None:
    log, file = plain(epochs=25)
    log.log(ROW)
    (line,) = file.getvalue().splitlines()
    assert line.startswith("epoch 16/25 step     10     ? left  loss 0.5123  val acc 0.9    lr 0.1 (edge)")
    assert line.endswith("sharpness 7.25 ± 0.02, 0 steps old")
    assert len(line) <= 120
    assert "\x1b" not in line


@pytest.mark.parametrize("epochs", [None, 1, 7, 25, 1000])
def test_a_line_names_the_epoch_that_the_batch_belongs_to(epochs: int | None) -> None:
    """Seven samples an epoch: the last batch of each ends on its border, where a division rounds either way."""
    file = io.StringIO()
    log = ConsoleLogger(7 * (epochs or 1), epochs=epochs, every=1, file=file)
    for step in range(1, 7 * (epochs or 1) + 1):
        log.log({"step": step, "samples": step, "train/loss": 1.0})
    shown = [re.match(r"epoch +(\d+)/(\d+) ", line) for line in file.getvalue().splitlines()]
    if epochs is None:
        assert shown == [None] * 7
        assert "14 %" in file.getvalue().splitlines()[0]
    else:
        assert [int(m[1]) for m in shown] == [1 + i // 7 for i in range(7 * epochs)]
        assert {int(m[2]) for m in shown} == {epochs}


def test_the_time_left_follows_the_speed_since_this_process_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run begins at 500 of 1000 samples; 100 more take 10 s, so that 400 are left for 40 s."""
    log, file = plain(every=1)
    for clock, samples in ((100.0, 500), (110.0, 600), (150.0, 1000)):
        monkeypatch.setattr("optland.log.console.time.monotonic", lambda clock=clock: clock)
        log.log({"step": samples, "samples": samples, "train/loss": 1.0})
    assert [line.split(" left")[0].split()[-1] for line in file.getvalue().splitlines()] == [
        "?",
        "0:40",
        "0:00",
    ]


def test_no_line_is_longer_than_120_characters() -> None:
    log, file = plain(epochs=100_000, every=1)
    values = {key: value * 1.2345e-7 if isinstance(value, float) else value for key, value in ROW.items()}
    log.log({**values, "step": 123456, "samples": 10, "lr/binding": 3, "curv/lambda_max_converged": False})
    log.event(EVENT | {"reason": "the noise scale was above the batch by more than its error " * 5})
    assert max(len(line) for line in file.getvalue().splitlines()) <= 120
    assert len(file.getvalue().splitlines()) > 3


def test_plain_lines_come_every_so_many_steps_and_at_evaluations() -> None:
    log, file = plain(every=10)
    for step in range(1, 26):
        log.log({"step": step, "train/loss": 1.0, **({"val/acc": 0.5} if step == 13 else {})})
    log.log({"step": 26, "test/slope_t": 1.0})
    shown = [int(line.split()[1]) for line in file.getvalue().splitlines()]
    assert shown == [1, 10, 13, 20]


def test_plain_lines_are_aligned() -> None:
    log, file = plain(every=1)
    for step, loss in [(1, 0.5), (1000, 123.456789)]:
        log.log({"step": step, "samples": step, "train/loss": loss, "lr/applied": 0.1})
    first, second = file.getvalue().splitlines()
    assert first.index("lr") == second.index("lr")


def test_the_age_of_the_sharpness_grows_and_a_failed_one_is_marked() -> None:
    log, file = plain(every=1)
    probed = {key: value for key, value in ROW.items() if key.startswith(("step", "curv/"))}
    log.log({**probed, "curv/lambda_max_converged": False})
    log.log({"step": 17, "train/loss": 0.5})
    first, second = file.getvalue().splitlines()
    assert "7.25 ± 0.02 NOT CONVERGED, 0 steps old" in first
    assert "7.25 ± 0.02 NOT CONVERGED, 7 steps old" in second


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"taken": True}, "step 10: noise_batch: batch_size 64 -> 128: the noise scale is [120]\n"),
        (
            {"taken": False},
            "step 10: noise_batch: would set batch_size 64 -> 128: the noise scale is [120]\n",
        ),
        (
            {"policy": "spike_guard", "actuator": "skip", "old": math.nan, "new": 1.0},
            "step 10: spike_guard: skip: the noise scale is [120]\n",
        ),
        (
            {"policy": "guard", "actuator": "rewind", "old": 1.0, "new": 1.0, "taken": False},
            "step 10: guard: would rewind: the noise scale is [120]\n",
        ),
        (
            {"policy": "guard", "actuator": "rewind", "old": 1.0, "new": 0.5},
            "step 10: guard: rewind 1 -> 0.5: the noise scale is [120]\n",
        ),
        (
            {"policy": "edge_monitor", "actuator": "alarm", "old": math.nan, "new": 1.2, "taken": False},
            "step 10: edge_monitor: alarm: the noise scale is [120]\n",
        ),
    ],
)
def test_a_decision_is_one_line_with_its_reason(change: dict[str, bool], says: str) -> None:
    log, file = plain()
    log.event(EVENT | change)
    assert file.getvalue() == says


def test_a_terminal_shows_everything_live() -> None:
    log, file = terminal()
    log.log(ROW)
    log.event(EVENT)
    log.log({"step": 13, "train/loss": math.nan})
    log.finish({})
    shown = Text.from_ansi(file.getvalue()).plain
    last = shown[shown.rindex("640/1000") :]
    for part in ["nan", "0.9", "0.1 (edge)", "7.25 ± 0.02, 3 steps old", "3.1 % of 5 % allowed"]:
        assert part in last
    assert "step 10: noise_batch: batch_size 64 -> 128: the noise scale is [120]" in last
    assert "\x1b[?25h" in file.getvalue()[-200:]  # the cursor is back


def test_the_live_block_leaves_standard_output_as_it_was() -> None:
    log, _ = terminal()
    before = sys.stdout
    log.log(ROW)
    log.finish({})
    assert sys.stdout is before


def test_the_summary_is_a_table_with_the_verdict_and_one_action_below() -> None:
    log, file = plain()
    verdict = "Raised by the batch size. " * 12
    summary = {"summary/robust_ok": True, "val/acc": 0.987654, "summary/verdict": verdict}
    log.finish(summary | {"summary/advice": "patience=5"}, exit_code=3)
    shown = file.getvalue()
    assert "failed, exit code 3" in shown
    assert "0.9877" in shown
    assert "robust_ok" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80
    words = f"{verdict}\nNext: the same command with patience=5"
    assert " ".join(shown.split("Raised", 1)[1].split()) == " ".join(words.split("Raised", 1)[1].split())
    assert "\x1b" not in shown


def test_a_console_that_knows_only_ascii_still_works(tmp_path: Path) -> None:
    with (tmp_path / "out.txt").open("w", encoding="ascii") as file:
        log = ConsoleLogger(1000, file=file)
        log.log(ROW)
        log.event(EVENT | {"reason": "σ is large"})
        log.finish({"summary/advice": "ρ ± 1"})
    text = (tmp_path / "out.txt").read_text(encoding="ascii")
    assert "7.25 +/- 0.02" in text
    assert "? is large" in text


def test_images_and_tables_are_mentioned() -> None:
    log, file = plain()
    log.image("landscape/slice", Path("runs/slice.png"))
    log.table("landscape/path", ["t", "loss"], [[0.5, 1 / 3], [1.0, None]])
    shown = file.getvalue()
    assert "None" not in shown  # a cell without a value is empty
    assert "landscape/slice: runs/slice.png" in shown.replace("\\", "/")
    assert "0.3333" in shown


def test_an_interval_of_zero_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="every must be at least 1 step, got 0"):
        ConsoleLogger(10, every=0)


def test_brackets_and_colons_are_text_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    advice = "run: pip install 'optland[recipes]' [bold] :smile:"
    file = io.StringIO()
    for log in (ConsoleLogger(10, file=file), ConsoleLogger(10, console=Console(file=file))):
        file.truncate(0)
        log.event({"step": 1, "policy": "[red]", "actuator": "lr", "old": 1, "new": 2, "reason": advice})
        log.table(f"table {advice}", [f"column {advice}"], [[f"cell {advice}"]])
        log.image("[blink]", Path("runs/[a]/b.png"))
        log.finish(
            {f"summary/{advice}": f"value {advice}", "summary/advice": f"advice {advice}"}, exit_code=1
        )
        said = file.getvalue()
        for place in ("table ", "column ", "cell ", "summary/", "value ", "advice "):
            assert f"{place}{advice}" in said, place
        assert f"step 1: [red]: lr 1 -> 2: {advice}" in said
        assert "[blink]: runs/[a]/b.png" in said


def test_the_names_of_rows_stay_whole_where_a_table_is_wider_than_the_terminal() -> None:
    file = io.StringIO()
    logger = ConsoleLogger(10, console=Console(file=file, width=60))
    names = ["perturbed_gradient", "trust_region_newton"]
    columns = ["optimizer", "loss", "moves", "curvature", "looks", "verdict"]
    logger.table("escapes", columns, [[name, -0.25, 5, None, 0, "minimum up to tau"] for name in names])
    logger.table("nothing", columns, [])
    said = file.getvalue()
    assert all(f" {name} " in said for name in names)
    assert all(len(line) <= 60 for line in said.splitlines())


def test_a_name_in_a_table_is_folded_and_never_cut() -> None:
    file = io.StringIO()
    logger = ConsoleLogger(10, console=Console(file=file, width=40))
    logger.table(
        "landscape/escapes_table",
        ["optimizer", "verdict"],
        [["perturbed_gradient_descent", "minimum up to tau"]],
    )
    said = file.getvalue()
    assert "\u2026" not in said
    assert "".join(re.findall(r"[a-z_]+", said.partition("verdict")[2].replace("minimum", "").replace("up", "")
                              .replace("to", "").replace("tau", ""))) == "perturbed_gradient_descent"  # fmt: skip
