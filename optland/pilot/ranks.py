"""Several processes that train one model: what the pilot does there."""

from __future__ import annotations

import torch

__all__ = ["refuse_several_ranks"]


def refuse_several_ranks() -> None:
    """Several processes would measure on different batches and decide differently."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise RuntimeError(
            "the pilot measures and decides in one process; several ranks would decide differently. "
            "Use mode='off' there"
        )
