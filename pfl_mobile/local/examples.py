"""The device's own examples, on SQLite: bounded, inspectable, erasable.

Every change is one transaction, durable when the call returns. Erased bytes are overwritten
(``secure_delete``) and the log is emptied, so that what was erased, or removed by a limit, is in none of the
store's files. A trained state can still remember it: erase that too (``PersonalStateStore.erase``), or
personalize again with ``"start": "initial"``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pfl_mobile.errors import ConfigError, StateError, StorageFullError, TensorFileError
from pfl_mobile.files.reading import parse_json, whole_text
from pfl_mobile.files.tensors import tensors_from_bytes, tensors_to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import numpy as np

#: Statements that lead from user_version i to i + 1.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE examples (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            created REAL NOT NULL,
            kind TEXT NOT NULL CHECK (kind IN ('text', 'arrays')),
            payload BLOB NOT NULL,
            note TEXT NOT NULL
        )""",
        "CREATE INDEX examples_created ON examples (created)",
    ),
)


@dataclass(frozen=True)
class Example:
    """One stored example.

    Attributes:
        id: increases with every addition, never used twice.
        created: seconds since 1970.
        kind: what the payload is.
        payload: a text, or arrays by name.
        note: whatever the app keeps with it (JSON values), for instance its source.
    """

    id: int
    created: float
    kind: Literal["text", "arrays"]
    payload: str | Mapping[str, np.ndarray]
    note: Mapping[str, object]


@dataclass(frozen=True)
class Retention:
    """What is kept; the oldest examples go first. None is no limit.

    Attributes:
        max_examples: number of examples.
        max_age: seconds since an example was made.
        max_bytes: payload bytes in all.
    """

    max_examples: int | None = 10_000
    max_age: float | None = None
    max_bytes: int | None = 64 << 20

    def __post_init__(self) -> None:
        """Refuse limits that keep nothing."""
        for name in ("max_examples", "max_age", "max_bytes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} is {value}", mend="give a limit above 0, or None for no limit")


class ExampleStore:
    """The examples of one device; use it in one thread, as a context manager or with ``close()``.

    >>> with ExampleStore(":memory:") as store:
    ...     _ = store.add("see you there")
    ...     store.count()
    1

    Args:
        path: the database file; its folder must exist.
        retention: limits, applied now and at every addition.
        clock: seconds since 1970.

    Raises:
        StateError: the file is damaged, not ours, or from a newer version.
        StorageFullError: the disk is full.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        retention: Retention | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Open or create the database."""
        self.path = Path(path)
        self.retention = retention or Retention()
        self._clock = clock
        with self._errors():
            if str(path) != ":memory:":  # private from the first byte; SQLite gives its log the same mode
                with contextlib.suppress(OSError):
                    os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=10)
        try:
            with self._errors():
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.execute("PRAGMA secure_delete = ON")
                problem = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
                if problem != "ok":
                    raise sqlite3.DatabaseError(problem)
            self._migrate()
            self.enforce()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> ExampleStore:
        """Use the store in a ``with`` statement."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the store."""
        self.close()

    def close(self) -> None:
        """Close the database; nothing is pending."""
        self._db.close()

    def add(
        self,
        payload: str | Mapping[str, np.ndarray],
        *,
        created: float | None = None,
        note: Mapping[str, object] | None = None,
    ) -> int | None:
        """Store one example; see ``add_all``. Returns its id, None if a limit removed it at once."""
        return self.add_all([payload], created=created, note=note)[0]

    def add_all(
        self,
        payloads: Iterable[str | Mapping[str, np.ndarray]],
        *,
        created: float | None = None,
        note: Mapping[str, object] | None = None,
    ) -> list[int | None]:
        """Store examples, oldest first, all or none, then apply the retention limits.

        Args:
            payloads: texts, or arrays by name.
            created: seconds since 1970; now by default.
            note: JSON values kept with each.

        Returns:
            Ids in order; None for an example that a limit removed at once.
        """
        when = self._clock() if created is None else created
        text = json.dumps(dict(note or {}))
        ids: list[int] = []
        with self._transaction():
            for payload in payloads:
                kind = "text" if isinstance(payload, str) else "arrays"
                data = whole_text(payload).encode() if isinstance(payload, str) else tensors_to_bytes(payload)
                row = (when, kind, data, text)
                cursor = self._db.execute(
                    "INSERT INTO examples (created, kind, payload, note) VALUES (?, ?, ?, ?)", row
                )
                ids.append(int(cursor.lastrowid or 0))
            removed = self._apply_retention()
        self._forget(removed)
        if not removed:
            return list(ids)
        kept = {row[0] for row in self._db.execute("SELECT id FROM examples WHERE id >= ?", (min(ids),))}
        return [i if i in kept else None for i in ids]

    def count(self) -> int:
        """How many examples there are."""
        with self._errors():
            return int(self._db.execute("SELECT COUNT(*) FROM examples").fetchone()[0])

    def payload_bytes(self) -> int:
        """Payload bytes in all."""
        with self._errors():
            return int(
                self._db.execute("SELECT COALESCE(SUM(LENGTH(payload)), 0) FROM examples").fetchone()[0]
            )

    def examples(self, *, newest: int | None = None) -> list[Example]:
        """The examples, oldest first (by time, then id): what a user may inspect.

        Args:
            newest: only so many of the newest.
        """
        query = "SELECT id, created, kind, payload, note FROM examples ORDER BY created DESC, id DESC LIMIT ?"
        with self._errors():
            rows = self._db.execute(query, (-1 if newest is None else newest,)).fetchall()
        return [self._example(*row) for row in reversed(rows)]

    def get(self, identifier: int) -> Example | None:
        """One example, None if there is none with this id."""
        query = "SELECT id, created, kind, payload, note FROM examples WHERE id = ?"
        with self._errors():
            row = self._db.execute(query, (identifier,)).fetchone()
        return None if row is None else self._example(*row)

    def erase(self, identifier: int) -> bool:
        """Erase one example; False if there was none with this id."""
        return self._erase([identifier]) == 1

    def erase_where(self, predicate: Callable[[Example], bool]) -> int:
        """Erase every example that the predicate picks; returns how many."""
        return self._erase([e.id for e in self.examples() if predicate(e)])

    def erase_all(self) -> int:
        """Erase everything; returns how many there were."""
        with self._transaction():
            removed = self._db.execute("DELETE FROM examples").rowcount
        self._forget(1, shrink=True)
        return removed

    def enforce(self) -> int:
        """Apply the retention limits now; returns how many examples went."""
        with self._transaction():
            removed = self._apply_retention()
        self._forget(removed)
        return removed

    def _erase(self, identifiers: list[int]) -> int:
        with self._transaction():
            removed = sum(
                self._db.execute("DELETE FROM examples WHERE id = ?", (i,)).rowcount for i in identifiers
            )
        self._forget(removed, shrink=True)
        return removed

    def _apply_retention(self) -> int:
        limits, removed = self.retention, 0
        newest_first = "SELECT id FROM examples ORDER BY created DESC, id DESC"
        if limits.max_age is not None:
            oldest = self._clock() - limits.max_age
            removed += self._db.execute("DELETE FROM examples WHERE created < ?", (oldest,)).rowcount
        if limits.max_examples is not None:
            removed += self._db.execute(
                f"DELETE FROM examples WHERE id IN ({newest_first} LIMIT -1 OFFSET ?)", (limits.max_examples,)
            ).rowcount
        if limits.max_bytes is not None:
            # one that is too large by itself goes alone, and not with all that are older
            removed += self._db.execute(
                "DELETE FROM examples WHERE LENGTH(payload) > ?", (limits.max_bytes,)
            ).rowcount
            running = (
                "SELECT id, SUM(LENGTH(payload)) OVER (ORDER BY created DESC, id DESC) AS total FROM examples"
            )
            removed += self._db.execute(
                f"DELETE FROM examples WHERE id IN (SELECT id FROM ({running}) WHERE total > ?)",
                (limits.max_bytes,),
            ).rowcount
        return removed

    def _forget(self, removed: int, *, shrink: bool = False) -> None:
        """Leave no trace of removed examples in the file or its log."""
        if removed:
            with self._errors():
                if shrink:  # secure_delete has overwritten them; only the size of the file needs this
                    self._db.execute("VACUUM")
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _migrate(self) -> None:
        with self._errors():
            version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version > len(MIGRATIONS):
            raise StateError(
                f"the example store {self.path} has version {version}, newer than {len(MIGRATIONS)}",
                mend="update pfl-mobile",
            )
        for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
            with self._transaction():
                for statement in statements:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {number}")

    def _example(self, identifier: int, created: float, kind: str, payload: bytes, note: str) -> Example:
        try:
            kept = parse_json(note, finite=False)
            if kind == "text":
                return Example(identifier, created, "text", payload.decode(), kept)
            return Example(identifier, created, "arrays", tensors_from_bytes(payload), kept)
        except (ValueError, TensorFileError) as error:
            raise StateError(
                f"example {identifier} of {self.path} is damaged: {error}",
                mend=f"erase it with erase({identifier})",
            ) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors into ours."""
        try:
            yield
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise StorageFullError(
                    f"no space left for the example store {self.path}; nothing was changed",
                    mend="free some space, or lower the retention limits",
                ) from error
            if isinstance(error, sqlite3.OperationalError):
                raise StateError(
                    f"cannot use the example store {self.path}: {error}",
                    mend="check that its folder exists, may be written and that no other process holds it",
                ) from error
            raise self._damaged(error) from error
        except (
            UnicodeDecodeError
        ) as error:  # SQLite names a damaged part of its schema by the bytes it has there
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> StateError:
        return StateError(
            f"the example store {self.path} is damaged: {error}",
            mend="restore it from a backup, or delete the file and collect examples anew",
        )
