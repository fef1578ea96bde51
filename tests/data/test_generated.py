"""Generated users: always the same, never the same as each other, and different as documented."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_mobile import data
from pfl_mobile.data import driving, femnist_like, fraud
from pfl_mobile.data.generated import kind_of, kinds
from pfl_mobile.data.populations import GeneratedPopulation
from pfl_mobile.errors import ConfigError

SHAPES = {
    "femnist-like": {"x": ("float32", (784,)), "labels": ("int64", ()), "weight": ("float32", ())},
    "fraud": {"x": ("float32", (15,)), "labels": ("int64", ()), "weight": ("float32", ())},
    "driving": {"x": ("float32", (7,)), "labels": ("float32", (1,)), "weight": ("float32", ())},
}
NAMES = sorted(SHAPES)


@pytest.mark.parametrize("name", NAMES)
def test_a_user_depends_on_seed_and_index_alone(name: str) -> None:
    few, many = data.population(name, users=5), data.population(name, users=1_000_000)
    for index in (0, 4):
        for part in ("train", "test"):
            one, other = (getattr(p, part)(index) for p in (few, many))
            assert {n: (str(v.dtype), v.shape[1:]) for n, v in one.items()} == SHAPES[name]
            for array in one:
                np.testing.assert_array_equal(one[array], other[array])
    other_seed = data.population(name, users=5, seed=1)
    assert few.train(0)["x"][0].tolist() != other_seed.train(0)["x"][0].tolist()
    assert few.train(0)["x"][0].tolist() != few.train(1)["x"][0].tolist()
    assert len(many.test(999_999)["weight"]) > 0


@pytest.mark.parametrize("name", NAMES)
def test_generated_users_travel_to_other_processes(name: str) -> None:
    found = data.population(name, users=1000)
    raw = pickle.dumps(found)
    assert len(raw) < 20_000
    np.testing.assert_array_equal(pickle.loads(raw).test(3)["x"], found.test(3)["x"])


@pytest.mark.parametrize("name", NAMES)
def test_no_row_is_in_both_parts(name: str) -> None:
    found = data.population(name, users=3)
    for index in range(3):
        older = {row.tobytes() for row in found.train(index)["x"]}
        assert not older & {row.tobytes() for row in found.test(index)["x"]}


@given(seed=st.integers(0, 2**32), count=st.integers(1, 50))
def test_the_kind_of_one_user_is_that_of_many(seed: int, count: int) -> None:
    shares = (0.5, 0.3, 0.2)
    assert kinds(seed, count, shares).tolist() == [kind_of(seed, i, shares) for i in range(count)]


def test_kinds_have_their_shares() -> None:
    found = np.bincount(kinds(0, 100_000, (0.6, 0.25, 0.15))) / 100_000
    np.testing.assert_allclose(found, [0.6, 0.25, 0.15], atol=0.01)


@pytest.mark.parametrize(("name", "known"), [("fraud", fraud.SEGMENTS), ("driving", driving.VEHICLES)])
def test_groups_are_kinds_of_users(name: str, known: tuple[str, ...]) -> None:
    found = data.population(name)
    assert list(found.groups) == list(known)
    assert sorted(i for members in found.groups.values() for i in members) == list(range(len(found)))


def sizes(found: GeneratedPopulation, users: int) -> list[int]:
    return [len(found.train(i)["weight"]) + len(found.test(i)["weight"]) for i in range(users)]


@pytest.mark.parametrize(("name", "mean"), [("femnist-like", 100.0), ("fraud", 300.0), ("driving", 400.0)])
def test_sizes_have_the_mean_that_was_asked_for(name: str, mean: float) -> None:
    found = sizes(data.population(name, users=400), 400)
    assert abs(np.mean(found) / mean - 1) < 0.1
    assert np.std(found) > 0.2 * mean


def test_writers_have_few_classes_and_a_style() -> None:
    found = data.population("femnist-like", users=20, alpha=0.1)
    rows = [found.train(i) for i in range(20)]
    assert np.mean([len(np.unique(r["labels"])) for r in rows]) < femnist_like.CLASSES / 2
    styles = np.stack([r["x"].mean(0) for r in rows])
    assert styles.std(0).mean() > 0.25  # noise alone would leave about 1 / sqrt(100)


def test_fraud_is_rare_and_its_tricks_are_shared() -> None:
    found = data.population("fraud")
    rows = [p for i in range(len(found)) for p in (found.train(i), found.test(i))]
    x, labels = (np.concatenate([r[n] for r in rows]) for n in ("x", "labels"))
    assert 0.025 < labels.mean() < 0.035
    assert np.abs(x).max() < 6
    columns = fraud.COLUMNS.index("log amount"), fraud.COLUMNS.index("log gap")
    # A trick is the same at every customer's: tiny amounts a minute after another payment are nearly all fraud.
    tiny = (x[:, columns[0]] < -1.2) & (np.expm1(x[:, columns[1]] * 5) < 3)
    assert labels[tiny].mean() > 0.6


def test_segments_pay_differently() -> None:
    found = data.population("fraud")
    amount, distance = (fraud.COLUMNS.index(c) for c in ("log amount", "log distance"))

    def mean(segment: str, column: int) -> float:
        return float(np.mean([found.train(int(i))["x"][:, column].mean() for i in found.groups[segment]]))

    assert mean("student", amount) < mean("retiree", amount) < mean("business", amount)
    assert mean("retiree", distance) < mean("business", distance)


def test_a_driver_is_linear_but_no_two_are_alike() -> None:
    """A driver's own least squares explain nearly all; everybody's miss much of it."""
    found = data.population("driving", users=30)

    def fit(rows: list[dict[str, Any]]) -> np.ndarray:
        x = np.concatenate([np.c_[r["x"], np.ones(len(r["x"]))] for r in rows])
        return np.linalg.lstsq(x, np.concatenate([r["labels"] for r in rows]), rcond=None)[0]

    def error(index: int, coefficients: np.ndarray) -> float:
        rows = found.test(index)
        return float(
            (((np.c_[rows["x"], np.ones(len(rows["x"]))] @ coefficients) - rows["labels"]) ** 2).mean()
        )

    shared = fit([found.train(i) for i in range(30)])
    general = np.mean([error(i, shared) for i in range(30)])
    own = np.mean([error(i, fit([found.train(i)])) for i in range(30)])
    assert own < general / 3


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("femnist-like", {"users": 1}),
        ("femnist-like", {"alpha": 0.0}),
        ("fraud", {"rate": 1.0}),
        ("fraud", {"mean": float("nan")}),
        ("driving", {"test": 1.5}),
    ],
)
def test_impossible_options(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        data.population(name, **wrong)
