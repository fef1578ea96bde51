"""Plans: every option keeps the budget; simulations get the noise of the federation."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError
from pfl_mobile.privacy import DeviceNoise, Gaussian, Matrix, NoNoise, Poisson, PrivacyConfig, Unsampled
from pfl_mobile.privacy.cost import accuracy_cost, simulated, without_noise
from pfl_mobile.privacy.plan import Budget, Scheme, epsilon_by_round, noise_to_update, option, options

BUDGET = Budget(epsilon=3.0, delta=1e-4, population=1000, rounds=40)
POISSON, NONE = Scheme(Gaussian, Poisson), Scheme(Gaussian, Unsampled)
MATRIX, LOCAL = Scheme(Matrix, Unsampled), Scheme(DeviceNoise, Unsampled)


def test_larger_cohorts_and_more_assumptions_need_less_noise() -> None:
    found = {(o.scheme, o.config.cohort): o for o in options(BUDGET, 50, (POISSON, MATRIX), (1, 2))}
    assert len(found) == 4
    for scheme in (POISSON, MATRIX):
        assert found[scheme, 100].model_noise < found[scheme, 50].model_noise
    assert found[POISSON, 50].model_noise < found[MATRIX, 50].model_noise
    for o in found.values():
        assert o.epsilon_first < o.epsilon <= 3.0
        assert o.config.budget_epsilon == 3.0


def test_no_cohort_is_larger_than_the_population() -> None:
    found = options(BUDGET, 600, schemes=(MATRIX, NONE))
    assert [(o.scheme, o.config.cohort) for o in found] == [(MATRIX, 600), (NONE, 600)]


def test_correlated_noise_hurts_less_than_independent_noise() -> None:
    assert option(BUDGET, MATRIX, 20).model_noise < 0.5 * option(BUDGET, NONE, 20).model_noise


def test_epsilon_grows_up_to_the_plan() -> None:
    chosen = option(BUDGET, NONE, 50)
    points = list(epsilon_by_round(chosen.config, 40))
    assert [points[0][0], points[-1][0]] == [1, 40]
    assert (np.diff([e for _, e in points]) >= 0).all()
    assert points[-1][1] == chosen.epsilon


def test_noise_is_compared_with_the_update() -> None:
    config = Gaussian(clip_norm=7.0, noise_multiplier=2.0, cohort=100)
    assert noise_to_update(config, 10_000) == pytest.approx(2.0 / 100 * 100)
    own = DeviceNoise(clip_norm=3.0, local_noise_multiplier=2.0, cohort=100)
    assert noise_to_update(own, 10_000) == pytest.approx(2.0 / 10 * 100)


@pytest.mark.parametrize(
    "names", [("gausian", None), ("gaussian", "poison"), ("matrix", "poisson"), ("none", None)]
)
def test_a_scheme_that_there_is_not_is_refused(names: tuple[str, str | None]) -> None:
    with pytest.raises(ConfigError, match=names[1] or names[0]):
        Scheme.named(*names)


def test_schemes_have_the_names_of_the_options() -> None:
    assert Scheme.named("gaussian") == Scheme.named("gaussian", "poisson") == POISSON
    assert Scheme.named("gaussian", "none") == NONE
    assert Scheme.named("matrix") == Scheme.named("matrix", "none") == MATRIX
    for scheme in (POISSON, NONE, MATRIX, LOCAL):
        assert Scheme.named(scheme.name, scheme.sampling) == scheme


def test_noise_of_devices_keeps_a_budget_too() -> None:
    chosen = option(BUDGET, LOCAL, 50)
    assert isinstance(chosen.config, DeviceNoise)
    assert chosen.epsilon <= 3.0
    assert chosen.round_noise == pytest.approx(chosen.config.local_noise_multiplier / 50**0.5)
    assert chosen.model_noise == pytest.approx(chosen.round_noise * 40**0.5)
    assert simulated(chosen.config, 5).noise_std() == pytest.approx(chosen.round_noise)


def test_a_simulation_has_the_noise_of_the_federation() -> None:
    real = option(BUDGET, NONE, 50)
    small = simulated(real.config, 5)
    assert small.noise_std() == pytest.approx(real.config.noise_std())
    assert small.cohort == 5
    assert small.budget_epsilon is None
    matrix = option(BUDGET, MATRIX, 20)
    small = simulated(matrix.config, 5)
    assert small.noise_std() * 40**0.5 == pytest.approx(matrix.model_noise)
    assert small.noise_std() < matrix.config.noise_std()


def test_a_small_model_gets_the_noise_of_a_large_one() -> None:
    real = option(BUDGET, NONE, 50).config
    assert simulated(real, 5, 3.0).noise_std() == pytest.approx(3 * real.noise_std())
    silent = simulated(without_noise(real), 5)
    assert silent == NoNoise(cohort=5, clip_norm=real.clip_norm, rounds=40)


def test_costs_are_reported_at_the_federations_epsilon() -> None:
    real = option(BUDGET, NONE, 50)

    def run(config: PrivacyConfig | None) -> float:
        return 0.9 if config is None else 0.8 if config.guarantees else 0.85

    found = accuracy_cost([None, without_noise(real.config), real.config], run)
    assert [c.accuracy for c in found] == [0.9, 0.85, 0.8]
    assert [c.label for c in found] == ["without privacy", "without noise", "private"]
    assert [c.epsilon for c in found] == [None, None, real.epsilon]
    assert found[2].to_json()["noise_multiplier"] == real.config.noise_multiplier
