"""Keep buffers unchanged in the second pass, and repeat the random numbers of the first.

BatchNorm statistics (any buffer, in fact) keep the values of pass one, pass two sees the dropout masks of
pass one, and the random state after the step is the one that a single pass would have left.

**Cost.** A copy of all buffers before the second pass and one after it, between tensors that are kept from step to step
while they take up less than a megabyte. Two readings of the generators of PyTorch, Python and NumPy and two times
putting them back, about 30 us together, none in steps of which it is known beforehand that they take one pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from optland.context.modules import BufferSnapshot, preserve_buffers
from optland.context.rng import RandomSnapshot, preserve_rng
from optland.optim.notices import Notices
from optland.optim.running_statistics import StatisticsWatch
from optland.optim.uncompiled import uncompiled

__all__ = ["ForwardRecorder", "PassGuard"]


class ForwardRecorder:
    """Forward pre-hook that writes down the random state before each training forward, and later replays it.

    Forward k of pass two starts from the state of forward k of pass one, whatever was drawn in between (the
    next micro-batch of a shuffled loader, for example).
    """

    def __init__(self, mode: Literal["off", "record", "replay"] = "record") -> None:
        self.mode = mode
        self.states: list[RandomSnapshot] = []
        self.position = 0
        self._before: list[RandomSnapshot] = []  # the forward before the gradients were zeroed

    @uncompiled
    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Record or replay; evaluations (no gradient, or eval mode) are not part of a pass.

        Raises:
            RuntimeError: An evaluation in the middle of pass two: its result would be that of w + eps.
        """
        if self.mode == "replay" and not (module.training or torch.is_grad_enabled()):
            raise RuntimeError(
                "the model is evaluated while the weights are perturbed (between perturb() and step()); finish the "
                "step or call restore() first. To evaluate at w + eps, use: with optimizer.perturbed()"
            )
        if self.mode == "off" or not (module.training and torch.is_grad_enabled()):
            return
        if self.mode == "record":
            self.states.append(RandomSnapshot())
        elif self.position < len(self.states):
            self.states[self.position].restore()
            self.position += 1

    def start(self, mode: Literal["off", "record", "replay"]) -> None:
        """Change mode; recording starts from an empty list and replay from its beginning."""
        if mode == "record":
            self.states, self._before = [], []
        elif mode == "replay":
            self.states = self.states or self._before
        self.mode, self.position = mode, 0

    def zeroed(self) -> None:
        """Gradients were zeroed: what was recorded belongs to no pass, but for a last forward that is yet to be used.

        Many loops zero the gradients between forward and backward.
        """
        if self.mode == "record":
            self.states, self._before = [], self.states[-1:] or self._before

    # A copy of the user's model (an EMA, a saved module) must not go on recording: its hook is switched off.
    def __deepcopy__(self, memo: dict[int, Any]) -> ForwardRecorder:
        return ForwardRecorder("off")

    def __reduce__(self) -> tuple[type[ForwardRecorder], tuple[str]]:
        return ForwardRecorder, ("off",)


class PassGuard:
    """Guards the second pass of a step.

    Args:
        model: The module whose buffers and dropout masks are guarded, the one that the loop calls; None
            guards neither (in the closure form random numbers are replayed all the same).
        notices: Where to say what goes unguarded.
    """

    def __init__(self, model: nn.Module | None, notices: Notices | None = None) -> None:
        self.model = model
        self._notices = notices or Notices()
        self._statistics = StatisticsWatch() if model is None else None
        self.beginnings = 0  # of a pass one, or of what may become one
        self._recorder = ForwardRecorder()
        self._in_second = False
        self._buffers: BufferSnapshot | None = None
        self._last: BufferSnapshot | None = None  # of the step before, whose tensors the next one takes over
        self._end: RandomSnapshot | None = None  # of pass one
        self._start: RandomSnapshot | None = None
        if model is not None:
            handle = model.register_forward_pre_hook(self._recorder)
            # The hook leaves the model together with its optimizer.
            weakref.finalize(self, handle.remove).atexit = False

    def forget(self) -> None:
        """A new pass one begins, or may begin: drop what was recorded."""
        self.beginnings += 1
        self._start = None
        self._recorder.start("record")

    def forget_forwards(self) -> None:
        """Gradients were zeroed in phase form."""
        self.beginnings += 1
        self._recorder.zeroed()

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Run a block that is part of no pass; buffers and random state are put back after it."""
        mode, self._recorder.mode = self._recorder.mode, "off"
        try:
            with preserve_rng(), ExitStack() as stack:
                if self.model is not None:
                    stack.enter_context(preserve_buffers(self.model))
                yield
        finally:
            self._recorder.mode = mode

    def begin_closure(self, *, repeated: bool = True) -> None:
        """Pass one is a closure: its random state is known from the start, so no hook is needed.

        Args:
            repeated: Whether it may be followed by a second pass; else nobody needs the state.
        """
        self.beginnings += 1
        self._recorder.start("off")
        self._start = RandomSnapshot() if repeated else None

    def begin_second(self, params: Sequence[Tensor] = ()) -> None:
        """Pass two begins; calling it twice is the same as once.

        Args:
            params: The parameters of the step, by which layers are known where no model was given.
        """
        if self._in_second:
            return
        self._in_second = True
        if self._statistics is not None:
            self._statistics.begin(params)
        if self.model is not None:
            self._buffers, self._last = BufferSnapshot(self.model, self._last), None
        if self._start is not None or self.model is not None:
            self._end = RandomSnapshot()
        self.repeat_second()

    def repeat_second(self) -> None:
        """Another pass like the second begins: the same draws once more."""
        if self._start is not None:
            self._start.restore()
        else:
            self._recorder.start("replay")

    def end_second(self) -> None:
        """Pass two is over; buffers and random state are those of one pass. Does nothing outside pass two."""
        unguarded = self._unguarded() if self._in_second else {}
        if self._buffers is not None:
            self._buffers.restore()
        if self._end is not None:
            self._end.restore()
        if self._buffers is not None and self._buffers.is_small:
            self._last = self._buffers
        self._in_second, self._buffers, self._end = False, None, None
        self.forget()
        for about, words in unguarded.items():
            self._notices.once(about, words)

    def _unguarded(self) -> dict[str, str]:
        """What pass two has changed or not repeated where it could not be guarded, in words."""
        said: dict[str, str] = {}
        if self._statistics is not None and (layers := self._statistics.end()):
            said["statistics"] = (
                f"the second pass has updated the running statistics of {layers} once more, at w + eps; pass "
                "model=model (the module that the loop calls) to the optimizer, and they keep those of the first pass"
            )
        replayed = self._recorder.mode == "replay" and not self._recorder.states
        if replayed and self._end is not None and self._end.drawn_from():
            said["forward"] = (
                "no forward pass of model= was seen in pass one, so the random numbers (dropout masks) that pass two "
                "drew are others; pass as model= the module that the loop calls, for a compiled one what torch.compile "
                "returned"
            )
        return said

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "notices": self._notices}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # hooks the copied model
