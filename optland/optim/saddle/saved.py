"""Encode the state of a wrapper or solver as one text in the first parameter group, for any checkpointer.

A distributed checkpoint takes ``state`` and ``param_groups`` of a state dict and drops the rest; of these it reads back
only entries that the fresh optimizer has as well. So the entry is always there, empty between checkpoints.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import torch
from torch import Tensor

from optland.optim.keys import key

__all__ = ["ENTRY", "decoded", "encoded", "makes_room"]

ENTRY = key("saddle")
"""Key in the first parameter group, and prefix of keys in the state of a parameter."""


def encoded(known: dict[str, Any]) -> str:
    """Numbers, text, lists and one level of byte tensors (the state of a generator) as a text.

    Example:
        >>> text = encoded({"step": 3, "loss": float("inf"), "generator": torch.arange(3, dtype=torch.uint8)})
        >>> decoded(text)["loss"], decoded(text)["generator"].tolist()
        (inf, [0, 1, 2])
    """
    return json.dumps({k: _packed(v) if isinstance(v, Tensor) else v for k, v in known.items()})


def decoded(text: str) -> dict[str, Any]:
    """The value that was :func:`encoded`.

    Args:
        text: JSON.
    """
    known: dict[str, Any] = json.loads(text)
    return {
        k: _unpacked(v["bytes"]) if isinstance(v, dict) and v.keys() == {"bytes"} else v
        for k, v in known.items()
    }


def _packed(tensor: Tensor) -> dict[str, str]:
    return {"bytes": base64.b64encode(zlib.compress(bytes(tensor.tolist()))).decode()}


def _unpacked(text: str) -> Tensor:
    return torch.tensor(list(zlib.decompress(base64.b64decode(text))), dtype=torch.uint8)


def makes_room(groups: list[dict[str, Any]]) -> bool:
    """Whether a step without a closure is a checkpointer's, which wants the state to exist: no rate and no gradient.

    ``torch.distributed.checkpoint`` sets both to zero for it.

    Args:
        groups: Of the optimizer whose step was called.
    """
    gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    at_rest = all(float(group.get("lr", 0.0)) == 0.0 for group in groups)
    return at_rest and bool(gradients) and not any(bool(g.count_nonzero()) for g in gradients)
