"""The claims: the rule on made-up effects, the measures against dense float64 matrices, and work that goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call

from optland.train.experiments.bank_run import BankRun, Splits, load_splits
from optland.train.experiments.bank_training import train_run
from optland.train.experiments.claims.cells import plain
from optland.train.experiments.claims.dial import Dial
from optland.train.experiments.claims.effects import rank_correlation
from optland.train.experiments.claims.measures import conditioning, sharpness
from optland.train.experiments.claims.registry import CLAIMS
from optland.train.experiments.claims.table import Work
from optland.train.experiments.claims.trials import Trial
from optland.train.experiments.claims.verdicts import Band, Verdict, effect_of, verdict_of
from optland.train.experiments.claims.watch import Watch
from optland.train.models import ModelConfig

TINY = Dial(
    data=("digits",), samples=64, seeds=2, deep_seeds=2, epochs=2, deep_epochs=1, depth=8, level=2.2, probed=32,
    checks=4, gradients=8, curve_steps=4, searches=1, draws=500,
)  # fmt: skip
ONE = Dial(seeds=1, deep_seeds=1)


# ---------------------------------------------------------------- the rule


def of(values: list[float], band: Band, p_value: float | None = None) -> Verdict:
    effect = effect_of({"a": values}, band)
    return verdict_of(effect, band, effect.p_value if p_value is None else p_value)


RATIO = Band(low=3.0, high=5.0, null=1.0, is_ratio=True)


@pytest.mark.parametrize(
    ("values", "band", "verdict"),
    [
        ([3.9, 4.0, 4.1], RATIO, Verdict.SUPPORTED),
        ([1.9, 2.0, 2.1], RATIO, Verdict.OTHER_SIZE),
        ([0.49, 0.5, 0.51], RATIO, Verdict.OPPOSITE),
        ([0.9, 1.0, 1.1], RATIO, Verdict.NOT_SUPPORTED),
        ([0.3, 1.0, 9.0], RATIO, Verdict.UNDECIDED),
        ([4.0], RATIO, Verdict.UNDECIDED),
        ([4.0, math.nan, 4.1, 3.9], RATIO, Verdict.SUPPORTED),
        ([-0.8, -0.9, -0.85], Band(low=-1.0, high=-0.5), Verdict.SUPPORTED),
        ([0.8, 0.9, 0.85], Band(low=-1.0, high=-0.5), Verdict.OPPOSITE),
        ([1.0, 1.0, 1.0], Band(low=0.9, high=1.0, null=0.5), Verdict.SUPPORTED),
    ],
)
def test_the_rule_gives_the_verdict(values: list[float], band: Band, verdict: Verdict) -> None:
    assert of(values, band) == verdict


def test_a_correction_can_take_a_verdict_away() -> None:
    assert of([3.9, 4.0, 4.1], RATIO, p_value=0.2) == Verdict.UNDECIDED


def test_data_sets_on_both_sides_decide_nothing() -> None:
    band = Band(low=1.0)
    effect = effect_of({"a": [5.0, 5.1, 4.9], "b": [-2.0, -2.1, -1.9]}, band)
    assert effect.contradict
    assert verdict_of(effect, band, 1e-9) == Verdict.UNDECIDED


def test_the_interval_and_p_value_are_scipys() -> None:
    """Of one data set a t-test, of two groups with as many values Welch's."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(1.0, 1.0, 8), rng.normal(1.5, 3.0, 8)
    one = effect_of({"a": a.tolist()}, Band(low=0.5))
    theirs = stats.ttest_1samp(a, 0.0)
    assert one.p_value == pytest.approx(theirs.pvalue)
    assert (one.low, one.high) == pytest.approx(tuple(theirs.confidence_interval()))
    two = effect_of({"a": a.tolist(), "b": b.tolist()}, Band(low=0.5))
    welch = stats.ttest_ind(a, -b, equal_var=False)  # the sum of the means against 0
    assert two.mean == pytest.approx((a.mean() + b.mean()) / 2)
    assert two.p_value == pytest.approx(2 * stats.t.sf(abs(welch.statistic), math.floor(welch.df)))


def test_ratios_are_averaged_as_logarithms() -> None:
    found = effect_of({"a": [2.0, 8.0]}, Band(low=2.0, null=1.0, is_ratio=True))
    assert found.mean == pytest.approx(4.0)


@pytest.mark.parametrize(
    "given",
    [{"low": -1.0, "high": 1.0}, {"low": 2.0, "high": 1.0}, {"low": -2.0, "null": 1.0, "is_ratio": True}],
)
def test_a_band_that_nothing_could_speak_against_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"null: |is_ratio: "):
        Band(**given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"depth": 9}, "depth: 9 must be even"),
        ({"samples": 10}, "samples: 10 are too few"),
        ({"level": 0.0}, "level: a training loss of 0.0"),
        ({"seeds": 0}, "seeds: 0 must be at least 1"),
        ({"data": ()}, "data: no data set"),
        ({"gradients": 3}, "gradients: 3 must be at least 4"),
    ],
)
def test_a_dial_that_cannot_be_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Dial(**given)


def test_rank_correlation_is_scipys_and_takes_infinity_as_the_last() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 5, 20).tolist(), rng.normal(size=20).tolist()
    assert rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert rank_correlation([1.0, 2.0, math.nan, 3.0], [1.0, 2.0, 0.0, math.inf]) == 1.0
    assert math.isnan(rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))


# ---------------------------------------------------------------- the measures


def dense(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hessian, Gauss-Newton matrix and weights in float64, by autograd alone."""
    model = model.double()
    named = {name: p.detach() for name, p in model.named_parameters()}
    sizes = [p.numel() for p in named.values()]
    w = torch.cat([p.flatten() for p in named.values()])

    def logits(v: Tensor) -> Tensor:
        parts = zip(named.items(), v.split(sizes), strict=True)
        return functional_call(
            model, {name: part.reshape(p.shape) for (name, p), part in parts}, (x.double(),)
        )

    H = torch.autograd.functional.hessian(lambda v: nn.functional.cross_entropy(logits(v), y), w)
    J = torch.autograd.functional.jacobian(logits, w)
    p = logits(w).softmax(1)
    A = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    G = torch.einsum("nad,nab,nbe->de", J, A, J) / len(x)
    return H, G, w


def test_every_measure_is_that_of_the_dense_matrices() -> None:
    run = plain(TINY, "digits", 0, times=5, net=ModelConfig("mlp", width=6, depth=1))
    splits = load_splits(run)
    model = train_run(run, splits).model.eval()
    found = sharpness(model, splits, 32) | conditioning(model, splits, 32)
    H, G, w = dense(model, *(t[:32] for t in splits.train))
    top = torch.linalg.eigvalsh(H)[-1].item()
    assert abs(found["lambda_max"] - top) <= max(found["lambda_error"], 1e-3 * top)
    adaptive = torch.linalg.eigvalsh(w.abs()[:, None] * H * w.abs())[-1].item()
    assert abs(found["adaptive"] - adaptive) <= max(found["adaptive_error"], 1e-3 * adaptive)
    kappa = (torch.linalg.eigvalsh(G)[-1] * len(w) / G.trace()).item()
    assert abs(found["kappa"] - kappa) <= 4 * found["kappa_error"]
    assert found["kappa_error"] < kappa
    assert found["relative"] == pytest.approx(top * w.square().sum().item(), rel=0.03)


class Plainly:
    """A literal record of the gradients of a run."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def after_step(self, model: nn.Module, step: int) -> None:
        self.rows.append(
            torch.cat([p.grad.detach().flatten() for p in model.parameters() if p.grad is not None])
        )


def test_the_dimension_along_a_run_is_that_of_its_gradients_after_centring() -> None:
    run = plain(TINY, "digits", 0, times=4)
    splits = load_splits(run)
    watch, plainly = Watch(TINY, run, splits), Plainly()

    def both(model: nn.Module, step: int) -> None:
        plainly.after_step(model, step)
        watch.after_step(model, step)
        model.train()

    train_run(run, splits, after_step=both)
    steps = len(plainly.rows)
    kept = [plainly.rows[round((k + 1) * steps / TINY.gradients) - 1] for k in range(TINY.gradients)]
    rows = torch.stack(kept).double()
    shares = torch.linalg.svdvals(rows - rows.mean(0)).square().cumsum(0)
    assert watch.found()["dimension"]["k90"] == int((shares < 0.9 * shares[-1]).sum()) + 1
    assert watch.found()["dimension"]["count"] == TINY.gradients


def test_the_level_is_met_at_the_first_check_below_it() -> None:
    run = plain(TINY, "digits", 1, times=4)
    splits = load_splits(run)
    watch = Watch(TINY, run, splits)

    def look(model: nn.Module, step: int) -> None:
        watch.after_step(model, step)
        model.train()

    train_run(run, splits, after_step=look)
    found = watch.found()
    first = next(k for k, loss in enumerate(found["losses"]) if loss <= TINY.level)
    assert found["level"]["epochs"] == pytest.approx((first + 1) * 8 / TINY.checks)


# ---------------------------------------------------------------- the work


def test_every_claim_says_what_it_needs_and_has_work() -> None:
    names = [claim.name for claim in CLAIMS]
    assert len(names) == len(set(names)) > 40
    for claim in CLAIMS:
        assert claim.text, claim.name
        assert claim.source, claim.name
        assert claim.runs(TINY) or claim.trials(TINY), claim.name
        data = {run.data.name for run in claim.runs(ONE)} | {t.data for t in claim.trials(ONE)}
        assert len(data) >= 2 or claim.name == "2^d", claim.name


def few() -> list[Any]:
    return [claim for claim in CLAIMS if claim.name in ("2^d", "over-parameterised")]


def test_work_goes_on_where_it_was_and_rows_tell_what_is_missing(tmp_path: Path) -> None:
    work = Work(TINY, tmp_path, claims=few())
    waiting = work.missing()
    assert {row.missing for row in work.rows()} == {2, 4}
    assert {row.verdict for row in work.rows()} == {Verdict.UNDECIDED}
    work.make(waiting[0])
    again = Work(TINY, tmp_path, claims=few())
    assert len(again.missing()) == len(waiting) - 1
    for piece in again.missing():
        again.make(piece)
    rows = again.rows()
    assert again.missing() == []
    assert [row.missing for row in rows] == [0, 0]
    assert sum(row.cost_ge for row in rows) > 0


def test_a_run_for_two_claims_is_made_once_under_the_closest_look(tmp_path: Path) -> None:
    pieces = Work(ONE, tmp_path).pieces()
    keys = [p.key if isinstance(p, Trial) else p[1].key for p in pieces]
    assert len(keys) == len(set(keys))
    asked = {run.key for claim in CLAIMS if claim.look == "all" for run in claim.runs(ONE)}
    assert asked == {
        run.key for look, run in (p for p in pieces if not isinstance(p, Trial)) if look == "all"
    }


def test_watching_changes_nothing() -> None:
    run = plain(TINY, "digits", 0, times=2, net=ModelConfig("resnet", width=4, depth=8))
    splits = load_splits(run)
    watched = watched_end(run, splits)
    alone = train_run(run, splits).model.state_dict()
    assert all(torch.equal(alone[name], watched[name]) for name in alone)


def watched_end(run: BankRun, splits: Splits) -> dict[str, Tensor]:
    from optland.context.modules import preserve_modes
    from optland.context.rng import preserve_rng

    watch = Watch(TINY, run, splits)

    def look(model: nn.Module, step: int) -> None:
        with preserve_rng(), preserve_modes(model):
            watch.after_step(model, step)

    return train_run(run, splits, after_step=look).model.state_dict()
