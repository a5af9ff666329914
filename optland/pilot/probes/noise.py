"""The noise probes: gradient noise from parts of the batch, and noise scales averaged over probes."""

from __future__ import annotations

import math
import warnings
from typing import Any

from optland.curvature import gradient_noise
from optland.curvature.noise.noise_scale import noise_scale
from optland.failpoints import reach
from optland.objective import Objective
from optland.pilot.filters import RatioEMA
from optland.pilot.host import Host
from optland.pilot.probes.base import Probe
from optland.pilot.signal import Signal

__all__ = ["CurvatureNoiseProbe", "NoiseProbe"]

PARTS = 4

_ONE_SAMPLE = (
    "the {} probe compares parts of a batch, and a batch of one sample has none: it measures nothing. Where one row "
    "holds several sequences, give the Pilot num_samples= and split=, functions that count and cut them"
)


class _NoiseScale(Probe):
    """Base class of both noise probes: the batch in parts, and a ratio of averages."""

    every = 10
    joint = True

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.scale = RatioEMA(0.8)
        self._said = False

    def _parted(self, host: Host, *, joint: bool = True) -> Objective | None:
        """The loss on the parts; None, and one warning, where the batch is a single sample.

        Args:
            host: The run.
            joint: Of the batches of all ranks, where they can measure together.
        """
        parts = host.parts(host.batch, PARTS)
        if len(parts) < 2 and host.ranks.replicas is None:
            if not self._said:
                warnings.warn(_ONE_SAMPLE.format(self.name), RuntimeWarning, stacklevel=4)
            self._said = True
            return None
        # In train mode BatchNorm would see other statistics in a part than in the whole batch.
        return host.over(parts, seed=self.seed + host.step, joint=joint)

    def _ratio(self, name: str, step: int) -> Signal:
        value = self.scale.value
        if value is None:
            return Signal(name, math.nan, step, valid=False, why="unresolved")
        return Signal(name, value, step, value - self.scale.least)

    def state_dict(self) -> dict[str, Any]:
        """The averages."""
        return {"scale": self.scale.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        self.scale.load_state_dict(state["scale"])


class NoiseProbe(_NoiseScale):
    """``noise/b_simple``, tr(Sigma) / |G|^2 in samples, from the two-batch-size estimator of gradients of parts.

    Args:
        seed: Of the dropout masks inside.
    """

    name = "noise"
    yields = frozenset({"noise/b_simple", "noise/trace_cov", "noise/grad_sq"})

    def cost(self, host: Host) -> float:
        """One gradient of the batch."""
        return float(host.probed_batch_size)

    def measure(self, host: Host) -> list[Signal]:
        """Noise and signal at the present weights; their ratio is one of averages.

        Args:
            host: Its batch is cut into parts.

        Returns:
            ``noise/trace_cov`` and ``noise/grad_sq`` of this batch; ``noise/b_simple`` in samples, a ratio of averages
            over about five probes, whose error reaches down to the end of its interval; ``noise/resolved`` 1 or 0.
        """
        reach("probe.noise")
        self.spent, step, objective = 0.0, host.step, self._parted(host)
        if objective is None:
            return [Signal("noise/resolved", 0.0, step)]
        noise = gradient_noise(objective, num_parts=1)
        self.spent = noise.cost_ge
        trace, square = noise.trace_cov, noise.grad_sq
        if not (math.isfinite(trace.value) and math.isfinite(square.value)):
            return [Signal("noise/b_simple", math.nan, step, valid=False, why="nonfinite")]
        count = objective.num_samples
        # tr(Sigma)/B + |G|^2 is the squared norm of this batch's own gradient: the natural unit of the pair.
        unit = trace.value / count + square.value
        self.scale.update(trace.value, square.value, unit, (trace.error, square.error))
        scale = self._ratio("noise/b_simple", step)
        signals = [
            Signal("noise/trace_cov", trace.value, step, trace.error),
            Signal("noise/grad_sq", square.value, step, square.error),
            Signal("noise/resolved", float(noise.resolved), step),
            scale,
        ]
        if scale.valid:
            signals.append(Signal("noise/efficiency", 1.0 / (1.0 + count / max(scale.value, 1e-12)), step))
        return signals


class CurvatureNoiseProbe(_NoiseScale):
    """``noise/b_curvature``, tr(H Sigma) / G'HG in samples: noise weighted by the curvature that it meets.

    Args:
        seed: Of the dropout masks inside.
    """

    name = "curvature_noise"
    yields = frozenset({"noise/b_curvature"})
    weight = 2.0

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.each = math.inf  # cost per sample

    def see(self, host: Host) -> None:
        """Note the cost of a probe of a batch like this one; less once its second derivatives have been compared."""
        objective = self._parted(host, joint=False)
        shared_by = 1 if host.ranks.replicas is None else host.ranks.size  # each rank has parts of its own
        if objective is not None:
            self.each = noise_scale.cost(objective, num_parts=shared_by) / objective.num_samples

    def cost(self, host: Host) -> float:
        """Four products with the Hessian of the batch, and its gradient."""
        return self.each * host.batch_size

    def measure(self, host: Host) -> list[Signal]:
        """As :class:`NoiseProbe`, with each gradient weighed by a product with the Hessian of other samples.

        Args:
            host: Its batch is cut into parts.

        Returns:
            ``noise/b_curvature`` in samples, a ratio of averages, not valid while the curvature along the gradient is
            not positive on average.
        """
        self.spent, step, objective = 0.0, host.step, self._parted(host)
        if objective is None:
            return []
        found = noise_scale(objective, num_parts=1)
        self.spent = found.cost_ge
        top, bottom = found.noise_curvature, found.curvature
        unit = abs(top.value) / objective.num_samples + abs(bottom.value)
        self.scale.update(top.value, bottom.value, unit, (top.error, bottom.error))
        return [self._ratio("noise/b_curvature", step)]

    def state_dict(self) -> dict[str, Any]:
        """The averages, and the cost."""
        return {**super().state_dict(), "each": self.each}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken."""
        super().load_state_dict(state)
        self.each = state["each"]
