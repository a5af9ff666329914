"""A card for every probe: what it tells, what it costs, how sure it is; the README's table is made from them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PROBES", "ProbeCard"]


@dataclass(frozen=True)
class ProbeCard:
    """One probe.

    Attributes:
        call: Its name, importable from ``module``.
        module: Where it is.
        tells: What one learns.
        cost: In passes over the data: F forwards, G gradients (3 F), H Hessian products (about 2.5 G).
        memory: Vectors of the size of the weights, beside the model's own.
        error: What comes with the number.
    """

    call: str
    module: str
    tells: str
    cost: str
    memory: str
    error: str


def _curvature(call: str, tells: str, cost: str, memory: str, error: str) -> ProbeCard:
    return ProbeCard(call, "optland.curvature", tells, cost, memory, error)


def _landscape(call: str, tells: str, cost: str, memory: str, error: str) -> ProbeCard:
    return ProbeCard(call, "optland.landscape", tells, cost, memory, error)


PROBES: tuple[ProbeCard, ...] = (
    _curvature(
        "lanczos", "eigenvalues and vectors at both ends", "15 to 60 H", "products", "residual, certificate"
    ),
    _curvature(
        "SpectrumTracker",
        "the same along training, from a warm start",
        "4 to 6 H a look",
        "products + k",
        "residual, cold audits",
    ),
    _curvature("trace", "mean curvature times d", "30 H", "rank of the basis", "standard error"),
    _curvature("density", "all eigenvalues as a density", "256 H", "64", "standard error, width"),
    _curvature(
        "classify", "kind of point: minimum, saddle, degenerate", "2 G + up to 200 H", "products", "tau, 99 %"
    ),
    _curvature("critical_step", "longest step that does not raise the loss", "6 to 12 F", "1", "bracket"),
    _curvature("gradient_noise", "critical batch size, B_simple", "G by parts", "2", "standard error"),
    _landscape("line", "loss along a direction", "41 F + H", "2", "exact; curvature stamp"),
    _landscape("plane", "loss over two directions, eigenvectors or checkpoints", "625 F + 2 H", "3", "exact"),
    _landscape("rays", "curvature at a distance, kinks", "20 (5 F + H)", "2", "standard error, kink flag"),
    _landscape(
        "gradient_smoothness", "how far the gradient holds along itself", "G a distance", "2", "exact"
    ),
    _landscape("average_sharpness", "mean rise under noise", "51 F", "2", "standard error"),
    _landscape("sam_sharpness", "rise after SAM's step", "G + F", "2", "over batches of m"),
    _landscape("worst_sharpness", "largest rise in a ball", "40 G", "5", "a lower bound"),
    _landscape(
        "compare_minima", "all of these at several minima", "about 300 G each", "products", "as its parts"
    ),
    _landscape("linear_path", "barrier on the line between two minima", "33 F", "2", "exact at its points"),
    _landscape(
        "connect", "a trained curve of low loss between them", "300 steps + 94 F", "6", "an upper bound"
    ),
    _landscape("align", "units of one net renumbered to match another's", "F", "2", "linear assignment"),
    _landscape(
        "effective_dimension",
        "directions that hold the gradients",
        "G",
        "gradients, or their sketch",
        "flag where it counts gradients",
    ),
    _landscape("trajectory_plane", "plane of a training path", "none", "checkpoints", "explained variance"),
)
"""In the order of the README's table."""
