"""Synthetic(alpha, beta): the users that pFedMe's program draws."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from pfl_mobile import data
from pfl_mobile.errors import ConfigError, UnknownNameError


def test_the_users_are_those_of_pfedme() -> None:
    found = data.population("synthetic")
    # Facts of the authors' program at seed 0: sizes of the users, and how often each label occurs.
    sizes = [len(found.train(i)["x"]) + len(found.test(i)["x"]) for i in range(len(found))]
    assert (len(found), sum(sizes), min(sizes), max(sizes)) == (100, 205_795, 250, 25_810)
    assert all(len(found.train(i)["x"]) == n * 9 // 10 for i, n in enumerate(sizes))
    counts = sum(
        np.bincount(p["labels"], minlength=10) for i in range(100) for p in (found.train(i), found.test(i))
    )
    assert counts.tolist() == [20440, 15477, 13612, 7703, 17542, 21572, 9409, 48331, 32221, 19488]
    first = found.train(0)
    assert {n: (str(v.dtype), v.shape[1:]) for n, v in first.items()} == {
        "x": ("float32", (60,)),
        "labels": ("int64", ()),
        "weight": ("float32", ()),
    }


def test_another_seed_draws_others_and_the_same_seed_the_same() -> None:
    options: dict[str, Any] = {"users": 3, "times": 1}
    one, same = (data.population("synthetic", **options) for _ in range(2))
    other = data.population("synthetic", **options, seed=1)
    np.testing.assert_array_equal(one.train(2)["x"], same.train(2)["x"])
    assert one.train(2)["x"][0, 0] != other.train(2)["x"][0, 0]


def test_beta_spreads_the_inputs() -> None:
    def spread(beta: float) -> float:
        found = data.population("synthetic", users=40, times=1, beta=beta)
        return float(np.std([found.train(i)["x"].mean() for i in range(40)]))

    assert spread(3.0) > 5 * spread(0.0)


def test_alpha_changes_no_label() -> None:
    one, other = (data.population("synthetic", users=10, times=1, alpha=a) for a in (0.0, 5.0))
    for user in range(10):
        np.testing.assert_array_equal(one.train(user)["labels"], other.train(user)["labels"])


@pytest.mark.parametrize("wrong", [{"alpha": -1}, {"users": 1}, {"times": 0}, {"test": 1.0}])
def test_impossible_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        data.population("synthetic", **wrong)


def test_unknown_options_and_files_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'alpha'"):
        data.population("synthetic", alfa=1)
    with pytest.raises(ConfigError, match="generated, not read"):
        data.population("synthetic", from_file="x")
    with pytest.raises(ConfigError, match=r"population\('synthetic'\)"):
        data.get("synthetic")


def test_groups_are_quartiles_of_the_number_of_examples() -> None:
    users = data.population("synthetic", users=40, times=1)
    sizes = np.array([len(users.train(i)["labels"]) for i in range(len(users))])
    assert sorted(users.groups) == [f"quartile-{k}" for k in (1, 2, 3, 4)]
    assert [len(members) for members in users.groups.values()] == [10, 10, 10, 10]
    ends = [(sizes[members].min(), sizes[members].max()) for members in users.groups.values()]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ends))
