"""How often which problem was answered: in memory at once, in the table ``refusals`` every few seconds.

A flood of refused requests must not become a flood of writes, so the counts of up to `FLUSH_S` seconds are lost when
a process is killed.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite

from pfl_server.storage.models import Refusal

if TYPE_CHECKING:
    from pfl_server.counting.metrics import Metrics
    from pfl_server.storage.database import Database

#: Seconds between two writes.
FLUSH_S = 2.0
#: ``Refusal.round`` of problems outside rounds.
NO_ROUND = -1


class Refusals:
    """Counts problems by round and code; safe to share between threads."""

    def __init__(self, database: Database, metrics: Metrics) -> None:
        self._database, self._metrics = database, metrics
        self._lock = threading.Lock()
        self._counts: Counter[tuple[int, str]] = Counter()

    def count(self, code: str, round_number: int | None = None) -> None:
        """Count one answer with the problem ``code``."""
        self._metrics.refusals.labels(code=code).inc()
        with self._lock:
            self._counts[(NO_ROUND if round_number is None else round_number, code)] += 1

    def flush(self) -> None:
        """Add what was counted to the table; when that fails, it stays counted.

        Raises:
            DatabaseError: the database cannot be written.
        """
        with self._lock:
            counts, self._counts = self._counts, Counter()
        if not counts:
            return
        try:
            self._write(counts)
        except BaseException:
            with self._lock:
                self._counts.update(counts)
            raise

    def _write(self, counts: Counter[tuple[int, str]]) -> None:
        insert = sqlite.insert if self._database.is_sqlite else postgresql.insert
        table = Refusal.__table__
        assert isinstance(table, Table)
        with self._database.write() as session:
            for (number, code), count in sorted(
                counts.items()
            ):  # always in this order, so none waits in a circle
                statement = insert(table).values(round=number, code=code, count=count)
                session.execute(
                    statement.on_conflict_do_update(
                        index_elements=["round", "code"],
                        set_={"count": table.c["count"] + statement.excluded["count"]},
                    )
                )
