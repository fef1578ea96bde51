"""Downloads: sets of values by the digest of their content."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Request
from sqlalchemy import select, update
from starlette.responses import Response, StreamingResponse

from pfl_mobile.protocol.bodies import SAFETENSORS
from pfl_server.errors import BlobMissingError
from pfl_server.identity.devices import DeviceIdentity
from pfl_server.problems import BadRange, DeviceRevoked, NotFound, Problem, Unauthorized
from pfl_server.services import Services, services
from pfl_server.storage.models import Assignment
from pfl_server.web.answers import responses
from pfl_server.web.auth import device_or_admin

if TYPE_CHECKING:
    from collections.abc import Iterator

router = APIRouter(prefix="/v1", tags=["values"])

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_TAG = re.compile(r'\s*(W/)?"([^"]*)"\s*(?:,|$)')
_BINARY = {SAFETENSORS: {"schema": {"type": "string", "format": "binary"}}}


def _header(text: str) -> dict[str, Any]:
    return {"description": text, "schema": {"type": "string"}}


_HEADERS = {
    "ETag": _header("The digest in quotes: a strong validator."),
    "Accept-Ranges": _header("`bytes`"),
    "Cache-Control": _header("The content of an address never changes."),
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The whole set.", "content": _BINARY, "headers": _HEADERS},
    206: {
        "description": "The part that was asked for.",
        "content": _BINARY,
        "headers": _HEADERS | {"Content-Range": _header("`bytes first-last/size`")},
    },
    304: {"description": "The client has it.", "headers": _HEADERS},
}
_RESPONSES = _ANSWERS | responses(Unauthorized, DeviceRevoked, NotFound, BadRange)


@dataclass(frozen=True)
class Conditions:
    """The headers that decide which part is sent, if any."""

    range: str | None
    if_range: str | None
    if_none_match: str | None

    def has(self, digest: str) -> bool:
        """Whether the client has the content already (``If-None-Match``; weak comparison, RFC 9110 13.1.2)."""
        if self.if_none_match is None:
            return False
        tags = [found[2] for found in _TAG.finditer(self.if_none_match)]
        return self.if_none_match.strip() == "*" or digest in tags

    def part(self, digest: str, size: int) -> tuple[int, int] | None:
        """First byte and the one after the last; None for the whole.

        Several ranges, other units and what is malformed are ignored (RFC 9110 14.2), as is a range whose
        ``If-Range`` is not this very content: the client then gets the whole.

        Raises:
            BadRange: there is no such byte.
        """
        found = _RANGE.fullmatch(self.range.strip()) if self.range else None
        if found is None or (self.if_range is not None and self.if_range.strip() != f'"{digest}"'):
            return None
        first, last = found[1], found[2]
        if not first and not last:
            return None
        if not first:  # the last so many bytes
            begin, end = max(0, size - int(last)), size
        else:
            begin, end = int(first), min(size, int(last) + 1 if last else size)
            if last and int(last) < int(first):
                return None
        if begin >= end:
            raise BadRange(
                f"the content has {size} bytes",
                mend="ask for a part of it",
                headers={"Content-Range": f"bytes */{size}"},
            )
        return begin, end


def _conditions(
    range_: Annotated[str | None, Header(alias="Range", description="`bytes=first-last`; one range.")] = None,
    if_range: Annotated[str | None, Header(description="The ETag of which the client has a part.")] = None,
    if_none_match: Annotated[str | None, Header(description="ETags that the client has.")] = None,
) -> Conditions:
    return Conditions(range_, if_range, if_none_match)


_Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="SHA-256 of the content.")]
_Client = Annotated[DeviceIdentity | None, Depends(device_or_admin)]


@router.get(
    "/sets/{sha256}", summary="Download a set of values", response_class=Response, responses=_RESPONSES
)
@router.head(
    "/sets/{sha256}",
    summary="Ask for the size of a set of values",
    response_class=Response,
    responses=_RESPONSES,
)
def download(
    request: Request,
    sha256: _Digest,
    client: _Client,
    conditions: Annotated[Conditions, Depends(_conditions)],
    services: Annotated[Services, Depends(services)],
) -> Response:
    """Tensors as safetensors. The address is the content: it can be kept for ever, and a download that broke off
    goes on with `Range` and `If-Range`. Of a set that is made for one device, only that device is told the address.
    """
    key = f"sets/{sha256}"
    size = services.blobs.size(key)
    if size is None:
        raise _absent()
    headers = {
        "ETag": f'"{sha256}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, max-age=31536000, immutable",
    }
    if conditions.has(sha256):
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":
        return Response(headers=headers | {"Content-Length": str(size)}, media_type=SAFETENSORS)
    part = conditions.part(sha256, size)
    begin, end = part or (0, size)
    try:
        content: Iterator[bytes] = services.blobs.read(key, begin, end)
    except BlobMissingError as error:  # the garbage collector was quicker
        raise _absent() from error
    if client is not None:
        _note(services, client)
    headers["Content-Length"] = str(end - begin)
    if part is not None:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
    return StreamingResponse(content, 206 if part else 200, headers, media_type=SAFETENSORS)


def _note(services: Services, client: DeviceIdentity) -> None:
    """Note that the device has begun to download for its task; writes only the first time."""
    waiting = (
        Assignment.device == client.id,
        Assignment.state == "assigned",
        Assignment.downloaded.is_(None),
    )
    with services.database.read() as session:
        found = session.scalar(select(Assignment.id).where(*waiting).limit(1))
    if found is not None:
        with services.database.write() as session:
            session.execute(update(Assignment).where(*waiting).values(downloaded=services.clock()))


def _absent() -> Problem:
    return NotFound("there is no such set of values, or no longer", mend="check in again")
