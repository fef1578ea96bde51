"""What users of a study must be: at least two, with rows of numbers that agree with each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pfl_mobile.data.failures import unusable
from pfl_mobile.errors import DataError, UnknownNameError, UnusableRowsError
from pfl_mobile.files.sealed import digest
from pfl_mobile.rows import Rows, check_rows

if TYPE_CHECKING:
    from pfl_mobile.data.populations import Population


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


def read_rows(population: Population, index: int, part: str) -> Rows:
    """A user's rows. Whatever goes wrong in the population's code is an error of this user's rows.

    Args:
        population: whose code reads or makes them.
        index: of the user.
        part: ``train`` or ``test``.

    Raises:
        DataError: the population says what is wrong with them.
        UnusableRowsError: it raises anything else, or gives no arrays by name.
    """
    what = f"the {'training' if part == 'train' else 'test'} rows"
    try:
        rows = population.train(index) if part == "train" else population.test(index)
    except (DataError, MemoryError):  # memory is the machine's trouble, not this user's
        raise
    except Exception as error:
        raise unusable(error, f"{what} cannot be read") from error
    if not isinstance(rows, Mapping):
        raise UnusableRowsError(
            f"{what} are a {type(rows).__name__}",
            mend="give a dict of numpy arrays, for instance {'x': x, 'labels': y}",
        )
    for name, value in rows.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray) or value.ndim == 0:
            raise UnusableRowsError(
                f"{name!r} of {what} is a {type(value).__name__}, no numpy array with a row for every example",
                mend="give a dict of numpy arrays, for instance {'x': x, 'labels': y}",
            )
    return dict(rows)


def known_size(population: Population, index: int) -> int:
    """How many training rows a user is said to have; 0 where that cannot be told, as reading the rows will say why."""
    size = getattr(population, "size", None)
    try:
        return int(size(index)) if callable(size) else len(read_rows(population, index, "train")["weight"])
    except MemoryError:
        raise
    except Exception:
        return 0


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
        DataError: a user's rows are no arrays by name, a user's id is no text, or rows that have no weights need some.
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
        what = f"the rows of user {user!r} of {name}"
        if "labels" not in rows:
            raise DataError(
                f"{what} have {sorted(map(str, rows))}: neither 'labels' nor 'weight'",
                mend=f"{rename_to_labels(rows)}; for a task of your own that reads no 'labels', give 'weight' too: "
                "float32, 1 for an ordinary example",
            )
        labels = _array(rows["labels"], "labels", name, user)
        if labels.ndim == 0:
            raise DataError(f"'labels' of user {user!r} of {name} is one value", mend="give one label a row")
        if labels.ndim > 1 and labels.shape[1:] != (1,) and labels.dtype.kind in "iu":
            raise DataError(
                f"{what} have no 'weight', and 'labels' is {labels.dtype} {list(labels.shape)}, several labels a row",
                mend=_several(labels),
            )
        out[user] = {**rows, "weight": np.ones(len(labels), np.float32)}
    return out


def _several(labels: np.ndarray) -> str:
    """What can be done about whole numbers of which there are several in a row, without weights."""
    rows = labels.reshape(len(labels), -1)
    zero_one = labels.size > 0 and bool(((rows == 0) | (rows == 1)).all())
    if zero_one and bool((rows.sum(1) == 1).all()):
        return "one-hot labels are the classes labels.argmax(1), one a row"
    words = "for a label for each position (tokens) give float32 weights of the labels' shape, 0 for padding"
    return f"for several yes and no in a row, or real values, give labels.astype(np.float32); {words}"


#: What targets are called elsewhere.
_TARGETS = ("y", "label", "target", "targets", "class", "classes", "output", "outputs")


def rename_to_labels(rows: Iterable[str]) -> str:
    """Words for a mend: name the targets 'labels', with the array that seems to hold them."""
    found = next(
        (n for n in map(str, rows) if n.lower().strip("_") in _TARGETS or n.lower() == "labels"), None
    )
    return f"name the targets 'labels': rows['labels'] = rows.pop({found or 'the name'!r})"


def _array(value: Any, array: str, name: str, user: str) -> np.ndarray:
    """The values as an array (DataError for what is none)."""
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # rows of several lengths, a tensor elsewhere
        raise DataError(
            f"{array!r} of user {user!r} of {name}, a {type(value).__name__}, is no array: {error}",
            mend="give numpy arrays: np.asarray(...) of rows of one length; for a tensor .detach().cpu().numpy()",
        ) from error


def numbers(rows: Mapping[str, np.ndarray], name: str, user: str) -> Rows:
    """The rows with float32 and int64 arrays (bool stays bool).

    Raises:
        DataError: an array holds something else than numbers, or numbers that these cannot hold.
    """
    out: Rows = {}
    for array, given in rows.items():
        value = _array(given, array, name, user)
        kind = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}.get(value.dtype.kind)
        what = f"{array!r} of user {user!r} of {name}"
        if kind is None:
            raise DataError(f"{what} has dtype {value.dtype}{_sample(value)}", mend=_to_numbers(value, array))
        limits = np.finfo(np.float32) if value.dtype.kind == "f" else np.iinfo(np.int64)
        if value.dtype.itemsize > (4 if value.dtype.kind == "f" else 7) and value.dtype != np.int64:
            whole = value[np.isfinite(value)]
            if whole.size and (whole.max() > limits.max or whole.min() < limits.min):
                raise DataError(
                    f"{what} is {value.dtype} with values up to {np.abs(whole).max():g}, more than "
                    f"{np.dtype(kind).name} holds",
                    mend="scale the values, or number the ids from 0",
                )
        out[array] = value.astype(kind, copy=False)
    return out


def _sample(value: np.ndarray) -> str:
    """What is in an array of no numbers, for an error."""
    if not value.size:
        return ""
    odd = value.flat[0]
    odd = odd.item() if isinstance(odd, np.generic) else odd
    if value.dtype == object:  # the first that is no number, which made it one
        odd = next((v for v in value.flat if isinstance(v, bool) or not isinstance(v, int | float)), odd)
    return f", with the {type(odd).__name__} {str(odd)[:30]!r}"


def _to_numbers(value: np.ndarray, array: str) -> str:
    if array == "labels" and value.dtype.kind in "OUS":
        return (
            "number the classes, alike for all users: classes = sorted(set of all users' labels), then "
            "labels = np.array([classes.index(label) for label in labels]); fill or leave out what is missing"
        )
    if value.dtype.kind in "mM":
        return "give times as float32 numbers, for instance seconds since a time that fits"
    return "give numbers in every array"


def rows_digest(*parts: Mapping[str, np.ndarray]) -> int:
    """64 bits of a digest of rows: names, dtypes, shapes, values and order."""
    return number("".join(digest(rows) for rows in parts))


def number(text: str) -> int:
    """64 bits of a digest of a text, as an int64."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


#: Array name to dtype and shape of one row.
RowLayout = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]


def layout_of(rows: Mapping[str, np.ndarray]) -> RowLayout:
    """What a row of a user looks like."""
    return {name: (value.dtype, value.shape[1:]) for name, value in rows.items()}


def check_layout(rows: Mapping[str, np.ndarray], wanted: RowLayout, name: str, user: str, what: str) -> None:
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
                mend="give every user the same arrays, of one dtype and shape: rows[name].astype(...)",
            )


def _said(layout: RowLayout, array: str) -> str:
    if array not in layout:
        return "missing"
    dtype, shape = layout[array]
    return f"{dtype} [{', '.join(['rows', *map(str, shape)])}]"
