"""Uploads of updates: streamed into a file, checked on the way, accepted in one transaction."""

from __future__ import annotations

import asyncio
import math
import secrets
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select, update

from pfl_mobile.errors import UpdateFileError, UpdateTensorsError
from pfl_mobile.protocol.bodies import UploadState
from pfl_mobile.protocol.update_file import payload_offset, size_limit
from pfl_server import problems
from pfl_server.check_in import open_round
from pfl_server.part import Busy, Part, Scan, find_part, open_part, remove_parts
from pfl_server.problems import Problem
from pfl_server.storage.models import Assignment, Device, Federation, Round

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from typing import TypeVar

    from sqlalchemy.orm import Session

    from pfl_mobile.protocol.bodies import UpdateHead
    from pfl_server.auth import DeviceIdentity
    from pfl_server.runtime import RoundPlan
    from pfl_server.services import Services

    T = TypeVar("T")

#: States of an assignment whose update was stored once.
STORED = ("accepted", "merged", "discarded")
#: Examples and steps that a device can have had.
MOST = 2**31 - 1
#: Seconds after which a client whose upload collides with another one asks again.
_AGAIN_S = "2"
#: Bytes of a body that are written at once: each time costs a change of threads.
CHUNK = 1 << 20
#: Threads that write to files; and those that look at a finished update, and wait for the disk and the database.
_WRITES = ThreadPoolExecutor(max_workers=4, thread_name_prefix="pfl-write")
_STORES = ThreadPoolExecutor(max_workers=16, thread_name_prefix="pfl-store")


@dataclass(frozen=True)
class Incoming:
    """The head of an upload.

    Attributes:
        task: id in the address.
        key: idempotency key.
        offset: bytes of the update that came before.
        length: bytes that this request brings; None where it does not say.
        total: bytes of the whole update.
    """

    task: str
    key: str
    offset: int
    length: int | None
    total: int


@dataclass(frozen=True)
class Accepting:
    """The task that an upload belongs to, as it was when the upload began."""

    mine: Assignment
    known: RoundPlan


def incoming(task: str, key: str | None, offset: int, length: int | None, total: int | None) -> Incoming:
    """The head of an upload, from the request's headers.

    Raises:
        KeyRequired, LengthRequired, BadRequest: something is missing, or the lengths do not fit together.
    """
    if not key:
        raise problems.KeyRequired("there is no Idempotency-Key", mend="send a fresh UUID for each update")
    if total is None:
        if length is None:
            raise problems.LengthRequired(
                "neither Content-Length nor Upload-Length says how long the update is",
                mend="send one of them",
            )
        total = offset + length
    if offset > total or (length is not None and offset + length > total):
        raise problems.BadRequest(
            f"{length} bytes from offset {offset} on lie outside of {total}",
            mend="send lengths that fit together",
        )
    return Incoming(task, key, offset, length, total)


async def receive(
    services: Services,
    me: DeviceIdentity,
    head: Incoming,
    body: AsyncIterator[bytes],
    note: Callable[[int], None],
) -> UploadState:
    """Take in an upload, or a part of one.

    What has arrived is kept when the connection breaks; `progress` tells how much.

    Args:
        services: of this process.
        me: who sends it.
        head: what the headers say.
        body: pieces of the body.
        note: called with the number of the task's round, which problems are counted under.

    Raises:
        Problem: the upload is refused.
        ClientDisconnect: the connection broke.
    """
    found = await _in(_STORES, _begin, services, me, head, note)
    if found.mine.state in STORED:
        return await _again(found, head, body)
    try:
        return await _receive(services, head, found, body)
    except Busy:
        raise problems.Unavailable(
            "another request is sending this update", mend="ask again", headers={"Retry-After": _AGAIN_S}
        ) from None
    except (
        UpdateFileError,
        problems.NotFinite,
        problems.NormTooLarge,
        problems.WrongTask,
        problems.BadReport,
    ) as error:
        problem = _problem(error, head, found.known)
        await _in(_STORES, _refuse, services, found.mine, problem.code)
        raise problem from error


def progress(
    services: Services, me: DeviceIdentity, task: str, key: str | None
) -> tuple[int, int | None, bool]:
    """Bytes of an upload that are there, bytes in all (None: not known), and whether it is complete.

    Raises:
        UnknownTask, TaskExpired: there is no such task, or it is over without an update.
    """
    with services.database.read() as session:
        mine = own_task(session, me, task)
    if mine.state in STORED:
        return mine.bytes or 0, mine.bytes, True
    if mine.state != "assigned":
        raise over(mine)
    part = find_part(services.blobs.scratch, task, key)
    return (0, None, False) if part is None else (*part, False)


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


# -- the beginning


def _begin(services: Services, me: DeviceIdentity, head: Incoming, note: Callable[[int], None]) -> Accepting:
    now = services.clock()
    with services.database.read() as session:
        mine = own_task(session, me, head.task)
        note(mine.round)
        at = session.get_one(Round, mine.round)
        known = services.runtime.round_plan(at.number, at.plan)
        if mine.state in STORED:
            if mine.key != head.key:
                raise problems.AlreadyUploaded("the task has an update already", mend="check in again")
            return Accepting(mine, known)
        if mine.state != "assigned":
            raise over(mine)
        if mine.expires <= now:
            raise problems.TaskExpired("the task has expired", mend="check in again")
        check_open(services, session, mine, at)
    return Accepting(mine, known)


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
        raise problems.Unavailable(
            "updates are being merged", mend="send the update again", headers={"Retry-After": _AGAIN_S}
        )
    return current


# -- the body


async def _receive(
    services: Services, head: Incoming, found: Accepting, body: AsyncIterator[bytes]
) -> UploadState:
    layout = found.known.layout
    payload_offset(layout, head.total)  # whether there is an update of this length
    with open_part(services.blobs.scratch, head.task, head.key, head.total) as part:
        _position(part, head)
        said: UpdateHead | None = None

        def take(pieces: list[bytes]) -> None:
            nonlocal said
            part.write(pieces)
            if said is None and (said := part.head(layout, head.total)) is not None:
                check_head(said, found)

        await _pieces(body, head.total - part.size, take)
        if part.size < head.total:
            return UploadState(status="partial", task=head.task, received=part.size)
        await _in(_STORES, _store, services, head, found, part)
    return UploadState(status="accepted", task=head.task, received=head.total)


def _position(part: Part, head: Incoming) -> None:
    """Bring the part to where the request goes on."""
    if head.offset == 0:
        part.restart()
    elif head.offset != part.size:
        raise problems.OffsetMismatch(
            f"{part.size} bytes are there, the request goes on at {head.offset}",
            mend="go on at Upload-Offset",
            headers={"Upload-Offset": str(part.size)},
        )


async def _pieces(body: AsyncIterator[bytes], most: int, take: Callable[[list[bytes]], None]) -> None:
    """Give the body to ``take``, many pieces at a time, off the event loop.

    What was read reaches ``take`` also when the connection breaks.

    Raises:
        BodyTooLarge: more than ``most`` bytes came.
    """
    pieces: list[bytes] = []
    waiting = total = 0
    source = aiter(body)
    while True:
        try:
            data = await anext(source, None)
        except BaseException:
            if pieces:  # here and now: nobody may be left to wait for a thread
                take(pieces)
            raise
        if data is None:
            break
        total += len(data)
        if total > most:
            raise problems.BodyTooLarge(
                "the body is longer than its headers say", mend="send lengths that fit together"
            )
        if data:
            pieces.append(data)
            waiting += len(data)
        if waiting >= CHUNK:
            await _in(_WRITES, take, pieces)
            pieces, waiting = [], 0
    if pieces:
        await _in(_WRITES, take, pieces)


async def _again(found: Accepting, head: Incoming, body: AsyncIterator[bytes]) -> UploadState:
    """The same update once more: compare it with what was accepted, as far as it is sent."""
    total = found.mine.bytes or 0
    same = head.total == total
    if head.offset == 0 and same:
        seen = crc = 0

        def take(pieces: list[bytes]) -> None:
            nonlocal seen, crc
            for piece in pieces:
                seen, crc = seen + len(piece), zlib.crc32(piece, crc)

        await _pieces(body, total, take)
        same = seen == total and f"{crc:08x}" == found.mine.digest
    if not same:
        raise problems.KeyReused(
            "the key was used with another update of this task", mend="drop the update and check in again"
        )
    return UploadState(status="accepted", task=head.task, received=total, duplicate=True)


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
    if head.examples < 1:
        raise problems.BadReport(
            "the update was trained on no examples", mend="decline the task in that case"
        )


# -- the end


def _store(services: Services, head: Incoming, found: Accepting, part: Part) -> None:
    """Check what can be checked now, store the update, accept it."""
    layout, most = found.known.layout, services.runtime.config.max_norm
    said = part.head(layout, head.total)
    assert said is not None
    check_head(said, found)
    seen = part.scan(payload_offset(layout, head.total))
    if not math.isfinite(seen.squares):
        raise problems.NotFinite(
            "the update has values that are NaN or infinite", mend="decline with 'diverged'"
        )
    if seen.norm > most:
        raise problems.NormTooLarge(f"the update's norm is above {most:g}", mend="decline with 'diverged'")
    # A name of its own for every attempt, so that none replaces what another one had accepted.
    blob = f"updates/{head.task}-{secrets.token_hex(4)}"
    if not part.current():
        raise Busy
    services.blobs.put_file(blob, part.path)
    try:
        needed = accept(services, found, head.key, said, blob, seen)
    except Problem:  # the transaction was rolled back, so nothing refers to what was stored
        services.blobs.delete(blob)
        raise
    if not needed:
        services.blobs.delete(blob)


def accept(services: Services, found: Accepting, key: str, head: UpdateHead, blob: str, seen: Scan) -> bool:
    """Make a stored update part of its round, in one transaction.

    Returns:
        False where the same update was accepted over another connection meanwhile, so that this one is not needed.

    Raises:
        RoundClosed, TaskExpired, TooStale, AlreadyUploaded, DeviceRevoked: something happened meanwhile.
        Unavailable: the round to come is about to open (buffered training).
    """
    with services.database.write() as session:
        # The round is locked so that it does not close before this update is in it.
        at = session.get_one(Round, found.mine.round, with_for_update={"read": True})
        current = check_open(services, session, found.mine, at)
        if current is not at:
            current = session.get_one(
                Round, current.number, with_for_update={"read": True}, populate_existing=True
            )
            if current.state != "open":
                raise problems.Unavailable(
                    "updates are being merged",
                    mend="send the update again",
                    headers={"Retry-After": _AGAIN_S},
                )
        if session.scalar(select(Device.state).where(Device.id == found.mine.device)) != "active":
            raise problems.DeviceRevoked(
                "this device was excluded from the federation", mend="stop taking part"
            )
        done = session.execute(
            update(Assignment)
            .where(Assignment.id == found.mine.id, Assignment.state == "assigned")
            .values(
                state="accepted",
                round=current.number,
                finished=services.clock(),
                key=key,
                digest=seen.digest,
                blob=blob,
                offset=payload_offset(found.known.layout, seen.total),
                bytes=seen.total,
                examples=head.examples,
                steps=head.steps,
                reports=dict(head.reports),
                clipped=head.clipped,
                norm=seen.norm,
            )
        )
        if not changed(done):
            mine = session.get_one(Assignment, found.mine.id, populate_existing=True)
            if mine.state not in STORED:
                raise over(mine)
            if (mine.key, mine.digest) == (key, seen.digest):
                return False
            raise problems.AlreadyUploaded("the task has an update already", mend="check in again")
        count = select(func.count()).where(Assignment.round == current.number, Assignment.state == "accepted")
        full = int(session.scalar(count) or 0) >= current.target
    services.metrics.updates.labels(outcome="accepted").inc()
    if full:
        services.runtime.wake.set()
    return True


def _refuse(services: Services, mine: Assignment, code: str) -> None:
    with services.database.write() as session:
        session.execute(
            update(Assignment)
            .where(Assignment.id == mine.id, Assignment.state == "assigned")
            .values(state="refused", reason=code, finished=services.clock())
        )
    remove_parts(services.blobs.scratch, mine.id)
    services.runtime.wake.set()


def _problem(error: Exception, head: Incoming, known: RoundPlan) -> Problem:
    if isinstance(error, Problem):
        return error
    assert isinstance(error, UpdateFileError)
    if head.total > size_limit(known.layout):
        return problems.BodyTooLarge(
            f"the update has {head.total} bytes, the task's have {4 * known.layout.size} and a header",
            mend="send less",
        )
    kind = problems.WrongTensors if isinstance(error, UpdateTensorsError) else problems.BadUpdate
    return kind(error.message, mend=error.mend)


def changed(result: Any) -> int:
    """Rows that an UPDATE changed."""
    return int(result.rowcount)


async def _in(pool: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)
