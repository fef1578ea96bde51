"""The private mean: what one device can move, and the noise on top."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from pfl_mobile.errors import ConfigError, NonFiniteError
from pfl_mobile.merge.update_rows import COLUMNS, GROUP, MatrixRows
from pfl_mobile.privacy import (
    DeviceNoise,
    Gaussian,
    IndependentNoise,
    Matrix,
    PrivateMean,
    SecureNoise,
    SimulatedNoise,
    l2_norm,
    private_update,
)
from pfl_mobile.privacy.private_mean import float64_sum

CONFIG = Gaussian(clip_norm=0.5, noise_multiplier=1.2, cohort=20)
EDGES = [0.0, -0.0, 1e30, -1e30, 3.4028235e38, -3.4028235e38, 1.4e-45, 1e-38, 0.5, -0.5, 0.25, 1.0000001]
ELEMENTS = st.one_of(
    st.sampled_from(EDGES).map(lambda v: float(np.float32(v))),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def rule(clip_norm: float = 0.5) -> PrivateMean:
    return PrivateMean(CONFIG, IndependentNoise(0.0, SimulatedNoise(0)), clip_norm)


@st.composite
def federation(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, float, float]:
    """Rows and weights of some devices, the row and weight of one more, and a clip norm's exponent."""
    n, width = draw(st.integers(0, 2 * GROUP + 2)), draw(st.integers(1, 6))
    rows = draw(hnp.arrays(np.float32, (n + 1, width), elements=ELEMENTS))
    weights = draw(hnp.arrays(np.float64, n + 1, elements=st.floats(-3, 3)))
    return (
        rows,
        weights,
        draw(hnp.arrays(np.float32, width, elements=ELEMENTS)),
        draw(st.floats(-3, 3)),
        10.0 ** draw(st.floats(-9, 9)),
    )


@given(federation())
@settings(max_examples=150)
def test_one_device_more_or_less_moves_the_sum_by_at_most_the_sensitivity(
    found: tuple[np.ndarray, np.ndarray, np.ndarray, float, float],
) -> None:
    rows, weights, _, _, clip = found
    private = rule(clip)
    for gone in {0, len(rows) // 2, len(rows) - 1}:
        kept = np.delete(np.arange(len(rows)), gone)
        with_it = private.exact_sum(MatrixRows(rows), weights)
        without = private.exact_sum(MatrixRows(rows[kept]), weights[kept])
        assert np.linalg.norm(with_it - without) <= CONFIG.sensitivity(clip)


@given(federation())
@settings(max_examples=150)
def test_another_device_in_its_place_moves_the_sum_by_at_most_twice_the_sensitivity(
    found: tuple[np.ndarray, np.ndarray, np.ndarray, float, float],
) -> None:
    rows, weights, row, weight, clip = found
    private = rule(clip)
    other, heavier = rows.copy(), weights.copy()
    other[len(rows) // 2], heavier[len(rows) // 2] = row, weight
    moved = private.exact_sum(MatrixRows(other), heavier) - private.exact_sum(MatrixRows(rows), weights)
    assert np.linalg.norm(moved) <= 2 * CONFIG.sensitivity(clip)


def test_the_bound_is_reached() -> None:
    """By devices that push as hard as they may, so the noise is not more than it must be."""
    rows = np.zeros((3, 50), np.float32)
    rows[0] = 1e30
    rows[1] = -1e30
    one = rule().exact_sum(MatrixRows(rows[:1]), np.array([1e9]))
    assert np.linalg.norm(one) == pytest.approx(0.5, rel=1e-5)
    other = rule().exact_sum(MatrixRows(rows[1:2]), np.array([1e9]))
    assert np.linalg.norm(one - other) == pytest.approx(1.0, rel=1e-5)


def test_without_noise_it_is_the_clipped_weighted_mean() -> None:
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(3 * GROUP + 1, COLUMNS + 3)).astype(np.float32)
    rows *= rng.uniform(0, 0.02, (len(rows), 1)).astype(np.float32)
    weights = rng.uniform(-0.5, 2, len(rows))
    expected = np.zeros(rows.shape[1])
    for row, weight in zip(rows.astype(np.float64), weights, strict=True):
        norm = np.linalg.norm(row)
        expected += min(max(weight, 0), 1) * row * min(1, 0.5 / norm)
    found = rule().mean(MatrixRows(rows), weights)
    assert found.dtype == np.float32
    assert found == pytest.approx((expected / 20).astype(np.float32), rel=1e-4, abs=1e-8)
    assert np.array_equal(found, rule().mean(MatrixRows(rows), weights))
    known = np.linalg.norm(rows.astype(np.float64), axis=1)
    assert found == pytest.approx(rule().mean(MatrixRows(rows), weights, row_norms=known), rel=1e-6)


def test_the_denominator_does_not_depend_on_who_takes_part() -> None:
    row = np.full((1, 4), 0.1, np.float32)
    few = rule().mean(MatrixRows(row), np.ones(1))
    many = rule().mean(MatrixRows(np.repeat(row, 10, axis=0)), np.ones(10))
    assert many == pytest.approx(10 * few)
    assert few == pytest.approx(np.full(4, 0.1 / 20))


@pytest.mark.parametrize("mechanism", [Gaussian, Matrix])
@pytest.mark.parametrize("devices", [0, 30])
def test_the_noise_added_has_the_claimed_variance(mechanism: type[Gaussian | Matrix], devices: int) -> None:
    config = mechanism(clip_norm=0.5, noise_multiplier=1.2, cohort=20, denominator=8.0)
    assert config.noise_std() == pytest.approx(1.2 * 0.5 / 8)
    width = 100_000
    rows = np.random.default_rng(0).normal(0, 1e-4, (devices, width)).astype(np.float32)
    private = PrivateMean(config, config.round_noise(SecureNoise()))
    noise = (
        private.mean(MatrixRows(rows), np.ones(devices))
        - private.exact_sum(MatrixRows(rows), np.ones(devices)) / 8
    )
    low, high = stats.chi2.ppf([1e-9, 1 - 1e-9], width)
    assert low < float((noise**2).sum()) / config.noise_std() ** 2 < high
    assert abs(float(noise.mean())) < 6 * config.noise_std() / math.sqrt(width)


def test_what_is_not_finite_is_refused_before_noise_is_drawn() -> None:
    class Untouched:
        def noise(self, size: int, sensitivity: float) -> np.ndarray:
            raise AssertionError("noise was drawn")

        def state(self) -> dict[str, np.ndarray]:
            return {}

        def restore(self, state: dict[str, np.ndarray]) -> None: ...

    private = PrivateMean(CONFIG, Untouched())
    rows = np.zeros((2, 3), np.float32)
    bad = rows.copy()
    bad[1, 2] = np.inf
    with pytest.raises(NonFiniteError):
        private.mean(MatrixRows(bad), np.ones(2))
    with pytest.raises(NonFiniteError):
        private.mean(MatrixRows(rows), np.array([1.0, np.nan]))
    with pytest.raises(ConfigError):
        private.mean(MatrixRows(rows), np.ones(3))
    with pytest.raises(ConfigError):
        private.mean(MatrixRows(rows), np.ones(2), row_norms=np.ones(1))


def test_sums_are_those_of_float64() -> None:
    rows = np.array([[1e8], [1.0], [-1e8]], np.float32)
    assert float64_sum(MatrixRows(rows), np.ones(3)).tolist() == [1.0]


def test_updates_with_noise_of_the_devices_are_not_clipped_again() -> None:
    """Else the noise would be all that is left of them."""
    config = DeviceNoise(clip_norm=0.5, cohort=50, local_noise_multiplier=2.0, delta=1e-5)
    rng, source = np.random.default_rng(0), SecureNoise()
    raw = rng.normal(size=(50, 400)).astype(np.float32) + np.float32(1)
    rows = np.stack([private_update(row, 0.5, 2.0, source) for row in raw])
    assert (np.linalg.norm(rows, axis=1) > 10).all()
    found = PrivateMean(config, config.round_noise(source)).mean(MatrixRows(rows), np.ones(50))
    assert found == pytest.approx(rows.astype(np.float64).mean(axis=0), rel=1e-5, abs=1e-6)
    rows[0] *= 1e6  # but a device that sends much more than noise explains is
    limited = PrivateMean(config, config.round_noise(source)).mean(MatrixRows(rows), np.ones(50))
    assert np.linalg.norm(limited) < 2 * config.accepted_norm(400) / 50 + np.linalg.norm(found)


def test_noise_of_a_device_has_the_claimed_variance() -> None:
    width = 100_000
    clipped = private_update(np.ones(width, np.float32), 0.5, 0.0, SecureNoise())
    assert l2_norm(clipped) <= 0.5
    noise = private_update(np.ones(width, np.float32), 0.5, 3.0, SecureNoise()) - clipped
    low, high = stats.chi2.ppf([1e-9, 1 - 1e-9], width)
    assert low < float((noise.astype(np.float64) ** 2).sum()) / 1.5**2 < high
