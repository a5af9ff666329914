"""Numerical settings under which a curvature product can be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["exact_arithmetic", "exact_precision"]


@contextmanager
def exact_precision() -> Iterator[None]:
    """Autocast off, float32 products in full, and the attention kernel that can be differentiated twice.

    The fused attention kernels have neither double backward nor forward-mode derivatives (pytorch#116350,
    pytorch#128971), on the CPU too; the math kernel has both.
    """
    with exact_arithmetic(), sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Autocast off and float32 products in full: all that a backward through an existing graph needs.

    Autocast is left only where it is on, because entering it costs more than a product with a small net.
    """
    knobs = _float32_knobs()
    saved = [(holder, name, getattr(holder, name)) for holder, name, _ in knobs]
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        try:
            for holder, name, full in knobs:
                setattr(holder, name, full)
            yield
        finally:
            for holder, name, value in saved:
                setattr(holder, name, value)


class _MatmulPrecision:
    """The precision of older versions as a setting; their ``allow_tf32`` knows no "medium" and puts back "high"."""

    @property
    def value(self) -> str:
        return torch.get_float32_matmul_precision()

    @value.setter
    def value(self, precision: str) -> None:
        torch.set_float32_matmul_precision(precision)


def _float32_knobs() -> list[tuple[Any, str, Any]]:
    """The settings that let float32 products run in fewer digits, each with the value that forbids it.

    Since 2.9 PyTorch raises when the old flags (``allow_tf32``) are read after the new ones were set. The new
    ones can be read and put back whichever the user wrote, so the old ones serve only where no new ones
    exist.
    """
    backends: Any = torch.backends
    if hasattr(backends.cuda.matmul, "fp32_precision"):
        cuda = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
        holders = [*cuda, backends.mkldnn.matmul, backends.mkldnn.conv]
        return [(holder, "fp32_precision", "ieee") for holder in holders]
    return [(_MatmulPrecision(), "value", "highest"), (backends.cudnn, "allow_tf32", False)]
