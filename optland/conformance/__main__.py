"""Print the findings on the package's own methods; exit code 1 when something failed."""

import sys

from optland.conformance import ours, run

reports = [run(subject) for subject in ours()]
sys.stdout.write("\n".join(report.table() for report in reports) + "\n")
sys.exit(not all(report.conforms for report in reports))
