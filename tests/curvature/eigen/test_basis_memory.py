"""A bounded, narrow or distant basis gives the eigenvalues of a dense solver, and residuals that stay true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from optland import vectors
from optland.curvature import FunctionOperator, Spectrum, hessian, lanczos
from optland.curvature.eigen.basis import Basis
from optland.curvature.eigen.krylov import Krylov
from optland.curvature.operators.hessian import CurvatureOperator
from optland.problems import function_objective, quadratic, with_spectrum

D = torch.float64


def diagonal(eigenvalues: Any, dtype: torch.dtype = D) -> CurvatureOperator:
    a = torch.as_tensor(np.asarray(eigenvalues), dtype=dtype)
    return hessian(function_objective(lambda w: 0.5 * (a * w * w).sum(), torch.ones(len(a), dtype=dtype)))


def explicit_residuals(H: CurvatureOperator, found: Spectrum) -> list[float]:
    """||H y - theta y|| by one more product for each pair, in float64."""
    out = []
    for value, y in zip(found.values, found.vectors, strict=True):
        rest = vectors.subtract(H.matvec(y), vectors.scaled(value.value, y))
        out.append(float(vectors.norm(rest)))
    return out


NETLIKE = [30.0, 22.0, 15.0, *np.linspace(-1.0, 4.0, 300).tolist(), -6.0, -9.0]


# --- thick restart -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ends", "k"), [("both", 1), ("both", 2), ("top", 3), ("bottom", 2)])
@pytest.mark.parametrize("seed", range(3))
def test_a_restarted_run_finds_what_an_unrestarted_one_finds(ends: Any, k: int, seed: int) -> None:
    options: dict[str, Any] = {"ends": ends, "k": k, "rtol": 1e-7, "max_matvecs": 300, "seed": seed}
    whole = lanczos(diagonal(NETLIKE), **options)
    H = diagonal(NETLIKE)
    short = lanczos(H, max_basis=12, **options)
    assert short.converged
    assert short.num_restarts > 0 == whole.num_restarts
    exact = np.sort(NETLIKE)
    expected = [*(exact[::-1][:k] if ends != "bottom" else []), *(exact[:k][::-1] if ends != "top" else [])]
    assert [v.value for v in short.values] == pytest.approx(expected, abs=1e-9)
    assert [v.value for v in whole.values] == pytest.approx(expected, abs=1e-9)
    # beside H y - theta y the residual may only have gained rounding
    assert explicit_residuals(H, short) == pytest.approx(list(short.residuals), abs=1e-10)


@pytest.mark.parametrize("budget", [13, 20, 27, 40])
def test_residuals_stay_true_in_the_middle_of_restarts(budget: int) -> None:
    H = diagonal(np.linspace(-3, 10, 400))
    found = lanczos(H, k=2, rtol=1e-9, max_basis=11, max_matvecs=budget)
    assert (found.num_matvecs, found.converged) == (budget, False)
    assert found.num_restarts >= 1
    assert explicit_residuals(H, found) == pytest.approx(list(found.residuals), abs=1e-10)


def test_the_compressed_matrix_is_the_operator_in_the_basis_after_a_restart() -> None:
    A = with_spectrum([9.0, 7.0, *np.linspace(-1, 3, 30).tolist(), -5.0])
    space = Krylov(hessian(quadratic(A)), 10)
    space.start(vectors.random_unit(space.like, 0))
    for _ in range(10):
        space.extend()
    space.restart([0, 1, 7, 8, 9])
    space.extend()
    V = torch.stack([space.basis.row(j) for j in range(space.size)])
    torch.testing.assert_close(V @ V.T, torch.eye(6, dtype=D), atol=1e-12, rtol=0)
    np.testing.assert_allclose(space.h[:6, :6], (V @ A @ V.T).numpy(), atol=1e-11)


def test_a_restart_keeps_no_more_certificate_than_its_first_space_had() -> None:
    short = lanczos(diagonal(NETLIKE), rtol=1e-6, max_basis=10, max_matvecs=200)
    few = lanczos(diagonal(NETLIKE), rtol=1e-6, max_matvecs=10)
    assert short.num_matvecs > 10
    assert short.certificate == few.certificate


def test_copies_of_a_multiple_eigenvalue_are_found_across_restarts() -> None:
    eigenvalues = [5.0, 5.0, *np.linspace(0, 1, 20).tolist(), -3.0, -3.0]
    found = lanczos(diagonal(eigenvalues), k=2, rtol=1e-8, max_basis=10, max_matvecs=400)
    assert found.bottom.value == pytest.approx(-3.0, abs=1e-8)
    assert found.top.value == pytest.approx(5.0, abs=1e-8)


def test_a_basis_without_room_for_the_wanted_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="max_basis=5 is too small for 4 pairs: allow at least 8"):
        lanczos(diagonal(NETLIKE), k=2, max_basis=5)


# --- narrow storage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_basis", [None, 14])
@pytest.mark.parametrize("seed", range(5))
def test_bfloat16_rows_cost_accuracy_that_the_residual_owns_up_to(seed: int, max_basis: int | None) -> None:
    H = diagonal(np.array(NETLIKE), torch.float32)
    found = lanczos(H, basis_dtype=torch.bfloat16, rtol=2e-2, max_matvecs=60, max_basis=max_basis, seed=seed)
    assert found.converged
    assert found.top.value == pytest.approx(30.0, rel=2e-3)
    assert found.bottom.value == pytest.approx(-9.0, rel=2e-2)
    for true, claimed in zip(explicit_residuals(H, found), found.residuals, strict=True):
        assert true <= claimed * 1.02 + 1e-4


def test_bfloat16_rows_have_a_floor_and_the_run_ends_there() -> None:
    found = lanczos(diagonal(np.array(NETLIKE), torch.float32), basis_dtype=torch.bfloat16, rtol=1e-7)
    assert not found.converged
    assert 1e-4 * 30 < found.top.error < 1e-2 * 30
    assert found.num_matvecs < 40


def test_blocks_are_taken_as_rows_come_in() -> None:
    space = Krylov(diagonal(NETLIKE), 200)
    space.start(vectors.random_unit(space.like, 0))
    space.extend()
    assert len(space.basis.blocks) == 1
    assert space.basis.nbytes == 32 * len(NETLIKE) * 8


@pytest.mark.parametrize("narrow", [False, True])
def test_basis_operations_over_several_blocks_and_slices(
    narrow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optland.curvature.eigen.basis.BLOCK_ROWS", 2)
    monkeypatch.setattr("optland.curvature.eigen.basis.SLICE", 7)
    Q = torch.linalg.qr(torch.randn(40, 7, generator=torch.Generator().manual_seed(0), dtype=D))[0].T
    basis = Basis(Q[0], torch.float32 if narrow else None)
    lost = [basis.put(j, Q[j]) for j in range(7)]
    assert (max(lost) > 0) == narrow
    tol = 1e-6 if narrow else 1e-14
    w = torch.arange(40.0, dtype=D)
    expected, rest = Q @ w, w - Q.T @ (Q @ w)
    torch.testing.assert_close(basis.project_out(w, 7), expected, atol=100 * tol, rtol=0)
    torch.testing.assert_close(w, rest, atol=100 * tol, rtol=0)
    S = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 3)))[0]
    torch.testing.assert_close(basis.combine(S[:, 0]), torch.tensor(S[:, 0]) @ Q[:6], atol=tol, rtol=0)
    basis.rotate(S, waiting=True)
    rows: Tensor = torch.stack([basis.row(j) for j in range(4)])
    torch.testing.assert_close(rows[:3], torch.tensor(S.T.copy()) @ Q[:6], atol=tol, rtol=0)
    torch.testing.assert_close(rows[3], Q[6], atol=tol, rtol=0)


def test_a_residual_holds_the_part_of_the_matrix_that_is_not_symmetric() -> None:
    """In the whole space nothing else is left of it: |(A - A') / 2 y| = 0.25 for both eigenvectors of (A + A') / 2."""
    A = torch.tensor([[2.0, 0.25], [-0.25, 1.0]], dtype=D)
    space = Krylov(FunctionOperator(lambda v: A @ v, torch.zeros(2, dtype=D)), 2)
    space.start([torch.tensor([0.6, 0.8], dtype=D)])
    space.extend()
    space.extend()
    ritz = space.ritz()
    assert ritz.theta == pytest.approx([1.0, 2.0])
    assert ritz.residual == pytest.approx([0.25, 0.25])


def test_nothing_is_taken_out_by_no_rows() -> None:
    w = torch.tensor([1.0, 2.0], dtype=D)
    assert Basis(w).project_out(w, 0).shape == (0,)
    assert w.tolist() == [1.0, 2.0]
