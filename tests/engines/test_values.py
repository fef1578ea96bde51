"""Memory that is lent for values: what is in it stays as long as it is lent, and none is taken beyond the most."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.engines.values import APART_BYTES, Values

LARGE = APART_BYTES // 4
#: Elements of values, so that sizes come again.
SIZES = st.sampled_from([3, LARGE, LARGE + 5, 2 * LARGE])
#: A value that is taken, or one that is given back, or all that are lent are left to their owners.
STEPS = st.lists(st.one_of(SIZES, st.integers(-40, -1), st.none()), max_size=60)


@given(STEPS)
def test_no_two_values_share_memory_and_nothing_is_held_beyond_the_most_that_was_lent(steps):
    values = Values()
    lent: list[tuple[np.ndarray, float]] = []
    left: list[tuple[np.ndarray, float]] = []
    most = 0
    for number, step in enumerate(steps):
        if step is None:
            values.leave()
            left += lent
            lent = []
        elif step < 0:
            if lent:
                value, content = lent.pop(step % len(lent))
                assert (value == content).all()
                values.give(value)
        else:
            value = values.take((step,), np.dtype(np.float32))
            assert value.shape == (step,)
            assert value.dtype == np.float32
            assert value.ctypes.data % 64 == 0 or step < LARGE
            value.fill(number)
            lent.append((value, number))
        most = max(most, sum(v.nbytes for v, _ in lent if v.nbytes >= APART_BYTES))
        assert values.held <= most
        assert all((v == content).all() for v, content in (*lent, *left))


def test_memory_is_lent_again():
    values = Values()
    first = values.take((2, LARGE), np.dtype(np.float32))
    place = first.ctypes.data
    values.give(first)
    again = values.take((LARGE, 2), np.dtype(np.int32))
    assert again.ctypes.data == place
    assert again.shape == (LARGE, 2)
    values.leave()
    other = values.take((LARGE, 2), np.dtype(np.int32))
    assert other.ctypes.data != place, "it belongs to who took it"


def test_what_was_not_lent_is_not_taken():
    values = Values()
    own = np.zeros(LARGE, np.float32)
    values.give(own)
    assert values.held == 0
    assert not np.shares_memory(values.take((LARGE,), np.dtype(np.float32)), own)
