"""Guards restore what they guard, bit for bit, whatever happens inside."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from optland.context import numpy_state
from optland.context.modules import preserve_buffers, preserve_modes, set_modes
from optland.context.numpy_state import NumpyState
from optland.context.precision import exact_precision
from optland.context.probe import probe_context
from optland.context.rng import RandomSnapshot, load_rng_state, preserve_rng, rng_state


def draw_from_all() -> tuple[float, ...]:
    return (
        float(torch.rand(())),
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),  # noqa: NPY002
        float(np.random.randn()),  # noqa: NPY002
    )


def test_random_state_is_restored_for_all_generators() -> None:
    state = rng_state()
    expected = draw_from_all()
    load_rng_state(state)
    with preserve_rng():
        inside = draw_from_all()
    assert inside == draw_from_all() == expected


def test_a_snapshot_is_restored_as_often_as_wanted() -> None:
    start = RandomSnapshot()
    expected = draw_from_all(), draw_from_all()
    for _ in range(2):
        start.restore()
        assert (draw_from_all(), draw_from_all()) == expected
    start.restore()
    again = RandomSnapshot()  # nothing drawn since
    assert draw_from_all() == expected[0]
    again.restore()
    assert draw_from_all() == expected[0]


@pytest.mark.parametrize(
    "draw",
    [lambda: random.gauss(0, 1), lambda: float(np.random.randn())],  # noqa: NPY002
    ids=["python", "numpy"],
)
def test_a_snapshot_knows_of_the_normal_number_that_is_kept_aside(draw: Callable[[], float]) -> None:
    """Of a pair the second is kept; using it up leaves all words of the generator as they were."""
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    state = rng_state()
    for drawn_before in (0, 1, 2, 3):
        load_rng_state(state)
        RandomSnapshot()
        for _ in range(drawn_before):
            draw()
        snapshot = RandomSnapshot()
        expected = [draw() for _ in range(3)]
        for drawn in (1, 2, 3):
            snapshot.restore()
            assert [draw() for _ in range(drawn)] == expected[:drawn]


def test_what_is_known_to_be_present_is_left_and_all_else_put_back() -> None:
    """Also where the words are equal and only the number kept aside is not."""
    draws: list[Callable[[], float]] = [
        random.random,
        lambda: random.gauss(0, 1),
        lambda: float(np.random.rand()),  # noqa: NPY002
        lambda: float(np.random.randn()),  # noqa: NPY002
        lambda: float(torch.rand(())),
    ]
    for draw in draws:
        for drawn_before in (0, 1):
            np.random.seed(0)  # noqa: NPY002
            random.seed(0)
            for _ in range(drawn_before):
                draw()
            start = RandomSnapshot()
            expected = draw_from_all(), draw()
            start.restore()
            for drawn in (0, 1, 2):
                for _ in range(drawn):
                    draw()
                start.restore()
            assert (draw_from_all(), draw()) == expected


def test_numpy_s_state_is_told_and_put_back_as_numpy_itself_does_it() -> None:
    """Whatever was drawn, read and put back before, in any order."""
    numpy, choices = np.random, random.Random(0)
    acts: list[Callable[[], Any]] = [
        numpy.rand, numpy.randn, numpy.random, lambda: numpy.seed(choices.randrange(3)), lambda: numpy.rand(700)
    ]  # fmt: skip
    kept: list[tuple[NumpyState, Any]] = []
    for _ in range(300):
        choices.choice(acts)()
        kept = [*kept[-5:], (NumpyState.now(), numpy.get_state(legacy=True))]
        state, told = choices.choice(kept)
        if choices.random() < 0.5:
            state.restore()
            assert_same_state(numpy.get_state(legacy=True), told)


def assert_same_state(one: Any, other: Any) -> None:
    assert one[0] == other[0]
    assert np.array_equal(one[1], other[1])
    assert one[2:4] == other[2:4]
    assert one[4] == other[4] or one[3] == 0  # what is left of a number that was used up


def test_bytes_that_are_laid_out_otherwise_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_state, "_is_laid_out_as_known", lambda: False)
    assert NumpyState.now().raw is None
    first, drawn = NumpyState.now(), np.random.rand()  # noqa: NPY002
    first.restore()
    assert np.random.rand() == drawn  # noqa: NPY002


def test_a_snapshot_works_with_another_generator_in_numpy() -> None:
    numpy: Any = np.random  # does not say in its types that it has them
    before = numpy.get_bit_generator()
    numpy.set_bit_generator(np.random.PCG64(0))
    try:
        snapshot = RandomSnapshot()
        drawn = np.random.rand()  # noqa: NPY002
        snapshot.restore()
        assert np.random.rand() == drawn  # noqa: NPY002
        snapshot.restore()
        assert np.random.rand() == drawn  # noqa: NPY002
    finally:
        numpy.set_bit_generator(before)


def test_seeded_blocks_repeat_for_all_generators() -> None:
    with preserve_rng(5):
        first = draw_from_all()
    with preserve_rng(5):
        assert draw_from_all() == first
    with preserve_rng(6):
        assert all(a != b for a, b in zip(draw_from_all(), first, strict=True))


def test_seeding_inside_queues_nothing_for_a_device_that_is_not_initialised() -> None:
    torch.manual_seed(1)
    queued = repr(torch.cuda._queued_calls) if hasattr(torch.cuda, "_queued_calls") else ""
    with preserve_rng(0):
        torch.rand(2)
    assert (repr(torch.cuda._queued_calls) if hasattr(torch.cuda, "_queued_calls") else "") == queued


def test_random_state_can_be_saved_without_pickled_code(tmp_path: Any) -> None:
    torch.save(rng_state(), tmp_path / "state.pt")
    expected = draw_from_all()
    load_rng_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw_from_all() == expected


def test_modes_are_restored_module_by_module() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    model[1].eval()
    before = [m.training for m in model.modules()]

    def fail_inside() -> None:
        with preserve_modes(model):
            set_modes(model, training=False)
            assert not any(m.training for m in model.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert [m.training for m in model.modules()] == before == [True, True, False, True]


def test_running_statistics_are_restored_bit_for_bit() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model(torch.randn(8, 3))
    before = [b.clone() for b in model.buffers()]
    with preserve_buffers(model):
        model(100 * torch.randn(8, 3))
        assert not torch.equal(model[1].running_mean, before[0])
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))


def test_replaced_and_written_buffers_are_restored() -> None:
    model = nn.BatchNorm1d(2)
    address = model.running_var.data_ptr()

    def fail_inside() -> None:
        with preserve_buffers(model):
            model.running_mean = torch.full((2,), 9.0)
            model.running_var.add_(1.0)
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert torch.equal(model.running_mean, torch.zeros(2))
    assert torch.equal(model.running_var, torch.ones(2))
    assert model.running_var.data_ptr() == address


def test_a_graph_through_batch_norm_survives_the_guard() -> None:
    model = nn.BatchNorm1d(3)
    x = torch.randn(5, 3, requires_grad=True)
    y = model(x).pow(3).sum()
    with preserve_buffers(model):
        model(10 * torch.randn(5, 3))
    (gradient,) = torch.autograd.grad(y, x)
    assert torch.isfinite(gradient).all()


def test_autocast_is_off_inside() -> None:
    a = torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with exact_precision():
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_float32_products_are_exact_inside_and_the_users_setting_comes_back(setting: Any) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(setting)
        backends: Any = torch.backends
        outside = backends.cuda.matmul.allow_tf32
        with exact_precision():
            if hasattr(backends.cuda.matmul, "fp32_precision"):
                assert backends.cuda.matmul.fp32_precision == "ieee"
                assert backends.mkldnn.matmul.fp32_precision == "ieee"
            else:
                assert torch.backends.cuda.matmul.allow_tf32 is False
                assert torch.backends.cudnn.allow_tf32 is False
        assert torch.backends.cuda.matmul.allow_tf32 == outside
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_user_of_the_new_precision_settings_can_probe() -> None:
    """Reading the old flags after the new ones were set raises, so the guard must not."""
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip(f"PyTorch {torch.__version__} has the old flags alone; the new ones came with 2.9")
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with exact_precision():
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before


def test_attention_can_be_differentiated_twice_inside() -> None:
    q = torch.randn(1, 1, 4, 4, requires_grad=True)

    def second() -> Tensor:
        out = F.scaled_dot_product_attention(q, q, q).square().sum()
        (first,) = torch.autograd.grad(out, q, create_graph=True)
        return torch.autograd.grad(first.sum(), q)[0]

    with pytest.raises(RuntimeError):
        second()
    with exact_precision():
        assert torch.isfinite(second()).all()


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_probe_context_sets_the_mode_and_restores_everything(mode: str) -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    model[0].eval()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    with probe_context(model, mode, 0):
        assert all(m.training == (mode == "train") for m in model.modules())
        model(torch.randn(4, 2))
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model[0].running_mean, torch.zeros(2))
