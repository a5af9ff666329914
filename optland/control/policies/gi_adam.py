r"""``gi_adam``: Adam's second moment starts from the first gradient, v_0 = g_0^2, and not from zero.

.. math:: \hat v_t = v_t / (1 - \beta_2^t), \qquad v_0 = g_0^2 \;\Rightarrow\; |u_1| = \sqrt{1 - \beta_2}\
\text{instead of } 1

A built-in warm-up by about sqrt(1 - beta_2^t): the first steps of plain Adam have the length of the learning rate in
every coordinate, however small its gradient, on the sharpest ground of the whole run.

Cost: one repeated optimizer step in a whole run, no gradient. When: Adam or AdamW with little or no warm-up. When not:
other optimizers, fused wrappers, a resumed run (v is there already).

Defaults: none to set.

Reference: Kalra & Barkeshli 2024, arXiv:2406.09405.
"""

from __future__ import annotations

from optland.control.view import Proposal, StepPolicy, StepView

__all__ = ["GIAdam"]


class GIAdam(StepPolicy):
    """Asks for v_0 = g_0^2 at the first step, and never again.

    Example:
        >>> policy = GIAdam()
        >>> [len(policy.propose(StepView(k, 1.0))) for k in (1, 2, 3)]
        [1, 0, 0]
    """

    name = "gi_adam"
    needs = frozenset({"adam_v0"})

    def propose(self, view: StepView) -> list[Proposal]:
        """One proposal, after step 1: the step is made again with v_0 = g_0^2."""
        if view.step != 1:
            return []
        reason = "the first step is made again with v_0 = g_0^2: the second moment needs no warm-up"
        return [Proposal("adam_v0", 0.0, 1.0, reason)]
