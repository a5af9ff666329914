r"""``relative_step``: the plain rule. The weights move by a scheduled share of their own size; no probe.

.. math:: \eta_k = s_k\, \tau / R_k, \qquad R_k = \Bigl(\sum_{l}(|u_l| / \max(|w_l|, \phi_l))^2\Bigr)^{1/2}

u_l is the optimizer's move of tensor l for a learning rate of 1, s_k a warm-up over 5 % of the run followed by a linear
decay to zero, which multiplies the whole. A rewind guard repairs a wrong constant: trouble restores a snapshot of the
weights and the optimizer and halves tau.

Cost: no gradient evaluation and no forward pass; one copy of the weights and two norms over them a step. When: no probe
is wanted, or as the baseline that a probe has to beat. When not: runs of 100 to 250 steps (tau 0.1 to 0.2), batches of
32 or less under AdamW (tau 0.03), SAM under label noise (tau 0.02): the constant does not follow the landscape.

Default: tau = 0.05, chosen on small image nets among 0.04, 0.05 and 0.07, which differ by 0.7 points of accuracy.

Reference: the ratio of update to weight is that of LARS (You et al. 2017, arXiv:1708.03888).
"""

from __future__ import annotations

import math

from optland.control.policies.auto_lr import AutoLR

__all__ = ["RelativeStep"]


class RelativeStep(AutoLR):
    """The scheduled relative step with a fixed constant: no ceiling, no alarm, nothing measured.

    It shares its place in the step with ``AutoLR`` and none of its signals.

    Args:
        tau: Relative step at the peak of the schedule; 0.05.
        warmup: Share of the run over which the shape rises; 0.05.

    Raises:
        ValueError: A value outside its range.

    Example:
        >>> RelativeStep().step_size(relative_speed=2.0, shape=0.5)
        (0.0125, 'ratio')
    """

    name = "relative_step"
    probes = frozenset()

    def __init__(self, *, tau: float = 0.05, warmup: float = 0.05) -> None:
        super().__init__(tau=tau, warmup=warmup)
        self.alarm = math.inf

    def observe_critical_step(self, eta_c: float, applied: float = 0.0, *, resolved: bool = True) -> None:
        """Nothing: the plain rule does not look at the landscape."""
