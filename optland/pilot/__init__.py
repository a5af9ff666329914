"""The pilot: watches a run, and steers it inside a stated budget.

``Probe -> Signal -> History -> Policy -> Proposal -> Host``, and :class:`Pilot` around them. Policies, guards and the
budget know no torch.
"""

from optland.pilot.advice import advise
from optland.pilot.decision import TURNED, Decision, Proposal
from optland.pilot.history import History
from optland.pilot.host import Host
from optland.pilot.pilot import MODES, Mode, Pilot
from optland.pilot.policies import (
    POLICIES,
    AutoLR,
    CurvatureMonitor,
    EdgeMonitor,
    HostFacts,
    NoiseBatch,
    NoiseMonitor,
    Plateau,
    Policy,
    SafeLR,
    SpikeGuard,
)
from optland.pilot.probes import Probe
from optland.pilot.signal import Signal
from optland.pilot.suggest import suggest_lr

__all__ = [
    "MODES",
    "POLICIES",
    "TURNED",
    "AutoLR",
    "CurvatureMonitor",
    "Decision",
    "EdgeMonitor",
    "History",
    "Host",
    "HostFacts",
    "Mode",
    "NoiseBatch",
    "NoiseMonitor",
    "Pilot",
    "Plateau",
    "Policy",
    "Probe",
    "Proposal",
    "SafeLR",
    "Signal",
    "SpikeGuard",
    "advise",
    "suggest_lr",
]
