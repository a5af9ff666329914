"""The third document's table of a VGG-, a ResNet- and a DenseNet-style net, at the greatest depth of the dial.

It gives the condition numbers 10^6, 10^3 and 10^4, lambda_max 85.3, 18.7 and 22.1, and 250, 100 and 120 epochs for 110
layers. The VGG style is the plain net with batch normalisation, which differs from the ResNet in its skips alone. A
figure within a third of the claimed one counts as that size, a condition number within three times.
"""

from __future__ import annotations

from optland.train.experiments.claims.blocks import compared, of_kinds
from optland.train.experiments.claims.cells import everywhere
from optland.train.experiments.claims.claim import Claim
from optland.train.experiments.claims.verdicts import Band

SOURCE = "third document, table in 2.4"


def of(one: str, other: str, name: str, what: str, low: float, high: float, text: str) -> Claim:
    """A row of two kinds of net."""
    return Claim(
        name=f"{one} / {other}: {what}",
        text=text,
        source=SOURCE,
        measured=f"{name} at the same training loss, {one} over {other}, both at the greatest depth of the dial",
        band=Band(low=low, high=high, null=1.0, is_ratio=True, resolution=0.1),
        effect=compared(one, other, name),
        runs=everywhere(of_kinds(one, other), "deep_seeds"),
    )


CLAIMS = (
    of("plain", "ResNet", "epochs", "epochs", 1.9, 3.3, "A plain net takes 2.5 times the epochs of a ResNet"),
    of("plain", "DenseNet", "kappa", "conditioning", 30.0, 300.0,
       "A plain net is 100 times as badly conditioned as a DenseNet"),
    of("plain", "DenseNet", "lambda_max", "sharpness", 2.6, 5.8, "A plain net is 3.9 times as sharp as a DenseNet"),
    of("DenseNet", "ResNet", "kappa", "conditioning", 3.0, 30.0,
       "A DenseNet is 10 times as badly conditioned as a ResNet"),
    of("DenseNet", "ResNet", "lambda_max", "sharpness", 1.05, 1.6, "A DenseNet is 1.18 times as sharp as a ResNet"),
    of("DenseNet", "ResNet", "epochs", "epochs", 1.05, 1.6, "A DenseNet takes 1.2 times the epochs of a ResNet"),
)  # fmt: skip
