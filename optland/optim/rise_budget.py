r"""LE-SAM: a budget for the rise of the loss instead of a radius.

.. math:: \epsilon = \rho_t \, g / \|g\|, \qquad \rho_t = \min(\sigma / \|g\|, \; \rho_{\max})

so that the first-order rise <g, eps> is sigma wherever the cap does not bind: steps with large gradients get small
radii, and as the gradient falls, the radius grows to rho_max, where it is SAM.

**Cost.** 2 gradient evaluations per sample and step; no state.

**When.** When one rho is too large early and too small late. **When not.** With noisy gradients whose length says
little.

**Defaults.** ``sigma=0.1``, in units of the loss, and ``rho=0.05`` as the cap; public implementations take sigma 0.05
to 0.1 and lower it to 0 with a cosine (schedule ``sigma`` in the groups).

**Caveats.** The loss scale enters: under a GradScaler use ``perturb(loss_scale=...)``. The defaults are second-hand.

Reference: Wang, Liu, Xie & Gao, "Fix the Loss, Not the Radius: Rethinking the Adversarial Perturbation of
Sharpness-Aware Minimization", 2026, arXiv:2605.10183.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim import Optimizer

from optland.optim.keys import setting
from optland.optim.method import Method
from optland.optim.two_pass import EngineOptions, TwoPass

__all__ = ["LESAM"]


class _RiseBudget(Method):
    true_units = True

    def radius(self, group: dict[str, Any], length: Tensor) -> Tensor | float:
        """min(sigma / |g|, rho)."""
        return torch.clamp(setting(group, "sigma") / length, max=setting(group, "rho"))


class LESAM(TwoPass):
    """LE-SAM around any optimizer.

    Args:
        base: The optimizer that makes the update.
        rho: Largest radius ||eps||.
        sigma: First-order rise of the loss, in its units.
        **engine: Options of :class:`~optland.optim.two_pass.TwoPass`.

    Raises:
        TypeError: ``base`` is not an optimizer instance.
        ValueError: ``rho`` or ``sigma`` is negative or not finite.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = LESAM(torch.optim.SGD([w], lr=0.1), rho=1.0, sigma=2.5)
        >>> (0.5 * w.square().sum()).backward()  # |g| = 5, so the radius is 0.5
        >>> with optimizer.perturbed():
        ...     print([round(x, 3) for x in w.tolist()])
        [3.3, 4.4]
    """

    def __init__(
        self, base: Optimizer, rho: float = 0.05, sigma: float = 0.1, **engine: Unpack[EngineOptions]
    ) -> None:
        super().__init__(base, _RiseBudget(rho=rho, sigma=sigma), **engine)
