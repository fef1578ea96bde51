"""What Poisson sampling gives away by rounds that are merged or not."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.errors import ConfigError
from pfl_mobile.privacy import PrivacyConfig
from pfl_server import defaults
from pfl_server.minimum import SHARE, check_minimum, deciding_delta, largest_minimum
from tests.server.federation import federation_config, small


def poisson(**changes):
    base = {
        "mechanism": "gaussian",
        "noise_multiplier": 1.0,
        "clip_norm": 1.0,
        "sampling": "poisson",
        "population": 10_000,
        "cohort": 100,
        "delta": 1e-6,
    }
    return PrivacyConfig.checked(base | changes)


@given(st.integers(2, 12), st.data())
def test_a_device_decides_as_often_as_the_others_are_one_short(population, data):
    cohort, minimum = (data.draw(st.integers(1, population)) for _ in range(2))
    privacy = poisson(population=population, cohort=cohort, delta=1e-3)
    q, n, k = cohort / population, population - 1, minimum - 1
    expected = q * math.comb(n, k) * q**k * (1 - q) ** (n - k)
    assert deciding_delta(privacy, minimum) == pytest.approx(expected, rel=1e-9)


def test_other_sampling_shows_nothing():
    assert deciding_delta(poisson(sampling="fixed"), 99) == 0.0
    assert deciding_delta(poisson(sampling="none"), 99) == 0.0
    assert deciding_delta(poisson(mechanism="none", noise_multiplier=0.0), 99) == 0.0


@given(st.integers(40, 300), st.integers(1, 1000))
def test_the_largest_minimum_that_fits_is_found(cohort, rounds):
    privacy = poisson(cohort=cohort)
    best = largest_minimum(privacy, rounds, cohort)
    assert deciding_delta(privacy, best) * rounds <= SHARE * privacy.delta
    assert deciding_delta(privacy, best + 1) * rounds > SHARE * privacy.delta
    assert largest_minimum(privacy, rounds, 1) == 1


def config(minimum, **changes):
    privacy = poisson(**changes).model_dump()
    rounds = {"cohort": privacy["cohort"], "minimum": minimum, "total": 100}
    return federation_config(rounds=rounds, privacy=privacy)


def test_a_minimum_near_the_cohort_is_refused_and_a_better_one_named(tmp_path):
    best = largest_minimum(poisson(), 100, 100)
    assert 20 < best < 70
    with pytest.raises(ConfigError, match="merged or not") as caught, small(tmp_path, config(90)):
        pass
    assert f"rounds.minimum to {best} " in caught.value.mend
    check_minimum(config(best))
    with pytest.raises(ConfigError):
        check_minimum(config(best + 1))


def test_where_no_minimum_helps_another_sampling_is_named():
    with pytest.raises(ConfigError) as caught:
        check_minimum(config(1, cohort=5))
    assert "'none'" in caught.value.mend


def test_rounds_without_an_end_are_refused():
    found = config(10)
    endless = found.model_copy(update={"rounds": found.rounds.model_copy(update={"total": None})})
    with pytest.raises(ConfigError, match="no last round"):
        check_minimum(endless)


def test_the_default_minimum_fits_and_a_given_one_stays():
    for cohort in (20, 50, 100):
        privacy = poisson(cohort=cohort)
        found = defaults.federation_config({"rounds": {"cohort": cohort, "total": 200}}, privacy=privacy)
        check_minimum(found)
        assert found.rounds.minimum <= math.ceil(defaults.MINIMUM_SHARE * cohort)
    given = {"rounds": {"cohort": 100, "total": 200, "minimum": 90}}
    assert defaults.federation_config(given, privacy=poisson()).rounds.minimum == 90
    check_minimum(defaults.federation_config({}, privacy=poisson(cohort=50)))
