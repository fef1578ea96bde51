"""Digests of the users' rows, so that a run is not resumed on others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.data.user_rows import number, rows_digest
from pfl_mobile.errors import DataError, OtherSettingsError

if TYPE_CHECKING:
    from pfl_mobile.data.populations import Population
    from pfl_mobile.simulation.worker import Record

#: Users up to which each one's digest is kept, so that an error can name the user; above it one digest of all.
_NAMED = 100_000
#: Users whose rows are made again when a run is resumed, of those that had been trained on.
_TRIED = 16
_MEND = "give the data that the run was started with, or another folder for a run with this data"


class UsedData:
    """What is known of the users' rows.

    Rows that are in memory are all known from the start. Those that are made when asked for become known when they
    are first trained on, and are compared whenever they are again.

    Args:
        population: the users.
        folder: named in errors.
    """

    def __init__(self, population: Population, folder: object) -> None:
        self._population, self._folder = population, folder
        self._known: dict[int, tuple[int, int]] = {}
        digest = getattr(population, "digest", None)
        self.complete = digest is not None
        if digest is not None:
            found = [(number(population.id(i)), int(digest(i))) for i in range(len(population))]
            if len(found) > _NAMED:
                found = [(len(found), number(repr(found)))]
            self._known = dict(enumerate(found))

    def table(self) -> np.ndarray:
        """Index, digest of the id and digest of the rows of every user that is known, int64 [m, 3]."""
        rows = [(index, *known) for index, known in self._known.items()]
        return np.array(rows, np.int64).reshape(-1, 3)

    def resume(self, table: np.ndarray) -> None:
        """Compare with the ``table`` of the run that is resumed, and know what it knew.

        Raises:
            OtherSettingsError: names the users whose rows differ.
        """
        before = {index: (name, rows) for index, name, rows in table.tolist()}
        now = self._known
        if not self.complete:
            some = list(before)[:: max(1, len(before) // _TRIED)]
            now = {index: self._found(index) for index in some}
        if len(now) == 1 and self.complete and now != before:
            raise self._other("other users, or other rows of theirs")
        ids = [i for i, known in now.items() if i in before and known[0] != before[i][0]]
        if ids:
            moved = sorted(k[0] for k in now.values()) == sorted(k[0] for k in before.values())
            what = (
                "its users in another order"
                if moved
                else f"another user than {self._id(ids[0])!r} at place {ids[0]}"
            )
            raise self._other(what)
        rows = [i for i, known in now.items() if i in before and known != before[i]]
        if rows:
            raise self._rows_differ(rows)
        if self.complete and now.keys() != before.keys():
            raise self._other(f"{len(before)} users, not {len(now)}")
        self._known = before

    def note(self, records: Sequence[Record]) -> None:
        """Know the rows of devices that trained.

        Raises:
            OtherSettingsError: they are not those that the device had before.
        """
        new: dict[int, tuple[int, int]] = {}
        for record in records:
            if record.rows is not None:
                new[record.client] = (number(self._id(record.client)), record.rows)
        other = [client for client, found in new.items() if self._known.get(client, found) != found]
        if other:
            raise self._rows_differ(other)
        self._known |= new

    def _found(self, index: int) -> tuple[int, int]:
        try:
            rows = rows_digest(self._population.train(index))
        except DataError:  # they could be used before
            rows = 0
        return number(self._id(index)), rows

    def _id(self, index: int) -> str:
        return self._population.id(index)

    def _rows_differ(self, users: Sequence[int]) -> OtherSettingsError:
        some = ", ".join(repr(self._id(i)) for i in users[:3])
        more = f" and {len(users) - 3} more" if len(users) > 3 else ""
        return self._other(
            f"other rows of the users {some}{more}" if users[1:] else f"other rows of the user {some}"
        )

    def _other(self, what: str) -> OtherSettingsError:
        return OtherSettingsError(
            f"the run in {self._folder} was made with other data of the same name ({self._population.name}): "
            f"it had {what}",
            mend=_MEND,
        )
