"""The users of a study: who they are, their examples, and the groups they belong to."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from typing_extensions import override

from pfl_mobile.data.user_groups import Groups, check_groups, groups_from
from pfl_mobile.data.user_rows import (
    check_count,
    check_layout,
    check_user_rows,
    checked_index,
    layout_of,
    number,
    numbers,
    rows_digest,
    weighted,
)
from pfl_mobile.errors import ConfigError, DataError
from pfl_mobile.rows import Rows, check_rows, newest_part, split_rows

if TYPE_CHECKING:
    from pfl_mobile.data.usertext import UserText
    from pfl_mobile.text.encoder import TextEncoder

__all__ = [
    "ArrayPopulation",
    "GeneratedPopulation",
    "Groups",
    "Population",
    "Rows",
    "TextPopulation",
    "groups_from",
]

#: Encoded users that a ``TextPopulation`` keeps.
_KEPT_USERS = 64


class Population(Protocol):
    """Users by index, each with examples to train on and newer ones to test on.

    ``train`` and ``test`` give the same rows at every call: a dict of arrays with the same first axis, oldest
    first, ``weight`` float32 among them. ``test`` may have no rows; what it has is never trained on.
    ``groups`` maps a group's name to the indexes of its users; every user is in exactly one, or there are none.
    A population may also have ``size(index)``, how many training rows a user has, where that is known without making
    them: work is shared out more evenly then. And ``digest(index)``, an int64 that differs where any of a user's rows
    do, where that is known without making them: a run is only resumed with the same. Without it, rows are noted
    when they are trained on.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def groups(self) -> Groups: ...  # noqa: D102

    def __len__(self) -> int: ...

    def id(self, index: int) -> str: ...  # noqa: D102

    def train(self, index: int) -> Rows: ...  # noqa: D102

    def test(self, index: int) -> Rows: ...  # noqa: D102


@dataclass(frozen=True)
class ArrayPopulation:
    """Users whose examples are kept in memory.

    Build it with :meth:`of` (the newest examples become the test set) or :meth:`split` (both parts given).

    Args:
        name: of the data, for reports.
        ids: a stable name for each user.
        parts: (train, test) of each user.
        groups: group name to user indexes; every user in exactly one, or no group at all.

    Raises:
        DataError: fewer than two users, a user with nothing to train on, rows without ``weight``, NaN or
            infinite values, arrays that are not numbers, or that differ from the first user's in name, dtype or
            shape; the error names the user and the array.
        ConfigError: the groups miss a user, share one or name none of the users.
    """

    name: str
    ids: tuple[str, ...]
    parts: tuple[tuple[Rows, Rows], ...] = field(repr=False)
    groups: Groups = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_count(self.name, len(self.ids))
        if len(self.ids) != len(self.parts) or len(set(self.ids)) != len(self.ids):
            raise DataError(
                f"{self.name} has {len(self.ids)} ids ({len(set(self.ids))} different) for {len(self.parts)} users",
                mend="give each user one id of its own",
            )
        first = layout_of(self.parts[0][0])
        for user, (train, test) in zip(self.ids, self.parts, strict=True):
            for rows, what in ((train, "training"), (test, "test")):
                check_user_rows(rows, self.name, user, what)
                check_layout(rows, first, self.name, user, what)
            if not train["weight"].sum() > 0:
                raise DataError(
                    f"user {user!r} of {self.name} has no training example with a positive weight",
                    mend="leave users without examples out",
                )
        check_groups(self.groups, len(self.ids), self.id)

    @classmethod
    def of(
        cls,
        name: str,
        users: Mapping[str, Mapping[str, np.ndarray]],
        test: float = 0.2,
        groups: Groups | None = None,
    ) -> ArrayPopulation:
        """Users from one set of rows each, oldest first; the newest part of each becomes its test set.

        Floating-point arrays become float32, integers int64.

        Args:
            name: of the data.
            users: id to rows; every array of a user has the same first axis. Where no user has ``weight``, all rows
                have weight 1.
            test: fraction in [0, 1) of a user's rows; at least 1 row of a user with 2 or more unless it is 0.
            groups: as for the class.
        """
        if not 0 <= test < 1:
            raise ConfigError(f"the test fraction is {test}", mend="give a number in [0, 1)")
        parts: dict[str, tuple[Rows, Rows]] = {}
        for user, given in weighted(users, name).items():
            rows = numbers(given, name, user)
            check_rows(rows, f"rows of user {user!r} of {name}")
            parts[user] = split_rows(rows, test) if test else (rows, {n: v[:0] for n, v in rows.items()})
        return cls(name, tuple(parts), tuple(parts.values()), groups or {})

    @classmethod
    def split(
        cls,
        name: str,
        users: Mapping[str, tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]],
        groups: Groups | None = None,
    ) -> ArrayPopulation:
        """Users from a (train, test) pair each; dtypes as in :meth:`of`."""
        parts = tuple((numbers(a, name, user), numbers(b, name, user)) for user, (a, b) in users.items())
        return cls(name, tuple(users), parts, groups or {})

    def __len__(self) -> int:
        """Number of users."""
        return len(self.ids)

    def id(self, index: int) -> str:
        """The name of a user."""
        return self.ids[checked_index(self, index)]

    def size(self, index: int) -> int:
        """How many training rows a user has."""
        return len(self.parts[index][0]["weight"])

    def digest(self, index: int) -> int:
        """Differs where any of a user's rows do."""
        return rows_digest(*self.parts[index])

    def train(self, index: int) -> Rows:
        """A user's older rows."""
        return self.parts[checked_index(self, index)][0]

    def test(self, index: int) -> Rows:
        """A user's newest rows."""
        return self.parts[checked_index(self, index)][1]


@dataclass(frozen=True)
class GeneratedPopulation:
    """Users whose examples are made when asked for: memory does not grow with their number.

    Picklable when ``generate`` is (a function of a module, a ``functools.partial`` of one or a dataclass with
    ``__call__``).

    Args:
        name: of the data.
        count: number of users, 2 or more.
        generate: index to (train, test), always the same for the same index.
        groups: as for :class:`ArrayPopulation`.

    Raises:
        DataError: fewer than two users; later, from ``train`` and ``test``, rows without ``weight`` or with NaN.
        ConfigError: the groups miss a user, share one or name none of the users.
    """

    name: str
    count: int
    generate: Callable[[int], tuple[Rows, Rows]] = field(repr=False)
    groups: Groups = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        check_count(self.name, self.count)
        check_groups(self.groups, self.count, self.id)

    def __len__(self) -> int:
        """Number of users."""
        return self.count

    def id(self, index: int) -> str:
        """``user-<index>``."""
        return f"user-{checked_index(self, index)}"

    def train(self, index: int) -> Rows:
        """A user's older rows."""
        rows = self.generate(checked_index(self, index))[0]
        check_user_rows(rows, self.name, self.id(index), "training")
        return rows

    def test(self, index: int) -> Rows:
        """A user's newest rows."""
        rows = self.generate(checked_index(self, index))[1]
        check_user_rows(rows, self.name, self.id(index), "test")
        return rows


@dataclass(frozen=True)
class TextPopulation:
    """Users who wrote messages; rows for next-word prediction are encoded when asked for.

    The newest messages of a user are its test set: the split is between messages, so no message is in both.
    Labels outside the vocabulary are left out of training and count as misses in the test (see ``text.py``).

    Args:
        data: users and their messages.
        encoder: turns messages into rows tokens int64 [R, T], labels int64 [R, T], weight float32 [R, T].
        fraction: of a user's messages that are its test set.
        groups: as for :class:`ArrayPopulation`.

    Raises:
        DataError: fewer than two users.
        ConfigError: the fraction is not in (0, 1), or the groups miss a user, share one or name none of the users.
    """

    data: UserText
    encoder: TextEncoder = field(repr=False)
    fraction: float = 0.2
    groups: Groups = field(default_factory=dict, repr=False)
    _ids: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _kept: OrderedDict[tuple[int, bool], Rows] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ids", tuple(self.data.users))
        object.__setattr__(self, "_kept", OrderedDict())
        check_count(self.name, len(self._ids))
        if not 0 < self.fraction < 1:
            raise ConfigError(f"the test fraction is {self.fraction}", mend="give a number between 0 and 1")
        check_groups(self.groups, len(self._ids), self.id)

    @override
    def __getstate__(self) -> dict[str, Any]:
        """Everything but the encoded rows, which another process encodes when it needs them."""
        return {**self.__dict__, "_kept": OrderedDict()}

    @property
    def name(self) -> str:
        """Name of the text dataset."""
        return self.data.name

    @property
    def left_out(self) -> dict[str, int] | None:
        """Messages of the source that nobody learns from or is tested on, by reason; None where nobody counted."""
        return self.data.counts_left_out()

    def __len__(self) -> int:
        """Number of users."""
        return len(self._ids)

    def id(self, index: int) -> str:
        """The name of a user in the dataset."""
        return self._ids[checked_index(self, index)]

    def train(self, index: int) -> Rows:
        """Rows of a user's older messages."""
        return self._rows(index, newest=False)

    def test(self, index: int) -> Rows:
        """Rows of a user's newest messages."""
        return self._rows(index, newest=True)

    def digest(self, index: int) -> int:
        """Differs where a user's messages do, or what makes rows of them."""
        return number(repr((self.data.texts(self.id(index)), self.fraction, self._encoding)))

    @cached_property
    def _encoding(self) -> str:
        encoder = self.encoder
        return repr(
            (encoder.tokenizer.to_json(), encoder.length, encoder.vocabulary, encoder.slots, encoder.words)
        )

    def _rows(self, index: int, *, newest: bool) -> Rows:
        user, key = self.id(index), (index, newest)
        if key not in self._kept:
            older, newer = newest_part(self.data.texts(user), self.fraction)
            encoded = self.encoder.encode(newer if newest else older, drop_unknown=not newest)
            self._kept[key] = encoded
            if len(self._kept) > 2 * _KEPT_USERS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def population(given: Population | Mapping[str, Mapping[str, np.ndarray]] | str) -> Population:
    """The population, that of the named dataset, or one of these users.

    Raises:
        UnknownNameError: there is no such dataset.
        ConfigError: it is no population.
        DataError: users given by name have no rows that a study can use.
    """
    if isinstance(given, Mapping):
        return ArrayPopulation.of("data", given)
    if isinstance(given, str):
        from pfl_mobile import data

        found: Population = data.population(given)
        return found
    missing = [m for m in ("train", "test", "id", "__len__", "name", "groups") if not hasattr(given, m)]
    if missing:
        raise ConfigError(
            f"the data is a {type(given).__name__}, which lacks {', '.join(missing)}",
            mend="give users and their rows, for instance {'ann': {'x': x, 'labels': y}, 'bob': ...}, or a Population",
        )
    return given
