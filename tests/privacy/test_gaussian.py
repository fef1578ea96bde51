"""Independent noise, and which mechanism has it."""

from __future__ import annotations

from pfl_mobile.privacy import (
    AdaptiveClipping,
    CorrelatedNoise,
    DeviceNoise,
    Gaussian,
    IndependentNoise,
    Matrix,
    NoNoise,
    SecureNoise,
    SimulatedNoise,
    Unsampled,
)
from tests.privacy.test_matrix import chi_square_holds


def test_independent_noise_has_the_claimed_variance() -> None:
    mechanism = IndependentNoise(1.3, SecureNoise())
    for _ in range(2):
        assert chi_square_holds(mechanism.noise(100_000, 0.7), 1.3 * 0.7)


def test_each_mechanism_has_its_noise() -> None:
    base = {"clip_norm": 1.0, "cohort": 10, "noise_multiplier": 2.0}
    adaptive = Gaussian(**base, adaptive=AdaptiveClipping(noise_multiplier=3.0))
    found = adaptive.round_noise(SimulatedNoise(0))
    assert isinstance(found, IndependentNoise)
    assert found.noise_multiplier == adaptive.update_noise_multiplier > 2.0
    matrix = Matrix(**base, participation=Unsampled(min_separation=9)).round_noise(SimulatedNoise(0))
    assert isinstance(matrix, CorrelatedNoise)
    assert matrix.band == 9
    silent = NoNoise(clip_norm=1.0, cohort=1).round_noise(SimulatedNoise(0))
    assert not silent.noise(5, 1.0).any()
    own = DeviceNoise(clip_norm=1.0, cohort=10, local_noise_multiplier=2.0).round_noise(SimulatedNoise(0))
    assert not own.noise(5, 1.0).any()
