"""Method cards: for each method its cost, when to use it, its radius and its source.

The table of methods in the docs is made from these cards, and a test holds every declared cost to what is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from optland.optim.curvature_penalties import CRSAM, StableSAM
from optland.optim.eigen_sam import EigenSAM
from optland.optim.gsam import GSAM
from optland.optim.looksam import LookSAM
from optland.optim.metrics import FisherSAM, PreconditionedSAM
from optland.optim.momentum_sam import MSAM
from optland.optim.rise_budget import LESAM
from optland.optim.sam import ASAM, SAM, USAM
from optland.optim.smoothed import FSAM, VaSSO
from optland.optim.sparse import SparseSAM
from optland.optim.two_pass import TwoPass
from optland.optim.wsam import PGN, WSAM

__all__ = ["CARDS", "Card"]


@dataclass(frozen=True, slots=True)
class Card:
    """The card of a method: its cost, when to use it, its radius and its source.

    Attributes:
        name: Its name in :func:`~optland.optim.create`.
        method: Its class.
        gradients: Gradient evaluations per sample and step, at the defaults.
        state: Copies of the weights that it keeps from step to step.
        transient: Copies of the weights during the second pass, the gradient of pass one included.
        peak: Copies at the most crowded moment of a step, beyond ``state`` and what the base's own step holds. More
            than ``transient`` where T d stands beside d, or a combined gradient or a new mask beside what it is made
            of. A measurement of telemetry takes one more at most. An
            eigenvector search is not counted.
        when: When to use it.
        rho: Guidance for the radius.
        reference: Author, year and arXiv id.
    """

    name: str
    method: type[TwoPass]
    gradients: float
    state: int
    transient: int
    peak: int
    when: str
    rho: str
    reference: str


_SAM_LIKE = "as SAM"

CARDS = (
    Card(
        "sam", SAM, 2, 0, 2, 2,
        "the training set can be fitted, and the gap to validation is the problem; noisy labels",
        "0.05; ViT 0.1 to 0.3; noisy labels 0.1 to 0.5; larger batches take larger rho, or m-sharpness",
        "Foret 2021, 2010.01412",
    ),
    Card(
        "asam", ASAM, 2, 0, 2, 3,
        "layers of very different scale, homogeneous nets without normalisation",
        "0.5 to 2, ten times SAM's",
        "Kwon 2021, 2102.11600",
    ),
    Card(
        "usam", USAM, 2, 0, 2, 2,
        "the perturbation should vanish at a minimum; theory",
        "in units of 1 / curvature: stable for lr lam (1 + rho lam) < 2",
        "Andriushchenko 2022, 2206.06232",
    ),
    Card(
        "msam", MSAM, 1, 0, 1, 1,
        "SAM's second pass costs too much; a base with momentum",
        "0.3 to 3, searched; 0 during warm-up",
        "Becker 2024, 2401.12033",
    ),
    Card(
        "looksam", LookSAM, 1.2, 1, 2, 2,
        "large batches, ViT; k = 5 to 10",
        _SAM_LIKE,
        "Liu 2022, 2203.02714",
    ),
    Card(
        "gsam", GSAM, 2, 0, 2, 3,
        "long training of ViT and mixers",
        "0.04 (ResNet) to 0.6 (ViT), tied to the learning rate",
        "Zhuang 2022, 2203.08065",
    ),
    Card(
        "wsam", WSAM, 2, 0, 2, 2,
        "sharpness should weigh more than SAM's half",
        "as SAM, smaller where gamma is large",
        "Yue 2023, 2305.15817",
    ),
    Card(
        "pgn", PGN, 2, 0, 2, 2,
        "sharpness should weigh less than in SAM",
        _SAM_LIKE,
        "Zhao 2022, 2202.03599",
    ),
    Card(
        "fsam", FSAM, 2, 1, 2, 2,
        "small batches; the common part of g is of no use in eps",
        "as SAM to 0.2",
        "Li 2024, 2403.12350",
    ),
    Card(
        "vasso", VaSSO, 2, 1, 2, 2,
        "small batches, whose gradient is too noisy to climb",
        _SAM_LIKE,
        "Li 2023, 2309.15639",
    ),
    Card(
        "lesam", LESAM, 2, 0, 2, 2,
        "one rho is too large early and too small late",
        "cap 0.05; sigma 0.05 to 0.1 of loss",
        "Wang 2026, 2605.10183",
    ),
    Card(
        "adam_sam", PreconditionedSAM, 2, 0, 2, 2,
        "transformers under AdamW",
        _SAM_LIKE,
        "Singh 2025, 2502.02407",
    ),
    Card(
        "eigensam", EigenSAM, 2, 1, 2, 2,
        "the sharpest direction is what must be flattened; needs an objective",
        "0.1",
        "Luo 2024, 2501.12666",
    ),
    Card(
        "fisher_sam", FisherSAM, 2, 0, 2, 3,
        _SAM_LIKE,
        "0.1",
        "Kim 2022, 2206.04920",
    ),
    Card(
        "stable_sam", StableSAM, 2, 0, 2, 2,
        "SAM needs a smaller learning rate than its base",
        _SAM_LIKE,
        "Tan 2025, 2401.07250",
    ),
    Card(
        "sparse_sam", SparseSAM, 2, 1, 2, 3,
        "to see how few coordinates SAM needs",
        _SAM_LIKE,
        "Mi 2022, 2210.05177",
    ),
    Card(
        "crsam", CRSAM, 3, 0, 3, 3,
        "a third pass is affordable",
        "0.1",
        "Wu 2024, 2312.13555",
    ),
)  # fmt: skip
"""All methods, in the order in which to think of them."""
