"""Groups of users: given with the data or read from a file."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.errors import ConfigError, DataError, UnknownNameError, near
from pfl_mobile.files.reading import parse_json, read_bytes, read_text

if TYPE_CHECKING:
    from pfl_mobile.data.populations import Population

#: Group name to the indexes of its users.
Groups = Mapping[str, Sequence[int] | np.ndarray]

_MEND = 'write JSON {"ann": "teens", "bob": "adults"}, or CSV with the header user,group'


def check_groups(groups: Groups, count: int, name: Callable[[int], str]) -> None:
    """Check that every one of ``count`` users is in exactly one group, or that there are no groups.

    Args:
        groups: group name to user indexes.
        count: number of users.
        name: id of a user, for the message.

    Raises:
        ConfigError: a group is empty, an index is outside 0..count - 1, a user is in no group or in two.
    """
    if not groups:
        return
    seen = np.zeros(count, np.int64)
    for group, members in groups.items():
        indexes = np.asarray(members)
        if indexes.size == 0 or indexes.dtype.kind not in "iu" or indexes.ndim != 1:
            raise ConfigError(f"group {group!r} has no users", mend="leave empty groups out")
        if indexes.min() < 0 or indexes.max() >= count:
            outside = indexes[(indexes < 0) | (indexes >= count)][0]
            raise ConfigError(
                f"group {group!r} has user {outside}", mend=f"users have the indexes 0..{count - 1}"
            )
        np.add.at(seen, indexes, 1)
    for wrong, what in ((seen == 0, "in no group"), (seen > 1, "in more than one group")):
        if wrong.any():
            users = ", ".join(repr(name(int(i))) for i in np.flatnonzero(wrong)[:3])
            raise ConfigError(
                f"{int(wrong.sum())} of {count} users are {what}: {users}"
                + (", ..." if wrong.sum() > 3 else ""),
                mend="put every user in exactly one group",
            )


def group_by(labels: Iterable[str]) -> dict[str, np.ndarray]:
    """Groups from one group name per user, in order of the users; the groups come sorted by name."""
    names, codes = np.unique(np.asarray(list(labels), dtype=np.str_), return_inverse=True)
    return {str(n): np.flatnonzero(codes == i) for i, n in enumerate(names)}


def quartiles(sizes: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    """Groups by how many examples users have: ``quartile-1`` the fewest, up to ``quartile-4``.

    Users with equally many are in one group, so a group may be empty, and is left out then.
    """
    quarter = np.searchsorted(np.quantile(sizes, (0.25, 0.5, 0.75)), sizes, side="left")
    return group_by(f"quartile-{q + 1}" for q in quarter)


def groups_from(file: str | Path, population: Population) -> dict[str, np.ndarray]:
    """Groups of a population's users from a file: a JSON object user -> group, or CSV with user and group.

    The file ends in ``.json`` or ``.csv``; a CSV file has a header with the columns ``user`` and ``group``,
    others are ignored.

    Returns:
        group name to user indexes, int64.

    Raises:
        DataError: the file is missing, cannot be read, or is neither form.
        ConfigError: a user has two groups or none.
        UnknownNameError: the file names a user that the population does not have.
    """
    path = Path(file)
    given = _read(path)
    ids = {population.id(i): i for i in range(len(population))}
    for user in given:
        if user not in ids:
            raise UnknownNameError(f"{path}: {population.name} has no user {user!r}", mend=near(user, ids))
    groups: dict[str, list[int]] = {}
    for user, group in given.items():
        groups.setdefault(group, []).append(ids[user])
    found = {name: np.sort(np.asarray(groups[name], np.int64)) for name in sorted(groups)}
    if not found:
        raise DataError(f"{path} names no user", mend=_MEND)
    check_groups(found, len(population), population.id)
    return found


def _read(path: Path) -> dict[str, str]:
    reader = {".json": _read_json, ".csv": _read_csv}.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} ends neither in .json nor in .csv", mend=_MEND)
    try:
        return _once(path, reader(path))
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}", mend="check the path of the groups") from error
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}", mend=_MEND) from error


def _read_json(path: Path) -> list[tuple[str, object]]:
    try:
        # Pairs, not a dict: a user named twice must not be lost silently.
        pairs = parse_json(read_bytes(path), pairs=_Pairs)
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}", mend=_MEND) from error
    if not isinstance(pairs, _Pairs):
        raise DataError(f"{path} is not a JSON object", mend=_MEND)
    return pairs


class _Pairs(list[tuple[str, object]]):
    """The entries of a JSON object."""


def _read_csv(path: Path) -> list[tuple[str, object]]:
    table = csv.DictReader(io.StringIO(read_text(path), newline=""))
    if not {"user", "group"} <= set(table.fieldnames or ()):
        raise DataError(f"{path} has no columns user and group", mend=_MEND)
    return [(row["user"], row["group"]) for row in table]


def _once(path: Path, pairs: list[tuple[str, object]]) -> dict[str, str]:
    given: dict[str, str] = {}
    for user, group in pairs:
        if not user or not isinstance(group, str | int) or isinstance(group, bool) or group == "":
            raise DataError(f"{path}: user {user!r} has the group {group!r}", mend=_MEND)
        if given.setdefault(user, str(group)) != str(group):
            raise ConfigError(
                f"{path}: user {user!r} is in {given[user]!r} and in {str(group)!r}",
                mend="put every user in exactly one group",
            )
    return given
