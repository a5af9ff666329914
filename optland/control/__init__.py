"""Pure decisions: signals in, decisions with reasons out. Nothing here imports torch.

``Probe -> Signal -> Filter -> Policy -> Guard -> Actuator``: this package holds the middle four. Probes and
actuators touch tensors and live in :mod:`optland.train`.
"""

from optland.control.advice import advise
from optland.control.budget import ProbeBudget
from optland.control.decision import Decision
from optland.control.filters import LogEMA, RatioEMA
from optland.control.guards import CollapseGuard, CoolDown, RewindGuard, clamp_factor
from optland.control.policies import (
    POLICIES,
    AutoLR,
    EdgeMonitor,
    GIAdam,
    LateSAM,
    NoiseBatch,
    NoiseMonitor,
    Plateau,
    RelativeStep,
    Rho,
    SafeLR,
    Seesaw,
    SpikeGuard,
)
from optland.control.scaling import adam_betas, batch_gain
from optland.control.signals import Signal
from optland.control.view import Proposal, StepPolicy, StepView

__all__ = [
    "POLICIES",
    "AutoLR",
    "CollapseGuard",
    "CoolDown",
    "Decision",
    "EdgeMonitor",
    "GIAdam",
    "LateSAM",
    "LogEMA",
    "NoiseBatch",
    "NoiseMonitor",
    "Plateau",
    "ProbeBudget",
    "Proposal",
    "RatioEMA",
    "RelativeStep",
    "RewindGuard",
    "Rho",
    "SafeLR",
    "Seesaw",
    "Signal",
    "SpikeGuard",
    "StepPolicy",
    "StepView",
    "adam_betas",
    "advise",
    "batch_gain",
    "clamp_factor",
]
