r"""NEON: negative curvature from gradients alone, one call of the closure per step.

.. math:: u \leftarrow u - \frac{1}{L}\,\frac{\nabla f(w + h u) - \nabla f(w)}{h}, \qquad
          u \leftarrow u / \lVert u \rVert

Gradient descent from a point beside w, with the gradient at w taken off, grows along the most negative curvature: the
power method on I - H / L. L is the longest product met so far. Kept for comparison and for tight memory: two vectors,
where Lanczos keeps one per product and needs fewer of them, (L / a)^(1/2) instead of L / a.

Where it finds no negative curvature it cannot tell a minimum from a search that was too short: ``unknown``.

References: Xu, Jin & Yang 2018, arXiv:1711.01944; Allen-Zhu & Li 2018, arXiv:1711.06673.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from optland import vectors
from optland.optim.saddle.krylov import Krylov
from optland.vectors import Vector

__all__ = ["neon"]


def neon(product: Callable[[Vector], Vector], g: Vector, *, steps: int, generator: torch.Generator) -> Krylov:
    """Follow the power method; the space is the one direction that it ends at.

    Args:
        product: v -> H v, by a difference of two gradients of which one is known.
        g: The gradient.
        steps: Products.
        generator: Of the first direction.

    Returns:
        A space of one direction, whose curvature is a Rayleigh quotient, and which rules nothing out.

    Example:
        >>> A = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64))
        >>> g = [torch.zeros(2, dtype=torch.float64)]
        >>> round(neon(lambda v: [A @ v[0]], g, steps=5, generator=torch.Generator().manual_seed(0)).lowest, 6)
        -1.0
    """
    u = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in g]
    u = vectors.scaled(1.0 / float(vectors.norm(u)), u)
    largest = 0.0
    for step in range(1, steps + 1):
        image = product(u)
        curvature, length = float(vectors.dot(u, image)), float(vectors.norm(image))
        residual = float(vectors.norm(vectors.add(image, -curvature, u)))
        largest = max(largest, length)
        last, u = u, vectors.add(u, -1.0 / largest, image) if largest > 0 else u
        u = vectors.scaled(1.0 / max(float(vectors.norm(u)), 1e-300), u)
        made = step
        if curvature + residual < 0 and residual < 0.05 * largest:
            break
    value = torch.tensor([curvature], dtype=torch.float64)
    slope = torch.tensor([float(vectors.dot(last, g))], dtype=torch.float64)
    # No random products in the sense of a Lanczos certificate: nothing below tau is ruled out.
    return Krylov([last], value, torch.ones(1, 1, dtype=torch.float64), slope, residual, 0.0, made, 0, False)
