r"""Precision and speed of a step: autocast, loss scaling, memory layout, compilation, accumulation, clipping.

.. math:: g = \sum_i \frac{n_i}{N} \nabla L_i(w), \qquad
          g \leftarrow g \cdot \min\bigl(1, c / \lVert g \rVert\bigr) \text{ where the base optimizer receives it}

The loop stays a closure::

    precision = config.precision.build(optimizer, device)
    net = config.precision.prepare(model)               # what the loop calls; probes get the model itself

    def closure():
        optimizer.zero_grad()
        return precision.backward(loss_fn, net, batch)  # micro-batches, autocast, loss scale

    loss = precision.step(closure)                      # loss scaling, both passes of SAM, clipping

==============  =============================================================================================
option          meaning
==============  =============================================================================================
precision       ``bf16`` and ``fp16`` run the forward pass under autocast on float32 weights; fp16 scales the loss
channels_last   4-D weights in NHWC layout, for convolutions on tensor cores; nothing happens to other nets
compile         ``torch.compile`` of what the loop calls; needs a C++ compiler, pays after minutes
accumulation    micro-batches per step, equal to the full batch without BatchNorm (see ``micro_batches``)
micro_batch     samples in one forward pass at most: a batch that grows costs time and no memory
clip            largest global norm of the gradient that the base optimizer receives
ema             decay of an average of the weights (:mod:`optland.train.loops.ema`)
==============  =============================================================================================

**Clipping and SAM.** The perturbation has a fixed length, so clipping the gradient of pass one changes nothing in SAM
and falsifies methods that combine both gradients, and the telemetry. What is clipped is the combined gradient, in a
hook of the base optimizer, after the loss scale is out.

**fp16.** The phase form of :mod:`optland.optim.two_pass`; an overflow skips the step and halves the scale. Each step
takes both passes of a two-pass method. Its probes run in float32, as all probes do.

**A part of the batch.** Around ``SAM(ascent_share=0.25)`` the loop stays as it is: :meth:`Precision.backward` takes
evenly spaced samples of its batch in pass one, and the loss of a step is that of these samples.

**Caveats.** BatchNorm sees micro-batches under accumulation. Under ``auto_lr`` the length of a step is set by the
relative step, so clipping changes only how much a single batch weighs in the momentum.

References: Micikevicius et al. 2018, arXiv:1710.03740; Pascanu et al. 2013, arXiv:1211.5063.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.amp.autocast_mode import autocast
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from optland import processes
from optland.batches import num_samples, portion
from optland.config import UserError
from optland.objective import LossFn
from optland.optim.ascent_share import takes_share
from optland.optim.delegate import Delegating
from optland.optim.two_pass import TwoPass
from optland.pilot.linear import innermost_of
from optland.train.loops.ema import Ema
from optland.train.loops.loader import seed_of
from optland.train.loops.micro_batches import MicroBatches
from optland.train.loops.seeding import seed_everything

__all__ = ["Precision", "PrecisionConfig"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class PrecisionConfig:
    """How a step is computed; the defaults are plain float32.

    Attributes:
        precision: ``fp32``, ``bf16`` (autocast) or ``fp16`` (autocast and loss scaling).
        channels_last: Whether 4-D weights are laid out channels last.
        compile: Whether the loop calls the model through ``torch.compile``.
        clip: Largest global norm of the gradient; null for none.
        accumulation: Micro-batches that a batch is cut into.
        micro_batch: Most samples in one of them; null for no limit. A batch that grows is cut into more.
        ema: Decay of the average of the weights that is evaluated, for example 0.999; null for none.

    Raises:
        ValueError: A value that cannot be.
    """

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    clip: float | None = None
    accumulation: int = 1
    micro_batch: int | None = None
    ema: float | None = None

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", *DTYPES):
            raise ValueError(f"precision: {self.precision!r} is not known; choose from fp32, bf16, fp16")
        if self.clip is not None and not (self.clip > 0 and math.isfinite(self.clip)):
            raise ValueError(f"clip: {self.clip} must be above 0, for example 1.0, or null for none")
        _check_accumulation(self.accumulation)
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch: {self.micro_batch} samples are too few; use at least 1, or null")
        if self.ema is not None and not 0.0 <= self.ema < 1.0:
            raise ValueError(
                f"ema: {self.ema} is not a decay below 1; use for example 0.999, or null for none"
            )

    def prepare(self, model: nn.Module) -> nn.Module:
        """Lay the model's weights out in place, and return the module that the loop is to call.

        Of several processes that a launcher has started for a run it averages the gradients; random numbers, those of
        dropout for one, are others in each of them.

        Args:
            model: The model, on its device; its weights are changed in their layout alone, or made those of the first
                process.

        Returns:
            The model itself, or what calls it: compiled, under DDP, or both. Probes, checkpoints and the average of the
            weights take the model itself.

        Raises:
            UserError: ``compile`` on a CPU without a C++ compiler, or ``channels_last`` on the CPU with a layer that
                PyTorch's kernels cannot do.
        """
        if self.channels_last:
            _require_safe_layout(model)
            model.to(memory_format=torch.channels_last)
        if self.compile:
            _require_compiler(model)
        net: nn.Module = model
        if processes.size() > 1:
            net = DistributedDataParallel(model)
            if not processes.leads():
                seed_everything(seed_of("rank", torch.initial_seed(), processes.rank()))
        if not self.compile:
            return net
        compiled: Any = torch.compile(net)
        assert isinstance(compiled, nn.Module)
        return compiled

    def build(self, optimizer: Optimizer, device: torch.device | str = "cpu") -> Precision:
        """The primitives of the loop for this optimizer.

        Args:
            optimizer: The optimizer of the loop.
            device: Where the model is; autocast and the loss scale are of its kind.

        Returns:
            What the loop calls for a backward pass and for a step.

        Raises:
            TypeError: fp16 with a wrapper that evaluates closures by itself.
        """
        return Precision(self, optimizer, device)

    def build_ema(self, model: nn.Module) -> Ema | None:
        """The averaged twin of the model; None where none is asked for."""
        return None if self.ema is None else Ema(model, self.ema)


def _check_accumulation(accumulation: int) -> None:
    if accumulation < 1:
        raise ValueError(f"accumulation: {accumulation} micro-batches are too few; use at least 1")


def _require_safe_layout(model: nn.Module) -> None:
    """Refuse strided 1 x 1 convolutions of fewer than 8 channels.

    Their backward pass in this layout writes outside its memory on the CPU (seen with torch 2.14.1), which ends the
    process much later, somewhere else.
    """
    for name, layer in model.named_modules():
        if (
            isinstance(layer, nn.Conv2d)
            and layer.weight.device.type == "cpu"
            and layer.kernel_size == (1, 1)
            and max(int(s) for s in layer.stride) > 1
            and layer.in_channels < 8
        ):
            raise UserError(
                f"channels_last: on the CPU PyTorch corrupts memory in strided 1 x 1 convolutions of fewer than 8 "
                f"channels, and {name} has {layer.in_channels}; use channels_last=false, or a wider model"
            )


def _require_compiler(model: nn.Module) -> None:
    """Raise before the first step, in one sentence, where no compiler works."""
    on_cpu = all(p.device.type == "cpu" for p in model.parameters())
    if on_cpu and not any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++", "cl")):
        raise UserError(
            "compile: torch.compile needs a C++ compiler on the CPU; install g++, or set compile=false"
        )


class Precision:
    """Autocast, loss scaling, accumulation and clipping around an optimizer's step.

    Args:
        config: What is asked for.
        optimizer: Any optimizer; of one with a ``base``, the gradient that the base receives is clipped.
        device: Where the model is.

    Attributes:
        scaler: The loss scale of fp16; disabled in other precisions.
        dtype: The type of autocast; None in float32.
        clip: Largest global norm of the gradient; None for none.
        micro_batch: Most samples of a micro-batch; None for no limit.

    Raises:
        TypeError: fp16 with a wrapper that evaluates closures by itself.
    """

    def __init__(
        self, config: PrecisionConfig, optimizer: Optimizer, device: torch.device | str = "cpu"
    ) -> None:
        self.optimizer = optimizer
        self.device = torch.device(device).type
        self.dtype = DTYPES.get(config.precision)
        self.clip = config.clip
        self.accumulation = config.accumulation
        """Micro-batches a batch is cut into; :meth:`set_accumulation` changes it in the middle of an epoch."""
        self.micro_batch = config.micro_batch
        self.scaler = GradScaler(self.device, enabled=config.precision == "fp16")
        self._two_pass = isinstance(optimizer, TwoPass)
        self._wraps = isinstance(optimizer, Delegating)
        if self.scaler.is_enabled() and self._wraps and not self._two_pass:
            raise TypeError(
                f"{type(optimizer).__name__} evaluates its closure by itself, which cannot be loss-scaled; "
                "use precision bf16 or fp32"
            )
        self._in_part = isinstance(optimizer, TwoPass) and optimizer.method.ascent_share < 1.0
        self._share = 1.0  # of the batch, that the present pass is over
        self._micro = MicroBatches(optimizer, self.scaler, self.autocast)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context of a forward pass; in float32 none at all, so that one of the user's stays in force."""
        return nullcontext() if self.dtype is None else autocast(self.device, dtype=self.dtype)

    def set_accumulation(self, accumulation: int) -> None:
        """Change into how many micro-batches a batch is cut, from the next :meth:`backward` on.

        Args:
            accumulation: Micro-batches per update. The batch stays: this trades memory for time, nothing else.

        Raises:
            ValueError: Fewer than one.
        """
        _check_accumulation(accumulation)
        self.accumulation = int(accumulation)

    def backward(self, loss_fn: LossFn, model: nn.Module, batch: Any, weight: float = 1.0) -> Tensor:
        """Forward and backward of a batch in micro-batches, added to ``.grad``: one call in a closure.

        A batch of fewer samples than micro-batches is cut into single samples; one of more than ``micro_batch`` times
        ``accumulation`` into as many parts as that limit asks for.

        With ``(sum, count)`` the micro-batches add up to the batch for any weights. A mean loss has to be a mean over
        samples: where it is found to be another (masked targets), batches are no longer cut, with a warning.

        Args:
            loss_fn: Returns the mean loss of a batch, or ``(sum, count)``.
            model: What the loop calls; see :meth:`PrecisionConfig.prepare`.
            batch: Any batch type.
            weight: What its mean loss counts in the mean over the processes of a run: the loader's ``weight``, which is
                1 but where they have different numbers of samples. A loss that is ``(sum, count)`` has its own.

        Returns:
            The mean loss of the batch (of all ranks, where it is counted under DDP), unscaled, unweighted and detached.

        Raises:
            ValueError: Every count was 0.
        """
        batch = portion(batch, self._share)
        parts = self._parts(num_samples(batch))
        cuts = self.accumulation > 1 or self.micro_batch is not None
        return self._micro.backward(
            loss_fn, model, batch, parts, cuts=cuts, look=not _is_perturbed(self.optimizer), weight=weight
        )

    def _parts(self, samples: int) -> int:
        """Micro-batches of a batch or its part: as many as were asked for, and as the limit on their size needs."""
        asked = math.ceil(self._share * self.accumulation)
        needed = 1 if self.micro_batch is None else math.ceil(samples / self.micro_batch)
        return min(max(asked, needed), samples)

    def step(self, closure: Callable[..., Any]) -> Any:
        """One optimizer step; returns the loss at the weights before it.

        Args:
            closure: Zeroes the gradients, calls :meth:`backward` and returns its loss. Under ``ascent_share`` it may
                take the share of the batch that a pass is over; for one that does not, :meth:`backward` takes that part
                of the batch.

        Returns:
            What the closure returned at the weights before the step.
        """
        if self._in_part and not takes_share(closure):
            closure = functools.partial(self._call_for_part, closure)
        with self._clipping_what_the_base_gets():
            return self._scaled_step(closure) if self.scaler.is_enabled() else self._plain_step(closure)

    def _call_for_part(self, closure: Callable[[], Any], share: float = 1.0) -> Any:
        """Call the closure while :meth:`backward` takes a share of its batch."""
        self._share = share
        try:
            return closure()
        finally:
            self._share = 1.0

    @contextmanager
    def _clipping_what_the_base_gets(self) -> Iterator[None]:
        """A hook of the innermost optimizer for this step alone: nothing of this object stays on it."""
        if self.clip is None or not self._wraps:
            yield
            return
        handle = innermost_of(self.optimizer).register_step_pre_hook(self._clip_before)
        try:
            yield
        finally:
            handle.remove()

    def _plain_step(self, closure: Callable[..., Any]) -> Any:
        if self.clip is None or self._wraps:
            return self.optimizer.step(closure)

        def clipped() -> Any:
            loss = closure()
            self._clip()
            return loss

        return self.optimizer.step(clipped)

    def _scaled_step(self, closure: Callable[..., Any]) -> Any:
        with torch.enable_grad():
            loss = closure(self.optimizer.pass_share) if self._in_part else closure()  # type: ignore[attr-defined]
            if self._two_pass:
                self._second_pass(closure)
        if self.clip is not None and not self._wraps:
            self.scaler.unscale_(self.optimizer)
            self._clip()
        self.scaler.step(self.optimizer)
        # Schedules here count samples and go on when an overflow skips the first step, of which torch would warn.
        self.optimizer._opt_called = True  # type: ignore[attr-defined]
        self.scaler.update()
        return loss

    def _second_pass(self, closure: Callable[..., Any]) -> None:
        """Pass two of a two-pass method: its gradient, scaled, stays in ``.grad``, and the weights are put back."""
        optimizer: Any = self.optimizer
        optimizer.perturb(loss_scale=self.scaler.get_scale())
        try:
            closure()
        finally:  # an interrupt must not leave the weights perturbed
            optimizer.restore()

    def _clip_before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._clip()

    def _clip(self) -> None:
        assert self.clip is not None
        clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], self.clip)

    def state_dict(self) -> dict[str, Any]:
        """The micro-batches, what is known of their loss, and the loss scale with its growth counter (or empty)."""
        return {
            "accumulation": self.accumulation,
            "micro": self._micro.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken.

        Args:
            state: Of the same precision: an empty loss scale is none that fp16 could go on with.
        """
        self.set_accumulation(state["accumulation"])
        self._micro.load_state_dict(state["micro"])
        self.scaler.load_state_dict(state["scaler"])


def _is_perturbed(optimizer: Any) -> bool:
    """Whether this is a second pass, which sees the batch of the first."""
    while not getattr(optimizer, "is_perturbed", False):
        if not isinstance(optimizer, Delegating):
            return False
        optimizer = optimizer.base
    return True
