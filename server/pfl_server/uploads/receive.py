"""Uploads of updates: streamed into a file, checked on the way, accepted in one transaction."""

from __future__ import annotations

import asyncio
import math
import secrets
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import update

from pfl_mobile.errors import UpdateFileError, UpdateTensorsError
from pfl_mobile.protocol.bodies import UploadState
from pfl_mobile.protocol.update_file import size_limit
from pfl_server import problems
from pfl_server.problems import Problem
from pfl_server.storage.models import Assignment, Round
from pfl_server.uploads.accept import (
    AGAIN_S,
    STORED,
    Accepting,
    Stored,
    check_head,
    check_open,
    over,
    own_task,
    refuse,
)
from pfl_server.uploads.partial_file import Busy, Part, Scan, find_part, open_part

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path
    from typing import TypeVar

    from pfl_mobile.federation.round import RoundPlan
    from pfl_server.identity.devices import DeviceIdentity
    from pfl_server.services import Services

    T = TypeVar("T")

#: Threads that write to files; and those that look at a finished update, and wait for the disk and the database.
_WRITES = ThreadPoolExecutor(max_workers=8, thread_name_prefix="pfl-write")
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
    try:
        with services.uploads.only((me.id, head.task)):
            return await _take_in(services, me, head, body, note)
    except Busy:
        raise problems.Unavailable(
            "another request is sending this update", mend="ask again", headers={"Retry-After": AGAIN_S}
        ) from None


async def _take_in(
    services: Services,
    me: DeviceIdentity,
    head: Incoming,
    body: AsyncIterator[bytes],
    note: Callable[[int], None],
) -> UploadState:
    found = await _in(_STORES, _begin, services, me, head, note)
    if found.mine.state in STORED:
        return await _again(found, head, body)
    try:
        return await _receive(services, head, found, body)
    except (
        UpdateFileError,
        problems.NotFinite,
        problems.NormTooLarge,
        problems.WrongTask,
        problems.BadReport,
    ) as error:
        problem = _problem(error, head, found.known)
        await _in(_STORES, refuse, services, found.mine, problem.code)
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
    if mine.began is None and services.runtime.config.privacy.local_noise_multiplier > 0:
        _note_began(services, mine, now)
    return Accepting(mine, known)


def _note_began(services: Services, mine: Assignment, now: float) -> None:
    """Remember, before anything is read, that something is sent: its noise is spent, whatever comes of it."""
    with services.database.write() as session:
        session.execute(
            update(Assignment).where(Assignment.id == mine.id, Assignment.began.is_(None)).values(began=now)
        )


# -- the body


async def _receive(
    services: Services, head: Incoming, found: Accepting, body: AsyncIterator[bytes]
) -> UploadState:
    scan = Scan(found.known.layout, head.total)
    with open_part(services.blobs.scratch, head.task, head.key, head.total) as part:
        await _in(_WRITES, _position, part, head, scan)

        def take(data: bytearray) -> None:
            known = scan.head is not None
            part.write([data], scan)
            if scan.head is not None and not known:
                check_head(scan.head, found)

        try:
            await _pieces(services, found, body, head.total - part.size, take)
        except BaseException:
            part.flush()
            raise
        if part.size < head.total:
            part.flush()
            return UploadState(status="partial", task=head.task, received=part.size)
        await _in(_STORES, _store, services, head, found, part, scan)
    return UploadState(status="accepted", task=head.task, received=head.total)


def _position(part: Part, head: Incoming, scan: Scan) -> None:
    """Bring the part to where the request goes on."""
    if head.offset == 0:
        part.restart()
    elif head.offset != part.size:
        raise problems.OffsetMismatch(
            f"{part.size} bytes are there, the request goes on at {head.offset}",
            mend="go on at Upload-Offset",
            headers={"Upload-Offset": str(part.size)},
        )
    part.rescan(scan)


async def _pieces(
    services: Services,
    found: Accepting,
    body: AsyncIterator[bytes],
    most: int,
    take: Callable[[bytearray], None],
) -> None:
    """Give the body to ``take``, many pieces at a time, off the event loop.

    What was read reaches ``take`` also when the connection breaks.

    Raises:
        BodyTooLarge: more than ``most`` bytes came.
        TaskExpired: the task's time was over before its update was there.
    """
    waiting, total = bytearray(), 0  # no list: pieces may be as small as a byte
    source = aiter(body)
    while True:
        try:
            data = await anext(source, None)
            if data is not None and found.mine.expires <= services.clock():
                raise problems.TaskExpired("the task has expired", mend="check in again")
        except BaseException:
            if waiting:  # here and now: nobody may be left to wait for a thread
                take(waiting)
            raise
        if data is None:
            break
        total += len(data)
        if total > most:
            raise _longer()
        waiting += data
        if len(waiting) >= services.uploads.share():  # each time costs a change of threads
            await _in(_WRITES, take, waiting)
            waiting = bytearray()
    if waiting:
        await _in(_WRITES, take, waiting)


def _longer() -> Problem:
    return problems.BodyTooLarge(
        "the body is longer than its headers say", mend="send lengths that fit together"
    )


async def _again(found: Accepting, head: Incoming, body: AsyncIterator[bytes]) -> UploadState:
    """The same update once more: compare it with what was accepted, as far as it is sent."""
    total = found.mine.bytes or 0
    same = head.total == total
    if head.offset == 0 and same:
        seen = crc = 0
        async for piece in body:  # kept nowhere: an update can be sent again as often as a device likes
            seen, crc = seen + len(piece), zlib.crc32(piece, crc)
            if seen > total:
                raise _longer()
        same = seen == total and f"{crc:08x}" == found.mine.digest
    if not same:
        raise problems.KeyReused(
            "the key was used with another update of this task", mend="drop the update and check in again"
        )
    return UploadState(status="accepted", task=head.task, received=total, duplicate=True)


# -- the end


def _store(services: Services, head: Incoming, found: Accepting, part: Part, scan: Scan) -> None:
    """Check what can be checked now, store the update, accept it.

    Under a name that no other request knows, so that what was checked is what is stored.
    """
    part.finish(scan)
    said, norm, most = scan.head, scan.norm, services.runtime.config.max_norm
    assert said is not None  # as all bytes are there
    check_head(said, found)
    if not math.isfinite(norm):
        raise problems.NotFinite(
            "the update has values that are NaN or infinite", mend="decline with 'diverged'"
        )
    if norm > most:
        raise problems.NormTooLarge(f"the update's norm is above {most:g}", mend="decline with 'diverged'")
    with part.whole() as whole:
        _accept(services, Stored(found, head.key, said, "", scan), whole)


def _accept(services: Services, update: Stored, whole: Path) -> None:
    # A name of its own for every attempt, so that none replaces what another one had accepted.
    blob = f"updates/{update.found.mine.id}-{secrets.token_hex(4)}"
    services.blobs.put_file(blob, whole)
    try:
        needed = services.acceptor.accept(replace(update, blob=blob))
    except Problem:  # nothing was written for it, so nothing refers to what was stored
        services.blobs.delete(blob)
        raise
    if not needed:
        services.blobs.delete(blob)


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


async def _in(pool: ThreadPoolExecutor, work: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)
