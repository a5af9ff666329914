"""A conformance suite: checks of an optimizer against its paper and ``torch.optim``, each with a figure.

It runs on any optimizer of the SAM family, of this package or of another one, in its own calling convention::

    from optland.conformance import Claim, Subject, run

    def make(params, base, model, options):      # base(params) is an SGD or AdamW instance
        return MySAM(base(params), rho=options["rho"])

    print(run(Subject("mine", make, Claim("sam", {"rho": 0.3}))).table())

``python -m optland.conformance`` prints the tables of this package.

The checks are closed forms and slow literal oracles written from the papers' equations, independent of the
package's own engine. They see a perturbation from outside, because every evaluation of a loss writes down the
weights that it was made at. Four kinds are counted apart: ``method`` (the step is the paper's), ``contract``
(what ``torch.optim`` asks of every optimizer), ``model`` (batch norm, dropout, compiled modules) and
``safety`` (what should not happen silently). What a package does not claim is ``not applicable``, with the
reason; an exception or a hang where it was used as documented is an ``error``.

**Cost.** A few seconds per subject on one CPU core.

**Caveats.** One process and the CPU: nothing is said about sharded or replicated parameters. Where a paper and
its code differ (F-SAM's and VaSSO's moving average), either reading passes.
"""

from optland.conformance.finding import Finding, Report, Status
from optland.conformance.ours import ours
from optland.conformance.problems import Problem
from optland.conformance.runner import run
from optland.conformance.subject import Claim, Drive, FirstSecond, GradientFirst, Phases, SetClosure, Subject

__all__ = [
    "Claim",
    "Drive",
    "Finding",
    "FirstSecond",
    "GradientFirst",
    "Phases",
    "Problem",
    "Report",
    "SetClosure",
    "Status",
    "Subject",
    "ours",
    "run",
]
