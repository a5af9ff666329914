"""One self-contained HTML report on the landscape around checkpoints, with its pictures.

:func:`survey` measures around one point, :func:`follow` along a training path, and :func:`investigate` does both and
draws paths between points; :class:`Findings` holds what they found, :func:`write_report` makes the page and the PNGs,
and :func:`log_report` shows the same in a logger.
"""

from optland.report.findings import Findings
from optland.report.investigate import investigate
from optland.report.survey import SurveySettings
from optland.report.write import log_report, write_report

__all__ = [
    "Findings",
    "SurveySettings",
    "investigate",
    "log_report",
    "write_report",
]
