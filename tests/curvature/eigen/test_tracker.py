"""The tracker on matrices whose spectrum is known at every step: agreement, cost, audits, exact resume."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from optland.curvature import hessian, lanczos
from optland.curvature.eigen.tracker import SpectrumTracker, Tracked
from optland.curvature.operators.hessian import CurvatureOperator
from optland.problems import function_objective, linear_regression, quadratic, with_spectrum

D = torch.float64


def drifting(step: int, speed: float = 0.0015) -> Tensor:
    """A matrix whose eigenvectors turn and whose ends move slowly."""
    generator = torch.Generator().manual_seed(7)
    skew = torch.randn(60, 60, dtype=D, generator=generator)
    turn = torch.linalg.matrix_exp(speed * step * (skew - skew.T))
    top, bottom = 30.0 + 0.2 * step, -9.0 - 0.1 * step
    A = turn @ with_spectrum([top, 20.0, 12.0, *np.linspace(0, 3, 56).tolist(), bottom]) @ turn.T
    return (A + A.T) / 2


def probe(tracker: SpectrumTracker, A: Tensor) -> Tracked:
    return tracker.probe(hessian(quadratic(A)))


@pytest.mark.parametrize("ends", ["top", "both"])
def test_it_follows_a_turning_spectrum_for_fewer_products_than_cold_runs(ends: Any) -> None:
    tracker, cold = SpectrumTracker(ends=ends, audit_every=10), 0
    for step in range(21):
        A = drifting(step)
        exact = torch.linalg.eigvalsh(A)
        H = hessian(quadratic(A))
        found = tracker.probe(H)
        assert H.num_matvecs == found.num_matvecs
        assert H.cost_ge <= SpectrumTracker.cost(H.objective)
        assert found.spectrum.top.value == pytest.approx(float(exact[-1]), rel=0.01)
        assert found.spectrum.top.error <= 0.01 * float(exact[-1])
        if ends == "both":
            assert found.spectrum.bottom.value == pytest.approx(float(exact[0]), rel=0.02)
        cold += lanczos(hessian(quadratic(A)), ends=ends, seed=step).num_matvecs
    assert (tracker.num_audits, tracker.num_replaced) == (3, 0)  # the first probe, and two that were due
    assert tracker.num_matvecs < 0.8 * cold  # audits included


def test_a_still_matrix_costs_one_product_a_probe() -> None:
    tracker = SpectrumTracker(ends="top", random_share=0.0)
    counts = [probe(tracker, drifting(0)).num_matvecs for _ in range(5)]
    assert counts[1:] == [1, 1, 1, 1]


def crossing(step: int) -> CurvatureOperator:
    """Diagonal: the eigenvalue that was the top stays, and another, orthogonal to all that is kept, passes it."""
    a = torch.linspace(0, 3, 60, dtype=D)
    a[0], a[1] = 10.0, 4.0 + 1.5 * step
    return hessian(function_objective(lambda w: 0.5 * (a * w * w).sum(), torch.ones(60, dtype=D)))


def test_an_audit_replaces_a_pair_that_is_no_longer_extreme_and_says_so() -> None:
    """Without admixture a converged start never sees the other eigenvector: its residual is right all the same."""
    tracker = SpectrumTracker(ends="top", rtol=1e-6, audit_every=8, random_share=0.0)
    found = [tracker.probe(crossing(step)) for step in range(9)]
    locked = found[6]
    assert locked.spectrum.top.converged
    assert locked.spectrum.top.value == pytest.approx(10.0)
    audited = found[8]
    assert (audited.why, audited.replaced) == ("due", True)
    assert audited.spectrum.top.value == pytest.approx(16.0)
    assert "WARM RUN REPLACED" in str(audited)
    assert tracker.num_replaced == 1
    assert audited.spectrum.certificate is not None


def test_a_random_part_finds_the_new_top_without_an_audit() -> None:
    tracker = SpectrumTracker(ends="top", rtol=1e-6, audit_every=100, random_share=0.1)
    found = [tracker.probe(crossing(step)) for step in range(9)]
    assert found[8].spectrum.top.value == pytest.approx(16.0, rel=1e-6)


@pytest.mark.parametrize("factor", [3.0, 0.2, -1.0])
def test_a_jump_is_audited_at_once(factor: float) -> None:
    tracker = SpectrumTracker()
    probe(tracker, drifting(0))
    found = probe(tracker, factor * drifting(0))
    assert found.why == "jump"
    exact = torch.linalg.eigvalsh(factor * drifting(0))
    assert found.spectrum.top.value == pytest.approx(float(exact[-1]), rel=0.02)
    assert found.spectrum.bottom.value == pytest.approx(float(exact[0]), rel=0.02)


def test_a_jump_may_be_audited_with_the_next_probe_and_no_probe_costs_more_than_it_declared() -> None:
    """Scales 1, 3, 3, ...: the third probe pays for the jump of the second, the sixth is due."""
    tracker = SpectrumTracker(ends="top", audit_jumps="next", audit_every=4, max_matvecs=10)
    whys, declared = [], []
    for scale in (1.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0):
        H = hessian(quadratic(scale * drifting(0)))
        declared.append(tracker.next_cost(H.objective))
        found = tracker.probe(H)
        whys.append(found.why)
        assert found.cost_ge == H.cost_ge <= declared[-1]
        assert found.spectrum.top.value == pytest.approx(30.0 * scale, rel=0.01)
    assert whys == ["first", "", "jump", "", "", "", "due"]
    one, two = declared[1], declared[2]
    assert two > 1.25 * one  # both with the comparison of second derivatives, as every model here is new
    assert declared == [one, one, two, one, one, one, two]


def test_a_run_of_few_products_owes_no_audit_that_would_have_no_more() -> None:
    tracker = SpectrumTracker(ends="top", rtol=1e-9, max_matvecs=4, audit_jumps="next")
    found = [probe(tracker, drifting(step)) for step in range(3)]
    assert [f.why for f in found] == ["first", "", ""]
    assert not found[2].spectrum.converged
    assert found[2].num_matvecs == 4


@pytest.mark.parametrize("jumps", ["at once", "next"])
def test_the_declared_cost_covers_the_start_of_an_audit_on_a_part_of_the_data(jumps: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(512, 30, generator=generator, dtype=D)
    tracker = SpectrumTracker(ends="top", rtol=1e-14, max_matvecs=3, audit_every=2, audit_jumps=jumps)
    for _ in range(3):
        H = hessian(linear_regression(X, torch.zeros(512, 1, dtype=D)))
        declared = tracker.next_cost(H.objective)
        assert declared <= SpectrumTracker.cost(H.objective, 3, ends="top")
        assert tracker.probe(H).cost_ge == H.cost_ge <= declared


def test_a_run_that_does_not_converge_is_audited_and_marked() -> None:
    tracker = SpectrumTracker(ends="top", rtol=1e-9, max_matvecs=4)
    probe(tracker, drifting(0))
    found = probe(tracker, drifting(2))
    assert found.why == "not converged"
    assert found.num_matvecs == 8
    assert not found.spectrum.converged


def test_products_that_are_not_finite_are_marked_and_forgotten() -> None:
    tracker = SpectrumTracker()
    probe(tracker, drifting(0))
    broken = function_objective(lambda w: (w - 1.0).abs().sqrt().sum(), torch.ones(60, dtype=D))
    found = tracker.probe(hessian(broken))
    assert not found.spectrum.converged
    again = probe(tracker, drifting(0))
    assert again.why == "first"
    assert again.spectrum.converged


def test_between_audits_nothing_is_certified_about_what_was_not_seen() -> None:
    A = with_spectrum([10.0, 5.0, *np.linspace(0.5, 1, 8).tolist()])
    tracker = SpectrumTracker(rtol=1e-6)
    assert probe(tracker, A).spectrum.negative_curvature == "none below -tau"
    assert probe(tracker, A).spectrum.negative_curvature == "unknown"


def leaping(step: int) -> Tensor:
    """As :func:`drifting`, with a jump at step 3."""
    return drifting(step) if step < 3 else 3.0 * drifting(step)


@pytest.mark.parametrize("jumps", ["at once", "next"])
@pytest.mark.parametrize("cut", [0, 1, 4, 7])
def test_it_resumes_exactly(cut: int, jumps: Any) -> None:
    """Values, products and audits after a reload are those of the unbroken tracker, bit for bit."""

    def fresh() -> SpectrumTracker:
        return SpectrumTracker(audit_every=4, audit_jumps=jumps, seed=3)

    unbroken, first = fresh(), fresh()
    expected = [probe(unbroken, leaping(step)) for step in range(9)]
    for step in range(cut):
        probe(first, leaping(step))
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    resumed = fresh()
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    for step in range(cut, 9):
        found = probe(resumed, leaping(step))
        assert found.spectrum.ritz_values == expected[step].spectrum.ritz_values
        assert (found.why, found.num_matvecs) == (expected[step].why, expected[step].num_matvecs)
    assert resumed.num_matvecs == unbroken.num_matvecs


def test_a_state_is_a_copy() -> None:
    tracker = SpectrumTracker()
    probe(tracker, drifting(0))
    state = tracker.state_dict()
    before = [t.clone() for y in state["kept"] for t in y]
    probe(tracker, drifting(5))
    assert all(torch.equal(a, b) for a, b in zip(before, [t for y in state["kept"] for t in y], strict=True))


def test_wrong_usage_names_the_fix() -> None:
    with pytest.raises(ValueError, match="audit_every=0 must be at least 1"):
        SpectrumTracker(audit_every=0)
    with pytest.raises(ValueError, match=r"audit_jumps='later' is not known; use 'at once' or 'next'"):
        SpectrumTracker(audit_jumps="later")
