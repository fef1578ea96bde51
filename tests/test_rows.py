from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile import rows as b
from pfl_mobile.errors import DataError
from pfl_mobile.local.memory import active, memorize
from pfl_mobile.random import derive, outputs, permutation, splitmix64, uniform


def test_splitmix64_gives_the_published_outputs():
    """Seed 1234567, as listed with the task 'Pseudo-random numbers/Splitmix64' of Rosetta Code."""
    assert [splitmix64(1234567, i) for i in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [splitmix64(0, i) for i in range(4)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
        0xF88BB8A8724C81EC,
    ]


@given(seed=st.integers(0, 2**64 - 1), n=st.integers(0, 50))
def test_many_outputs_at_once_are_those_one_by_one(seed, n):
    assert [int(x) for x in outputs(seed, n)] == [splitmix64(seed, i) for i in range(n)]
    assert uniform(seed, n).tolist() == [(splitmix64(seed, i) >> 11) / 2**53 for i in range(n)]


@given(seed=st.integers(0, 2**64 - 1), n=st.integers(0, 300))
def test_a_permutation_has_every_index_once(seed, n):
    assert sorted(permutation(seed, n)) == list(range(n))


def test_shuffles_are_uniform():
    orders = [tuple(permutation(derive(3, i), 3)) for i in range(6000)]
    counts = np.array([orders.count(o) for o in set(orders)])
    assert len(counts) == 6
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.6  # chi-square, 5 degrees, p = 0.001
    firsts = np.bincount([permutation(derive(5, i), 40)[0] for i in range(8000)], minlength=40)
    assert ((firsts - 200) ** 2 / 200).sum() < 72.1  # 39 degrees


@given(n=st.integers(0, 40), size=st.integers(1, 9), seed=st.integers(0, 2**63 - 1))
def test_an_epoch_is_every_row_once_in_full_batches(n, size, seed):
    rows = {"x": np.arange(1, n + 1), "weight": np.ones(n, np.float32)}
    order = b.epoch_order(n, seed, 0, 0)
    got = list(b.padded_batches(rows, size, order))
    assert len(got) == -(-n // size)
    assert all(len(v) == size for batch in got for v in batch.values())
    flat = [x for batch in got for x in batch["x"]]
    assert flat[:n] == (order + 1).tolist()
    assert not any(flat[n:])
    assert sorted(flat[:n]) == list(range(1, n + 1))
    assert sum(batch["weight"].sum() for batch in got) == n


def test_every_epoch_and_phase_has_its_own_order():
    orders = {tuple(b.epoch_order(20, 7, phase, epoch)) for phase in range(3) for epoch in range(3)}
    assert len(orders) == 9


@given(n=st.integers(0, 200), fraction=st.floats(0.01, 0.99))
def test_holdout_is_the_newest_part(n, fraction):
    train, held = b.newest_part(range(n), fraction)
    assert [*train, *held] == list(range(n))
    if n >= 2:
        assert len(train) >= 1
        assert len(held) >= 1
        assert abs(len(held) - n * fraction) <= 1
    else:
        assert len(held) == 0


def test_odd_rows_are_refused():
    for rows in (
        {"x": np.ones(3)},
        {"x": np.ones(3), "weight": np.ones(2)},
        {"weight": np.array([1.0, np.nan])},
        {"weight": np.array([1.0, -1.0])},
    ):
        with pytest.raises(DataError):
            b.check_rows(rows)


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=4, max_size=4), min_size=0, max_size=6),
    st.integers(1, 12),
    st.integers(0, 3),
    st.integers(0, 2**16),
)
def test_memory_is_the_newest_entries_of_a_stream(sequences, capacity, context, seed):
    rng = np.random.default_rng(seed)
    tokens = np.array(sequences, np.int64).reshape(-1, 4)
    labels, weight = tokens + 10, rng.integers(0, 2, tokens.shape).astype(np.float32)
    stream = [
        (labels[r, t], [tokens[r, t - k] if t >= k else 0 for k in range(context)])
        for r in range(len(tokens))
        for t in range(4)
        if weight[r, t] > 0
    ]
    following, before, count = memorize(tokens, labels, weight, capacity, context)
    assert count == len(stream)
    expected = {j % capacity: entry for j, entry in enumerate(stream)}
    for place in range(capacity):
        label, ctx = expected.get(place, (0, [0] * context))
        assert following[place] == label
        assert before[place].tolist() == ctx
    # Going on with a second batch of rows is the same as one stream.
    cut = len(tokens) // 2
    first = memorize(tokens[:cut], labels[:cut], weight[:cut], capacity, context)
    again = memorize(tokens[cut:], labels[cut:], weight[cut:], capacity, context, ring=first)
    assert np.array_equal(again[0], following)
    assert np.array_equal(again[1], before)


def test_memory_and_slots_edges():
    with pytest.raises(DataError):
        memorize(np.zeros((1, 2)), np.zeros((1, 3)), np.zeros((1, 2)), 4, 1)
    assert active(2, 4).tolist() == [1, 1, 0, 0]
