"""Noise round by round against dense matrices."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pfl_mobile.errors import ConfigError, StateError
from pfl_mobile.privacy import (
    CorrelatedNoise,
    Gaussian,
    IndependentNoise,
    Matrix,
    SecureNoise,
    SimulatedNoise,
    Unsampled,
)
from pfl_mobile.privacy.matrix import prefix_noise, root_coefficients


def dense(rounds: int, band: int) -> np.ndarray:
    """The matrix C: lower triangular, Toeplitz, banded."""
    c = root_coefficients(band)
    matrix = np.zeros((rounds, rounds))
    for i, j in itertools.product(range(rounds), repeat=2):
        if 0 <= i - j < band:
            matrix[i, j] = c[i - j]
    return matrix


def test_coefficients_are_those_of_the_square_root() -> None:
    """Their square is 1 / (1 - x): all ones."""
    c = root_coefficients(30)
    c = c / c[0]
    assert np.convolve(c, c)[:30] == pytest.approx(np.ones(30))
    assert c[:4] == pytest.approx([1, 1 / 2, 3 / 8, 5 / 16])


@pytest.mark.parametrize("band", [1, 2, 5, 12, 40])
def test_matrix_noise_is_the_inverse_matrix_times_independent_noise(band: int) -> None:
    rounds, size = 30, 7
    mechanism = CorrelatedNoise(1.5, band, SimulatedNoise(4))
    found = np.stack([mechanism.noise(size, 2.0) for _ in range(rounds)])
    source = SimulatedNoise(4)
    fresh = np.stack([source.normal(size) for _ in range(rounds)])
    assert found == pytest.approx(np.linalg.inv(dense(rounds, band)) @ fresh * 1.5 * 2.0, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("rounds", "band"), [(12, 3), (10, 4), (9, 9), (7, 1)])
def test_sensitivity_is_that_of_the_worst_participation(rounds: int, band: int) -> None:
    """No set of participations ``band`` apart, nor any signs, gives more than sqrt(k)."""
    c, worst = dense(rounds, band), {}
    for chosen in itertools.product([0, 1], repeat=rounds):
        at = np.flatnonzero(chosen)
        if len(at) and (len(at) == 1 or np.diff(at).min() >= band):
            gram = np.abs(c[:, at].T @ c[:, at]).sum()  # the worst of all signs and directions
            worst[len(at)] = max(worst.get(len(at), 0.0), gram)
    assert max(worst) == math.ceil(rounds / band)
    for k, square in worst.items():
        assert square <= k * (1 + 1e-12)
    assert worst[1] == pytest.approx(1.0)


def test_matrix_noise_hurts_the_model_less_than_independent_noise() -> None:
    """Error of all prefix sums at the same epsilon: same separation, so the same participations."""
    rounds, band = 400, 100
    prefix = np.tril(np.ones((rounds, rounds)))
    correlated = np.linalg.norm(prefix @ np.linalg.inv(dense(rounds, band)))
    independent = np.linalg.norm(prefix)
    assert correlated < independent / 2
    mechanism = CorrelatedNoise(1.0, band, SimulatedNoise(0))
    total = sum(mechanism.noise(500, 1.0) for _ in range(rounds))
    assert float(np.std(total)) < math.sqrt(rounds) / 2


@pytest.mark.parametrize("stop", [0, 1, 3, 4, 5, 11])
@pytest.mark.parametrize("band", [1, 5])
def test_a_restored_mechanism_goes_on_as_if_it_had_not_stopped(stop: int, band: int) -> None:
    def run(mechanism: CorrelatedNoise, source: SimulatedNoise, rounds: int) -> list[np.ndarray]:
        mechanism.source = source
        return [mechanism.noise(6, 1.0) for _ in range(rounds)]

    whole = run(CorrelatedNoise(1.0, band, SimulatedNoise(0)), SimulatedNoise(1), 12)
    source, first = SimulatedNoise(1), CorrelatedNoise(1.0, band, SimulatedNoise(0))
    run(first, source, stop)
    second = CorrelatedNoise(1.0, band, SimulatedNoise(0))
    second.restore({k: v.copy() for k, v in first.state().items()})
    rest = run(second, source, 12 - stop)
    assert all(np.array_equal(a, b) for a, b in zip(whole[stop:], rest, strict=True))


def test_a_state_of_another_mechanism_is_refused() -> None:
    mechanism = CorrelatedNoise(1.0, 4, SimulatedNoise(0))
    for _ in range(6):
        mechanism.noise(3, 1.0)
    saved = mechanism.state()
    assert saved["noise"].shape == (3, 3)
    with pytest.raises(StateError):
        CorrelatedNoise(1.0, 6, SimulatedNoise(0)).restore(saved)
    with pytest.raises(StateError):
        CorrelatedNoise(1.0, 4, SimulatedNoise(0)).restore({"noise": saved["noise"]})
    with pytest.raises(StateError):
        CorrelatedNoise(1.0, 4, SimulatedNoise(0)).restore(saved | {"noise": saved["noise"] * np.nan})
    with pytest.raises(StateError):
        IndependentNoise(1.0, SimulatedNoise(0)).restore(saved)


def test_matrix_noise_needs_one_clip_norm_and_one_shape() -> None:
    mechanism = CorrelatedNoise(1.0, 4, SimulatedNoise(0))
    mechanism.noise(3, 1.0)
    for size, sensitivity in ((3, 2.0), (4, 1.0)):
        with pytest.raises(ConfigError):
            mechanism.noise(size, sensitivity)
    with pytest.raises(ConfigError):
        CorrelatedNoise(1.0, 0, SimulatedNoise(0))


@pytest.mark.parametrize("band", [None, 1, 4])
def test_noise_in_the_model_is_that_of_the_dense_matrices(band: int | None) -> None:
    config = Matrix(
        clip_norm=3.0, noise_multiplier=2.0, cohort=8, band=band, participation=Unsampled(min_separation=6)
    )
    prefix = np.tril(np.ones((20, 20)))
    expected = np.linalg.norm(prefix @ np.linalg.inv(dense(20, band or 6)), axis=1)
    assert prefix_noise(config, 20) == pytest.approx(2.0 / 8 * expected)
    plain = Gaussian(clip_norm=3.0, noise_multiplier=2.0, cohort=8)
    assert prefix_noise(plain, 20) == pytest.approx(2.0 / 8 * np.sqrt(np.arange(1, 21)))


def chi_square_holds(values: np.ndarray, std: float) -> bool:
    low, high = stats.chi2.ppf([1e-9, 1 - 1e-9], values.size)
    return bool(low < float((values**2).sum()) / std**2 < high)


def test_matrix_noise_has_the_claimed_variance_in_every_round() -> None:
    mechanism = CorrelatedNoise(1.3, 4, SecureNoise())
    rows = np.linalg.norm(np.linalg.inv(dense(12, 4)), axis=1)
    for t in range(12):
        assert chi_square_holds(mechanism.noise(50_000, 0.7), 1.3 * 0.7 * rows[t])
