"""A device's examples in three parts by age."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile.errors import ConfigError, NoExamplesError
from pfl_mobile.local.parts import count_examples, cut_examples, parts


def texts(count):
    return [str(i) for i in range(count)]


@given(st.integers(2, 200), st.floats(0.01, 0.99), st.floats(0.0, 0.9), st.none() | st.integers(1, 50))
def test_the_parts_follow_each_other_by_age_and_leave_nothing_out(count, test, holdout, most):
    found = parts(texts(count), test=test, holdout=holdout, most=most)
    kept = [*found.train, *found.holdout]
    assert [*texts(count)[: found.older], *kept, *found.test] == texts(count)
    assert len(found.test) >= 1
    assert most is None or len(kept) <= most


def test_arrays_are_cut_together():
    found = parts({"x": np.arange(10), "y": np.arange(20).reshape(10, 2)}, test=0.2, holdout=0.25)
    assert found.test["x"].tolist() == [8, 9]
    assert found.test["y"].shape == (2, 2)
    assert [found.train["x"].tolist(), found.holdout["x"].tolist()] == [list(range(6)), [6, 7]]


def test_what_a_device_does_not_keep_is_the_oldest():
    found = parts(texts(10), test=0.2, holdout=0.25, most=4)
    assert (found.older, list(found.train), list(found.holdout), list(found.test)) == (
        4,
        ["4", "5", "6"],
        ["7"],
        ["8", "9"],
    )


@pytest.mark.parametrize("count", [0, 1])
def test_one_example_cannot_be_cut(count):
    with pytest.raises(NoExamplesError, match=f"bob has {count} example"):
        parts(texts(count), what="bob")


@pytest.mark.parametrize("test", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_that_is_none_is_refused(test):
    with pytest.raises(ConfigError):
        parts(texts(5), test=test)


def test_counting():
    assert [count_examples(e) for e in ([], {}, ["a"], {"x": np.zeros((3, 2))})] == [0, 0, 1, 3]
    assert cut_examples(["a", "b"], 1) == (["a"], ["b"])
