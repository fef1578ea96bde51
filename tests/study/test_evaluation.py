from __future__ import annotations

import json

import numpy as np
import pytest

from pfl_mobile.errors import NoExamplesError
from pfl_mobile.study.evaluation import Evaluation
from pfl_mobile.study.recommend import recommend


def evaluation(shared, personal, metric="top1", groups=(), train=None, test=100, **more):
    n = len(shared)
    return Evaluation(
        metric,
        [f"u{i}" for i in range(n)],
        list(groups),
        np.full(n, 100) if train is None else np.asarray(train),
        np.full(n, test),
        np.asarray(shared, float),
        np.asarray(personal, float),
        **more,
    )


def test_gains_point_upwards_whichever_way_the_metric_does():
    assert evaluation([10, 20], [12, 19]).gains.tolist() == [2, -1]
    found = evaluation([10, 20], [12, 19], metric="mae")
    assert found.gains.tolist() == [-2, 1]
    assert (found.users_better, found.users_worse) == (1, 1)
    assert found.worst_decile == 19


def test_the_worst_group_may_change():
    found = evaluation([50, 50, 30, 30], [50, 52, 60, 64], groups=["a", "a", "b", "b"])
    assert found.per_group["b"]["personalized_acc"] == 62
    assert found.worst_group_improvement == 21
    assert evaluation([1], [2]).worst_group_improvement is None


def test_forgetting_is_what_is_lost_on_others():
    found = evaluation([1, 1], [2, 2], general_shared=40.0, general_personal=np.array([39.0, 37.0]))
    assert found.forgetting == 2.0


def test_an_evaluation_is_json():
    found = evaluation([50, 40], [51, 39], groups=["a", "b"])
    assert json.loads(json.dumps(found.to_json(users=True)))["per_user"][1]["gain"] == -1


def test_nobody_is_an_error():
    with pytest.raises(NoExamplesError):
        evaluation([], [])


def noisy(gain, n=60, seed=0, **more):
    generator = np.random.default_rng(seed)
    shared = generator.normal(60, 5, n)
    return evaluation(shared, shared + gain + generator.normal(0, 3, n), **more)


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
