"""Rows -> fixed-shape batches: programs are exported for one batch size, so the last batch is padded.

Rows are a dict of arrays with the same first axis, one of them ``weight``. Padding rows are zero everywhere,
so their weight is 0 and the sums of the programs do not see them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from pfl_mobile.errors import ConfigError, DataError, NoExamplesError
from pfl_mobile.random import derive, permutation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

T = TypeVar("T")
#: Arrays by name with the same first axis, one row an example; ``weight`` float32 among them.
Rows = dict[str, np.ndarray]


def check_rows(rows: Mapping[str, np.ndarray], what: str = "rows") -> int:
    """How many rows there are.

    Raises:
        DataError: no ``weight``, lengths that differ, or a weight that is negative or not finite.
    """
    if "weight" not in rows:
        raise DataError(
            f"the {what} have no 'weight'", mend="give float32 weights, 1 for an ordinary example"
        )
    count = len(rows["weight"])
    for name, value in rows.items():
        if value.ndim == 0 or len(value) != count:
            raise DataError(
                f"the {what} have {count} weights but {name!r} has shape {list(value.shape)}",
                mend="give every array the same first axis",
            )
    weight = rows["weight"]
    if not np.isfinite(weight).all() or (weight < 0).any():
        raise DataError(f"a weight of the {what} is negative or not finite", mend="use weights of 0 or more")
    return count


def outside_classes(least: int, most: int, classes: int) -> str:
    """Words for a mend, where labels from ``least`` to ``most`` are not all in 0..classes - 1."""
    if least >= 1 and most == classes:
        return f"these labels are counted from 1: give labels - 1; or a model of {classes + 1} outputs if 0 is a class"
    if least < 0:
        return "a label that must not count gets the weight 0 and any class, 0 for instance"
    return (
        "number the classes from 0 (ids by np.unique(labels, return_inverse=True), alike for all users), or give the "
        "model as many outputs as there are classes"
    )


def weighted_rows(rows: Mapping[str, np.ndarray], what: str = "rows") -> Rows:
    """The rows whose total weight is positive, in order; the others would only be padding.

    Raises:
        NoExamplesError: none is left.
    """
    count = check_rows(rows, what)
    keep = rows["weight"].reshape(count, -1).sum(axis=1) > 0 if count else np.zeros(0, dtype=bool)
    if not keep.any():
        raise NoExamplesError(f"the {what} hold no example with a positive weight", mend="add examples first")
    return {name: value[keep] for name, value in rows.items()}


def epoch_order(count: int, seed: int, phase: int, epoch: int) -> np.ndarray:
    """Order of the rows in one epoch: a permutation drawn from derive(seed, phase, epoch), int64 [count]."""
    return permutation(derive(seed, phase, epoch), count)


def take(rows: Mapping[str, np.ndarray], order: np.ndarray, size: int) -> Rows:
    """The rows ``order`` (at most ``size``) as one batch of exactly ``size``, padded with zeros."""
    batch: Rows = {}
    for name, value in rows.items():
        out = np.zeros((size, *value.shape[1:]), dtype=value.dtype)
        out[: len(order)] = value[order]
        batch[name] = out
    return batch


def padded_batches(
    rows: Mapping[str, np.ndarray], size: int, order: np.ndarray | None = None
) -> Iterator[Rows]:
    """All rows once, in ``order`` (or as they are), in ceil(count / size) batches."""
    count = len(rows["weight"])
    order = np.arange(count) if order is None else order
    for start in range(0, count, size):
        yield take(rows, order[start : start + size], size)


def newest_part(items: Sequence[T], fraction: float) -> tuple[Sequence[T], Sequence[T]]:
    """Split oldest-first items into (train, holdout), the holdout being the newest.

    The holdout has floor(count * fraction + 0.5) items, at least 1 when there are 2 or more, and always
    leaves 1 to train on.
    """
    count = len(items)
    cut = count - holdout_size(count, fraction)
    return items[:cut], items[cut:]


def holdout_size(count: int, fraction: float) -> int:
    """Size of the held-out part, see ``newest_part``."""
    return 0 if count < 2 else min(max(int(count * fraction + 0.5), 1), count - 1)


def split_rows(rows: Mapping[str, np.ndarray], fraction: float) -> tuple[Rows, Rows]:
    """``newest_part`` for rows."""
    count = check_rows(rows)
    cut = count - holdout_size(count, fraction)
    return {n: v[:cut] for n, v in rows.items()}, {n: v[cut:] for n, v in rows.items()}


@dataclass(frozen=True)
class UserSplit:
    """One held-out user: the older texts to learn from and the newer ones to test on."""

    history: list[str]
    held_out: list[str]


def split_texts(texts: list[str], fraction: float = 0.8) -> UserSplit:
    """The first ``fraction`` of a user's texts as history, the rest held out.

    Both parts have at least one text when there are two or more.
    """
    if not 0.0 < fraction < 1.0:
        raise ConfigError(f"the history fraction is {fraction}", mend="give a number between 0 and 1")
    # The small term keeps 0.8 * 100 at 80 although the product may fall just short of it in binary.
    cut = math.floor(len(texts) * fraction + 1e-9)
    cut = min(max(cut, 1), max(len(texts) - 1, 0))
    return UserSplit(texts[:cut], texts[cut:])
