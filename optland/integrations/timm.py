"""Two-pass optimizers with timm: by name beside its own, and a loss scaler that makes the second pass.

::

    optimizer = create_optimizer_v2(model, "sam_adamw", lr=1e-3, weight_decay=0.05, rho=0.05)
    loss_scaler = NativeScaler(device="cuda")
    for x, y in loader:
        def forward():
            return loss_fn(model(x), y)

        loss = forward()
        loss_scaler(loss, optimizer, clip_grad=1.0, parameters=model.parameters(), second=forward)
        optimizer.zero_grad()

Decay groups, layer decay, defaults and names of the base (``lookahead_adamw`` too) are timm's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optland.integrations.replay import begin_passes, finish_passes
from optland.optim import MSAM, TwoPass, wrap
from optland.optim.cards import CARDS
from optland.optim.registry import options_of

__all__ = ["NativeScaler", "create_optimizer_v2"]

_METHODS = {card.name: card.method for card in CARDS}


def create_optimizer_v2(model_or_params: Any, opt: str = "sam_sgd", **options: Any) -> Optimizer:
    """Make an optimizer as ``timm.optim.create_optimizer_v2`` does, a two-pass method around it where the name says so.

    Args:
        model_or_params: The model, which is then also guarded (its BatchNorm statistics and dropout masks are those of
            pass one), or parameters.
        opt: ``method_base``, such as ``"sam_adamw"`` or ``"asam_lookahead_sgd"``: the name of a method before a name
            of timm; or a name of timm alone.
        **options: Those of the method (``rho``) and of timm (``lr``, ``weight_decay``, ``layer_decay``), told apart by
            their names.

    Returns:
        timm's optimizer, within the method where the name begins with one.

    Raises:
        ImportError: timm is not installed.
        ValueError: A name or an option is not known.

    Example:
        >>> create_optimizer_v2(nn.Linear(2, 1), "sam_adamw", lr=1e-3, rho=0.1)  # doctest: +SKIP
        SAM (
            sam_rho=0.1, sam_step=0
            AdamW (
    """
    method = _method_of(opt)
    own = set() if method is None else _own_options(method)
    of_method = {key: options.pop(key) for key in list(options) if key in own}
    base = _timm("optim").create_optimizer_v2(
        model_or_params, opt if method is None else opt[len(method) + 1 :], **options
    )
    if method is None:
        return base  # type: ignore[no-any-return]
    if isinstance(model_or_params, nn.Module):
        of_method.setdefault("model", model_or_params)
    return wrap(method, base, **of_method)


class NativeScaler:
    """timm's ``NativeScaler`` with a second pass: backward, clip and step in one call.

    Clipping acts once, on the gradient that the base receives, and ``state_dict`` is the one of timm's.

    Args:
        device: Type of the device, for torch's GradScaler.

    Example:
        >>> w = nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = wrap("sam", torch.optim.SGD([w], lr=0.1), rho=0.5)
        >>> def forward():
        ...     return 0.5 * w.square().sum()
        >>> NativeScaler("cpu")(forward(), optimizer, second=forward)
        >>> [round(x, 2) for x in w.tolist()]  # w - 0.1 (w + 0.5 w / |w|)
        [2.67, 3.56]
    """

    state_dict_key = "amp_scaler"

    def __init__(self, device: str = "cuda") -> None:
        self.scaler = torch.amp.GradScaler(device)
        self._parts: list[Callable[[], Tensor]] = []
        self._passes: Iterator[int] = iter(())

    def __call__(
        self,
        loss: Tensor,
        optimizer: Optimizer,
        clip_grad: float | None = None,
        clip_mode: str = "norm",
        parameters: Iterable[Tensor] | None = None,
        create_graph: bool = False,
        need_update: bool = True,
        *,
        second: Callable[[], Tensor] | None = None,
    ) -> None:
        """Backward, and where an update is due the other passes and the step.

        Args:
            loss: Of the micro-batch, divided by the number of those of an update.
            optimizer: The one that steps.
            clip_grad: Limit of the gradient, as ``clip_mode`` has it; None for none.
            clip_mode: ``norm``, ``value`` or ``agc``.
            parameters: Those whose gradients are clipped.
            create_graph: As in ``backward``.
            need_update: Whether this is the last micro-batch of an update.
            second: Computes the same loss again, on the same micro-batch; needed by two-pass optimizers.

        Raises:
            TypeError: A two-pass optimizer without ``second``.
            ValueError: A limit without ``parameters``; or MSAM, which moves before the first forward pass.
        """
        if clip_grad is not None and parameters is None:
            raise ValueError(f"clip_grad={clip_grad} needs parameters=model.parameters()")
        if isinstance(optimizer, TwoPass):
            self._refuse(optimizer, second)
            assert second is not None
            if not self._parts:
                self._passes = begin_passes(optimizer, loss_scale=self.scaler.get_scale())
            self._parts.append(second)
        self.scaler.scale(loss).backward(create_graph=create_graph)
        if need_update:
            self._update(optimizer, clip_grad, clip_mode, parameters)

    def _refuse(self, optimizer: TwoPass, second: Callable[[], Tensor] | None) -> None:
        name = type(optimizer).__name__
        if isinstance(optimizer, MSAM):
            raise ValueError(
                f"{name} moves the weights before the forward pass; write its loop with optimizer.passes()"
            )
        if second is None:
            raise TypeError(
                f"{name} takes two passes: give second=, a function that computes the loss of this batch again: "
                "loss_scaler(loss, optimizer, second=lambda: loss_fn(model(x), y))"
            )

    def _update(self, optimizer: Optimizer, clip_grad: float | None, clip_mode: str, parameters: Any) -> None:
        if isinstance(optimizer, TwoPass):
            parts, self._parts = self._parts, []

            def again() -> None:
                for part in parts:
                    self.scaler.scale(part()).backward()

            finish_passes(optimizer, again, passes=self._passes)
        if clip_grad is not None:
            self.scaler.unscale_(optimizer)
            _timm("utils").dispatch_clip_grad(parameters, clip_grad, mode=clip_mode)
        self.scaler.step(optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """That of the GradScaler."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict`, here or in timm, has returned.

        Args:
            state: Of a GradScaler.
        """
        self.scaler.load_state_dict(state)


def _method_of(opt: str) -> str | None:
    """The longest method that the name begins with; timm's own names are never taken for one."""
    found = [name for name in _METHODS if opt.lower().startswith(name + "_")]
    return max(found, key=len, default=None)


def _own_options(method: str) -> set[str]:
    """Those of the method and not of the base, whose names :func:`options_of` writes apart where both have them."""
    return (set(options_of(method, "sgd")) - set(options_of("sgd", "sgd"))) | {"model"}


def _timm(module: str) -> Any:
    try:
        import timm.optim
        import timm.utils
    except ImportError as error:
        raise ImportError(
            f"optland.integrations.timm needs timm ({error}); pip install 'optland[timm]'"
        ) from error
    return {"optim": timm.optim, "utils": timm.utils}[module]
