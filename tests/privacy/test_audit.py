"""The audit: its statistics, and that it finds what is there and no more."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pfl_mobile.errors import ConfigError
from pfl_mobile.privacy import (
    AdaptiveClipping,
    DeviceNoise,
    Fixed,
    Gaussian,
    Matrix,
    NoNoise,
    Poisson,
    PrivacyConfig,
    SimulatedNoise,
    Unsampled,
)
from pfl_mobile.privacy.audit import audit, best_bound, epsilon_lower_bound, guess_probability

BASE: dict[str, Any] = {"clip_norm": 1.0, "cohort": 100, "delta": 1e-5}
CONFIGS = {
    "gaussian": (Gaussian(**BASE, noise_multiplier=1.5), 2),
    "poisson": (Gaussian(**BASE, noise_multiplier=0.7, population=500, participation=Poisson()), 8),
    "fixed": (Gaussian(**BASE, noise_multiplier=2.0, population=500, participation=Fixed()), 8),
    "matrix": (Matrix(**BASE, noise_multiplier=1.0, participation=Unsampled(min_separation=4)), 8),
    "adaptive": (
        Gaussian(**BASE, noise_multiplier=2.0, adaptive=AdaptiveClipping(noise_multiplier=2.0)),
        3,
    ),
    "local": (DeviceNoise(**BASE, local_noise_multiplier=1.0), 1),
}


@pytest.mark.parametrize(("config", "rounds"), CONFIGS.values(), ids=CONFIGS.keys())
def test_the_bound_lies_below_the_accounted_epsilon_and_is_large_without_noise(
    config: PrivacyConfig, rounds: int
) -> None:
    found = audit(config, rounds, canaries=300, width=3000, source=SimulatedNoise(1))
    assert found.holds
    assert found.private.epsilon_accounted is not None
    assert 0 <= found.private.epsilon_lower < found.private.epsilon_accounted
    assert found.without_noise.epsilon_accounted is None
    assert found.without_noise.epsilon_lower > 1.5 * found.private.epsilon_lower
    assert found.without_noise.epsilon_lower > 1.5
    assert found.private.auc < found.without_noise.auc
    assert found.to_json()["holds"] is True


def test_the_attack_sees_through_weak_noise() -> None:
    weak = Gaussian(**BASE, noise_multiplier=0.3)
    found = audit(weak, 1, canaries=300, width=3000, source=SimulatedNoise(1))
    assert found.private.epsilon_lower > 2
    assert found.private.auc > 0.95


def test_forgotten_noise_is_found_out() -> None:
    """A merge whose noise is a hundredth of what is accounted fails the audit."""

    class Broken(SimulatedNoise):
        def normal(self, size: int) -> np.ndarray:
            return super().normal(size) / 100

    strong = Gaussian(**BASE, noise_multiplier=3.0)
    found = audit(strong, 1, canaries=300, width=3000, source=Broken(1))
    assert not found.holds


def test_correlated_noise_is_whitened_by_the_attacker() -> None:
    """Else the audit of the matrix mechanism would be blind."""
    config, rounds = CONFIGS["matrix"]
    same = Gaussian(**BASE, noise_multiplier=1.0)
    matrix = audit(config, rounds, canaries=400, width=4000, source=SimulatedNoise(1))
    plain = audit(same, 2, canaries=400, width=4000, source=SimulatedNoise(1))
    assert matrix.private.epsilon_accounted == pytest.approx(plain.private.epsilon_accounted)
    assert matrix.private.auc == pytest.approx(plain.private.auc, abs=0.06)


def test_the_bound_without_delta_is_that_of_clopper_and_pearson() -> None:
    accuracy = stats.beta.ppf(0.05, 90, 100 - 90 + 1)
    assert epsilon_lower_bound(100, 100, 90, 0.0, 0.05) == pytest.approx(
        math.log(accuracy / (1 - accuracy)), rel=1e-6
    )
    assert epsilon_lower_bound(100, 100, 50, 0.0, 0.05) == 0
    assert epsilon_lower_bound(100, 100, 90, 1e-3, 0.05) < epsilon_lower_bound(100, 100, 90, 0.0, 0.05)


def test_probabilities_of_guesses_are_binomial() -> None:
    for epsilon in (0.0, 0.5, 3.0, 50.0):
        expected = stats.binom.sf(69, 100, 1 / (1 + math.exp(-epsilon)))
        assert guess_probability(100, 100, 70, epsilon, 0.0) == pytest.approx(expected, rel=1e-9)


def test_blind_guesses_prove_nothing() -> None:
    """At 95 % confidence at most some of 200 blind attackers are wrong."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(200):
        coins = rng.random(200) < 0.5
        wrong += best_bound(rng.normal(size=200), coins, 1e-5, 0.95)[0] > 0
    assert wrong <= 20


def test_what_cannot_be_audited_is_refused() -> None:
    good = Gaussian(**BASE, noise_multiplier=1.0)
    for config, changes in (
        (NoNoise(clip_norm=1.0, cohort=1), {"rounds": 1}),
        (good, {}),
        (good, {"rounds": 0}),
        (good, {"rounds": 1, "canaries": 3}),
        (good, {"rounds": 1, "confidence": 1.0}),
        (CONFIGS["fixed"][0], {"rounds": 1, "canaries": 501}),
    ):
        with pytest.raises(ConfigError):
            audit(config, **changes)  # type: ignore[arg-type]
