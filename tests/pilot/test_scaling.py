"""The batch and what follows it: gains of the learning rate and Adam's memory."""

from __future__ import annotations

import pytest

from optland.pilot.scaling import adam_betas, batch_gain


def test_batch_gain_has_the_limits_of_theory() -> None:
    assert batch_gain(1, 32, 500, adam=False) == 1
    assert batch_gain(8, 32, 1e12, adam=False) == pytest.approx(8)
    assert batch_gain(1e12, 32, 96, adam=False) == pytest.approx(1 + 96 / 32)
    assert batch_gain(8, 32, None, adam=False) == 1
    # eta_opt(B) = eta_max / (1 + B_n / B)
    assert batch_gain(4, 32, 96, adam=False) == pytest.approx((1 / (1 + 96 / 128)) / (1 / (1 + 96 / 32)))


def test_adam_remembers_the_same_samples() -> None:
    first, second = adam_betas((0.9, 0.999), 2)
    assert 1 / (1 - first) * 2 == pytest.approx(1 / (1 - 0.9))
    assert 1 / (1 - second) * 2 == pytest.approx(1 / (1 - 0.999))
    assert adam_betas((0.9, 0.999), 64) == (0.0, pytest.approx(0.936))


@pytest.mark.parametrize(("k", "batch"), [(0.0, 32.0), (2.0, 0.0), (-1.0, 32.0)])
def test_what_is_no_batch_is_refused(k: float, batch: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        batch_gain(k, batch, 100.0, adam=False)
