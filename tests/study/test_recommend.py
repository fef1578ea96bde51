"""Whom to personalize: what evidence is enough, and what is said of it."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.study.recommend import recommend
from tests.study.evaluations import evaluation, noisy


def test_a_certain_gain_is_recommended():
    found = recommend(noisy(3.0))
    assert found.verdict == "personalize"
    assert found.users == 60
    assert found.expected_gain.low > 0


@pytest.mark.parametrize("users", [1, 2, 5])
def test_a_handful_of_users_is_no_evidence(users):
    found = recommend(evaluation([50] * users, [60] * users))
    assert found.verdict == found.to_json()["verdict"] == "not enough data"
    assert any("too few" in sentence for sentence in found.why)


@pytest.mark.parametrize("users", [6, 9, 12, 30])
def test_chance_is_seldom_taken_for_a_gain(users):
    generator = np.random.default_rng(users)
    found = [recommend(evaluation([50.0] * users, 50 + generator.normal(0, 5, users))) for _ in range(200)]
    assert sum(f.verdict != "do not personalize" for f in found) <= 12


def test_a_strategy_without_own_models_tells_nothing_about_them():
    found = recommend(evaluation([50, 90] * 10, [50, 90] * 10, has_own=False))
    assert (found.verdict, found.users) == ("not measured", 0)
    assert "no models of users' own" in found.why[0]
    assert not any("personalization gains" in sentence for sentence in found.why)


def test_no_gain_is_not_recommended():
    for found in (recommend(noisy(-0.5)), recommend(noisy(0.0, seed=3))):
        assert found.verdict == "do not personalize"
        assert "No gain is certain" in found.why[-1]


def test_a_certain_harm_is_said_to_be_one():
    found = recommend(noisy(-3.0))
    assert found.verdict == "do not personalize"
    assert "It does harm, certain at 95 %" in found.why[-1]
    assert not any("No gain is certain" in sentence for sentence in found.why)


def test_a_gain_of_those_with_many_examples_is_found():
    generator = np.random.default_rng(0)
    train = np.repeat([10, 1000], 60)
    shared = generator.normal(60, 5, 120)
    gains = np.where(train > 100, 4.0, -4.5) + generator.normal(0, 2, 120)
    found = recommend(evaluation(shared, shared + gains, train=train))
    assert found.verdict == "personalize some"
    assert 10 < found.min_examples <= 1000
    assert found.users == 60
    assert found.expected_gain.mean == pytest.approx(4, abs=0.8)


def test_a_spread_that_sampling_explains_is_said_to_be_hardly_more():
    generator = np.random.default_rng(0)
    alike = 100 * generator.binomial(100, 0.6, 200) / 100
    assert any("hardly more" in s for s in recommend(evaluation(alike, alike)).why)
    apart = 100 * generator.binomial(100, generator.uniform(0.3, 0.9, 200)) / 100
    assert not any("hardly more" in s for s in recommend(evaluation(apart, apart)).why)
