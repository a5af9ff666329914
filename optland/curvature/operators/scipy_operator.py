"""A curvature operator as SciPy sees one, for its eigensolvers and as an independent check.

Every product copies the vector to the host and back. SciPy solvers work in float64: on a float32 model their
tolerance should not be below 1e-5.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from optland import vectors
from optland.curvature.operators.linear_operator import CurvatureOperator

__all__ = ["to_scipy"]


def to_scipy(H: CurvatureOperator) -> Any:
    """``H`` as a ``scipy.sparse.linalg.LinearOperator`` of shape (d, d) in float64.

    Args:
        H: The operator; its products are counted and charged as always.

    Returns:
        The linear operator, for ``eigsh``, ``lobpcg`` and the like.

    Raises:
        ImportError: SciPy is not installed.

    Example:
        >>> from optland.curvature.operators.hessian import hessian
        >>> from optland.problems import saddle
        >>> to_scipy(hessian(saddle())).matvec([1.0, 1.0]).tolist()
        [2.0, -2.0]
    """
    try:
        from scipy.sparse.linalg import LinearOperator
    except ImportError as error:
        raise ImportError("to_scipy needs SciPy: pip install 'optland[recipes]'") from error

    def multiply(x: Any) -> Any:
        flat = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64).reshape(-1))
        product = H.matvec(vectors.unflatten(flat, H.like))
        return vectors.flatten(product).cpu().numpy().astype(np.float64)

    return LinearOperator((H.dim, H.dim), matvec=multiply, rmatvec=multiply, dtype=np.float64)
