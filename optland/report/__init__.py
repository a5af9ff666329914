"""One self-contained HTML report on the landscape around checkpoints, with its pictures.

:func:`survey` looks at one point from all sides, :func:`connections` between points, :func:`follow` along a training
path, and :func:`investigate` does all three; :class:`Findings` holds what they found, :func:`write_report` makes the
page and the PNGs, and :func:`log_report` shows the same in a logger.
"""

from optland.report.findings import Findings, Trajectory, connections, follow
from optland.report.investigate import investigate
from optland.report.survey import Survey, SurveySettings, declared_cost, survey
from optland.report.write import log_report, write_report

__all__ = [
    "Findings",
    "Survey",
    "SurveySettings",
    "Trajectory",
    "connections",
    "declared_cost",
    "follow",
    "investigate",
    "log_report",
    "survey",
    "write_report",
]
