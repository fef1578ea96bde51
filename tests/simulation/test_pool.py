"""Arrays in one buffer: each once, and as they were."""

from __future__ import annotations

import numpy as np

from pfl_mobile.simulation.pool import Pool, view, views


def test_what_is_written_is_read_without_a_copy():
    pool = Pool()
    given = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3),
        "n": np.array(3, np.int64),
        "t": np.arange(6.0).reshape(2, 3).T,
        "none": np.zeros((0, 2), np.float32),
        "flags": np.array([True, False, True]),
    }
    refs = pool.add_set(given)
    buffer = np.full(pool.size + 8, 255, np.uint8)
    pool.write(buffer)
    for name, value in views(refs, buffer).items():
        assert (value.dtype, value.shape) == (given[name].dtype, given[name].shape)
        np.testing.assert_array_equal(value, given[name])
    views(refs, buffer)["w"][0, 0] = 9
    assert view(refs["w"], buffer)[0, 0] == 9
    assert (buffer[pool.size :] == 255).all()


def test_the_same_array_lies_there_once():
    pool, one = Pool(), np.zeros(100, np.float32)
    assert pool.add(one) == pool.add(one)
    size = pool.size
    other = pool.add(np.zeros(100, np.float32))
    assert other[0] == size


def test_arrays_begin_at_cache_lines():
    pool = Pool()
    for _ in range(3):
        assert pool.add(np.zeros(5, np.uint8))[0] % 64 == 0
