"""Downloads and uploads that go on where a connection broke."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from pfl_mobile.device.client import parse
from pfl_mobile.device.store import unreadable
from pfl_mobile.errors import ProtocolError, ServerProblem, UnreachableError
from pfl_mobile.files.atomic import disk_errors, open_private, sync_folder
from pfl_mobile.protocol.bodies import SAFETENSORS, UploadState

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pfl_mobile.device.client import Client
    from pfl_mobile.protocol.bodies import Download

_CHUNK = 1 << 16


def download(client: Client, what: Download, to: Path) -> None:
    """Download a set of values to a file. It resumes what an earlier attempt left, even one that was killed.

    Args:
        client: of the device.
        what: address, size and digest.
        to: the file; it is there only once it is complete and its digest is right.

    Raises:
        UnreachableError: given up; what has arrived stays for the next time.
        ServerProblem: the aggregator refuses.
        StorageFullError, UnwritableError: the disk.
    """
    part = to.with_name(to.name + ".part")

    def have() -> int:
        return part.stat().st_size if part.exists() else 0

    def once() -> None:
        if have() > what.bytes:
            part.unlink()
        if have() < what.bytes:
            _fetch(client, what, part, have())
        if have() < what.bytes:
            raise UnreachableError(f"{what.url} broke off", mend="try again")
        digest = hashlib.sha256(part.read_bytes()).hexdigest()
        if digest != what.sha256:
            part.unlink()
            raise UnreachableError(
                f"{what.url} arrived with the digest {digest[:12]}..., not {what.sha256[:12]}...",
                mend="try again; if it stays so, something between changes the bytes",
            )

    with disk_errors(to):
        if what.bytes == 0:
            open(part, "wb", opener=open_private).close()
        client.retrying(once, have)
        os.replace(part, to)
        sync_folder(to.parent)


def _fetch(client: Client, what: Download, part: Path, have: int) -> None:
    headers = {"If-Range": f'"{what.sha256}"', "Range": f"bytes={have}-"} if have else {}
    with client.exchange("GET", what.url, headers) as response:
        went_on = response.status_code == 206
        if went_on and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise ProtocolError(
                f"{what.url} was asked for from byte {have} on, the answer is "
                f"{response.headers.get('Content-Range')!a}",
                mend="check what lies between device and aggregator",
            )
        with open(part, "ab" if went_on else "wb", opener=open_private) as file:
            done = have if went_on else 0
            try:
                for piece in client.pieces(response):
                    done += len(piece)
                    if done > what.bytes:
                        raise ProtocolError(
                            f"{what.url} has more than the {what.bytes} bytes that the task says",
                            mend="check what lies between device and aggregator",
                        )
                    file.write(piece)
            finally:
                file.flush()
                os.fsync(file.fileno())


def upload(client: Client, url: str, file: Path, key: str, *, resume: bool = False) -> UploadState:
    """Send an update; a part that arrived before stays and is not sent again.

    Args:
        client: of the device.
        url: of the task's update.
        file: the update.
        key: idempotency key, the same for every try.
        resume: something may have been sent before (the process was started again).

    Returns:
        The aggregator's answer: accepted.

    Raises:
        UnreachableError: given up for now.
        ServerProblem: the aggregator refuses the update.
        DeviceFolderError: the file cannot be read.
    """
    try:
        size = file.stat().st_size
    except OSError as error:
        raise unreadable(file, error) from error
    sent, sure = 0, not resume  # what the aggregator has, and whether that is known

    def once() -> UploadState:
        nonlocal sent, sure
        if not sure:
            sent, complete = _received(client, url, key, size)
            if complete:
                return UploadState(status="accepted", task=url.split("/")[-2], received=size, duplicate=True)
        sure = False  # until the answer is here
        headers = {
            "Content-Type": SAFETENSORS,
            "Content-Length": str(size - sent),
            "Idempotency-Key": key,
            "Upload-Offset": str(sent),
            "Upload-Length": str(size),
        }
        try:
            with client.exchange("PUT", url, headers, _from(client, file, sent)) as response:
                answer = parse(UploadState, client.read(response), f"PUT {url}")
        except ServerProblem as problem:
            if problem.code != "offset-mismatch":
                raise
            raise UnreachableError(
                "the aggregator has another part of the update", mend="try again"
            ) from problem
        if answer.status == "partial":
            raise UnreachableError(f"{answer.received} of {size} bytes arrived", mend="try again")
        return answer

    return client.retrying(once, lambda: sent)


def _received(client: Client, url: str, key: str, size: int) -> tuple[int, bool]:
    """How many bytes of the update the aggregator has, and whether that is all.

    A task that is over answers an error without a body; the upload is then tried from the beginning, which tells why.
    """
    try:
        with client.exchange("HEAD", url, {"Idempotency-Key": key}) as response:
            offset = response.headers.get("Upload-Offset", "0")
            complete = response.headers.get("Upload-Complete") == "?1"
    except ServerProblem as problem:
        if problem.passing:
            raise
        return 0, False
    if not offset.isdecimal() or int(offset) > size:
        raise ProtocolError(
            f"the aggregator says that it has {offset!a} of {size} bytes", mend="drop the update"
        )
    return int(offset), complete


def _from(client: Client, file: Path, offset: int) -> Iterator[bytes]:
    try:
        with open(file, "rb") as opened:
            opened.seek(offset)
            while piece := opened.read(_CHUNK):
                client.traffic.up += len(piece)
                yield piece
    except OSError as error:
        raise unreadable(file, error) from error
