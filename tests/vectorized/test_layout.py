"""Tensors of a client in one row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pfl_mobile.errors import TensorMismatchError
from pfl_mobile.vectorized.layout import Layout, non_finite

SHAPES = {"a": (2, 3), "b": (), "c": (17,), "d": (1, 1)}
LAYOUT = Layout(SHAPES)


def values() -> dict[str, np.ndarray]:
    return {n: np.arange(np.prod(s), dtype=np.float32).reshape(s) + 1 for n, s in SHAPES.items()}


def test_tensors_lie_apart_at_cache_lines_and_between_them_is_nothing() -> None:
    assert {n: (p.start, p.stop) for n, p in LAYOUT.places.items()} == {
        "a": (0, 6),
        "b": (16, 17),
        "c": (32, 49),
        "d": (64, 65),
    }
    assert LAYOUT.size == 80


def test_what_is_written_is_read() -> None:
    row = np.zeros(LAYOUT.size, np.float32)
    assert LAYOUT.write(row, values(), "value") == set(SHAPES)
    assert row.sum() == sum(v.sum() for v in values().values())
    for name, value in LAYOUT.read(row).items():
        np.testing.assert_array_equal(value, values()[name])
    assert list(LAYOUT.read(row, ["c"])) == ["c"]
    LAYOUT.read(row)["a"][0, 0] = 9
    assert row[0] == 9, "they are views"


def test_only_what_is_given_is_written() -> None:
    row = np.full(LAYOUT.size, 7, np.float32)
    assert LAYOUT.write(row, {"b": np.float32(1).reshape(()), "other": np.zeros(3)}, "value") == {"b"}
    assert (row == 7).sum() == LAYOUT.size - 1


@pytest.mark.parametrize("wrong", [np.zeros((3, 2), np.float32), np.zeros((2, 3)), np.zeros(1, np.float32)])
def test_another_shape_or_type_is_named(wrong: np.ndarray) -> None:
    with pytest.raises(TensorMismatchError, match="copy 'a'"):
        LAYOUT.write(np.zeros(LAYOUT.size, np.float32), {"a": wrong}, "copy")


def test_one_element_may_stand_for_all_where_that_is_allowed() -> None:
    row = np.zeros(LAYOUT.size, np.float32)
    LAYOUT.write_scaled(row, {"a": np.full((1,), 3.0), "c": values()["c"]}, "set")
    np.testing.assert_array_equal(LAYOUT.read(row)["a"], np.full((2, 3), 3))
    np.testing.assert_array_equal(LAYOUT.read(row)["c"], values()["c"])


def test_neighbours_are_one_range() -> None:
    found = [(r.start, r.stop) for r in LAYOUT.ranges(["a", "b", "d"])]
    assert found == [(0, 32), (64, 80)]
    assert LAYOUT.ranges([]) == []


def test_views_have_lanes_or_none() -> None:
    flat = torch.arange(2 * LAYOUT.size, dtype=torch.float32).view(2, -1)
    assert LAYOUT.view(flat, "a").shape == (2, 2, 3)
    assert LAYOUT.view(flat[:1], "a", single=True).shape == (2, 3)
    assert LAYOUT.view(flat, "b")[1] == LAYOUT.size + 16


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_lanes_that_are_not_finite_are_found_where_one_looks(wrong: float) -> None:
    flat = torch.zeros(3, LAYOUT.size)
    flat[1, 3] = wrong
    assert non_finite(flat, LAYOUT.ranges(["a", "c"])).tolist() == [False, True, False]
    assert non_finite(flat, LAYOUT.ranges(["c"])).tolist() == [False] * 3
    assert non_finite(flat, []).tolist() == [False] * 3


def test_a_sum_that_overflows_is_no_value_that_is_not_finite() -> None:
    flat = torch.full((1, LAYOUT.size), 3e38)
    assert non_finite(flat, LAYOUT.ranges(SHAPES)).tolist() == [False]
