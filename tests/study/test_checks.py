"""What a study is made of is checked before anything runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pfl_mobile.errors import ConfigError, DataError, UnknownNameError, UnusableRowsError
from pfl_mobile.study import checks


def rows(count, width=2, dtype=np.float32):
    return {
        "x": np.ones((count, width), dtype),
        "labels": np.zeros(count, np.int64),
        "weight": np.ones(count, np.float32),
    }


class Users:
    """Users whose rows are what a test says."""

    name, groups = "users", {}

    def __init__(self, *given):
        self.given = given

    def __len__(self):
        return len(self.given)

    def id(self, index):
        return f"u{index}"

    def train(self, index):
        found = self.given[index]
        if isinstance(found, Exception):
            raise found
        return found

    test = train


@pytest.mark.parametrize("good", [1, 5, np.int64(3)])
def test_whole_numbers_pass(good):
    checks.whole("rounds", good, 1, 5)


@pytest.mark.parametrize("bad", [0, 6, 1.0, True, "1", None, np.float32(2)])
def test_what_is_no_whole_number_in_range_is_refused(bad):
    with pytest.raises(ConfigError, match="rounds is") as caught:
        checks.whole("rounds", bad, 1, 5)
    assert "one from 1 to 5" in caught.value.mend


@pytest.mark.parametrize("bad", [1, 1.5, -0.1, True, "0.5", float("nan")])
def test_shares_are_from_0_to_below_1(bad):
    checks.fraction("drop", 0)
    checks.fraction("drop", 0.99)
    with pytest.raises(ConfigError, match="drop is"):
        checks.fraction("drop", bad)


def test_objects_lists_engines_and_folders():
    checks.instance("data", None, dict)
    with pytest.raises(ConfigError, match="data is 3"):
        checks.instance("data", 3, dict)
    checks.list_of_names("personal", ["head"])
    with pytest.raises(ConfigError, match="personal is 'head'"):
        checks.list_of_names("personal", "head")
    with pytest.raises(UnknownNameError) as caught:
        checks.known_backend("locl")
    assert "'local'" in caught.value.mend
    with pytest.raises(ConfigError):
        checks.known_backend(3)
    assert checks.folder_path("a") == Path("a")
    assert checks.folder_path(None) is None
    with pytest.raises(ConfigError):
        checks.folder_path(3)


def test_the_first_rows_are_like_most_others_and_bad_users_are_passed_over():
    broken = {"x": np.ones((2, 2), np.float32)}
    found = checks.first_rows(
        Users(rows(0), rows(3, width=9), broken, rows(4), rows(5), ValueError("no file"))
    )
    assert [r["x"].shape for r in found] == [(4, 2), (5, 2), (3, 9)]


def test_one_user_is_no_study_and_neither_are_users_without_rows():
    with pytest.raises(ConfigError, match="1 users"):
        checks.first_rows(Users(rows(3)))
    with pytest.raises(ConfigError, match="no training examples"):
        checks.first_rows(Users(rows(0), rows(0)))


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"x": np.ones((2, 2), np.float32)}, DataError, "no 'weight'"),
        (rows(2, dtype=np.float64), DataError, "float64"),
        (ValueError("boom"), UnusableRowsError, "boom"),
    ],
)
def test_where_nobody_is_usable_the_first_reason_is_told(given, error, says):
    with pytest.raises(error, match=says):
        checks.first_rows(Users(given, rows(0)))


class Named(Users):
    def id(self, index):
        return ("ann", "bob", "cleo")[index]


def population():
    return Named(rows(2), rows(2), rows(2))


def test_groups_may_name_users_by_id_or_index():
    assert checks.user_groups({1: ["ann", 2], "b": ["bob"]}, population()) == {"1": [0, 2], "b": [1]}
    assert checks.user_groups(None, population()) == population().groups


@pytest.mark.parametrize(
    ("groups", "error"),
    [
        ([["ann"]], ConfigError),
        ({"a": ["an"], "b": ["bob", "cleo"]}, UnknownNameError),
        ({"a": ["ann", "bob"]}, ConfigError),  # cleo is missing
        ({"a": ["ann", "bob"], "b": ["bob", "cleo"]}, ConfigError),
        ({1: ["ann"], "1": ["bob", "cleo"]}, ConfigError),
        ({"a": [0.5, 1, 2]}, ConfigError),
        ({"a": [0, 1, 3]}, ConfigError),
    ],
)
def test_groups_that_are_none_are_refused(groups, error):
    with pytest.raises(error):
        checks.user_groups(groups, population())
