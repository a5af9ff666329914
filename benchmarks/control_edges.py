"""Nets unlike those that the rules for the learning rate were developed on; used by ``control_tasks.py``.

===========  =======================================================================================================
change       what is done to the fresh net
===========  =======================================================================================================
pretrained   its weights after a run on the upright digits; the task is to learn them turned by a quarter
lora         the same weights frozen, with a trainable product of two thin factors beside each layer, one of them zero
zero_last    the last layer starts at zero
===========  =======================================================================================================
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optland.train import BatchLoader, DataConfig, ModelConfig, build_model, load_data
from optland.train.models.low_rank import LowRank

__all__ = ["CHANGES"]

RANK = 4


@functools.lru_cache(maxsize=4)
def _weights(items: tuple[tuple[str, Any], ...]) -> dict[str, Tensor]:
    """Weights after ten epochs on the upright digits, the same for every seed of the task."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        data = load_data(DataConfig(name="digits"))
        x = data.normalise(data.train_x)
        model = build_model(ModelConfig(**dict(items)), data.image_shape, data.num_classes)
        optimizer = torch.optim.AdamW(model.parameters(), 0.005)
        for batch in BatchLoader([x, data.train_y], 64, epochs=10, seed=0):
            optimizer.zero_grad()
            F.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _pretrained(model: nn.Module, settings: dict[str, Any]) -> None:
    model.load_state_dict(_weights(tuple(settings.items())))


def _lora(model: nn.Module, settings: dict[str, Any]) -> None:
    _pretrained(model, settings)
    model.requires_grad_(False)
    for name, layer in list(model.named_children()):
        if isinstance(layer, nn.Linear):
            setattr(model, name, LowRank(layer, RANK))


def _zero_last(model: nn.Module, settings: dict[str, Any]) -> None:
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


CHANGES: dict[str, Callable[[nn.Module, dict[str, Any]], None]] = {
    "pretrained": _pretrained,
    "lora": _lora,
    "zero_last": _zero_last,
}
