"""The one table of the README, from the files in benchmarks/results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["summary_table"]

RESULTS = Path(__file__).resolve().parent / "results"


def summary_table() -> str:
    """What was measured in at most eight rows, the unwelcome ones too."""
    demo, quality, curvature = (_read(name) for name in ("demo", "sam_quality", "curvature"))
    rows = [*_control(), _labels(demo["table"]["noisy"]), _sam(quality), _cost(_read("sam_cost"))]
    rows += [_eigenvalue(curvature["cold"]), _saddles(_read("saddle"))]
    return "\n".join(["| question | measured | all of it |", "|---|---|---|", *rows])


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def _row(question: str, measured: str, page: str) -> str:
    return f"| {question} | {measured} | [{page}](docs/results/{page}.md) |"


def keeps_up(ours: dict[str, Any], tuned: dict[str, Any], task: str) -> bool:
    """Within a point of accuracy, or within 5 % of the loss where that is the task's score."""
    if "test_acc" in ours and not task.startswith("text"):
        return bool(ours["test_acc"] >= tuned["test_acc"] - 1.0)
    return bool(ours["test_loss"] <= 1.05 * tuned["test_loss"])


def _control() -> list[str]:
    cells = {**_read("control_report")["main"], **_read("control_new")["main"]}
    kept = sum(keeps_up(row["auto_lr"], row["tuned"], name) for name, row in cells.items())
    dead = sum(row["auto_lr"]["dead"] for row in cells.values())
    dead_tuned = sum(row["tuned"]["dead"] for row in cells.values())
    probes = max(row["auto_lr"]["probes"] for row in cells.values())
    return [
        _row(
            "Is `auto_lr` as good as a rate tuned over nine?",
            f"in {kept} of {len(cells)} cells within a point of accuracy or 5 % of the loss, at equal cost",
            "learning_rate",
        ),
        _row(
            "Does a run of it die?",
            f"{dead} of {5 * len(cells)} runs; {dead_tuned} with the tuned rate. "
            f"Probes took at most {probes:.1%} of the gradient evaluations",
            "learning_rate",
        ),
    ]


def _labels(noisy: dict[str, Any]) -> str:
    ours, plain, tuned = (noisy[name]["last"]["median"] for name in ("landscape_train", *list(noisy)[:2]))
    stopped = noisy["SGD, lr 0.1"]["best"]["median"]
    return _row(
        "40 % wrong labels, digits?",
        f"{ours:.1f} % at the last epoch with SAM and `auto_lr`; SGD {plain:.1f} %, tuned SGD {tuned:.1f} %, "
        f"SGD stopped by clean data {stopped:.1f} %",
        "digits",
    )


def _sam(quality: dict[str, Any]) -> str:
    gains = quality["bars"]["best"]["SAM gains"]
    tasks = len(quality["table"])
    rows = [content["rows"]["sgd, 2x epochs"]["gain, best"] for content in quality["table"].values()]
    longer = sum(row["mean"] > row["error"] for row in rows)
    return _row(
        "Does SAM beat tuned SGD?",
        f"with certainty on {len(gains) or 'none'} of {tasks} small tasks; SGD of twice the epochs on {longer}",
        "sam",
    )


def _cost(cost: dict[str, Any]) -> str:
    sam = [net["rows"]["SAM"]["over_base"] for net in cost["nets"].values()]
    msam = [net["rows"]["MSAM"]["over_base"] for net in cost["nets"].values()]
    return _row(
        "What does a step cost?",
        f"SAM {min(sam):.1f} to {max(sam):.1f} times the base's step, MSAM {min(msam):.1f} to {max(msam):.1f}",
        "sam",
    )


def _eigenvalue(cold: dict[str, Any]) -> str:
    return _row(
        "How fast is the largest eigenvalue?",
        f"{cold['geometric mean']:.2f} of the time of the fastest of three other packages, within 1 %",
        "landscape",
    )


def _saddles(saddle: dict[str, Any]) -> str:
    rows = {
        name: list(saddle["escapes"][name].values()) for name in ("SGD", "Adam", "LBFGS", "NegativeCurvature")
    }
    left = {name: sum(cell["escaped"] for cell in cells) / len(cells) for name, cells in rows.items()}
    said = ", ".join(f"{name} {share:.0%}" for name, share in left.items() if name != "NegativeCurvature")
    ours = f"`NegativeCurvature` {left['NegativeCurvature']:.0%} of runs"
    return _row("Who leaves a saddle?", f"{ours}; {said}", "saddles")
