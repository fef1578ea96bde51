"""What an admin can do. The API and the dashboard both act through here.

Every action is one write transaction that also writes its audit entry: an action without its entry, or an entry
without its action, cannot be. Rows are locked from the general to the particular: federation, round, device,
assignments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from pfl_server.identity import credentials
from pfl_server.problems import Conflict, DeviceRevoked, InvalidRequest, NotFound, Problem
from pfl_server.rounds.lifecycle import end_without_merge
from pfl_server.storage.federation_row import ACTIVE, SLACK_S
from pfl_server.storage.locks import LOCK
from pfl_server.storage.models import (
    Assignment,
    AuditEntry,
    EndedSession,
    EnrolledDevice,
    EnrolmentToken,
    Federation,
    Round,
    Version,
)
from pfl_server.storage.sets import rolled_back_state

if TYPE_CHECKING:
    from pfl_server.federation.config import FederationConfig
    from pfl_server.services import Services

#: Longest note of an action.
NOTE_LENGTH = 300


@dataclass(frozen=True)
class NewToken:
    """An enrolment token, told this once; only its SHA-256 is kept."""

    id: str
    token: str


@dataclass(frozen=True)
class Actions:
    """Admin actions on one federation.

    Args:
        services: of this process.
        actor: who acts, for the audit log.
    """

    services: Services
    actor: str

    def pause(self, note: str = "") -> None:
        """Give devices no new tasks and open no new rounds until ``resume``; an open round may still end.

        Raises:
            Conflict: the federation is not running.
        """
        self._turn("running", "paused", "pause", note)

    def resume(self, note: str = "") -> None:
        """Go on after ``pause``, or after the federation paused itself because rounds failed.

        Raises:
            Conflict: the federation is not paused; finished or out of budget, it cannot go on.
        """
        self._turn("paused", "running", "resume", note)

    def abandon(self, number: int, note: str = "") -> None:
        """End a round without a merge. Its updates are thrown away, its tasks are over, nothing is published.

        Raises:
            NotFound: there is no such round.
            Conflict: the round is over, or is being merged.
        """
        with self._writing() as (session, _):
            found = session.get(Round, number, with_for_update=LOCK)
            if found is None:
                raise _no("round", number)
            if found.state not in ACTIVE:
                raise Conflict(f"round {number} is {found.state} already", mend="look at the newest round")
            blobs = self._abandon(session, found, f"ended by an admin{_colon(note)}")
            self._log(session, "abandon-round", round=number, note=note)
        self._delete(blobs)

    def roll_back(self, number: int, note: str = "") -> int:
        """Serve an earlier version's tensors again, as a new version.

        An open round is abandoned and all tasks are over, as their updates are changes of what is given up.

        What the rounds since then cost in privacy stays spent, as their models were published: the new version
        carries the newest privacy statement. Publishing old tensors again costs nothing.

        Args:
            number: version to go back to.
            note: why.

        Returns:
            The new version's number.

        Raises:
            NotFound: there is no such version, or its tensors were removed (``versions_kept``).
            Conflict: that version is served now, a round is being merged, the model changed meanwhile, or the state
                of that version or of the newest one is missing or damaged.
        """
        services = self.services
        with services.database.read() as session:
            old, newest = session.get(Version, number), _newest(session)
            served = session.get_one(Federation, 1).version
        if old is None:
            raise _no("version", number)
        if not is_kept(services.runtime.config, number, newest.number):
            raise NotFound(
                f"the tensors of version {number} are no longer kept",
                mend="choose one of the newest versions; versions_kept says how many are kept",
            )
        if number == served:
            raise Conflict(f"version {number} is served now", mend="choose an earlier version")
        made = newest.number + 1
        state_blob = rolled_back_state(services.blobs, old, newest, made)
        with self._writing() as (session, federation):
            if _newest(session).number != newest.number:
                raise Conflict("a new version was made meanwhile", mend="look at it, then roll back again")
            unmerged = select(Round).where(Round.state.in_(ACTIVE)).with_for_update(**LOCK)
            abandoned = list(session.scalars(unmerged))
            why = f"rolled back to version {number}"
            blobs = [blob for found in abandoned for blob in self._abandon(session, found, why)]
            self._expire_tasks(session)
            session.add(
                Version(
                    number=made,
                    round=None,
                    parent=number,
                    state_blob=state_blob,
                    values_sha256=old.values_sha256,
                    values_bytes=old.values_bytes,
                    privacy=_newest(session).privacy,  # an abandoned round may have added to it
                    created=services.clock(),
                    note=f"rolled back to version {number}{_colon(note)}",
                )
            )
            federation.version = made
            rounds = [found.number for found in abandoned]
            self._log(session, "roll-back", to=number, version=made, abandoned_rounds=rounds, note=note)
        self._delete(blobs)
        return made

    def revoke(self, device_id: str, note: str = "") -> None:
        """End a device's part: its credential is refused, its task is over, its unmerged update thrown away.

        Raises:
            NotFound: there is no such device.
            Conflict: it takes no part any more.
        """
        with self._writing() as (session, _):
            unmerged = select(Round.number).where(Round.state.in_(("open", "closing")))
            numbers = list(session.scalars(unmerged.with_for_update(**LOCK)))
            device = session.get(EnrolledDevice, device_id, with_for_update=LOCK)
            if device is None:
                raise _no("device", device_id)
            if device.state != "active":
                raise Conflict(f"the device is {device.state} already", mend="nothing is left to do")
            device.state = "revoked"
            blobs = self._end_tasks(session, device_id, numbers)
            self._log(session, "revoke-device", device=device_id, note=note)
        self._delete(blobs)

    def create_token(
        self,
        note: str = "",
        *,
        group: str = "",
        uses: int | None = None,
        valid_s: float | None = None,
    ) -> NewToken:
        """A new token that lets devices enrol.

        Args:
            note: what it is for.
            group: group of the devices that enrol with it; empty: the one they give.
            uses: how many devices may use it; None: any number.
            valid_s: seconds that it is valid; None: until it is deleted.

        Raises:
            InvalidRequest: the federation has no such group, or a number is not positive.
        """
        if (uses is not None and uses < 1) or (valid_s is not None and not valid_s > 0):
            raise InvalidRequest("uses and validity must be above 0", mend="leave them out for no limit")
        token, digest = credentials.new_enrolment_token()
        made = NewToken(credentials.new_id(), token)
        with self._writing() as (session, federation):
            known = federation.config.get("groups", [])
            if group and group not in known:
                raise InvalidRequest(
                    f"there is no group {group!r}", mend=f"known: {', '.join(known) or 'there are none'}"
                )
            now = self.services.clock()
            session.add(
                EnrolmentToken(
                    id=made.id,
                    sha256=digest,
                    note=_clean(note)[:200],
                    group=group,
                    uses_left=uses,
                    expires=None if valid_s is None else now + valid_s,
                    created=now,
                )
            )
            self._log(session, "create-token", token=made.id, group=group, uses=uses, note=note)
        return made

    def delete_token(self, token_id: str) -> None:
        """Let no more devices enrol with a token; those that did stay.

        Raises:
            NotFound: there is no such token.
        """
        with self._writing() as (session, _):
            found = session.get(EnrolmentToken, token_id, with_for_update=LOCK)
            if found is None:
                raise _no("token", token_id)
            session.delete(found)
            self._log(session, "delete-token", token=token_id, note=found.note)

    def signed_in(self) -> None:
        """Log that someone signed in to the dashboard."""
        with self._writing() as (session, _):
            self._log(session, "sign-in")

    def signed_out(self, nonce: str, ends: float) -> None:
        """End a session of the dashboard for all processes.

        Args:
            nonce: of the session, random.
            ends: when it would have ended by itself, seconds since 1970.
        """
        with self._writing() as (session, _):
            session.execute(delete(EndedSession).where(EndedSession.expires <= self.services.clock()))
            session.merge(EndedSession(nonce=nonce, expires=ends))
            self._log(session, "sign-out")

    @contextmanager
    def _writing(self) -> Iterator[tuple[Session, Federation]]:
        """A write transaction that holds the federation's row, so that actions come one after another."""
        with self.services.database.write() as session:
            yield session, session.get_one(Federation, 1, with_for_update=LOCK)

    def _turn(self, before: str, after: str, action: str, note: str) -> None:
        with self._writing() as (session, federation):
            if federation.state != before:
                raise Conflict(
                    f"the federation is {federation.state}, not {before}",
                    mend="look at its state; only a paused federation can go on, only a running one be paused",
                )
            federation.state = after
            self._log(session, action, note=note)

    def _abandon(self, session: Session, found: Round, why: str) -> list[str]:
        """End a locked round without a merge; returns the blobs to delete."""
        now = self.services.clock()
        if found.state == "merging" and found.lease_until > now:
            raise Conflict(
                f"round {found.number} is being merged",
                mend="wait until it is merged, then roll back if you must",
            )
        return end_without_merge(self.services, session, found, "abandoned", why)

    def _end_tasks(self, session: Session, device_id: str, rounds: Sequence[int]) -> list[str]:
        """End what a device does in locked rounds; returns the blobs to delete."""
        now, blobs = self.services.clock(), []
        mine = select(Assignment).where(Assignment.device == device_id, Assignment.round.in_(rounds))
        for task in session.scalars(mine.where(Assignment.state.in_(("assigned", "accepted")))):
            if task.state == "assigned":
                task.state, task.finished = "expired", now
            else:
                task.state, task.reason = "discarded", DeviceRevoked.code
                blobs += [task.blob] if task.blob else []
                task.blob = None
        return blobs

    def _expire_tasks(self, session: Session) -> None:
        """End all tasks: what comes back would be a change of versions that were given up."""
        now, config = self.services.clock(), self.services.runtime.config.rounds
        since = now - (config.task_s or config.deadline_s) - SLACK_S
        recent = select(Round.number).where(or_(Round.closed.is_(None), Round.closed > since))
        session.execute(
            update(Assignment)
            .where(Assignment.round.in_(recent), Assignment.state == "assigned")
            .values(state="expired", finished=now)
            .execution_options(synchronize_session=False)
        )

    def _delete(self, blobs: Sequence[str]) -> None:
        """Delete what no row names any more; after a crash before it, the collector does."""
        for blob in blobs:
            self.services.blobs.delete(blob)

    def _log(self, session: Session, action: str, **detail: Any) -> None:
        if "note" in detail:
            detail["note"] = _clean(detail["note"])
        kept = {name: value for name, value in detail.items() if value not in (None, "", [])}
        session.add(AuditEntry(at=self.services.clock(), actor=self.actor, action=action, detail=kept))


def is_kept(config: FederationConfig, number: int, newest: int) -> bool:
    """Whether the tensors of a version are kept for roll-back."""
    return number > newest - config.versions_kept


def _newest(session: Session) -> Version:
    return session.scalars(select(Version).order_by(Version.number.desc()).limit(1)).one()


def _no(kind: str, name: object) -> Problem:
    return NotFound(f"there is no {kind} {name}", mend=f"list them to see each {kind} there is")


def _colon(note: str) -> str:
    return f": {_clean(note)}" if _clean(note) else ""


def _clean(note: str) -> str:
    """A note in one line, without characters that databases or terminals take for something else."""
    return "".join(c if c.isprintable() else " " for c in note)[:NOTE_LENGTH].strip()
