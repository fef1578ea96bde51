"""Noise: Gaussian, never repeated, and only repeatable where the name says so."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pfl_mobile.errors import ConfigError
from pfl_mobile.privacy import SecureNoise, SimulatedNoise, require_secure
from pfl_mobile.privacy.noise import BLOCK, SUMMANDS, _quadrant, _summed_box_muller

MANY = 400_000


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return SecureNoise().normal(MANY)


def test_secure_noise_has_the_moments_of_a_standard_gaussian(values: np.ndarray) -> None:
    low, high = stats.chi2.ppf([1e-9, 1 - 1e-9], MANY)
    assert low < float((values**2).sum()) < high
    assert abs(values.mean()) < 6 / math.sqrt(MANY)
    assert abs((values**3).mean()) < 6 * math.sqrt(15 / MANY)
    assert abs((values**4).mean() - 3) < 6 * math.sqrt(96 / MANY)


def test_secure_noise_has_the_distribution_of_a_standard_gaussian(values: np.ndarray) -> None:
    assert stats.kstest(values, "norm").pvalue > 1e-9


def test_values_of_a_block_are_independent(values: np.ndarray) -> None:
    """Also those half a block apart, which come from the two sides of the same Box-Muller pairs."""
    for apart in (1, BLOCK // 2, BLOCK):
        one, other = values[:-apart], values[apart:]
        assert abs((one * other).mean()) < 6 / math.sqrt(len(one))
        assert abs((one**2 * other**2).mean() - 1) < 6 * math.sqrt(8 / len(one))


def test_secure_noise_never_repeats() -> None:
    source = SecureNoise()
    assert source.secure is True
    blocks = [source.normal(50) for _ in range(4)] + [SecureNoise().normal(50)]
    assert len({block.tobytes() for block in blocks}) == len(blocks)
    long = source.normal(2 * BLOCK)
    assert not np.array_equal(long[:BLOCK], long[BLOCK:])


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_any_size_is_filled(size: int) -> None:
    found = SecureNoise().normal(size)
    assert found.shape == (size,)
    assert found.dtype == np.float64
    assert np.isfinite(found).all()


def test_box_muller_is_that_of_the_textbook() -> None:
    words = np.random.default_rng(3).integers(0, 2**64, (2, SUMMANDS, BLOCK // 2), np.uint64)
    u = words >> np.uint64(11)
    found = _summed_box_muller(words.copy())
    for i in (0, 5, BLOCK // 2 - 1):
        cosine = sine = 0.0
        for k in range(SUMMANDS):
            radius = math.sqrt(-2 * math.log((int(u[0, k, i]) + 1) / 2**53))
            angle = math.pi / 2 * int(u[1, k, i]) / 2**53
            signs = int(words[1, k, i])
            cosine += (-1) ** (signs & 1) * radius * math.cos(angle)
            sine += (-1) ** (signs >> 1 & 1) * radius * math.sin(angle)
        assert found[i] == pytest.approx(cosine / 2, rel=1e-12, abs=1e-14)
        assert found[BLOCK // 2 + i] == pytest.approx(sine / 2, rel=1e-12, abs=1e-14)


def test_cosine_and_sine_are_exact_in_the_whole_quadrant() -> None:
    angle = np.linspace(0, math.pi / 2, 100_001)
    cosine, sine = _quadrant(angle.copy())
    assert np.abs(cosine - math.sqrt(2) * np.cos(angle)).max() < 2**-50
    assert np.abs(sine - math.sqrt(2) * np.sin(angle)).max() < 2**-50


@pytest.mark.parametrize("word", [0, 2**64 - 1])
def test_extreme_random_bits_give_finite_values(word: int) -> None:
    words = np.full((2, SUMMANDS, BLOCK // 2), word, np.uint64)
    assert np.isfinite(_summed_box_muller(words)).all()


def test_simulated_noise_repeats_and_is_refused_where_it_must_be_secure() -> None:
    assert np.array_equal(SimulatedNoise(7).normal(9), SimulatedNoise(7).normal(9))
    source = SimulatedNoise(7)
    rounds = []
    for number in (0, 1, 1):
        source.begin(number)
        rounds.append(source.normal(9))
    assert not np.array_equal(rounds[0], rounds[1])
    assert np.array_equal(rounds[1], rounds[2])
    assert SimulatedNoise(7).secure is False
    require_secure(SecureNoise())
    with pytest.raises(ConfigError, match="SimulatedNoise"):
        require_secure(SimulatedNoise(7))


def test_a_negative_size_is_refused() -> None:
    for source in (SecureNoise(), SimulatedNoise(0)):
        with pytest.raises(ConfigError):
            source.normal(-1)
