"""An upload as it arrives: a file that grows, and is looked at once it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import secrets
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.atomic import disk_errors
from pfl_mobile.protocol.update_file import parse_prefix, payload_offset

if TYPE_CHECKING:
    from pfl_mobile.protocol.bodies import UpdateHead
    from pfl_mobile.strategies.updates import Layout

_FOLDER, _SUFFIX, _WHOLE = "parts", ".part", ".whole"
#: Pieces that one call writes (IOV_MAX of Linux).
_PIECES = 1024


class Busy(Exception):
    """Another request is writing the part."""


@dataclass(frozen=True)
class Scan:
    """What a whole update is checked by.

    Attributes:
        total: bytes.
        digest: CRC-32 of all bytes, in hex. It tells a repeated upload from another one under the same key, which is a
            client's mistake, not an attack: whoever has the credential can send what it likes anyway. SHA-256 would
            take more than half of the time that an upload costs.
        squares: sum of the squares of the values in float64; NaN or infinite where one of them is.
    """

    total: int
    digest: str
    squares: float

    @property
    def norm(self) -> float:
        """L2 norm of the values."""
        return float(np.sqrt(self.squares))


def scan(data: memoryview, offset: int) -> Scan:
    """Look at a whole update: few long calls, which let other threads run meanwhile.

    Args:
        data: all of it.
        offset: of the values in it.
    """
    values = np.frombuffer(data, "<f4", offset=offset) if len(data) > offset else np.empty(0, "<f4")
    # In float64, as squares in float32 overflow at 1e19. Not by BLAS, whose threads would spin.
    with np.errstate(invalid="ignore"):
        squares = float(np.einsum("p,p->", values, values, dtype=np.float64))
    return Scan(len(data), f"{zlib.crc32(data):08x}", squares)


class Part:
    """The file of one upload, locked while it is open.

    Attributes:
        path: where it lies.
        size: bytes that are there.
    """

    def __init__(self, path: Path, fd: int) -> None:
        """For `open_part`."""
        self.path, self._fd = path, fd
        self.size = os.fstat(fd).st_size

    def restart(self) -> None:
        """Forget what is there."""
        os.ftruncate(self._fd, 0)
        self.size = 0

    def write(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Append.

        Raises:
            StorageFullError, UnwritableError: it cannot be written.
        """
        left = [memoryview(piece) for piece in pieces]
        with disk_errors(self.path):
            while left:
                done = os.pwritev(self._fd, left[:_PIECES], self.size)
                self.size += done
                while left and done >= len(left[0]):
                    done -= len(left.pop(0))
                if done:
                    left[0] = left[0][done:]

    def head(self, layout: Layout, total: int) -> UpdateHead | None:
        """What the update says of itself; None while its header is not whole.

        Raises:
            UpdateFileError, UpdateTensorsError: it is not the header of such an update.
        """
        offset = payload_offset(layout, total)
        if self.size < offset:
            return None
        return parse_prefix(os.pread(self._fd, offset, 0), layout, total)[0]

    def scan(self, offset: int) -> Scan:
        """Look at all of it."""
        with mmap.mmap(self._fd, self.size, prot=mmap.PROT_READ) as found, memoryview(found) as data:
            return scan(data, offset)

    @contextlib.contextmanager
    def whole(self) -> Iterator[Path]:
        """The file under a name of its own, which no other request knows; gone at the end unless it was moved.

        Raises:
            Busy: another upload of the task took the file away.
        """
        path = self.path.with_name(f"{self.path.name.split('.')[0]}.{secrets.token_hex(16)}{_WHOLE}")
        try:
            os.rename(self.path, path)
        except FileNotFoundError as error:
            raise Busy from error
        try:
            if not os.path.samestat(os.fstat(self._fd), os.stat(path)):
                raise Busy
            yield path
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def open_part(scratch: Path, task: str, key: str, total: int) -> Iterator[Part]:
    """The part of an upload, new where there is none.

    Parts that the same task has under other keys, or of other lengths, are taken away.

    Args:
        scratch: folder of the store.
        task: id.
        key: idempotency key of the upload.
        total: bytes of the whole upload.

    Raises:
        Busy: another request is writing it.
        StorageFullError, UnwritableError: it cannot be made.
    """
    folder = _folder(scratch, task)
    own = folder / f"{task}.{hashlib.sha256(key.encode()).hexdigest()[:16]}.{total}{_SUFFIX}"
    with disk_errors(own):
        folder.mkdir(parents=True, exist_ok=True)
        for path in _parts(scratch, task):
            if path != own:
                path.unlink(missing_ok=True)
        fd = os.open(own, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy from error
        yield Part(own, fd)
    finally:
        os.close(fd)


def find_part(scratch: Path, task: str, key: str | None = None) -> tuple[int, int] | None:
    """Bytes there and bytes in all of the part of a task; None where there is none.

    Args:
        scratch: folder of the store.
        task: id.
        key: only of this idempotency key.
    """
    wanted = None if key is None else hashlib.sha256(key.encode()).hexdigest()[:16]
    for path in _parts(scratch, task):
        _, digest, total, _ = path.name.split(".")
        if wanted in (None, digest):
            try:
                return path.stat().st_size, int(total)
            except FileNotFoundError:
                continue
    return None


def remove_parts(scratch: Path, task: str) -> None:
    """Take away what a task has."""
    for path in _parts(scratch, task):
        path.unlink(missing_ok=True)


def old_parts(scratch: Path, before: float) -> list[Path]:
    """Parts that were last written before a time (seconds since 1970)."""
    found = []
    for folder in sorted((scratch / _FOLDER).glob("??")):
        for path in _parts(scratch, folder.name, (_SUFFIX, _WHOLE)):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    found.append(path)
    return found


def _folder(scratch: Path, task: str) -> Path:
    """Parts lie in 256 folders, so that none grows long."""
    return scratch / _FOLDER / task[:2]


def _parts(scratch: Path, task: str, kinds: tuple[str, ...] = (_SUFFIX,)) -> list[Path]:
    """The parts of the tasks whose id begins so."""
    folder = _folder(scratch, task)
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [folder / name for name in names if name.startswith(task) and name.endswith(kinds)]
