"""Skip connections: conditioning, sharpness, and the dimension of the gradients."""

from __future__ import annotations

from collections.abc import Callable

from optland.train.experiments.bank_run import BankRun
from optland.train.experiments.claims.blocks import compared, deep, shallow_plain
from optland.train.experiments.claims.cells import everywhere
from optland.train.experiments.claims.claim import Claim, Evidence, Found
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import ratio, two_sides
from optland.train.experiments.claims.verdicts import Band


def dimension(evidence: Evidence, run: BankRun) -> float:
    """k90 of the gradients of the run."""
    return evidence.number(run, "along", "watch", "dimension", "k90")


def of_skips(evidence: Evidence, dial: Dial) -> Found:
    """k90 of the plain net over that of the ResNet."""

    def sides(data: str, seed: int) -> tuple[float, float]:
        nets = deep(dial, data, seed)
        return dimension(evidence, nets["ResNet"]), dimension(evidence, nets["plain"])

    return against_gradients(dial, sides, ("k90 with skips", "k90 without"))


def of_depth(evidence: Evidence, dial: Dial) -> Found:
    """k90 of the deep plain net over that of the shallow one."""

    def sides(data: str, seed: int) -> tuple[float, float]:
        shallow, far = shallow_plain(dial, data, seed), deep(dial, data, seed)["plain"]
        return dimension(evidence, shallow), dimension(evidence, far)

    return against_gradients(dial, sides, ("k90 of 8 layers", f"k90 of {dial.depth}"))


def against_gradients(
    dial: Dial, sides: Callable[[str, int], tuple[float, float]], names: tuple[str, str]
) -> Found:
    """The second dimension over the first, told with the number of gradients that it was taken from."""
    kept = {"gradients kept": float(dial.gradients)}
    return two_sides(dial, sides, lambda a, b: ratio(b, a), names, seeds=dial.deep_seeds, beside=kept)


def both(dial: Dial, data: str, seed: int) -> list[BankRun]:
    """The plain net and the ResNet."""
    nets = deep(dial, data, seed)
    return [nets["plain"], nets["ResNet"]]


PAIRS = everywhere(both, "deep_seeds")

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
        runs=everywhere(
            lambda dial, data, seed: [shallow_plain(dial, data, seed), both(dial, data, seed)[0]],
            "deep_seeds",
        ),
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
