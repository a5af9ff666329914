"""Measure all of a report in one call: a survey per checkpoint, paths between them, and the path to one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from optland import __version__
from optland.landscape import Connection
from optland.objective import Objective
from optland.report.findings import Findings, connection, follow
from optland.report.survey import SurveySettings, survey
from optland.report.training import training_of
from optland.vectors import Vector

__all__ = ["investigate"]


def investigate(
    title: str,
    objectives: Mapping[str, Objective],
    settings: SurveySettings | None = None,
    *,
    about: Mapping[str, str] | None = None,
    tests: Mapping[str, Objective] | None = None,
    is_sample: bool = False,
    pairs: Sequence[tuple[str, str]] = (),
    num_curve_steps: int = 300,
    path: Mapping[str, Vector] | None = None,
    partial: str | Path | None = None,
    watch: Callable[[str], None] | None = None,
    notes: Sequence[str] = (),
    results: Mapping[str, Mapping[str, str]] | None = None,
    rows: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Findings:
    """Measure all that a report shows.

    Args:
        title: Of the report.
        objectives: The same loss at each checkpoint, by name, each with its own model.
        settings: How much to look at.
        about: Facts for its head, beside the data and the versions.
        tests: The loss on test data, by the same names.
        is_sample: Whether the data are a sample of those that matter.
        pairs: Between which checkpoints to look for a low path.
        num_curve_steps: Training steps of each curve; 0 for lines alone.
        path: Weights in the order of training, by name: how the first of ``objectives`` got there.
        partial: Folder for what is done; an interrupted call goes on from there.
        watch: Called with the name of each part before it begins.
        notes: Sentences about what is not as it should be.
        results: What stands first in its summary, by checkpoint and name: accuracy, optimizer, learning rate, verdict.
        rows: By checkpoint, those that its run logged up to there.

    Returns:
        The findings, for :func:`~optland.report.write_report`. Each objective has its own weights again.

    Raises:
        ValueError: A pair of different architectures, a path of fewer than three points, or settings that cannot be.
    """
    if not objectives:
        raise ValueError("objectives is empty; give at least one by name")
    first = next(iter(objectives.values()))
    chosen, begin = settings or SurveySettings(), watch or (lambda part: None)

    def told_of(name: str) -> Callable[[str], None]:
        return lambda part: begin(f"{name}, {part}")

    surveys = [
        survey(
            name, objective, chosen, test=(tests or {}).get(name), is_sample=is_sample, partial=partial,
            watch=told_of(name),
        )
        for name, objective in objectives.items()
    ]  # fmt: skip
    found: dict[str, Connection] = {}
    for one, two in pairs:
        begin(name := f"{one} to {two}")
        found[name] = connection(
            name,
            objectives[one],
            objectives[two],
            num_steps=num_curve_steps,
            seed=chosen.seed,
            partial=partial,
        )
    trajectory = None
    if path is not None:
        begin("path of training")
        trajectory = follow(first, path, num_points=chosen.num_points)
    facts = {"data": f"{first.data}, {first.mode} mode, seed {chosen.seed}, {first.dtype}", **(about or {})}
    facts["versions"] = f"optland {__version__}, torch {torch.__version__}"
    told = {name: dict(of) for name, of in (results or {}).items()}
    training = {name: training_of(of) for name, of in (rows or {}).items()}
    return Findings(title, facts, tuple(surveys), found, trajectory, tuple(notes), told, training)
