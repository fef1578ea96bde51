"""Opens, closes and merges rounds. One process at a time does, by a lease; any may take over when it ends."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import and_, or_, select, update

from pfl_mobile.errors import PflError
from pfl_server.clock import SteadyClock
from pfl_server.rounds.garbage import Collector
from pfl_server.rounds.lifecycle import close_due, expire_tasks, keep_in_reach, open_next
from pfl_server.rounds.merge import Checkpoint, LostLease, claim, give_back, merge
from pfl_server.storage.locks import changed, lapsed
from pfl_server.storage.models import Federation, Round

if TYPE_CHECKING:
    from pfl_server.services import Services

log = logging.getLogger("pfl_server")

#: Seconds of a lease; it is renewed when a third of it is over.
LEASE_S = 15.0
#: Seconds between two looks, unless something wakes the coordinator.
PERIOD_S = 1.0
#: Seconds between two collections of garbage.
COLLECT_S = 60.0
#: Seconds by which this process's clock may differ from the coordinating one's, or from the system's, unnoticed.
APART_S, SET_S = 5.0, 60.0


class Coordinator:
    """The coordinator of one process.

    Args:
        services: of this process.
        checkpoint: called with the name of each point of a merge that is reached; for tests, which end the process.
    """

    def __init__(self, services: Services, *, checkpoint: Checkpoint | None = None) -> None:
        self._services = services
        self._checkpoint: Checkpoint = checkpoint or (lambda _: None)
        self._owner = secrets.token_hex(16)
        self._collector = Collector(services)
        self._collected: float | None = None
        self._parts_collected: float | None = None
        self._seen: tuple[str | None, float] | None = None
        self._seen_at = 0.0
        self._told_ahead = 0.0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Work in a thread until `stop`."""
        self._thread = threading.Thread(target=self._run, name="pfl-coordinator", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Finish what is being done, at most ``timeout`` seconds long, and give the lease back."""
        self._stopping.set()
        self._services.runtime.wake.set()
        if self._thread is None:
            return
        self._thread.join(timeout)
        if self._thread.is_alive():
            log.warning("a merge was still running after %.0f s; the next start does it again", timeout)
            return
        try:
            self._release()
        except PflError as error:  # it lapses by itself
            log.warning("the lease could not be given back: %s", error.message)

    def step(self) -> None:
        """Do all that is to do now, if this process has the lease or gets it.

        Raises:
            DatabaseError, BlobError, StorageFullError, StateError, LedgerError: storage failed, or is damaged.
            MergeMemoryError: there is too little memory.
        """
        self._note_clock()
        # by every process: uploads come in on every machine, and each has a scratch folder of its own
        if self._is_due(self._parts_collected):
            self._parts_collected = self._services.clock()
            self._collector.collect_parts()
        if not self._lead():
            return
        with self._renewing():
            keep_in_reach(self._services)
            expire_tasks(self._services)
            close_due(self._services)
            for number in self._to_merge():
                self._merge(number)
            if open_next(self._services, self._owner) is not None:
                log.info("a round was opened")
        if self._is_due(self._collected):
            self._collected = self._services.clock()
            self._collector.collect()
        self._services.trouble.worked()

    def _is_due(self, last: float | None) -> bool:
        return last is None or not 0 <= self._services.clock() - last < COLLECT_S

    def _note_clock(self) -> None:
        """Tell once when the system's clock was set while this process ran."""
        clock = self._services.clock
        if not isinstance(clock, SteadyClock) or abs(clock.ahead() - self._told_ahead) < SET_S:
            return
        self._told_ahead = clock.ahead()
        log.warning(
            "the system's clock is %.0f s from this server's, which rounds end by until it is started again",
            -self._told_ahead,
        )

    def attempt(self) -> float:
        """Do `step`; how many seconds to wait after a failure, 0 where it worked."""
        try:
            self.step()
        except Exception as error:  # whatever it is, training goes on once it has passed
            return self._services.trouble.failed(error)
        return 0.0

    def _run(self) -> None:
        wake = self._services.runtime.wake
        while not self._stopping.is_set():
            pause = self.attempt()
            if pause > 0:  # uploads that wake it do not make it fail more often
                self._stopping.wait(pause)
            else:
                wake.wait(PERIOD_S)
            wake.clear()

    def _to_merge(self) -> list[int]:
        waiting = or_(
            Round.state == "closing",
            and_(Round.state == "merging", lapsed(Round.lease_until, self._services.clock())),
        )
        with self._services.database.read() as session:
            return list(session.scalars(select(Round.number).where(waiting).order_by(Round.number)))

    def _merge(self, number: int) -> None:
        owner = claim(self._services, number, LEASE_S)
        if owner is None:
            return
        self._checkpoint("claimed")
        with self._renewing(number, owner):
            try:
                version = merge(self._services, number, owner, self._checkpoint)
            except LostLease:
                log.warning("round %d was taken over, or ended, while it was merged here", number)
                return
            except Exception:
                self._give_back(number, owner)
                raise
        if version is not None:
            log.info("a round was merged")

    def _give_back(self, number: int, owner: str) -> None:
        try:
            give_back(self._services, number, owner)
        except PflError as error:  # its lease lapses by itself
            log.warning("round %d could not be given back: %s", number, error.message)

    # -- leases

    def _lead(self) -> bool:
        """Whether this process has the lease, taken or renewed where that is due."""
        with self._services.database.read() as session:
            found = session.get_one(Federation, 1)
        over = self._is_over(found)
        now = self._services.clock()
        if found.lease_owner == self._owner and not over and found.lease_until - now > LEASE_S * 2 / 3:
            return True
        if found.lease_owner not in (None, self._owner) and not over:
            return False
        free = or_(
            Federation.lease_owner.is_(None),
            Federation.lease_owner == self._owner,
            and_(
                Federation.lease_owner == found.lease_owner,  # as it was when it was found to be over
                Federation.lease_until == found.lease_until,
            ),
        )
        with self._services.database.write() as session:
            done = session.execute(
                update(Federation)
                .where(Federation.id == 1, free)
                .values(lease_owner=self._owner, lease_until=now + LEASE_S)
            )
        return bool(changed(done))

    def _is_over(self, found: Federation) -> bool:
        """Whether the lease of the federation is over: its end has passed, or nobody has renewed it for as long.

        A process that is seen to renew it is alive, whatever its clock says; then this one goes by the same time.
        """
        lease, before = (found.lease_owner, found.lease_until), self._seen
        if lease != before:
            renewed = before is not None and before[0] == lease[0] not in (None, self._owner)
            if renewed and before is not None and lease[1] > before[1]:
                self._follow(lease[1] - LEASE_S)
            self._seen, self._seen_at = lease, self._services.clock()
        now = self._services.clock()
        return found.lease_until < now or not 0 <= now - self._seen_at <= LEASE_S

    def _follow(self, time: float) -> None:
        clock = self._services.clock
        if isinstance(clock, SteadyClock) and abs(time - clock()) > APART_S:
            log.warning(
                "this process's clock was %.0f s from that of the process that coordinates; it goes by that now",
                clock() - time,
            )
            clock.set(time)

    @contextmanager
    def _renewing(self, number: int | None = None, owner: str | None = None) -> Iterator[None]:
        """Renew the lease of the federation, or of a round, while the block runs."""
        done = threading.Event()

        def renew() -> None:
            while not done.wait(LEASE_S / 3):
                try:
                    self._renew(number, owner)
                except PflError as error:  # the lease may lapse; then another process does the same again
                    log.warning("a lease could not be renewed: %s", error.message)

        thread = threading.Thread(target=renew, name="pfl-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _renew(self, number: int | None, owner: str | None) -> None:
        until = self._services.clock() + LEASE_S
        with self._services.database.write() as session:
            if number is None:
                mine = update(Federation).where(Federation.id == 1, Federation.lease_owner == self._owner)
            else:
                mine = update(Round).where(Round.number == number, Round.lease_owner == owner)
            session.execute(mine.values(lease_until=until))

    def _release(self) -> None:
        with self._services.database.write() as session:
            session.execute(
                update(Federation)
                .where(Federation.id == 1, Federation.lease_owner == self._owner)
                .values(lease_owner=None, lease_until=0.0)
            )
