from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.study.statistics import divergence, interval, student


def test_an_interval_covers_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        found = interval(generator.normal(3.0, 2.0, size=40), level=0.9, seed=i)
        hits += found.low <= 3.0 <= found.high
    assert 0.84 <= hits / 200 <= 0.95


@pytest.mark.parametrize("count", [2, 3, 5, 11, 12, 20])
def test_intervals_of_few_users_cover_it_too(count):
    generator = np.random.default_rng(count)
    hits = 0
    for i in range(400):
        found = interval(generator.normal(size=count), seed=i)
        hits += found.low <= 0 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


def test_one_user_has_no_interval():
    found = interval(np.array([3.0]))
    assert (found.to_json()["low"], found.to_json()["high"]) == (None, None)
    assert "no interval" in str(found)


@pytest.mark.parametrize(
    ("freedom", "level", "wanted"),
    [(1, 0.95, 12.706), (2, 0.95, 4.303), (5, 0.95, 2.571), (30, 0.95, 2.042), (3, 0.99, 5.841)],
)
def test_student_s_quantiles_are_those_of_the_tables(freedom, level, wanted):
    assert student(freedom, level) == pytest.approx(wanted, abs=6e-4)


def test_student_s_quantiles_go_on_smoothly_where_the_method_changes():
    assert [student(f) for f in (31, 60, 1000)] == pytest.approx([2.0395, 2.0003, 1.9623], abs=1e-4)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_an_interval_contains_its_mean_and_repeats(values):
    found = interval(np.array(values))
    slack = 1e-6 * (1 + max(map(abs, values)))
    assert found.low - slack <= found.mean <= found.high + slack or len(set(values)) > 1
    assert found == interval(np.array(values))


def test_users_who_draw_from_the_same_labels_do_not_diverge():
    generator = np.random.default_rng(1)
    same = generator.multinomial(200, [0.1, 0.2, 0.3, 0.4], size=100)
    assert divergence(same).mean() < 0.003
    apart = np.kron(np.eye(2, dtype=int), np.full((1, 2), 500))
    assert divergence(apart) == pytest.approx([0.311] * 2, abs=0.01)
