"""What pages and admin answers show, by few and indexed queries; nothing here reads whole tables of rounds.

Assignments are counted within rounds (index ``assignments_by_round``), devices by their indexed columns. Pages of
lists hold ``PAGE`` rows and go on from the last row's number.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Select, case, func, literal, select, union_all
from sqlalchemy.orm import Session, defer

from pfl_server.reports.wording import MERGE_FAILED
from pfl_server.storage.models import (
    Assignment,
    AuditEntry,
    EnrolledDevice,
    EnrolmentToken,
    Federation,
    LedgerEntry,
    Refusal,
    Round,
    Version,
)

#: Rows of a page of a list.
PAGE = 25
#: States of an assignment whose update arrived whole and was taken.
_TAKEN = ("accepted", "merged", "discarded")


@dataclass(frozen=True)
class Reason:
    """Why devices ended in a state: how many, by problem code or reason of declining."""

    code: str | None
    count: int


@dataclass(frozen=True)
class Funnel:
    """What came of a round's devices.

    Attributes:
        states: number of assignments by state.
        downloaded: devices that fetched the model, or answered, which they can only after fetching it.
        refused, declined: why, most frequent first.
    """

    states: Counter[str] = field(default_factory=Counter)
    downloaded: int = 0
    refused: Sequence[Reason] = ()
    declined: Sequence[Reason] = ()

    @property
    def invited(self) -> int:
        """Devices that got a task."""
        return sum(self.states.values())

    @property
    def uploaded(self) -> int:
        """Devices whose update was accepted."""
        return sum(self.states[state] for state in _TAKEN)

    @property
    def merged(self) -> int:
        """Devices whose update is in the model."""
        return self.states["merged"]

    @property
    def working(self) -> int:
        """Devices that have not answered yet."""
        return self.states["assigned"]


@dataclass(frozen=True)
class DeviceCounts:
    """Devices by state, and how many were heard of lately."""

    states: Counter[str]
    hour: int
    day: int
    month: int

    @property
    def total(self) -> int:
        """Devices that ever enrolled."""
        return sum(self.states.values())


@dataclass(frozen=True)
class RoundRow:
    """A round of the list, with its counts."""

    round: Round
    funnel: Funnel


def federation(session: Session) -> Federation:
    """The one federation; it is there since the first start."""
    return session.get_one(Federation, 1)


def newest_round(session: Session) -> Round | None:
    """The round with the largest number; None before the first."""
    return session.scalars(_rounds().order_by(Round.number.desc()).limit(1)).one_or_none()


def last_merged(session: Session) -> Round | None:
    """The newest round that made a version."""
    made = _rounds().where(Round.state == "merged").order_by(Round.number.desc()).limit(1)
    return session.scalars(made).one_or_none()


def round_of(session: Session, number: int) -> Round | None:
    """A round by its number."""
    return session.get(Round, number)


def funnel(session: Session, number: int) -> Funnel:
    """What came of one round's devices, with reasons."""
    arrived = case(
        (Assignment.downloaded.is_not(None) | Assignment.state.in_((*_TAKEN, "refused")), 1), else_=0
    )
    rows = session.execute(
        select(Assignment.state, Assignment.reason, func.count(), func.sum(arrived))
        .where(Assignment.round == number)
        .group_by(Assignment.state, Assignment.reason)
    ).all()
    states: Counter[str] = Counter()
    reasons: dict[str, list[Reason]] = defaultdict(list)
    downloaded = 0
    for state, reason, count, had in rows:
        states[state] += count
        downloaded += int(had)
        reasons[state].append(Reason(reason, count))
    for found in reasons.values():
        found.sort(key=lambda r: (-r.count, r.code or ""))
    return Funnel(states, downloaded, reasons["refused"], reasons["declined"])


def rounds(session: Session, before: int | None = None, limit: int = PAGE) -> list[RoundRow]:
    """Rounds with their counts, newest first.

    Args:
        session: to read with.
        before: only rounds with a smaller number; None: from the newest.
        limit: most rows.
    """
    query = _rounds().order_by(Round.number.desc()).limit(limit)
    if before is not None:
        query = query.where(Round.number < before)
    found = list(session.scalars(query))
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    if found:
        for number, state, count in session.execute(
            select(Assignment.round, Assignment.state, func.count())
            .where(Assignment.round.in_([r.number for r in found]))
            .group_by(Assignment.round, Assignment.state)
        ):
            counts[number][state] = count
    return [RoundRow(r, Funnel(counts[r.number])) for r in found]


def devices(session: Session, now: float) -> DeviceCounts:
    """Devices by state, and those heard of in the last hour, day and 30 days."""
    found: Counter[str] = Counter()
    for state, count in session.execute(
        select(EnrolledDevice.state, func.count()).group_by(EnrolledDevice.state)
    ):
        found[state] = count

    def since(seconds: float) -> int:
        return session.scalar(select(func.count()).where(EnrolledDevice.seen >= now - seconds)) or 0

    return DeviceCounts(found, since(3600), since(86400), since(30 * 86400))


def device(session: Session, device_id: str) -> EnrolledDevice | None:
    """A device by its id."""
    return session.get(EnrolledDevice, device_id)


def tasks_of(session: Session, device_id: str, limit: int = PAGE) -> list[Assignment]:
    """The newest tasks that still carry the device's id."""
    own = select(Assignment).where(Assignment.device == device_id)
    return list(session.scalars(own.order_by(Assignment.round.desc()).limit(limit)))


def versions(session: Session, before: int | None = None, limit: int = PAGE) -> list[Version]:
    """Model versions, newest first; ``before`` as in ``rounds``."""
    query = select(Version).order_by(Version.number.desc()).limit(limit)
    if before is not None:
        query = query.where(Version.number < before)
    return list(session.scalars(query))


def version(session: Session, number: int) -> Version | None:
    """A version by its number."""
    return session.get(Version, number)


def newest_version(session: Session) -> Version:
    """The version with the largest number; version 0 is there since the first start."""
    return session.scalars(select(Version).order_by(Version.number.desc()).limit(1)).one()


def roll_backs(session: Session, first: int) -> list[Version]:
    """Versions from ``first`` on that a roll-back made."""
    made = select(Version).where(Version.number >= max(first, 1), Version.round.is_(None))
    return list(session.scalars(made.order_by(Version.number)))


def ledger(session: Session, before: int | None = None, limit: int = PAGE) -> list[LedgerEntry]:
    """Entries of the privacy ledger, newest round first; ``before`` is a round."""
    query = select(LedgerEntry).order_by(LedgerEntry.round.desc()).limit(limit)
    if before is not None:
        query = query.where(LedgerEntry.round < before)
    return list(session.scalars(query))


def audit(session: Session, before: int | None = None, limit: int = PAGE) -> list[AuditEntry]:
    """Admin actions, newest first; ``before`` is an id."""
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    return list(session.scalars(query))


def last_pause(session: Session) -> AuditEntry | None:
    """The newest entry of the audit log that paused the federation."""
    paused = select(AuditEntry).where(AuditEntry.action == "pause").order_by(AuditEntry.id.desc()).limit(1)
    return session.scalars(paused).one_or_none()


def tokens(session: Session, offset: int = 0, limit: int = PAGE) -> list[EnrolmentToken]:
    """Enrolment tokens, newest first; their secret is not kept."""
    newest = select(EnrolmentToken).order_by(EnrolmentToken.created.desc(), EnrolmentToken.id)
    return list(session.scalars(newest.offset(offset).limit(limit)))


def problems(session: Session, since: int) -> list[Reason]:
    """Problems of rounds from ``since`` on by code, most frequent first: those answered, and merges that failed."""
    answered = (
        select(Refusal.code, func.sum(Refusal.count)).where(Refusal.round >= since).group_by(Refusal.code)
    )
    failed = select(literal(MERGE_FAILED), func.count()).where(Round.number >= since, Round.state == "failed")
    rows = session.execute(union_all(answered, failed))
    found = (Reason(code, int(n)) for code, n in rows if n)
    return sorted(found, key=lambda r: (-r.count, r.code or ""))


def refusals_outside(session: Session) -> list[Reason]:
    """Problems answered outside rounds (enrolment, check-in, downloads), since the first start."""
    rows = session.execute(select(Refusal.code, Refusal.count).where(Refusal.round == -1))
    return sorted((Reason(code, n) for code, n in rows), key=lambda r: (-r.count, r.code or ""))


def refusals_of(session: Session, number: int) -> list[Reason]:
    """Problems answered in one round."""
    rows = session.execute(select(Refusal.code, Refusal.count).where(Refusal.round == number))
    return sorted((Reason(code, n) for code, n in rows), key=lambda r: (-r.count, r.code or ""))


def _rounds() -> Select[Round]:
    """Rounds without their long columns."""
    return select(Round).options(defer(Round.plan), defer(Round.sets))
