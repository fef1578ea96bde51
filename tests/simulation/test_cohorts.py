"""Who takes part in a round, and in which order jobs are cut from it."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_mobile.simulation.cohorts import balanced, sample


@pytest.mark.parametrize(("count", "size"), [(10, 0), (10, 3), (10, 10), (1000, 400), (10**12, 50)])
def test_a_sample_has_so_many_different_ones_of_the_population(count, size):
    found = sample(7, count, size)
    assert (found.dtype, len(found), len(set(found.tolist()))) == (np.int64, size, size)
    assert size == 0 or 0 <= found.min() <= found.max() < count


def test_the_seed_decides():
    assert sample(1, 1000, 20).tolist() == sample(1, 1000, 20).tolist() != sample(2, 1000, 20).tolist()


@pytest.mark.parametrize("size", [2, 6])  # drawn, and the beginning of a permutation
def test_all_are_drawn_alike(size):
    counts = np.zeros(10)
    for seed in range(2000):
        counts[sample(seed, 10, size)] += 1
    expected = 2000 * size / 10
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_pieces_have_about_equally_many_examples():
    sizes = {0: 100, 1: 1, 2: 1, 3: 98, 4: 1, 5: 1}
    order = balanced(list(sizes), list(sizes.values()), 3)
    assert sorted(order) == sorted(sizes)
    loads = [sum(sizes[c] for c in order[i : i + 3]) for i in (0, 3)]
    assert max(loads) - min(loads) <= 2


def test_the_last_piece_may_be_shorter():
    assert sorted(balanced([5, 6, 7], [1, 1, 9], 2)) == [5, 6, 7]
    assert balanced([], [], 4) == []
