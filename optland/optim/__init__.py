"""Sharpness-aware optimizers: two-pass methods around any ``torch.optim`` optimizer."""

from optland.optim.gates import Bernoulli, Every, LargeGradient, Tail
from optland.optim.gsam import GSAM
from optland.optim.looksam import LookSAM
from optland.optim.momentum_sam import MSAM
from optland.optim.registry import available, create, wrap
from optland.optim.sam import ASAM, SAM, USAM
from optland.optim.smoothed import FSAM
from optland.optim.telemetry import Telemetry
from optland.optim.telemetry_log import log_telemetry
from optland.optim.two_pass import TwoPass
from optland.optim.wsam import WSAM

__all__ = [
    "ASAM",
    "FSAM",
    "GSAM",
    "MSAM",
    "SAM",
    "USAM",
    "WSAM",
    "Bernoulli",
    "Every",
    "LargeGradient",
    "LookSAM",
    "Tail",
    "Telemetry",
    "TwoPass",
    "available",
    "create",
    "log_telemetry",
    "wrap",
]
