r"""An exponential moving average of the weights, evaluated in place of the weights and resumed with them.

.. math:: \bar w \leftarrow d_n \bar w + (1 - d_n) w, \qquad d_n = \min\bigl(d, (1 + n) / (10 + n)\bigr)

**Cost.** One copy of the weights and buffers, one pass over them and one norm per step; no gradient evaluation.
**When.** Evaluation while the learning rate is still high; a rate decayed to zero leaves little to average.
**Default.** Off. d = 0.999 averages over the last thousand steps, so it wants a run of several thousand. The rising d_n
keeps a short run from being an average with its own random start.
**Caveats.** Buffers (BatchNorm statistics) are averaged as the weights are. Weights that are not finite are left out,
and when a state is loaded into the model (a rewind of the pilot's, for one) the average starts anew from there: what
was rewound must not live on in it.

Reference: Polyak & Juditsky 1992; d_n as in TensorFlow's ``ExponentialMovingAverage``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from optland import vectors

__all__ = ["Ema"]


class Ema:
    """The averaged twin of a model, on ``torch.optim.swa_utils.AveragedModel``.

    Args:
        model: The module that is trained; of a compiled one, the original is followed.
        decay: Weight d of the past, in [0, 1).

    Raises:
        ValueError: ``decay`` out of range.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> ema, seen = Ema(net, decay=0.999), []
        >>> for value in (0.0, 11.0):
        ...     _ = net.weight.data.fill_(value)
        ...     ema.update()
        >>> round(ema.model.weight.item(), 3)  # d_1 = 2 / 11
        9.0
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"ema: {decay} is not a decay below 1; use for example 0.999, or null for none")
        self.source: nn.Module = getattr(model, "_orig_mod", model)
        self.decay = decay
        self.updates = 0
        """Weights averaged since the start, or since a state was loaded into the model."""
        self._average = AveragedModel(self.source, use_buffers=True)
        self._restart_when_loaded()

    @property
    def model(self) -> nn.Module:
        """The module with the averaged weights, for evaluation; before the first update, the initial ones."""
        module: nn.Module = self._average.module
        return module

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights; call it after the pilot's ``after_step``, which may rewind them."""
        if not bool(vectors.norm(list(self.source.parameters())).isfinite()):
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self._average.multi_avg_fn = get_ema_multi_avg_fn(decay)
        self._average.update_parameters(self.source)
        self.updates += 1

    def restart(self) -> None:
        """Begin a new average with the next update."""
        self.updates = 0
        self._average.n_averaged.zero_()

    def _restart_when_loaded(self) -> None:
        """Start anew when a state is loaded into the model; the hook holds this object weakly, and goes with it."""
        hook = _RestartWhenLoaded(weakref.ref(self))
        handle = self.source.register_load_state_dict_post_hook(hook)
        weakref.finalize(self, handle.remove).atexit = False

    def state_dict(self) -> dict[str, Any]:
        """Averaged weights and buffers, and how many were averaged."""
        return {"average": self._average.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken; in a checkpoint the model has to come before.

        Loading the model's own state starts a new average, so the other order would throw away what is loaded here.

        Args:
            state: Of a model with the same parameters and buffers.
        """
        self._average.load_state_dict(state["average"])
        self.updates = state["updates"]


class _RestartWhenLoaded:
    """Hook of the model that is trained. A copy of the model, or a saved one, has one of no average."""

    def __init__(self, ema: Callable[[], Ema | None]) -> None:
        self._ema = ema

    def __call__(self, module: nn.Module, incompatible: Any) -> None:
        if (ema := self._ema()) is not None:
            ema.restart()

    def __reduce__(self) -> tuple[type[_RestartWhenLoaded], tuple[Callable[[], None]]]:
        return _RestartWhenLoaded, (_nothing,)


def _nothing() -> None:
    return None
