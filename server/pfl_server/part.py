"""An upload as it arrives: a file that grows, and what is computed of it on the way."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.atomic import disk_errors
from pfl_mobile.protocol.update_file import parse_prefix, payload_offset

if TYPE_CHECKING:
    from pfl_mobile.protocol.bodies import UpdateHead
    from pfl_mobile.strategies.updates import Layout

#: Bytes that are handed to a thread at once, and read again from a part that is gone on with.
CHUNK = 256 << 10
_FOLDER, _SUFFIX = "parts", ".part"


class Busy(Exception):
    """Another request is writing the part."""


class Scan:
    """What an update is checked by, computed while it streams: its digest, its head, the L2 norm of its values.

    Args:
        layout: of the task.
        total: bytes of the whole update.

    Raises:
        UpdateTensorsError: no update of this layout has this length.
    """

    def __init__(self, layout: Layout, total: int) -> None:
        self.layout, self.total = layout, total
        self.offset = payload_offset(layout, total)
        self.seen = 0
        self.head: UpdateHead | None = None
        self._digest = hashlib.sha256()
        self._prefix = bytearray()
        self._rest = b""
        self._squares = 0.0

    def add(self, data: memoryview) -> None:
        """Take in the next bytes.

        Raises:
            UpdateFileError, UpdateTensorsError: the header is complete now, and not that of such an update.
        """
        self._digest.update(data)
        values = data[max(self.offset - self.seen, 0) :]
        if self.head is None:
            self._prefix += data[: len(data) - len(values)]
            if len(self._prefix) == self.offset:
                self.head, _ = parse_prefix(self._prefix, self.layout, self.total)
        self.seen += len(data)
        if self._rest:  # a value that was cut in two
            missing = 4 - len(self._rest)
            self._rest += values[:missing]
            values = values[missing:]
            if len(self._rest) == 4:
                self._add(memoryview(self._rest))
                self._rest = b""
        whole = len(values) - len(values) % 4
        self._add(values[:whole])
        self._rest += values[whole:]

    def _add(self, data: memoryview) -> None:
        # float64 before the squares: those of float32 overflow at 1e19. Not by BLAS, whose threads would spin.
        wide = np.frombuffer(data, "<f4").astype(np.float64)
        self._squares += float(np.einsum("p,p->", wide, wide))

    @property
    def norm(self) -> float:
        """L2 norm of the values so far; NaN or infinite where one of them is."""
        return math.sqrt(self._squares) if math.isfinite(self._squares) else math.nan

    @property
    def sha256(self) -> str:
        """Digest of the bytes so far, in hex."""
        return self._digest.hexdigest()


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

    def rescan(self, scan: Scan) -> None:
        """Give all that is there to ``scan``; errors as its ``add``."""
        at = 0
        while at < self.size:
            data = os.pread(self._fd, CHUNK, at)
            if not data:
                break
            scan.add(memoryview(data))
            at += len(data)

    def write(self, data: memoryview) -> None:
        """Append."""
        with disk_errors(self.path):
            while data:
                done = os.pwrite(self._fd, data, self.size)
                self.size += done
                data = data[done:]

    def current(self) -> bool:
        """Whether the file still has its name: a newer upload takes it away, as does the garbage collector."""
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    def remove(self) -> None:
        """Take the file away."""
        if self.current():
            self.path.unlink(missing_ok=True)


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
        for path in _parts(scratch, folder.name):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < before:
                    found.append(path)
    return found


def _folder(scratch: Path, task: str) -> Path:
    """Parts lie in 256 folders, so that none grows long."""
    return scratch / _FOLDER / task[:2]


def _parts(scratch: Path, task: str) -> list[Path]:
    """The parts of the tasks whose id begins so."""
    folder = _folder(scratch, task)
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [folder / name for name in names if name.startswith(task) and name.endswith(_SUFFIX)]
