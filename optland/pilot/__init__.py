"""The pilot: watches a run, and steers it inside a stated budget.

``Probe -> Signal -> History -> Policy -> Proposal -> Host``, and :class:`Pilot` around them. Policies, guards and the
budget know no torch.
"""

from optland.pilot.by_rank import ByRank
from optland.pilot.decision import Decision, Proposal
from optland.pilot.history import History
from optland.pilot.host import Host
from optland.pilot.pilot import Pilot
from optland.pilot.policies.auto_lr import AutoLR
from optland.pilot.policies.base import Policy
from optland.pilot.policies.facts import HostFacts
from optland.pilot.policies.monitors import EdgeMonitor, NoiseMonitor
from optland.pilot.policies.noise_batch import NoiseBatch
from optland.pilot.policies.plateau import Plateau
from optland.pilot.policies.safe_lr import SafeLR
from optland.pilot.policies.spike_guard import SpikeGuard
from optland.pilot.probes.base import Probe
from optland.pilot.signal import Signal
from optland.pilot.suggest import suggest_lr

__all__ = [
    "AutoLR",
    "ByRank",
    "Decision",
    "EdgeMonitor",
    "History",
    "Host",
    "HostFacts",
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
    "suggest_lr",
]
