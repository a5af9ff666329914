"""The rules: histories in, a finding out. Pure, and plain numbers alone.

Each rule is a function of :class:`~optland.doctor.histories.Histories` that returns a
:class:`~optland.doctor.finding.Finding` or None. Its ``confidence`` is how much the evidence weighs, from 0 to 1, by
which findings are ordered; what is shown is the share of such findings that were right
(:mod:`optland.doctor.calibration`).
"""
