"""A server's state comes back as it was, names in their order, and damage is found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_mobile.errors import ConfigError, StateError
from pfl_mobile.strategies.server_state_file import decode, encode, plain_numbers
from pfl_mobile.strategies.state import Server

arrays = st.tuples(st.sampled_from(["f4", "f8", "i8"]), st.lists(st.integers(0, 3), max_size=2)).map(
    lambda t: np.arange(int(np.prod(t[1])), dtype=t[0]).reshape(t[1])
)
values = st.dictionaries(st.text(max_size=4), arrays, max_size=3)
sets = st.dictionaries(st.text(max_size=4), values, max_size=3)
numbers = st.dictionaries(
    st.text(max_size=4), st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
)


def same(one, other):
    assert list(one) == list(other)
    for name, value in one.items():
        assert value.dtype == other[name].dtype
        assert np.array_equal(value, other[name])


@settings(max_examples=60, deadline=None)
@given(values, sets, sets, numbers, st.integers(0, 10**6), values)
def test_a_server_comes_back_as_it_was(shared, groups, further, kept, at, extra):
    server = Server((), 7, shared, groups, further, kept, at)
    data = encode(server, extra)
    found, more = decode(data, (), 7)
    same(found.values, server.values)
    for kind in ("groups", "sets"):
        assert list(getattr(found, kind)) == list(getattr(server, kind))
        for key, inner in getattr(server, kind).items():
            same(getattr(found, kind)[key], inner)
    assert (found.numbers, found.round, found.population) == (kept, at, 7)
    same(more, extra)
    assert encode(found, more) == data


def test_damage_is_found():
    data = bytearray(encode(Server((), 1, {"a": np.ones(3, np.float32)})))
    data[-1] ^= 1
    with pytest.raises(StateError, match="digest"):
        decode(bytes(data), (), 1)
    with pytest.raises(StateError, match="not a valid safetensors"):
        decode(b"no", (), 1)


def test_numbers_are_what_json_gives_back():
    assert plain_numbers({"a": {3: np.float64(0.5)}, "b": np.arange(2)}, object()) == {
        "a": {"3": 0.5},
        "b": [0, 1],
    }
    with pytest.raises(ConfigError, match="no number"):
        plain_numbers({"a": object()}, object())
