"""Skip connections: conditioning, sharpness, and the dimension of the gradients."""

from __future__ import annotations

from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.claims.blocks import compared, of_kinds
from optland.train.experiments.claims.cells import everywhere, residual
from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import dimensions
from optland.train.experiments.claims.verdicts import Band


def of_skips(evidence: Evidence, dial: Dial) -> Found:
    """k90 of the plain net over that of the ResNet."""
    names = ("k90 with skips", "k90 without")
    return dimensions(evidence, dial, of_kinds("ResNet", "plain"), names, seeds=dial.deep_seeds)


def of_depth(evidence: Evidence, dial: Dial) -> Found:
    """k90 of the deep plain net over that of the shallow one."""
    names = ("k90 of 8 layers", f"k90 of {dial.depth}")
    return dimensions(evidence, dial, depths, names, seeds=dial.deep_seeds)


def depths(dial: Dial, data: str, seed: int) -> list[BankRun]:
    """The plain net with 8 weight layers, and with as many as the dial has."""
    return [residual(dial, data, seed, depth=8, skips=False), *of_kinds("plain")(dial, data, seed)]


PAIRS = everywhere(of_kinds("plain", "ResNet"), "deep_seeds")

CLAIMS = (
    Claim(
        name="skips: dimension",
        text="Skip connections reduce d_eff",
        source="third document, 2.2.3",
        measured="k90 of a fixed number of gradients, plain over ResNet; no size is claimed, 10 % is the least",
        band=Band(low=1.1, null=1.0, is_ratio=True, resolution=0.05),
        effect=of_skips,
        runs=PAIRS,
    ),
    Claim(
        name="depth: dimension",
        text="Deep plain networks have a higher d_eff",
        source="third document, 2.2.3",
        measured="k90 of a fixed number of gradients, greatest depth over 8 layers; no size claimed, 10 % at least",
        band=Band(low=1.1, null=1.0, is_ratio=True, resolution=0.05),
        effect=of_depth,
        runs=everywhere(depths, "deep_seeds"),
    ),
    Claim(
        name="skips: conditioning",
        text="Skip connections lower the conditioning 100 to 1000 times",
        source="third document, 2.4",
        measured="kappa at equal training loss, plain over ResNet",
        band=Band(low=100.0, high=1000.0, null=1.0, is_ratio=True),
        effect=compared("plain", "ResNet", "kappa"),
        runs=PAIRS,
    ),
    Claim(
        name="skips: sharpness",
        text="Skip connections lower the sharpness 3 to 5 times",
        source="third document, 2.4",
        measured="lambda_max at equal training loss, plain over ResNet",
        band=Band(low=3.0, high=5.0, null=1.0, is_ratio=True),
        effect=compared("plain", "ResNet", "lambda_max"),
        runs=PAIRS,
    ),
)
