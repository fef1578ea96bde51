"""Removes files that nothing needs any more: of crashed merges and uploads, of tasks that are over, of old versions."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from sqlalchemy import or_, select, update

from pfl_server.storage.federation_row import ACTIVE, SLACK_S
from pfl_server.storage.models import Assignment, Federation, Round, Version
from pfl_server.storage.sets import set_key
from pfl_server.uploads.partial_file import is_whole, old_parts, spare_files, task_of

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.orm import Session

    from pfl_server.services import Services

#: Seconds that a file must have been seen without use.
GRACE_S = 3600.0
#: The same for what devices sent: an upload is stored a moment before it is accepted, and no longer.
RAW_GRACE_S = 300.0


#: Ids of one statement; SQLite takes some thousand values.
_ROWS = 500


class Collector:
    """Collects garbage; one for each process, which remembers what it saw.

    Args:
        services: of this process.
        grace_s: seconds that a file must have been seen without use; None: as `GRACE_S` and `RAW_GRACE_S` say.
    """

    def __init__(self, services: Services, grace_s: float | None = None) -> None:
        self._services, self._grace = services, grace_s
        self._seen: dict[str, float] = {}
        self._seen_parts: dict[Path, float] = {}
        self._seen_spare: dict[Path, float] = {}
        self._cleared = 0

    def collect(self) -> None:
        """One pass.

        Raises:
            DatabaseError, BlobError: storage failed.
        """
        services, now = self._services, self._services.clock()
        # List the files before asking which are needed: a file that comes into use in between is then not deleted.
        stored = [key for folder in ("updates/", "sets/", "states/") for key in services.blobs.keys(folder)]
        with services.database.read() as session:
            needed = self._needed(session, now)
        unused = [key for key in stored if key not in needed]
        self._seen = {key: self._seen.get(key, now) for key in unused}
        for key, since in list(self._seen.items()):
            if now - since >= self._grace_of(raw=key.startswith("updates/")):
                services.blobs.delete(key)
                del self._seen[key]
        self._forget()

    def collect_parts(self) -> None:
        """Remove from this machine what uploads left that nobody will go on with; what a kill left, too.

        Raises:
            DatabaseError: it cannot be read.
        """
        scratch, now = self._services.blobs.scratch, self._services.clock()
        found = old_parts(scratch, math.inf)
        waiting = self._waiting({task_of(path) for path in found})
        old = set(old_parts(scratch, time.time() - self._task_s - SLACK_S))
        unused = [path for path in found if path in old or task_of(path) not in waiting or is_whole(path)]
        self._seen_parts = {path: self._seen_parts.get(path, now) for path in unused}
        raw = self._grace_of(raw=True)
        gone = [path for path, since in self._seen_parts.items() if path in old or now - since >= raw]
        # copies that a put, or a merge, made; nobody knows them when its process was killed
        spare = {path: self._seen_spare.get(path, now) for path in spare_files(scratch)}
        self._seen_spare = spare
        gone += [path for path, since in spare.items() if now - since >= self._grace_of(raw=False)]
        for path in gone:
            path.unlink(missing_ok=True)

    def _waiting(self, tasks: set[str]) -> set[str]:
        """Those of the tasks whose update may still come."""
        known, found = sorted(tasks), set()
        with self._services.database.read() as session:
            for begin in range(0, len(known), _ROWS):
                mine = (Assignment.id.in_(known[begin : begin + _ROWS]), Assignment.state == "assigned")
                found |= set(session.scalars(select(Assignment.id).where(*mine)))
        return found

    def _grace_of(self, *, raw: bool) -> float:
        if self._grace is not None:
            return self._grace
        return RAW_GRACE_S if raw else GRACE_S

    @property
    def _task_s(self) -> float:
        rounds = self._services.runtime.config.rounds
        return rounds.task_s or rounds.deadline_s

    def _needed(self, session: Session, now: float) -> set[str]:
        kept = self._services.runtime.config.versions_kept
        needed: set[str] = set()
        versions = (
            select(Version.state_blob, Version.values_sha256).order_by(Version.number.desc()).limit(kept)
        )
        for state, values in session.execute(versions):
            needed |= {state, set_key(values)}
        since = now - self._task_s - SLACK_S
        recent = select(Round).where(or_(Round.state.in_(ACTIVE), Round.closed > since))
        for at in session.scalars(recent):
            needed |= {set_key(found["sha256"]) for found in at.sets.values()}
            mine = select(Assignment.sets, Assignment.blob, Assignment.state).where(
                Assignment.round == at.number
            )
            for sets, blob, state in session.execute(mine.execution_options(yield_per=1000)):
                if state == "assigned":
                    needed |= {set_key(found["sha256"]) for found in sets.values()}
                if blob:
                    needed.add(blob)
        return needed

    def _forget(self) -> None:
        """Clear the devices of old assignments: their scores need no name any more."""
        config = self._services.runtime.config
        if config.privacy.max_participations is not None:
            return  # that counts them
        with self._services.database.read() as session:
            last = session.get_one(Federation, 1).next_round - config.versions_kept
        if last <= self._cleared:
            return
        with self._services.database.write() as session:
            session.execute(
                update(Assignment)
                .where(
                    Assignment.round >= self._cleared,
                    Assignment.round < last,
                    Assignment.device.is_not(None),
                    Assignment.state.not_in(("assigned", "accepted")),
                )
                .values(device=None)
                .execution_options(synchronize_session=False)
            )
        self._cleared = last
