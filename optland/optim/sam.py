r"""Sharpness-aware minimization: descend with the gradient of the worst point nearby.

.. math::
    \text{SAM:}  \quad \epsilon = \rho \, g / \|g\|            \qquad
    \text{ASAM:} \quad \epsilon = \rho \, T^2 g / \|T g\|, \; T = |w| + \eta    \qquad
    \text{USAM:} \quad \epsilon = \rho \, (1 - \lambda + \lambda / \|g\|) \, g
.. math::
    w \leftarrow \text{base}(w, \nabla L(w + \epsilon))

**Cost.** 2 gradient evaluations per sample and step; two transient copies of the weights; no state.

**A part of the batch.** With ``ascent_share`` pass one, which only finds the way to w + eps, is over that share of the
batch: a quarter makes a step cost 1.25. The closure takes the share, ``def closure(share=1.0)``, and is called with it;
in phase form :attr:`SAM.pass_share` says it. What SAM measures by comparing both passes (curvature, angle, loss gap) is
then left out, as they are of other samples, and ``step`` returns the loss of the part. A smaller part is m-sharpness of
fewer samples with a noisier eps.

**When.** Training from scratch on small or noisily labelled data, fine-tuning, large batches: wherever the
training set can be fitted exactly and the gap to validation is the problem. Not when one pass over the data
is all there is: spend the second gradient on more data then.

**Defaults.** SAM ``rho=0.05``, the solid default of the paper, which searches {0.01, 0.02, 0.05, 0.1, 0.2,
0.5}; noisy labels want more. ASAM ``rho=0.5``, ten times larger since T shrinks the step, and ``eta=0.01``,
the floor that lets zero weights move. Keep the base optimizer's own settings.

**Caveats.** With plain gradient descent a step is stable only for lr * lam * (1 + rho * lam / ||g||) < 2, so
SAM wants a smaller learning rate where gradients are small (``sam/stability``). Weight decay stays with the
base optimizer, outside the perturbation. BatchNorm and dropout need ``model=``
(:mod:`optland.optim.two_pass`).

References: Foret, Kleiner, Mobahi & Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving
Generalization", 2021, arXiv:2010.01412. Kwon, Kim, Park & Choi, "ASAM: Adaptive Sharpness-Aware Minimization
for Scale-Invariant Learning of Deep Neural Networks", 2021, arXiv:2102.11600. Andriushchenko & Flammarion,
"Towards Understanding Sharpness-Aware Minimization", 2022, arXiv:2206.06232 (unnormalised). Liu, Mai, Chen,
Hsieh & You, "Towards Efficient and Scalable Sharpness-Aware Minimization", 2022, arXiv:2203.02714 (by layer). Brock,
De, Smith & Simonyan, "High-Performance Large-Scale Image Recognition Without Normalization", 2021, arXiv:2102.06171,
and Bahri, Mobahi & Tay, "Sharpness-Aware Minimization Improves Language Model Generalization", 2021, arXiv:2110.08529
(the ascent on a part of the batch; a quarter).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Unpack

from torch import Tensor, nn
from torch.optim import Optimizer

from optland.optim.ascent_share import check_share, require_share
from optland.optim.delegate import Closure
from optland.optim.gates import Gate
from optland.optim.keys import key, setting
from optland.optim.legacy import make_base, original_names, without_copies
from optland.optim.method import Method
from optland.optim.radius import Scope, check_ball
from optland.optim.selection import Selection
from optland.optim.two_pass import EngineOptions, TwoPass
from optland.optim.uncompiled import uncompiled

__all__ = ["ASAM", "SAM", "USAM"]


class _MaybeAdaptive(Method):
    """SAM, and T = |w| in groups with ``adaptive=True``, of every parameter and without a floor."""

    def __init__(self, p: float, scope: Scope, ascent_share: float = 1.0, **hyperparameters: float) -> None:
        check_ball(p, scope)
        super().__init__(**hyperparameters)
        self.p, self.scope, self.ascent_share = p, scope, ascent_share

    def metric(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> Tensor | None:
        """T = |w| where the group is adaptive."""
        return p.abs() if group.get(key("adaptive")) else None

    def has_metric(self, groups: list[dict[str, Any]]) -> bool:
        """In some group."""
        return bool([group for group in groups if group.get(key("adaptive"))])


class SAM(TwoPass):
    """SAM around any optimizer.

    Args:
        base: The optimizer that makes the update (or the parameters, in the class form of
            :mod:`optland.optim.legacy`).
        base_class: Class form only: the base optimizer's class, or a function that makes one of parameters.
        rho: Radius of the ascent in weight space, ||eps||. A group may have its own; the norm is over all
            groups.
        adaptive: Class form only: T = |w| for every parameter.
        p: The ball is that of the p-norm; 2 is the paper's choice, ``math.inf`` moves each weight by +-rho.
        scope: What has the length rho: all parameters together, each group, or each tensor. By tensor, the whole
            has sqrt(number of tensors) times that.
        model: The module that the loop calls, to guard BatchNorm statistics and dropout masks.
        check_finite: Skip steps with a non-finite gradient, at the price of one host decision per step.
        gate: Which steps take the second pass (:mod:`optland.optim.gates`).
        only: Which parameters are perturbed (:mod:`optland.optim.selection`).
        telemetry_every: Steps from one measurement of curvature and angle to the next; 0 for none.
        ascent_share: Share of the batch that pass one is over; 0.25 is usual where 1, the default, costs too much.
        **base_options: Class form only: options of the base optimizer.

    Raises:
        TypeError: ``base`` is not an optimizer instance, or arguments of the two forms were mixed.
        ValueError: ``rho`` is negative or not finite, ``p`` is not above 1, or a name is not known; or ``ascent_share``
            is not within (0, 1], or below 1 with a gate, in the class form, or around a base that reads the loss: all
            of these would take the gradient of a part of the batch for that of the whole.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = SAM(torch.optim.SGD([w], lr=0.1), rho=0.5)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = 0.5 * w.square().sum()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> loss.item(), [round(x, 2) for x in w.tolist()]  # w - 0.1 (w + 0.5 w / |w|)
        (12.5, [2.67, 3.56])
        >>> round(optimizer.telemetry.read()["sam/curvature"], 4)
        1.0
    """

    def __init__(
        self,
        base: Optimizer | Iterable[Any] | None = None,
        base_class: Callable[..., Optimizer] | None = None,
        rho: float = 0.05,
        adaptive: bool = False,
        *,
        p: float = 2.0,
        scope: Scope = "global",
        model: nn.Module | None = None,
        check_finite: bool = True,
        gate: Gate | str | None = None,
        only: Selection = "all",
        telemetry_every: int = 10,
        ascent_share: float = 1.0,
        **base_options: Any,
    ) -> None:
        name = type(self).__name__
        base, base_class = original_names(name, base, base_class, base_options)
        inner = make_base(name, base, base_class, adaptive, base_options)
        check_share(ascent_share, name, gate=gate, of_class=base_class is not None, base=inner)
        super().__init__(
            inner,
            _MaybeAdaptive(p, scope, ascent_share, rho=rho, adaptive=adaptive),
            model=model,
            check_finite=check_finite,
            gate=gate,
            only=only,
            telemetry_every=telemetry_every,
        )
        self._legacy = base_class is not None

    @property
    def pass_share(self) -> float:
        """The share of the batch that the present pass is over: ``ascent_share`` in pass one, else 1."""
        ascends = self._memory.has_radius and not (self.is_perturbed or self._in_hand)
        return self.method.ascent_share if ascends else 1.0

    @property
    def base_optimizer(self) -> Optimizer:
        """The base under its older name."""
        return self.base

    @uncompiled
    def first_step(self, zero_grad: bool = False) -> None:
        """:meth:`perturb`; class form only.

        Gradients are zeroed anyway, to None with ``zero_grad=True``.
        """
        self._require_legacy("first_step()", "perturb()")
        self.perturb()
        if zero_grad:
            self.zero_grad()

    @uncompiled
    def second_step(self, zero_grad: bool = False) -> None:
        """Restore the weights and update them; class form only."""
        self._require_legacy("second_step()", "step()")
        self.step()
        if zero_grad:
            self.zero_grad()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As :meth:`TwoPass.load_state_dict`, for checkpoints of the original too."""
        if "state" in state_dict:
            state_dict = {**state_dict, "state": without_copies(state_dict["state"])}
        super().load_state_dict(state_dict)

    def _passes(self, closure: Closure, share: float = 1.0) -> Any:
        if self.method.ascent_share == 1:
            return super()._passes(closure, share)
        of_share: Callable[[float], Any] = require_share(closure, type(self).__name__)
        return super()._passes(lambda: of_share(self.pass_share), share)

    def _closure_step(self, closure: Closure) -> Any:
        if not self._legacy:
            return super()._closure_step(closure)
        if not self._has_gradients:
            raise RuntimeError(
                "step(closure) of the class form starts from existing gradients; run backward first"
            )
        self._refuse_untold()
        self._forget_step()
        self._flight.begin()
        if self._due():
            self._call_perturbed(closure)
        else:
            self._flight.single_pass()
        self._update()
        return None

    def _require_legacy(self, name: str, instead: str) -> None:
        if not self._legacy:
            raise RuntimeError(
                f"{name} belongs to the class form SAM(params, torch.optim.SGD, ...); this optimizer wraps "
                f"an instance, whose method is {instead}"
            )


class _Adaptive(Method):
    def metric(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> Tensor | None:
        """T = |w| + eta on weight matrices, the identity elsewhere."""
        return p.abs().add_(setting(group, "eta")) if p.ndim >= 2 else None


class ASAM(TwoPass):
    """SAM in the metric of the weights' own size: moving scale from one layer to another changes nothing.

    T = |w| + eta on weight matrices and kernels (two dimensions or more), the identity on biases and
    normalisation scales. The authors' code picks parameters by "weight" in their name, which includes
    normalisation scales; the number of dimensions needs no names, and the invariance that T brings is one of
    matrices.

    Args:
        base: The optimizer that makes the update.
        rho: Radius in the scaled metric, ||eps / T||.
        eta: Floor of T, so that zero weights move too, in units of a weight. 0 is exactly scale-invariant.
        **engine: Options of :class:`~optland.optim.two_pass.TwoPass`.

    Raises:
        TypeError: ``base`` is not an optimizer instance.
        ValueError: ``rho`` or ``eta`` is negative or not finite.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([[1.0, 2.0]]))
        >>> optimizer = ASAM(torch.optim.SGD([w], lr=0.1), rho=0.5, eta=0.0)
        >>> w.sum().backward()
        >>> with optimizer.perturbed():  # eps = rho w^2 / |w|
        ...     print([round(x, 3) for x in (w - torch.tensor([1.0, 2.0])).flatten().tolist()])
        [0.224, 0.894]
    """

    def __init__(
        self, base: Optimizer, rho: float = 0.5, eta: float = 0.01, **engine: Unpack[EngineOptions]
    ) -> None:
        super().__init__(base, _Adaptive(rho=rho, eta=eta), **engine)


class _Unnormalised(Method):
    true_units = True

    def check(self, values: dict[str, Any]) -> None:
        """Refuse a lambda outside 0 to 1."""
        if not 0.0 <= values.get("normalised", 0.0) <= 1.0:
            raise ValueError(
                f"normalised={values['normalised']} is not within 0 and 1; 1 is SAM, 0 leaves the length in"
            )

    def radius(self, group: dict[str, Any], length: Tensor) -> Tensor | float:
        """The radius rho ((1 - lambda) |g| + lambda)."""
        share = setting(group, "normalised")
        return setting(group, "rho") * ((1.0 - share) * length + share)  # type: ignore[no-any-return]


class USAM(TwoPass):
    """SAM with the length of the gradient left in: unnormalised, or anywhere between that and SAM.

    The perturbation shrinks with the gradient, so that it vanishes at a critical point, and near a minimum plain
    descent is stable for lr * lam * (1 + rho * lam) < 2.

    Args:
        base: The optimizer that makes the update.
        rho: Radius per unit of gradient; with ``normalised`` 1 the radius itself.
        normalised: lambda: 0 leaves the length in, 1 is SAM. It may be scheduled in the groups.
        **engine: Options of :class:`~optland.optim.two_pass.TwoPass`.

    Raises:
        TypeError: ``base`` is not an optimizer instance.
        ValueError: ``rho`` is negative or not finite, or ``normalised`` is not within 0 and 1.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = USAM(torch.optim.SGD([w], lr=0.1), rho=0.5)
        >>> (0.5 * w.square().sum()).backward()
        >>> with optimizer.perturbed():
        ...     print(w.tolist())
        [4.5, 6.0]
    """

    def __init__(
        self, base: Optimizer, rho: float = 0.05, normalised: float = 0.0, **engine: Unpack[EngineOptions]
    ) -> None:
        super().__init__(base, _Unnormalised(rho=rho, normalised=normalised), **engine)
