"""The doctor: what is wrong with a training, how the landscape explains it, and what to do."""

from __future__ import annotations

from optland.doctor.before_run import Preflight, preflight
from optland.doctor.diagnose import Diagnosis, diagnose
from optland.doctor.finding import Finding, Symptom
from optland.doctor.watching import watch

__all__ = [
    "Diagnosis",
    "Finding",
    "Preflight",
    "Symptom",
    "diagnose",
    "preflight",
    "watch",
]
