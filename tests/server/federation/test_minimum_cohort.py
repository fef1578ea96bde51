"""What Poisson sampling gives away by rounds that are merged or not."""

from __future__ import annotations

import inspect
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.errors import ConfigError, TooFewUpdatesError
from pfl_mobile.merge.rules import rule_entries
from pfl_mobile.merge.update_rows import MatrixRows
from pfl_mobile.privacy import Fixed, Gaussian, NoNoise, Poisson, Unsampled
from pfl_server.federation import defaults
from pfl_server.federation.minimum_cohort import (
    SHARE,
    check_minimum,
    deciding_delta,
    largest_minimum,
    least_minimum,
)
from tests.server.testbed import federation_config, small


def poisson(**changes):
    base = {"noise_multiplier": 1.0, "clip_norm": 1.0, "population": 10_000, "cohort": 100, "delta": 1e-6}
    return Gaussian(**{"participation": Poisson()} | base | changes)


@given(st.integers(2, 12), st.data())
def test_a_device_decides_as_often_as_the_others_are_one_short(population, data):
    cohort, minimum = (data.draw(st.integers(1, population)) for _ in range(2))
    privacy = poisson(population=population, cohort=cohort, delta=1e-3)
    q, n, k = cohort / population, population - 1, minimum - 1
    expected = q * math.comb(n, k) * q**k * (1 - q) ** (n - k)
    assert deciding_delta(privacy, minimum) == pytest.approx(expected, rel=1e-9)


def test_other_sampling_shows_nothing():
    assert deciding_delta(poisson(participation=Fixed()), 99) == 0.0
    assert deciding_delta(poisson(participation=Unsampled()), 99) == 0.0
    assert deciding_delta(NoNoise.like(poisson()), 99) == 0.0


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


@given(st.sampled_from(rule_entries()), st.floats(0, 0.49), st.integers(1, 60))
def test_from_the_least_minimum_on_a_rule_merges_any_number_of_updates(entry, attackers, cohort):
    given_too = {"attackers": attackers} if "attackers" in inspect.signature(entry.make).parameters else {}
    rule = entry.make(**given_too)

    def merges(count):
        rows = MatrixRows(np.zeros((count, 2), np.float32))
        try:
            rule.mean(rows, np.ones(count))
        except TooFewUpdatesError:
            return False
        return True

    least = least_minimum(rule, cohort)
    if least is None:
        assert not merges(cohort)
    else:
        assert all(merges(count) for count in range(least, cohort + 1))
        assert least == 1 or not merges(least - 1)


@pytest.mark.parametrize(
    ("rule", "rounds", "message", "mend"),
    [
        (
            {"name": "krum"},
            {"cohort": 3, "minimum": 2},
            "Krum with 1 attackers among 3 updates needs 5",
            "--cohort",
        ),
        (
            {"name": "krum"},
            {"cohort": 10, "minimum": 4},
            "among 6 updates needs 7",
            "--minimum\\) to 7 or more",
        ),
        (
            {"name": "multi_krum", "parameters": {"keep": 9}},
            {"cohort": 9, "minimum": 9},
            "keeps 9",
            "--cohort",
        ),
        ({"name": "trimmed_mean"}, {"cohort": 4, "minimum": 1}, "among 2 updates needs 3", "to 3 or more"),
    ],
)
def test_rounds_that_a_robust_rule_could_not_merge_are_refused_at_the_start(
    tmp_path, rule, rounds, message, mend
):
    config = federation_config(rule=rule, rounds=rounds)
    with pytest.raises(ConfigError, match=message) as caught, small(tmp_path, config):
        pass
    assert re.search(mend, caught.value.mend)


def test_buffered_rounds_have_the_whole_cohort(tmp_path):
    """Krum needs 5 updates: a buffer always has its 5, a round that closes with the minimum of 1 might not."""
    rounds = {"mode": "buffered", "cohort": 5, "minimum": 1}
    with small(tmp_path / "buffered", federation_config(rule={"name": "krum"}, rounds=rounds)) as f:
        assert f.round().state == "open", "its first round begins"
    rounds["mode"] = "synchronous"
    refused = federation_config(rule={"name": "krum"}, rounds=rounds)
    with pytest.raises(ConfigError, match="may be too small"), small(tmp_path / "synchronous", refused):
        pass


def test_unless_said_the_minimum_is_enough_for_the_rule():
    given = {"rule": {"name": "krum"}, "rounds": {"cohort": 8}}
    assert defaults.federation_config(given, private=False).rounds.minimum == 7
    assert defaults.federation_config({"rounds": {"cohort": 8}}, private=False).rounds.minimum == 4
