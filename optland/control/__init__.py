"""Pure decisions: signals in, decisions with reasons out. Nothing here imports torch.

``Probe -> Signal -> Filter -> Policy -> Guard -> Actuator``: this package holds the middle four. Probes and
actuators touch tensors and live in :mod:`optland.train`.
"""

from optland.control.advice import advise
from optland.control.budget import ProbeBudget
from optland.control.decision import Decision
from optland.control.filters import LogEMA, RatioEMA
from optland.control.guards import RewindGuard
from optland.control.policies import POLICIES, AutoLR, NoiseBatch, SafeLR
from optland.control.signals import Signal

__all__ = [
    "POLICIES",
    "AutoLR",
    "Decision",
    "LogEMA",
    "NoiseBatch",
    "ProbeBudget",
    "RatioEMA",
    "RewindGuard",
    "SafeLR",
    "Signal",
    "advise",
]
