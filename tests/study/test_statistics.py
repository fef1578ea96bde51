from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.study.statistics import divergence, interval


def test_an_interval_covers_the_true_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        found = interval(generator.normal(3.0, 2.0, size=40), level=0.9, seed=i)
        hits += found.low <= 3.0 <= found.high
    assert 0.84 <= hits / 200 <= 0.95


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
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
