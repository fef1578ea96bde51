"""The path of an update, from the first byte of a request to a model that devices download.

    received   a request brings it, whole or in parts     `STEPS`, in the device's request
    stored     checked, as one file                       `STEPS`
    accepted   part of its round, in one transaction      `STEPS`
    merged     with all others of its round               `rounds.merge.merge`, when the coordinator has closed it
    published  as part of a new version                   `rounds.merge.merge`

Up to *accepted* a device sends it again after any failure; from then on the aggregator merges it once, whatever process
is killed.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from fastapi import Request
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
    Acceptor,
    Stored,
    check_head,
    check_open,
    over,
    own_task,
    refuse,
)
from pfl_server.uploads.partial_file import Busy, PartialFile, Scan, Uploads, find_part, open_part
from pfl_server.uploads.receive import UploadHead, go_to_offset, read_body, same_body
from pfl_server.uploads.threads import STORES, WRITES, run_in

if TYPE_CHECKING:
    from pfl_mobile.federation.round import RoundPlan
    from pfl_server.identity.devices import DeviceIdentity
    from pfl_server.services import Services

#: What ends a task: the update itself is wrong, so that sending it again is of no use.
_WRONG_UPDATE = (
    UpdateFileError,
    problems.NotFinite,
    problems.NormTooLarge,
    problems.WrongTask,
    problems.BadReport,
)


class UploadPath:
    """Takes updates in, for one process.

    Args:
        services: of this process.
    """

    def __init__(self, services: Services) -> None:
        self.services = services
        self.open = Uploads()
        self.acceptor = Acceptor(services)

    async def take(
        self,
        me: DeviceIdentity,
        head: UploadHead,
        body: AsyncIterator[bytes],
        note: Callable[[int], None],
    ) -> UploadState:
        """Take in an upload, or a part of one.

        What has arrived is kept when the connection breaks; `progress` tells how much.

        Args:
            me: who sends it.
            head: what the headers say.
            body: pieces of the body.
            note: called with the number of the task's round, which problems are counted under.

        Raises:
            Problem: the upload is refused.
            ClientDisconnect: the connection broke.
        """
        upload = Upload(self, me, head, body, note)
        try:
            with self.open.only((me.id, head.task)):
                return await self._take(upload)
        except Busy:
            raise problems.Unavailable(
                "another request is sending this update", mend="ask again", headers={"Retry-After": AGAIN_S}
            ) from None

    async def _take(self, upload: Upload) -> UploadState:
        try:
            with upload.held:
                for step in STEPS:
                    answer = await step(upload)
                    if answer is not None:
                        return answer
        except _WRONG_UPDATE as error:
            problem = _problem(error, upload.head, upload.task.known)
            await run_in(STORES, refuse, self.services, upload.task.mine, problem.code)
            raise problem from error
        raise AssertionError("the last step answers")

    def progress(self, me: DeviceIdentity, task: str, key: str | None) -> tuple[int, int | None, bool]:
        """Bytes of an upload that are there, bytes in all (None: not known), and whether it is complete.

        Raises:
            UnknownTask, TaskExpired: there is no such task, or it is over without an update.
        """
        with self.services.database.read() as session:
            mine = own_task(session, me, task)
        if mine.state in STORED:
            return mine.bytes or 0, mine.bytes, True
        if mine.state != "assigned":
            raise over(mine)
        part = find_part(self.services.blobs.scratch, task, key)
        return (0, None, False) if part is None else (*part, False)


@dataclass
class Upload:
    """An upload on its path: each step adds what the next ones need.

    Attributes:
        path: of this process.
        me: who sends it.
        head: what the headers say.
        body: pieces of the body.
        note: called with the number of the task's round.
        held: open files, closed when the path ends.
        task: that the update belongs to.
        part: the file that it arrives in.
        scan: what was computed of it on the way.
        stored: the whole update, checked, under a name of its own.
    """

    path: UploadPath
    me: DeviceIdentity
    head: UploadHead
    body: AsyncIterator[bytes]
    note: Callable[[int], None]
    held: ExitStack = field(default_factory=ExitStack)
    task: Accepting = field(init=False)
    part: PartialFile = field(init=False)
    scan: Scan = field(init=False)
    stored: Stored = field(init=False)

    @property
    def services(self) -> Services:
        """Of this process."""
        return self.path.services


#: Answers, or hands on to the next step.
Step: TypeAlias = Callable[[Upload], Awaitable[UploadState | None]]


async def find_task(upload: Upload) -> None:
    """The device's own task, which still takes an update."""
    upload.task = await run_in(STORES, _begin, upload)


async def answer_again(upload: Upload) -> UploadState | None:
    """An update that was accepted before is compared with what is sent, and accepted again."""
    mine, head = upload.task.mine, upload.head
    if mine.state not in STORED:
        return None
    if not await same_body(head, upload.body, mine.bytes or 0, mine.digest):
        raise problems.KeyReused(
            "the key was used with another update of this task", mend="drop the update and check in again"
        )
    return UploadState(status="accepted", task=head.task, received=head.total, duplicate=True)


async def receive_body(upload: Upload) -> UploadState | None:
    """Write the body to a file; the path ends here where it is only a part of the update."""
    services, head, task = upload.services, upload.head, upload.task
    scan = upload.scan = Scan(task.known.layout, head.total)
    part = upload.part = upload.held.enter_context(
        open_part(services.blobs.scratch, head.task, head.key, head.total)
    )
    await run_in(WRITES, go_to_offset, part, head, scan)

    def take(data: bytearray) -> None:
        known = scan.head is not None
        part.write([data], scan)
        if scan.head is not None and not known:
            check_head(scan.head, task)

    def check_time() -> None:
        if task.mine.expires <= services.clock():
            raise problems.TaskExpired("the task has expired", mend="check in again")

    try:
        await read_body(
            upload.body,
            head.total - part.size,
            take,
            at_once=upload.path.open.share,
            check_time=check_time,
        )
    except BaseException:
        part.flush()
        raise
    if part.size < head.total:
        part.flush()
        return UploadState(status="partial", task=head.task, received=part.size)
    return None


def check(upload: Upload) -> None:
    """What the update says of itself, and its values as a whole."""
    upload.part.finish(upload.scan)
    said, norm, most = upload.scan.head, upload.scan.norm, upload.services.runtime.config.max_norm
    assert said is not None  # as all bytes are there
    check_head(said, upload.task)
    if not math.isfinite(norm):
        raise problems.NotFinite(
            "the update has values that are NaN or infinite", mend="decline with 'diverged'"
        )
    if norm > most:
        raise problems.NormTooLarge(f"the update's norm is above {most:g}", mend="decline with 'diverged'")
    upload.stored = Stored(upload.task, upload.head.key, said, "", upload.scan)


def store(upload: Upload) -> None:
    """Keep the update under a name that no other attempt has: what was checked is what is stored, and none replaces
    what another one had accepted.
    """
    whole = upload.held.enter_context(upload.part.whole())
    blob = f"updates/{upload.task.mine.id}-{secrets.token_hex(4)}"
    upload.services.blobs.put_file(blob, whole)
    upload.stored = replace(upload.stored, blob=blob)


def accept(upload: Upload) -> None:
    """Make the update part of its round."""
    blobs, blob = upload.services.blobs, upload.stored.blob
    try:
        needed = upload.path.acceptor.accept(upload.stored)
    except Problem:  # nothing was written for it, so nothing refers to what was stored
        blobs.delete(blob)
        raise
    if not needed:
        blobs.delete(blob)


async def check_store_accept(upload: Upload) -> UploadState:
    """In one thread, as each change of threads costs time."""

    def all_three() -> None:
        for step in (check, store, accept):
            step(upload)

    await run_in(STORES, all_three)
    return UploadState(status="accepted", task=upload.head.task, received=upload.head.total)


#: The path of an update as far as a device waits for it.
STEPS: tuple[Step, ...] = (find_task, answer_again, receive_body, check_store_accept)


def _begin(upload: Upload) -> Accepting:
    services, head = upload.services, upload.head
    now = services.clock()
    with services.database.read() as session:
        mine = own_task(session, upload.me, head.task)
        upload.note(mine.round)
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


def _problem(error: Exception, head: UploadHead, known: RoundPlan) -> Problem:
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


async def upload_path(request: Request) -> UploadPath:
    """Dependency of the endpoints: the path of updates in this process."""
    found: UploadPath = request.app.state.upload_path
    return found
