"""Rows that a model does not take are refused with what is wrong; others pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pfl_mobile.errors import DataError
from pfl_mobile.programs.tasks import ClassificationTask
from pfl_mobile.simulation.row_check import RowCheck

GOOD = {
    "x": np.ones((4, 2), np.float32),
    "labels": np.array([0, 1, 2, 0]),
    "weight": np.ones(4, np.float32),
}


@pytest.fixture(scope="module")
def check():
    return RowCheck(ClassificationTask(3), {n: torch.from_numpy(v) for n, v in GOOD.items()})


def test_rows_like_the_examples_pass_and_more_arrays_do_not_matter(check):
    check.check(GOOD)
    check.check(GOOD | {"more": np.array(["a"] * 4)})
    check.check({n: v[:0] for n, v in GOOD.items()})
    check.check(check.nothing)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": np.ones((4, 3), np.float32)}, r"float32 \[4, 3\]"),
        ({"x": np.ones((4, 2))}, "float64"),
        ({"labels": np.array([0, 1, 3, 0])}, "the class 3"),
        ({"labels": np.array([0, -1, 2, 0])}, "the class -1"),
        ({"labels": np.array([0, 1, 2])}, "labels"),
        ({"x": np.full((4, 2), np.nan, np.float32)}, "'x' has NaN"),
        ({"weight": np.array([1, 1, np.inf, 1], np.float32)}, "weight"),
    ],
)
def test_what_is_wrong_is_named(check, change, says):
    with pytest.raises(DataError, match=says):
        check.check(GOOD | change)


@pytest.mark.parametrize("name", ["x", "labels", "weight"])
def test_what_is_missing_is_named(check, name):
    with pytest.raises(DataError, match=f"no '{name}'"):
        check.check({n: v for n, v in GOOD.items() if n != name})
