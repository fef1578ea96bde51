"""Which updates are taken, and into which round: checked against the task, accepted in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select, update

from pfl_server import problems
from pfl_server.places import forgive, note_lapses
from pfl_server.problems import Problem
from pfl_server.storage.federation_row import open_round
from pfl_server.storage.locks import changed
from pfl_server.storage.models import Assignment, EnrolledDevice, Federation, Round
from pfl_server.uploads.group_commit import Together
from pfl_server.uploads.partial_file import Scan, remove_parts

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from pfl_mobile.federation.round import RoundPlan
    from pfl_mobile.protocol.bodies import UpdateHead
    from pfl_server.identity.devices import DeviceIdentity
    from pfl_server.services import Services

#: States of an assignment whose update was stored once.
STORED = ("accepted", "merged", "discarded")
#: Examples and steps that a device can have had.
MOST = 2**31 - 1
#: Seconds after which a client asks again.
AGAIN_S = "2"


@dataclass(frozen=True)
class Accepting:
    """The task that an upload belongs to, as it was when the upload began."""

    mine: Assignment
    known: RoundPlan


def own_task(session: Session, me: DeviceIdentity, task: str) -> Assignment:
    """The task of this id, if it is this device's.

    Raises:
        UnknownTask: it is not.
    """
    mine = session.get(Assignment, task)
    if mine is None or mine.device != me.id:
        raise problems.UnknownTask("this device has no such task", mend="check in again")
    return mine


def over(mine: Assignment) -> Problem:
    """The problem of a task that is over."""
    return problems.TaskExpired(f"the task is {mine.state}", mend="check in again")


def check_open(services: Services, session: Session, mine: Assignment, at: Round) -> Round:
    """The round that an update of this task goes into.

    Raises:
        RoundClosed, TooStale: it comes too late.
        Unavailable: the round to come is about to open (buffered training).
    """
    config = services.runtime.config.rounds
    if config.mode == "synchronous":
        if at.state != "open":
            raise problems.RoundClosed(f"round {at.number} takes no more updates", mend="check in again")
        return at
    federation = session.get_one(Federation, 1)
    staleness = federation.version - mine.base
    if staleness > config.max_staleness:
        raise problems.TooStale(
            f"the update starts {staleness} versions back, {config.max_staleness} are allowed",
            mend="check in again",
        )
    current = at if at.state == "open" else open_round(session)
    if current is None and federation.state in ("finished", "spent"):
        raise problems.RoundClosed(f"training is {federation.state}", mend="check in again")
    if current is None:
        raise between_rounds()
    return current


def check_head(head: UpdateHead, found: Accepting) -> None:
    """Compare what the update says of itself with its task.

    Raises:
        WrongTask: it is another task's.
        BadReport: other numbers than the plan measures, or none of examples.
    """
    mine = found.mine
    if (head.task, head.round, head.version) != (mine.id, mine.round, mine.base):
        raise problems.WrongTask("the update says that it is of another task", mend="send it to its own task")
    if head.reports.keys() != found.known.reports:
        raise problems.BadReport(
            f"the update reports {len(head.reports)} numbers, other ones than the task's",
            mend="report as the task says",
        )
    if not 1 <= head.examples <= MOST or head.steps > MOST:
        raise problems.BadReport(
            f"the update was trained on {head.examples} examples in {head.steps} steps",
            mend="decline the task where there are none",
        )


@dataclass(frozen=True)
class Stored:
    """An update that was checked and stored, to be accepted.

    Attributes:
        found: its task.
        key: idempotency key.
        head: what it says of itself.
        blob: where it lies.
        seen: what was measured.
    """

    found: Accepting
    key: str
    head: UpdateHead
    blob: str
    seen: Scan


class Acceptor:
    """Makes stored updates part of their rounds; those that come at once in one transaction.

    Args:
        services: of this process.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._together: Together[Stored, bool] = Together(self._accept)

    def accept(self, update: Stored) -> bool:
        """Accept an update.

        Returns:
            False where the same update was accepted over another connection meanwhile, so that this one is not needed.

        Raises:
            RoundClosed, TaskExpired, TooStale, AlreadyUploaded, DeviceRevoked: something happened meanwhile.
            Unavailable: the round to come is about to open (buffered training).
            DatabaseError: nothing is known of what became of it.
        """
        return self._together.do(update)

    def _accept(self, updates: Sequence[Stored]) -> list[bool | Exception]:
        services = self._services
        outcomes: list[bool | Exception] = []
        with services.database.write() as session:
            # Rounds are locked so that they do not close before these updates are in them; in their order, and before
            # anything else, so that nobody waits in a circle.
            numbers = sorted({stored.found.mine.round for stored in updates})
            current = open_round(session) if services.runtime.config.rounds.mode == "buffered" else None
            numbers = sorted({*numbers, current.number} if current else numbers)
            share = {"read": True}
            rounds = {
                n: session.get_one(Round, n, with_for_update=share, populate_existing=True) for n in numbers
            }
            for stored in updates:
                try:
                    outcomes.append(_accept_one(services, session, stored, rounds))
                except Problem as problem:  # raised before anything was written for this update
                    outcomes.append(problem)
            full = any(_full(session, at) for at in rounds.values() if at.state == "open")
        services.metrics.updates.labels(outcome="accepted").inc(outcomes.count(True))
        if full:
            services.runtime.wake.set()
        return outcomes


def _accept_one(services: Services, session: Session, stored: Stored, rounds: Mapping[int, Round]) -> bool:
    found, head, seen = stored.found, stored.head, stored.seen
    current = check_open(services, session, found.mine, rounds[found.mine.round])
    if current.number not in rounds or current.state != "open":  # opened, or closed, a moment ago
        raise between_rounds()
    if session.scalar(select(EnrolledDevice.state).where(EnrolledDevice.id == found.mine.device)) != "active":
        raise problems.DeviceRevoked("this device was excluded from the federation", mend="stop taking part")
    done = session.execute(
        update(Assignment)
        .where(Assignment.id == found.mine.id, Assignment.state == "assigned")
        .values(
            state="accepted",
            round=current.number,
            finished=services.clock(),
            key=stored.key,
            digest=seen.digest,
            blob=stored.blob,
            offset=seen.offset,
            bytes=seen.total,
            examples=head.examples,
            steps=head.steps,
            reports=dict(head.reports),
            clipped=head.clipped,
            norm=seen.norm,
        )
        .execution_options(synchronize_session=False)
    )
    if changed(done):
        if found.mine.device is not None:
            forgive(session, found.mine.device)
        return True
    mine = session.get_one(Assignment, found.mine.id, populate_existing=True)
    if mine.state not in STORED:
        raise over(mine)
    if (mine.key, mine.digest) == (stored.key, seen.digest):
        return False
    raise problems.AlreadyUploaded("the task has an update already", mend="check in again")


def _full(session: Session, at: Round) -> bool:
    count = select(func.count()).where(Assignment.round == at.number, Assignment.state == "accepted")
    return int(session.scalar(count) or 0) >= at.target


def between_rounds() -> Problem:
    """The problem of an update that comes while a buffer is merged."""
    return problems.Unavailable(
        "updates are being merged", mend="send the update again", headers={"Retry-After": AGAIN_S}
    )


def refuse(services: Services, mine: Assignment, code: str) -> None:
    """End a task whose update was refused."""
    with services.database.write() as session:
        done = session.execute(
            update(Assignment)
            .where(Assignment.id == mine.id, Assignment.state == "assigned")
            .values(state="refused", reason=code, finished=services.clock())
        )
        if changed(done):
            note_lapses(session, services.runtime.config.rounds, [mine.device], services.clock())
    remove_parts(services.blobs.scratch, mine.id)
    services.runtime.wake.set()
