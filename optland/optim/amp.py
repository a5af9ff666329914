"""Loss scaling: telling a GradScaler's correct step from the ones that would train with scaled gradients.

For a perturbation of fixed length the loss scale cancels, so pass one is never unscaled; only the gradient of
pass two is, once, by ``scaler.step``. Called with a closure, the scaler would not see the gradients at all.
"""

from __future__ import annotations

from optland.optim.method import Method

__all__ = ["USAGES", "ScalerAware"]

USAGES = (
    "Use optimizer.step(closure), where the closure zeroes the gradients, runs forward and backward and "
    "returns the loss; or backward, optimizer.perturb(), backward again, optimizer.step(); or, with a "
    "GradScaler, backward, perturb(), backward, restore(), scaler.step(optimizer)."
)


class ScalerAware(Method):
    """Refuses the steps of a GradScaler that come at the wrong moment."""

    _scale_told = False
    """Whether the loss scale of this step was given."""

    _pending = False
    """Both passes are done and the weights restored: ``.grad`` is what the base optimizer shall receive."""

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """What a GradScaler asks before it steps.

        Only after ``restore()`` is the answer no, and the scaler unscales, checks and steps as with any
        optimizer. At any other moment it is yes: the scaler then announces itself by setting ``found_inf``
        here, and the misuse (above all a positional closure, which the scaler itself lets through) is refused
        instead of training with gradients that are too large by the loss scale.

        Raises:
            RuntimeError: The perturbation of this method depends on the length of the gradient, and the scaler's scale
                is not known.
        """
        if self._pending and self.true_units and not self._scale_told:
            raise RuntimeError(
                f"{type(self).__name__} measures its perturbation by the length of the gradient and was not told the "
                "loss scale; call optimizer.perturb(loss_scale=scaler.get_scale())"
            )
        return not self._pending

    def _refuse_scaler(self, what: str) -> None:
        """Raise when a GradScaler is the caller."""
        if "found_inf" in self.__dict__:
            self.__dict__.pop("grad_scale", None)  # the scaler does not clean up when the step raises
            del self.__dict__["found_inf"]
            raise RuntimeError(f"{what} {USAGES}")
