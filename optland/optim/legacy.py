"""The calling convention of the most used implementation, for code that was written for it.

``SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1)`` with ``first_step`` / ``second_step``,
``adaptive=True`` and a ``step(closure)`` that starts from existing gradients; ``params=`` and ``base_optimizer=`` are
understood too. The numbers are the same; what was unsafe is not: the base's state is in ``state_dict``, weights come
back by copy, and gradients are always zeroed between the passes.

A checkpoint of the original loads: rho and ``adaptive`` are taken from its groups. It holds no state of the base (that
is what was unsafe), so momentum and moments begin anew, as they do in the original.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from optland.optim.delegate import Closure
from optland.optim.keys import key
from optland.optim.two_pass import TwoPass
from optland.optim.uncompiled import uncompiled

__all__ = ["LegacyForm", "make_base", "original_names"]


_COPIES = ("old_p", "e_w")
"""Where the original keeps the weights, or eps, of a step in flight, and with them in its checkpoints."""


def original_names(
    method: str, base: Any, base_class: Any, options: dict[str, Any]
) -> tuple[Any, Callable[..., Optimizer] | None]:
    """Parameters and class, also where they were given under the original's names; those leave ``options``.

    Raises:
        TypeError: One of them was given twice, or neither an optimizer nor parameters.
    """
    given = {"params": base, "base_optimizer": base_class}
    for name, value in given.items():
        if name in options:
            if value is not None:
                raise TypeError(
                    f"{method} got {name}= and the same by position, {value!r}; leave one of them out"
                )
            given[name] = options.pop(name)
    if given["params"] is None:
        raise TypeError(
            f"{method} needs an optimizer, {method}(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05), or in the "
            f"class form parameters, {method}(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1)"
        )
    return given["params"], given["base_optimizer"]


def make_base(
    method: str,
    base: Optimizer | Iterable[Any],
    base_class: Callable[..., Optimizer] | None,
    adaptive: bool,
    options: dict[str, Any],
) -> Optimizer | Any:
    """The base optimizer of either form: the instance as given, or one made from parameters and a class.

    Raises:
        TypeError: Arguments of the two forms were mixed.
    """
    if callable(base_class) and not isinstance(base, Optimizer):
        return base_class(base, **options)
    if base_class is not None:
        raise TypeError(
            f"{method} got {base_class!r} as its second argument; name the radius, {method}(optimizer, "
            f"rho=0.05), or use the class form {method}(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1)"
        )
    if options:
        raise TypeError(
            f"{method} does not take {sorted(options)}; options of the base optimizer go to its own "
            f"constructor: {method}(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)"
        )
    if adaptive:
        raise TypeError(
            "adaptive=True belongs to the class form; use ASAM(optimizer, rho=0.5, eta=0.0) instead"
        )
    return base


class LegacyForm(TwoPass):
    """Adds ``first_step``, ``second_step`` and the one-closure ``step`` to methods made in the class form."""

    _legacy: bool = False

    @property
    def base_optimizer(self) -> Optimizer:
        """The base under its older name."""
        return self.base

    @uncompiled
    def first_step(self, zero_grad: bool = False) -> None:
        """:meth:`perturb`; class form only. Gradients are zeroed anyway, to None with ``zero_grad=True``."""
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

    @property
    def has_metric(self) -> bool:
        """In some group."""
        return any(group.get(key("adaptive")) for group in self.param_groups)

    def metric(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> Tensor | None:
        """T = |w| in groups with ``adaptive=True``, of every parameter and without a floor."""
        return p.abs() if group.get(key("adaptive")) else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As :meth:`TwoPass.load_state_dict`, for checkpoints of the original too."""
        if "state" in state_dict:
            state_dict = {**state_dict, "state": _without_copies(state_dict["state"])}
        super().load_state_dict(state_dict)

    def _closure_step(self, closure: Closure) -> Any:
        if not self._legacy:
            return super()._closure_step(closure)
        if not self._gradients():
            raise RuntimeError(
                "step(closure) of the class form starts from existing gradients; run backward first"
            )
        self._refuse_untold()
        self._forget_step()
        self._begin()
        if self.due():
            self._call_perturbed(closure)
        else:
            self._single_pass()
        self._update()
        return None

    def _require_legacy(self, name: str, instead: str) -> None:
        if not self._legacy:
            raise RuntimeError(
                f"{name} belongs to the class form SAM(params, torch.optim.SGD, ...); this optimizer wraps "
                f"an instance, whose method is {instead}"
            )


def _without_copies(state: dict[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """No entry at all where nothing else is in it: to many optimizers an entry means that theirs is complete."""
    kept = {
        i: {name: value for name, value in entry.items() if name not in _COPIES} for i, entry in state.items()
    }
    return {i: entry for i, entry in kept.items() if entry or not state[i]}
