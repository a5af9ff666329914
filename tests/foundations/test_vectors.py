"""Arithmetic of lists of tensors against the same arithmetic on one flat tensor."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from optland import vectors

SHAPES = [(3, 4), (), (5,), (2, 1, 3)]


def draw(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def flat(x: vectors.Vector) -> Tensor:
    return torch.cat([t.reshape(-1) for t in x])


def test_reductions_agree_with_one_flat_tensor() -> None:
    x, y = draw(0), draw(1)
    assert vectors.numel(x) == flat(x).numel() == 24
    torch.testing.assert_close(vectors.dot(x, y), flat(x) @ flat(y))
    torch.testing.assert_close(vectors.norm(x), flat(x).norm())
    assert float(vectors.dot([], [])) == float(vectors.norm([])) == 0.0


def test_linear_operations_agree_with_one_flat_tensor() -> None:
    x, y, z = draw(0), draw(1), draw(2)
    torch.testing.assert_close(flat(vectors.scaled(2.5, x)), 2.5 * flat(x))
    torch.testing.assert_close(flat(vectors.scaled(torch.tensor(2.5), x)), 2.5 * flat(x))
    torch.testing.assert_close(flat(vectors.subtract(x, y)), flat(x) - flat(y))
    torch.testing.assert_close(
        flat(vectors.combine([1.0, -2.0, 0.5], [x, y, z])), flat(x) - 2 * flat(y) + 0.5 * flat(z)
    )
    for alpha in (3.0, torch.tensor(3.0)):
        target = vectors.clone(y)
        addresses = [t.data_ptr() for t in target]
        vectors.axpy_(alpha, x, target)
        torch.testing.assert_close(flat(target), flat(y) + 3 * flat(x))
        assert [t.data_ptr() for t in target] == addresses


def test_results_share_no_memory_with_their_arguments() -> None:
    x = draw(0)
    before = flat(x).clone()
    for copy in (
        vectors.clone(x),
        vectors.scaled(1.0, x),
        vectors.combine([1.0], [x]),
        vectors.unflatten(vectors.flatten(x), x),
    ):
        for t in copy:
            t.fill_(7.0)
        assert torch.equal(flat(x), before)


def test_copy_is_bit_for_bit_and_keeps_storage() -> None:
    x, y = draw(0), draw(1)
    x[0][0, 0] = torch.nan
    addresses = [t.data_ptr() for t in y]
    vectors.copy_(y, x)
    assert torch.equal(flat(y).view(torch.int64), flat(x).view(torch.int64))
    assert [t.data_ptr() for t in y] == addresses


def test_parameters_can_be_written_and_reduced_without_a_graph() -> None:
    model = nn.Linear(3, 2)
    params = list(model.parameters())
    vectors.axpy_(1.0, params, params)
    vectors.copy_(params, vectors.scaled(0.5, params))
    assert not vectors.norm(params).requires_grad
    assert not vectors.dot(params, params).requires_grad
    assert all(p.is_leaf for p in params)


def test_flatten_and_unflatten_are_inverse() -> None:
    x = draw(0)
    assert torch.equal(vectors.flatten(x), flat(x))
    back = vectors.unflatten(vectors.flatten(x), x)
    assert all(torch.equal(a, b) for a, b in zip(x, back, strict=True))
    half = [t.bfloat16() for t in x]
    assert vectors.flatten(half).dtype == torch.float32
    assert {t.dtype for t in vectors.unflatten(vectors.flatten(half), half)} == {torch.bfloat16}


def test_half_precision_reductions_keep_their_digits() -> None:
    """A bfloat16 sum of 2^16 ones stops at 256: the next one is lost to rounding."""
    ones = [torch.ones(2**15, dtype=torch.bfloat16)] * 2
    assert float(vectors.dot(ones, ones)) == 2**16
    assert float(vectors.norm(ones)) == 256.0
    assert vectors.dot(ones, ones).dtype == vectors.norm(ones).dtype == torch.float32


def test_float32_reductions_keep_their_digits_over_many_entries() -> None:
    """PyTorch's own float32 norm of this tensor is off by 6e-4 on the CPU."""
    x = [torch.full((1_000_000,), 1e-3)]
    exact = 1_000 * float(x[0][0])
    assert float(vectors.norm(x)) == pytest.approx(exact, rel=2e-7)
    assert float(vectors.dot(x, x)) == pytest.approx(exact**2, rel=2e-7)


def test_half_precision_gradients_accumulate_wide() -> None:
    sums = vectors.accumulator([torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.float64)])
    for _ in range(1000):
        vectors.axpy_(1.0, [torch.ones(1, dtype=torch.bfloat16), torch.ones(1, dtype=torch.float64)], sums)
    assert [float(t) for t in sums] == [1000.0, 1000.0]
    assert [t.dtype for t in sums] == [torch.float32, torch.float64]


def test_norm_of_mixed_types_and_of_tiny_entries() -> None:
    mixed = [torch.full((4,), 3.0), torch.full((4,), 4.0, dtype=torch.float64)]
    assert float(vectors.norm(mixed)) == pytest.approx(10.0)
    assert float(vectors.norm([torch.full((4,), 1e-30)])) == pytest.approx(2e-30)  # its square underflows


def test_random_unit_vectors_are_reproducible_and_leave_the_global_state_alone() -> None:
    like = [torch.zeros(40, 5), torch.zeros(7, dtype=torch.float64)]
    state = torch.get_rng_state()
    u, again, other = (vectors.random_unit(like, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(u, again, strict=True))
    assert not torch.equal(u[0], other[0])
    assert float(vectors.norm(u)) == pytest.approx(1.0, rel=1e-6)
    assert [t.dtype for t in u] == [torch.float32, torch.float64]


def test_random_unit_vectors_are_uniform_on_the_sphere() -> None:
    draws = torch.stack(
        [vectors.flatten(vectors.random_unit([torch.zeros(3)], seed)) for seed in range(2000)]
    )
    assert float(draws.mean(0).abs().max()) < 4 * (1 / 3 / 2000) ** 0.5
    torch.testing.assert_close(draws.T @ draws / 2000, torch.eye(3) / 3, atol=0.03, rtol=0)


def test_vectors_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError):
        vectors.dot(draw(0), draw(0)[:2])
    with pytest.raises(ValueError):
        vectors.combine([1.0, 2.0], [draw(0)])


def test_a_vector_of_other_parameters_is_refused_with_what_differs() -> None:
    like = [torch.zeros(2, 2), torch.zeros(3)]
    vectors.require_shapes([torch.ones(2, 2), torch.ones(3)], like, "start")
    with pytest.raises(
        ValueError, match=r"start has other shapes .*tensor 1 is \(1, 3\), the parameter \(3,\)"
    ):
        vectors.require_shapes([torch.ones(2, 2), torch.ones(1, 3)], like, "start")
    with pytest.raises(ValueError, match="1 tensors for 2 parameters"):
        vectors.require_shapes(like[:1], like, "start")


@pytest.mark.parametrize("x", [0.0, float("nan"), float("inf")])
def test_a_direction_has_a_length(x: float) -> None:
    assert vectors.direction_length([torch.tensor([3.0, 4.0])], "step") == 5.0
    with pytest.raises(ValueError, match="the length of step is"):
        vectors.direction_length([torch.tensor([x, x])], "step")


def test_tensors_taken_together_and_one_by_one_are_reduced_to_the_same_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, y = draw(0, torch.float32), draw(1, torch.float32)
    exact = (flat(x).double() @ flat(y).double()).item(), flat(x).double().norm().item()
    for limit in (24, 23, 10, 1):  # of 24 coordinates
        monkeypatch.setattr(vectors, "_CHUNK", limit)
        assert float(vectors.dot(x, y)) == pytest.approx(exact[0], rel=1e-6)
        assert float(vectors.norm(x)) == pytest.approx(exact[1], rel=1e-6)
        assert vectors.dot(x, y).dtype == vectors.norm(x).dtype == torch.float32


def test_a_short_vector_may_lie_in_memory_in_any_order() -> None:
    x = torch.arange(24.0).view(2, 3, 2, 2)
    y = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    last = x.to(memory_format=torch.channels_last)
    assert float(vectors.dot([last], [y])) == pytest.approx(float((x * y).sum()), rel=1e-6)
    assert vectors.clone([last])[0].stride() == last.stride()


def test_no_graph_leaves_the_mode_as_it_was_also_when_the_function_raises() -> None:
    @vectors.no_graph
    def fail(x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail(torch.zeros(1))
    assert torch.is_grad_enabled()
    with torch.no_grad():
        with pytest.raises(ZeroDivisionError):
            fail(torch.zeros(1))
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("alpha", [0.5, [0.5, 0.5], [0.5, -2.0], torch.tensor(0.5)], ids=str)
def test_add_makes_a_new_vector_for_one_factor_and_for_one_of_each_entry(alpha):
    x, y = (
        [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])],
        [torch.tensor([4.0, 6.0]), torch.tensor([[1.0]])],
    )
    first, second = alpha if isinstance(alpha, list) else (float(alpha), float(alpha))
    found = vectors.add(x, alpha, y)
    assert [t.tolist() for t in found] == [[1 + 4 * first, 2 + 6 * first], [[3 + second]]]
    assert x[0].tolist() == [1.0, 2.0]
