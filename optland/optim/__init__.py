"""Sharpness-aware optimizers: two-pass methods around any ``torch.optim`` optimizer."""

from optland.optim.cards import CARDS, Card
from optland.optim.curvature_penalties import CRSAM, StableSAM
from optland.optim.eigen_sam import EigenSAM
from optland.optim.functional import FunctionalLoss
from optland.optim.gates import (
    Bernoulli,
    Every,
    Gate,
    LargeGradient,
    LatePhase,
    Stationary,
    StepState,
    Tail,
)
from optland.optim.gsam import GSAM
from optland.optim.looksam import LookSAM
from optland.optim.metrics import FisherSAM, PreconditionedSAM
from optland.optim.momentum_sam import MSAM
from optland.optim.registry import available, create, wrap
from optland.optim.rise_budget import LESAM
from optland.optim.sam import ASAM, SAM, USAM
from optland.optim.smoothed import FSAM, VaSSO
from optland.optim.sparse import SparseSAM
from optland.optim.telemetry import Telemetry
from optland.optim.telemetry_log import TelemetryLog, log_telemetry
from optland.optim.two_pass import TwoPass
from optland.optim.wsam import PGN, WSAM

__all__ = [
    "ASAM",
    "CARDS",
    "CRSAM",
    "FSAM",
    "GSAM",
    "LESAM",
    "MSAM",
    "PGN",
    "SAM",
    "USAM",
    "WSAM",
    "Bernoulli",
    "Card",
    "EigenSAM",
    "Every",
    "FisherSAM",
    "FunctionalLoss",
    "Gate",
    "LargeGradient",
    "LatePhase",
    "LookSAM",
    "PreconditionedSAM",
    "SparseSAM",
    "StableSAM",
    "Stationary",
    "StepState",
    "Tail",
    "Telemetry",
    "TelemetryLog",
    "TwoPass",
    "VaSSO",
    "available",
    "create",
    "log_telemetry",
    "wrap",
]
