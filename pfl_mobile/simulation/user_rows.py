"""What users of a study must be: at least two, with rows of numbers that agree with each other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pfl_mobile.bundle.sealed import digest
from pfl_mobile.errors import DataError, UnknownNameError
from pfl_mobile.local.batches import Rows, check_rows
from pfl_mobile.simulation.finite import finite

if TYPE_CHECKING:
    from pfl_mobile.simulation.population import Population
    from pfl_mobile.tasks import Batch, Task


def check_count(name: str, count: int) -> None:
    """Refuse a study of nobody or of one user (``DataError``)."""
    if count < 2:
        raise DataError(
            f"{name} has {count} user{'s' * (count != 1)}",
            mend="a study needs two users or more; to train for one, use LocalTrainer",
        )


def checked_index(population: Population, index: int) -> int:
    """The index, if the population has such a user.

    Raises:
        UnknownNameError: it has not.
    """
    if not 0 <= index < len(population):
        raise UnknownNameError(
            f"{population.name} has no user {index}", mend=f"users have the indexes 0..{len(population) - 1}"
        )
    return index


def check_user_rows(rows: Mapping[str, np.ndarray], name: str, user: str, what: str) -> None:
    """Refuse rows without ``weight``, of unequal lengths, or with NaN or infinite values.

    Raises:
        DataError: names the user and the array.
    """
    check_rows(rows, f"{what} rows of user {user!r} of {name}")
    for array, value in rows.items():
        # A sum is finite only if all values are; it is cheaper than looking at each, which a large sum needs.
        if value.dtype.kind == "f" and not np.isfinite(value.sum()) and not np.isfinite(value).all():
            raise DataError(
                f"{array!r} of the {what} rows of user {user!r} of {name} has NaN or infinite values",
                mend="remove these examples, or fill them and give them weight 0",
            )


def weighted(
    users: Mapping[str, Mapping[str, np.ndarray]], name: str
) -> Mapping[str, Mapping[str, np.ndarray]]:
    """The users' rows; where no user has weights, with weight 1 for every row.

    Rows of several labels (tokens) get none, as some may be padding, which has weight 0.

    Raises:
        DataError: a user's rows are no arrays by name, or a user's id is no text.
    """
    for user, rows in users.items():
        if not isinstance(user, str):
            raise DataError(f"a user of {name} is called {user!r}", mend="give a text as id: str(user)")
        if not isinstance(rows, Mapping):
            raise DataError(
                f"the rows of user {user!r} of {name} are a {type(rows).__name__}",
                mend="give arrays by name, for instance {'x': x, 'labels': y}; for users with a test set of their own "
                "ArrayPopulation.split(name, {user: (train, test)})",
            )
    if any("weight" in rows for rows in users.values()):
        return users
    out: dict[str, Mapping[str, np.ndarray]] = {}
    for user, rows in users.items():
        labels = np.asarray(rows.get("labels", 0))
        several = labels.ndim == 0 or (labels.ndim > 1 and labels.dtype.kind in "iu")
        out[user] = rows if several else {**rows, "weight": np.ones(len(labels), np.float32)}
    return out


def numbers(rows: Mapping[str, np.ndarray], name: str, user: str) -> Rows:
    """The rows with float32 and int64 arrays (bool stays bool).

    Raises:
        DataError: an array holds something else than numbers.
    """
    out: Rows = {}
    for array, value in rows.items():
        value = np.asarray(value)
        kind = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}.get(value.dtype.kind)
        if kind is None:
            raise DataError(
                f"{array!r} of user {user!r} of {name} has dtype {value.dtype}",
                mend="give numbers in every array",
            )
        out[array] = value.astype(kind, copy=False)
    return out


def rows_digest(*parts: Mapping[str, np.ndarray]) -> int:
    """64 bits of a digest of rows: names, dtypes, shapes, values and order."""
    return number("".join(digest(rows) for rows in parts))


def number(text: str) -> int:
    """64 bits of a digest of a text, as an int64."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


#: Array name to dtype and shape of one row.
Layout = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]


def layout_of(rows: Mapping[str, np.ndarray]) -> Layout:
    """What a row of a user looks like."""
    return {name: (value.dtype, value.shape[1:]) for name, value in rows.items()}


def check_layout(rows: Mapping[str, np.ndarray], wanted: Layout, name: str, user: str, what: str) -> None:
    """Refuse rows that look otherwise than those of the first user.

    Raises:
        DataError: names the user and the array.
    """
    found = layout_of(rows)
    for array in sorted(set(found) | set(wanted)):
        if found.get(array) != wanted.get(array):
            raise DataError(
                f"{array!r} of the {what} rows of user {user!r} of {name} is {_said(found, array)}; "
                f"the first user's is {_said(wanted, array)}",
                mend="give every user the same arrays",
            )


def _said(layout: Layout, array: str) -> str:
    if array not in layout:
        return "missing"
    dtype, shape = layout[array]
    return f"{dtype} [{', '.join(['rows', *map(str, shape)])}]"


class RowCheck:
    """Whether a client's rows are such as the model and the task take, so that one wrong client stops no round.

    Attributes:
        nothing: rows of which there are none.
    """

    def __init__(self, task: Task, example: Batch) -> None:
        """Rows must be like those of the example."""
        self.nothing = {name: value[:0].numpy() for name, value in example.items()}
        self._like = {name: (value.dtype, value.shape[1:]) for name, value in self.nothing.items()}
        self._labels: tuple[str, ...] = tuple(getattr(task, "labels", ("labels",)))
        self._needed = {"weight", *getattr(task, "inputs", ()), *self._labels}
        classes = task.manifest().get("vocabulary")
        self._classes = classes if isinstance(classes, int) else None

    def check(self, rows: Rows) -> None:
        """Raises DataError."""
        check_rows(rows)
        missing = self._needed - rows.keys()
        if missing:
            raise DataError(f"the rows have no {min(missing)!r}", mend=f"give {sorted(self._needed)}")
        for name, value in rows.items():
            if name in self._like and (value.dtype, value.shape[1:]) != self._like[name]:
                dtype, shape = self._like[name]
                raise DataError(
                    f"the rows of {name!r} are {value.dtype} {list(value.shape)}, those of the first user "
                    f"{dtype} [rows{''.join(f', {size}' for size in shape)}]",
                    mend="give every user the same arrays",
                )
            if value.dtype.kind == "f" and not finite(value):
                raise DataError(f"{name!r} has NaN or infinite values", mend="remove these examples")
            if self._classes is not None and name in self._labels and _exceeds(value, self._classes):
                wrong = value[(value < 0) | (value >= self._classes)].flat[0]
                raise DataError(
                    f"{name!r} has the class {wrong}, the model has the classes 0..{self._classes - 1}",
                    mend="number the classes from 0, or give the model as many outputs as there are classes",
                )


def _exceeds(labels: np.ndarray, classes: int) -> bool:
    # Seen as unsigned, a negative label is above all others.
    return labels.dtype == np.int64 and labels.size > 0 and int(labels.view(np.uint64).max()) >= classes
