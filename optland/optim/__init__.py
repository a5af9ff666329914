"""Optimizers that look where they step: sharpness-aware methods around any ``torch.optim`` optimizer."""

from optland.optim.registry import available, create
from optland.optim.sam import ASAM, SAM
from optland.optim.telemetry import Telemetry
from optland.optim.two_pass import TwoPass

__all__ = ["ASAM", "SAM", "Telemetry", "TwoPass", "available", "create"]
