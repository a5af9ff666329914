r"""Functions whose landscape is known in closed form: quadratics, saddles, valleys, linear models, and an autoencoder.

Each returns an :class:`~optland.objective.Objective`, so that a probe can be tried where the answer is known:

==============================  ==============================  ===============================================
problem                         loss                            closed form
==============================  ==============================  ===============================================
:func:`quadratic`               w'Aw / 2                        gradient Aw, Hessian A
:func:`saddle`                  x^2 - y^2                       Hessian diag(2, -2), a saddle at the origin
:func:`stable_ridge`            x^2/2 - y^2/2 + y^4/4           saddle diag(1, -1), minima (0, +-1) of loss -1/4
``SURFACES["multimodal"]``      r^2 (1 + sin 5x sin 5y / 2)     global minimum at the origin, Hessian 2 I
``SURFACES["Rosenbrock"]``      (1-x)^2 + 100 (y-x^2)^2         minimum (1, 1), condition number 2508
:func:`two_factor`              (ab - 1)^2 / 2                  Hessian [[b^2, 2ab-1], [2ab-1, a^2]];
                                                                on ab = 1 its eigenvalues are 0 and a^2 + b^2
:func:`monkey_saddle`           x^3 - 3xy^2                     gradient and Hessian 0 at the origin, no minimum
:func:`octopus`                 d saddles in a row              each of curvature -2 gamma, nu below the last
:func:`matrix_factorisation`    |UV - M|^2 / 2                  at the origin -s_1(M); no bad minimum
:func:`linear_network`          |W_k ... W_1 - M|^2 / 2         at the origin index h rank(M); Hessian 0 if k > 2
:func:`gaussian_landscape`      sqrt(2/M) sum cos(k_m.x + phi) minima 1/2, 1/4, (29-6 sqrt 6)/116 of all in d <= 3
:func:`linear_regression`       mean of the nk (x'W - y)^2      Hessian 2/(nk) I_k (x) X'X
:func:`deep_autoencoder`        mean of |f(x) - x|^2 / 2        none: a plateau in front of a real problem
==============================  ==============================  ===============================================

:data:`SURFACES` holds those of two variables, for pictures.
"""

from optland.problems.critical import monkey_saddle, saddle
from optland.problems.gaussian import gaussian_landscape
from optland.problems.networks import deep_autoencoder, linear_network, linear_regression
from optland.problems.octopus import Octopus, octopus
from optland.problems.points import function_objective, quadratic, with_spectrum
from optland.problems.surfaces import SURFACES, Surface, stable_ridge

__all__ = [
    "SURFACES",
    "Octopus",
    "Surface",
    "deep_autoencoder",
    "function_objective",
    "gaussian_landscape",
    "linear_network",
    "linear_regression",
    "monkey_saddle",
    "octopus",
    "quadratic",
    "saddle",
    "stable_ridge",
    "with_spectrum",
]
