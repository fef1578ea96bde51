"""What a study is made of, checked before anything runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pfl_mobile.data.user_groups import check_groups, groups_from
from pfl_mobile.data.user_rows import layout_of, read_rows
from pfl_mobile.errors import ConfigError, DataError, UnknownNameError, UnusableRowsError, near
from pfl_mobile.rows import check_rows
from pfl_mobile.simulation.row_check import RowCheck

if TYPE_CHECKING:
    from pfl_mobile.data.populations import Groups, Population
    from pfl_mobile.programs.tasks import Batch, Task
    from pfl_mobile.rows import Rows
    from pfl_mobile.study.study import Study

#: Arrays that models and programs take; ``ArrayPopulation`` makes float32 and int64 of all others.
_DTYPES = ("float32", "int64", "bool", "uint8")

#: Backends by name.
BACKENDS = ("local", "ray")

#: Users that are looked at for some with examples, and for how many of these.
_LOOKED_AT, _COMPARED = 100, 5


def is_whole(value: Any, low: int, high: int | None = None) -> bool:
    """Whether a value is a whole number from ``low`` to ``high``."""
    whole_number = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole_number and value >= low and (high is None or value <= high)


def whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Refuse what is no whole number from ``low`` to ``high`` (ConfigError)."""
    if not is_whole(value, low, high):
        least = f"{low} or more" if high is None else f"one from {low} to {high}"
        raise ConfigError(f"{name} is {value!r}", mend=f"give a whole number, {least}")


def fraction(name: str, value: Any) -> None:
    """Refuse what is no number in [0, 1) (ConfigError)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"{name} is {value!r}", mend="give a number in [0, 1)")


def instance(name: str, value: Any, kind: type) -> None:
    """Refuse what is neither None nor of a class (ConfigError)."""
    if value is not None and not isinstance(value, kind):
        raise ConfigError(f"{name} is {value!r}", mend=f"give a {kind.__name__} object, or leave it out")


def list_of_names(name: str, value: Any) -> None:
    """Refuse a text where a list of texts is meant, as its letters would be taken for them (ConfigError)."""
    if value is None:
        return
    if isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{name} is {value!r}", mend=f"give a list of layers: {name}=['head']")


def known_backend(backend: Any) -> None:
    """Refuse what is no backend.

    Raises:
        UnknownNameError: no backend has that name.
        ConfigError: it is neither a name nor a backend.
    """
    if isinstance(backend, str):
        if backend not in BACKENDS:
            raise UnknownNameError(f"no backend is called {backend!r}", mend=near(backend, BACKENDS))
    elif not all(hasattr(backend, method) for method in ("start", "run", "close")):
        raise ConfigError(
            f"backend is {backend!r}", mend=f"give one of {', '.join(BACKENDS)}, or a ClientBackend"
        )


def has_finite_loss(study: Study, rows: Rows) -> bool:
    """Whether the model as shipped has a finite loss on these rows; where it has none nothing can train on them."""
    batch = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in rows.items()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = study.model(*(batch[name] for name in study.task.inputs))
            return bool(torch.isfinite(study.task.losses(output, batch)).all())
    except (IndexError, RuntimeError):  # a token that the model's table does not have, for instance
        return False


def folder_path(folder: Any) -> Path | None:
    """The folder of a run (ConfigError for what is no path)."""
    if folder is not None and not isinstance(folder, str | os.PathLike):
        raise ConfigError(f"folder is {folder!r}", mend="give a path, or None to keep nothing")
    return None if folder is None else Path(folder)


def first_rows(data: Population) -> list[Rows]:
    """Training rows of the first users who have any, those first whose arrays are like most others'.

    A user whose rows cannot be used is passed over, and told as a failure when the study runs.

    Raises:
        ConfigError: there are fewer than two users, or none of the first has examples.
        DataError: none of them has rows that can be used; what is wrong with those of the first.
    """
    if len(data) < 2:
        raise ConfigError(
            f"{data.name} has {len(data)} users", mend="a study needs at least two users to compare"
        )
    found: list[Rows] = []
    wrong: DataError | None = None
    for index in range(min(len(data), _LOOKED_AT)):
        try:
            rows = _usable(data, index)
        except DataError as error:
            wrong = wrong or error
            continue
        found += [rows] if len(rows["weight"]) else []
        if len(found) == _COMPARED:
            break
    if not found and wrong is not None:
        raise wrong
    if not found:
        raise ConfigError(f"the first users of {data.name} have no training examples", mend="check the data")
    layouts = [layout_of(rows) for rows in found]
    usual = max(layouts, key=layouts.count)  # the first of equals
    return sorted(found, key=lambda rows: layout_of(rows) != usual)


def _usable(data: Population, index: int) -> Rows:
    """A user's training rows, maybe none (DataError: of a kind that models do not take)."""
    what = f"the training rows of user {data.id(index)!r} of {data.name}"
    try:
        rows = read_rows(data, index, "train")
    except UnusableRowsError as error:
        raise UnusableRowsError(
            f"user {data.id(index)!r} of {data.name}: {error.message}", mend=error.mend
        ) from error
    if "weight" not in rows:
        raise DataError(f"{what} have no 'weight'", mend="give float32 weights, 1 for an ordinary example")
    for name, value in rows.items():
        if str(value.dtype) not in _DTYPES:
            raise DataError(
                f"{name!r} of {what} is {value.dtype}",
                mend="give float32 for real numbers and int64 for whole ones: rows[name].astype(...)",
            )
    check_rows(rows, what)
    return rows


def fitting(candidates: Sequence[Rows], task: Task, batch: Batch) -> Rows:
    """The first rows that are such as the task takes; the first of all where none are, as the error is about them."""
    check = RowCheck(task, batch).check
    for rows in candidates:
        with contextlib.suppress(DataError):  # told as that user's failure when the study runs
            check(rows)
            return rows
    return candidates[0]


def user_groups(given: Any, data: Population) -> Groups:
    """Groups by name, which is a text as files keep it, with the indexes of their users.

    Args:
        given: group name to ids or indexes of users; a JSON or CSV file; None for the data's own.
        data: whose users they are.

    Raises:
        UnknownNameError: a user is unknown.
        ConfigError: they are no groups, miss users or share some.
        DataError: the file cannot be read.
    """
    if isinstance(given, str | Path):
        return groups_from(given, data)
    if given is None and all(isinstance(name, str) for name in data.groups):
        return data.groups
    groups = data.groups if given is None else given
    if not isinstance(groups, Mapping):
        raise ConfigError(
            f"the groups are a {type(groups).__name__}",
            mend="give a dict of group names to users, for instance {'teens': ['ann'], 'adults': ['bob']}",
        )
    index = {data.id(i): i for i in range(len(data))}
    found: dict[str, list[int]] = {}
    for name, members in groups.items():
        if str(name) in found:
            raise ConfigError(f"two groups are called {str(name)!r}", mend="give them different names")
        found[str(name)] = [_user(member, str(name), index) for member in members]
    check_groups(found, len(data), data.id)
    return found


def _user(member: Any, group: str, index: Mapping[str, int]) -> int:
    if isinstance(member, str):
        if member not in index:
            raise UnknownNameError(
                f"group {group!r} has an unknown user {member!r}", mend=near(member, index)
            )
        return index[member]
    if not is_whole(member, 0):
        raise ConfigError(f"group {group!r} has the user {member!r}", mend="give ids or indexes of users")
    return int(member)
