"""The body of an upload: read in pieces, kept in a file that survives a broken connection, checked on the way."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pfl_server import problems
from pfl_server.uploads.threads import WRITES, run_in

if TYPE_CHECKING:
    from pfl_server.problems import Problem
    from pfl_server.uploads.partial_file import PartialFile, Scan


@dataclass(frozen=True)
class UploadHead:
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


def upload_head(task: str, key: str | None, offset: int, length: int | None, total: int | None) -> UploadHead:
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
    return UploadHead(task, key, offset, length, total)


def go_to_offset(part: PartialFile, head: UploadHead, scan: Scan) -> None:
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


async def read_body(
    body: AsyncIterator[bytes],
    most: int,
    take: Callable[[bytearray], None],
    *,
    at_once: Callable[[], int],
    check_time: Callable[[], None],
) -> None:
    """Give the body to ``take``, many pieces at a time, off the event loop.

    What was read reaches ``take`` also when the connection breaks.

    Args:
        body: pieces as they arrive.
        most: bytes that may come.
        take: gets the bytes in their order; runs in a thread.
        at_once: how many bytes to hold before they are written.
        check_time: raises where the task's time is over.

    Raises:
        BodyTooLarge: more than ``most`` bytes came.
    """
    waiting, total = bytearray(), 0  # no list: pieces may be as small as a byte
    source = aiter(body)
    while True:
        try:
            data = await anext(source, None)
            if data is not None:
                check_time()
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
        if len(waiting) >= at_once():  # each time costs a change of threads
            await run_in(WRITES, take, waiting)
            waiting = bytearray()
    if waiting:
        await run_in(WRITES, take, waiting)


async def same_body(head: UploadHead, body: AsyncIterator[bytes], total: int, digest: str | None) -> bool:
    """Whether an update that is sent again is the one that was accepted, as far as it is sent.

    Args:
        head: of the upload.
        body: pieces as they arrive; kept nowhere, as an update can be sent again as often as a device likes.
        total: bytes of the accepted update.
        digest: of it, CRC-32 as 8 hex digits.

    Raises:
        BodyTooLarge: more bytes came than the update has.
    """
    if head.total != total:
        return False
    if head.offset:
        return True
    seen = crc = 0
    async for piece in body:
        seen, crc = seen + len(piece), zlib.crc32(piece, crc)
        if seen > total:
            raise _longer()
    return seen == total and f"{crc:08x}" == digest


def _longer() -> Problem:
    return problems.BodyTooLarge(
        "the body is longer than its headers say", mend="send lengths that fit together"
    )
