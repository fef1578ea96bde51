"""What the coordinator of a process does about failures that repeat: wait longer, say so, and in the end pause."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from pfl_mobile.errors import LedgerError, PflError, StateError, StorageFullError
from pfl_server.errors import BlobMissingError, MergeMemoryError
from pfl_server.problems import Unavailable
from pfl_server.storage.federation_row import pause_itself
from pfl_server.storage.locks import LOCK
from pfl_server.storage.models import Federation

if TYPE_CHECKING:
    from collections.abc import Callable

    from pfl_server.storage.database import Database

log = logging.getLogger("pfl_server")

#: Failures in a row after which the server is not ready, and after which the federation pauses.
NOT_READY, PAUSES = 3, 5
#: Longest seconds between two tries. Longer than the coordinator's lease, so that meanwhile another process tries.
LONGEST_S = 30.0
#: Seconds after which a failure no longer counts, as another process has gone on.
FORGOTTEN_S = 4 * LONGEST_S
#: What does not pass by waiting: an operator has to do something.
_LASTING = (StateError, LedgerError, BlobMissingError, MergeMemoryError)


class FailuresInARow:
    """Failures in a row of one process's coordinator. Safe to share between threads.

    Args:
        database: in which the federation is paused.
        clock: seconds since 1970.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database, self._clock = database, clock
        self._lock = threading.Lock()
        self._failures = 0
        self._last: Exception | None = None
        self._at = 0.0

    def worked(self) -> None:
        """The coordinator did all there was to do."""
        with self._lock:
            if self._failures:
                log.info("the coordinator goes on after %d failures", self._failures)
            self._failures, self._last = 0, None

    def failed(self, error: Exception) -> float:
        """Count a failure; the seconds to wait before the next try. Pauses the federation if it cannot pass."""
        with self._lock:
            another = type(error) is not type(self._last) or str(error) != str(self._last)
            self._failures, self._last, self._at = self._failures + 1, error, self._clock()
            failures = self._failures
        if another or failures & (failures - 1) == 0:  # the same again only at 2, 4, 8, ...
            self._log(error, failures)
        if failures >= PAUSES and isinstance(error, _LASTING) and not isinstance(error, StorageFullError):
            self._pause(error, failures)
        return min(2.0 ** (failures - 1), LONGEST_S)

    def check(self) -> None:
        """Whether the coordinator gets on, as far as this process knows.

        Raises:
            Unavailable: it failed again and again.
        """
        with self._lock:
            failures, error, at = self._failures, self._last, self._at
        if error is None or failures < NOT_READY or self._clock() - at > FORGOTTEN_S:
            return
        kind = error.code if isinstance(error, PflError) else type(error).__name__
        raise Unavailable(
            f"no rounds are opened or merged: it failed {failures} times in a row, the last time with {kind}",
            mend="the operator finds what to do in the logs; nothing that was accepted is lost",
            headers={"Retry-After": f"{LONGEST_S:.0f}"},
        )

    def _log(self, error: Exception, failures: int) -> None:
        if isinstance(error, PflError):
            log.error(
                "the coordinator could not go on (%d in a row), and tries again: %s; mend: %s",
                failures,
                error.message,
                error.mend,
            )
        else:
            log.error("the coordinator failed (%d in a row), and tries again", failures, exc_info=error)

    def _pause(self, error: PflError, failures: int) -> None:
        note = f"it failed {failures} times in a row: {error.message}; to mend it, {error.mend}, then resume"
        try:
            with self._database.write() as session:
                federation = session.get_one(Federation, 1, with_for_update=LOCK)
                pause_itself(session, federation, self._clock(), note)
        except PflError as failure:  # tried again with the next failure
            log.error("the federation could not be paused: %s", failure.message)
