"""Support for code and checkpoints written for ``davda54/sam``, the most used implementation.

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

from torch.optim import Optimizer

__all__ = ["make_base", "original_names", "without_copies"]


_COPIES = ("old_p", "e_w")
"""Where the original keeps the weights, or eps, of a step in flight, and with them in its checkpoints."""


def original_names(
    method: str, base: Any, base_class: Any, options: dict[str, Any]
) -> tuple[Any, Callable[..., Optimizer] | None]:
    """Parameters and class, also where they were given under the original's names; those leave ``options``.

    Args:
        method: Name of the class, for messages.
        base: What came first by position, or None.
        base_class: What came second by position, or None.
        options: All further keywords; written to.

    Returns:
        The optimizer or parameters, and the class of the base or None.

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

    Args:
        method: Name of the class, for messages.
        base: An optimizer, or parameters in the class form.
        base_class: Makes one of parameters; None in the instance form.
        adaptive: The original's switch to adaptive radii.
        options: Of the base optimizer, in the class form.

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


def without_copies(state: dict[Any, dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    """State of a checkpoint of the original, without its copies of a step in flight.

    No entry at all where nothing else is in it: to many optimizers an entry means that theirs is complete.

    Args:
        state: ``state_dict()["state"]``, by number of the parameter.

    Returns:
        New dictionaries; an entry that was empty before stays.

    Example:
        >>> without_copies({0: {"old_p": 1.0, "momentum_buffer": 2.0}, 1: {"old_p": 3.0}})
        {0: {'momentum_buffer': 2.0}}
    """
    kept = {
        i: {name: value for name, value in entry.items() if name not in _COPIES} for i, entry in state.items()
    }
    return {i: entry for i, entry in kept.items() if entry or not state[i]}
