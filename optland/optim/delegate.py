"""Wrap an optimizer and forward its state and parameter groups, so that one copy of each exists.

``state``, ``param_groups`` and ``defaults`` are forwarded to the base optimizer, which stays their owner.
Copying the references instead would un-share them at the first ``load_state_dict``, and with them the
learning-rate schedule.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from optland.optim.keys import GroupKeys, key

__all__ = ["Closure", "Delegating"]

Closure = Callable[[], Any]
"""Zeroes the gradients, runs forward and backward, and returns the loss."""


class Delegating(Optimizer):
    """An optimizer that acts through ``base`` and adds hyper-parameters to its groups.

    A subclass whose ``step`` does not call that of its parent has to run its update in :meth:`_step_with_hooks`.

    Schedulers, samplers and trainers see a true ``torch.optim.Optimizer``; attaching them here or to ``base``
    is the same thing. Step hooks registered here fire once per update, whatever number of passes it takes.

    Args:
        base: The optimizer that owns the groups and the state, and makes the update.
        hyperparameters: Names and default values that every group is given where it has none of its own, under
            keys of :mod:`optland.optim.keys`; they are merged into ``base.defaults``, so schedulers see them and
            ``add_param_group`` fills them in.

    Raises:
        TypeError: ``base`` is not an optimizer instance.
        ValueError: ``base`` evaluates the closure by itself (LBFGS), or a hyper-parameter has no possible value.
    """

    base: Optimizer
    _own: dict[str, Any]

    passes_closure_on: ClassVar[bool] = False
    """Whether the base's step is given the closure; one that ``needs_closure`` can be a base only then."""

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        # Keeps torch from wrapping step() in the hooks a second time: they fire in _step_with_hooks, where they see w.
        if "step" in cls.__dict__:
            cls.step.hooked = True  # type: ignore[attr-defined]

    def __init__(self, base: Optimizer, hyperparameters: dict[str, Any]) -> None:
        if not isinstance(base, Optimizer):
            given = f"the class {base.__name__}" if isinstance(base, type) else f"a {type(base).__name__}"
            raise TypeError(
                f"{type(self).__name__} wraps an optimizer instance and was given {given}; write "
                f"{type(self).__name__}(torch.optim.SGD(model.parameters(), lr=0.1), ...)"
            )
        if isinstance(base, torch.optim.LBFGS):
            raise ValueError(
                f"LBFGS evaluates the closure by itself and cannot be the base of {type(self).__name__}; "
                "use a one-gradient optimizer such as SGD or AdamW"
            )
        if getattr(base, "needs_closure", False) and not self.passes_closure_on:
            raise ValueError(
                f"{type(base).__name__} needs the closure of a step, which {type(self).__name__} evaluates by itself; "
                f"turn them round, {type(base).__name__}({type(self).__name__}(...)), or use another base"
            )
        self.base = base
        self._own = {key(name): value for name, value in hyperparameters.items()}
        self._keys = GroupKeys(base, hyperparameters)
        for group in [self._own, *base.param_groups]:
            self._validate(self._keys.values(group))
        # Makes the hook tables. Optimizer.__init__ would also overwrite the base's groups with an empty set.
        super().__setstate__({})
        for group in base.param_groups:
            for its in self._own:
                # Left by an earlier wrapper of this base: the new value must not lose to it.
                if its in group and its in base.defaults and group[its] == base.defaults[its]:
                    del group[its]
        base.defaults.update(self._own)
        self._fill_groups()

    def _fill_groups(self) -> bool:
        """Rename what was given under a short name, fill in the rest; returns whether there were short names."""
        renamed = [self._keys.rename(group) for group in self.base.param_groups]
        for group in self.base.param_groups:
            for its, value in self._own.items():
                group.setdefault(its, value)
        return any(renamed)

    def _validate(self, values: dict[str, Any]) -> None:
        """Refuse values that no method can use; called, by name, for every group that is given, added or loaded."""
        for name, given in values.items():
            value = float(given)
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name}={value} is not possible; use a finite value >= 0")

    # The base's own members ------------------------------------------------------------------------

    @property
    def state(self) -> Any:
        """State of the base optimizer; nothing of a step in flight is ever kept in it."""
        return self.base.state

    @state.setter
    def state(self, value: Any) -> None:
        self.base.state = value

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the base optimizer, with this wrapper's hyper-parameters in them."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self.base.param_groups = value

    @property
    def defaults(self) -> dict[str, Any]:
        """Defaults of the base optimizer merged with this wrapper's."""
        return self.base.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self.base.defaults = value

    @property
    def _params(self) -> list[Tensor]:
        """All parameters, group after group."""
        groups = self.base.param_groups
        return list(groups[0]["params"]) if len(groups) == 1 else [p for g in groups for p in g["params"]]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; hyper-parameters it does not name take their defaults."""
        self._refuse_in_flight("add_param_group()")
        if isinstance(param_group, dict):  # the base says what is wrong with anything else
            self._validate(self._keys.values(param_group))
            self._keys.rename(param_group)
        self.base.add_param_group(param_group)

    def __getattr__(self, name: str) -> Any:
        # Schedule-free optimizers switch between two sets of weights; trainers ask whether there is such a switch.
        if name in ("train", "eval") and "base" in self.__dict__ and hasattr(self.base, name):
            return functools.partial(self._switch, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _switch(self, name: str, *args: Any, **kwargs: Any) -> Any:
        self._refuse_in_flight(f"{name}()")
        return getattr(self.base, name)(*args, **kwargs)

    # Saving and loading ----------------------------------------------------------------------------

    def _refuse_in_flight(self, action: str) -> None:
        """Raise when ``action`` would see a step half done; overridden by wrappers that have such steps."""

    def state_dict(self) -> dict[str, Any]:
        """The base's state dict; hyper-parameters such as rho travel in its groups.

        Returns:
            What ``base`` alone can load too: ``state`` and ``param_groups``.

        Raises:
            RuntimeError: The weights are perturbed: a checkpoint taken now would hold w + eps.
        """
        self._refuse_in_flight("state_dict()")
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state_dict = self._with_own_state(self.base.state_dict())
        for after in self._optimizer_state_dict_post_hooks.values():
            state_dict = after(self, state_dict) or state_dict
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned, or a plain base optimizer's; rho then keeps its default."""
        self._refuse_in_flight("load_state_dict()")
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = before(self, state_dict) or state_dict
        for group in state_dict["param_groups"]:
            self._validate(self._keys.values(group))
        self.base.load_state_dict(state_dict)
        if self._fill_groups():
            self._rename_state()
        self._take_own_state()
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _rename_state(self) -> None:
        """A checkpoint had short names in its groups, and has them in its state too; for wrappers that keep any."""

    def _with_own_state(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The base's state dict with what this wrapper knows besides, in its groups and its state."""
        return state_dict

    def _take_own_state(self) -> None:
        """Take what :meth:`_with_own_state` had added out of the groups and the state that were loaded."""

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_in_flight("copying or pickling")
        # Hooks stay with the instance they were registered on, as torch has it; "step" is a scheduler's patch
        # that points back at this very instance.
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("step", "_opt_called") and not name.startswith("_optimizer_")
        }

    # Stepping --------------------------------------------------------------------------------------

    def _step_with_hooks(self, update: Callable[[Closure | None], Any], closure: Closure | None) -> Any:
        """Run ``update(closure)`` between the step hooks of this wrapper.

        Global hooks fire too, once, from the step of the base.
        """
        args: tuple[Any, ...] = (self,) if closure is None else (self, closure)
        kwargs: dict[str, Any] = {}
        for before in self._optimizer_step_pre_hooks.values():
            args, kwargs = before(self, args, kwargs) or (args, kwargs)
        loss = update(kwargs.get("closure", args[1] if len(args) > 1 else None))
        for after in self._optimizer_step_post_hooks.values():
            after(self, args, kwargs)
        return loss

    def __repr__(self) -> str:
        own = ", ".join(f"{its}={value}" for its, value in self._own.items())
        inner = "\n".join("    " + line for line in repr(self.base).splitlines())
        return f"{type(self).__name__} (\n    {own}\n{inner}\n)"
