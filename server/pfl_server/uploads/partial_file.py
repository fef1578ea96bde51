"""An upload as it arrives: a file that grows, and what is computed of it on the way.

Whole blocks are written past the page cache (``O_DIRECT``) where the file system takes that. An upload is read again
at the merge at the earliest, so keeping it in memory only takes memory from others; and where memory is short, or a
virtual machine has to get it from its host first, copying into the page cache takes several times as long as all the
rest of an upload.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import math
import mmap
import os
import secrets
import threading
import zlib
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pfl_mobile.files.atomic import disk_errors, private_folder
from pfl_mobile.protocol.update_file import parse_prefix, payload_offset

if TYPE_CHECKING:
    from pfl_mobile.plan.upload import UpdateLayout
    from pfl_mobile.protocol.bodies import UpdateHead

#: What direct writes are aligned to, in memory and in the file.
BLOCK = 4096
#: Bytes that are written at once.
BUFFER = 1 << 20
#: Bytes that are written at once where there are many uploads.
_LEAST = 64 << 10
#: Squares that are added up in float32.
_ROW = 256
_FOLDER, _SUFFIX, _WHOLE = "parts", ".part", ".whole"
_DIRECT: int | None = getattr(os, "O_DIRECT", None)
_OWN = threading.local()


class Busy(Exception):
    """Another request is sending the update."""


class Uploads:
    """Uploads that this process is taking in: one for a task, and so much memory for all. For the event loop's thread.

    Args:
        memory: bytes that all of them may hold before they are written, give or take the last piece of each.
    """

    def __init__(self, memory: int = 32 << 20) -> None:
        self._memory = memory
        self._open: set[Hashable] = set()

    @contextlib.contextmanager
    def only(self, upload: Hashable) -> Iterator[None]:
        """Let nobody else send this upload while the block runs.

        Raises:
            Busy: somebody does. Of other processes, the lock of the part tells.
        """
        if upload in self._open:
            raise Busy
        self._open.add(upload)
        try:
            yield
        finally:
            self._open.discard(upload)

    def share(self) -> int:
        """Bytes after which one upload writes what it holds."""
        return max(_LEAST, min(BUFFER, self._memory // max(1, len(self._open))))


class Scan:
    """What an update is checked by, computed while it streams: its digest, its head, the L2 norm of its values.

    The digest is the CRC-32 of all bytes. It tells a repeated upload from another one under the same key, which is a
    client's mistake, not an attack: whoever has the credential can send what it likes anyway. SHA-256 would take as
    long as all else together.

    Attributes:
        offset: of the values.
        seen: bytes so far.
        head: what the update says of itself; None while its header is not whole.

    Args:
        layout: of the task.
        total: bytes of the whole update.

    Raises:
        UpdateTensorsError: no update of this layout has this length.
    """

    def __init__(self, layout: UpdateLayout, total: int) -> None:
        self._layout, self.total = layout, total
        self.offset = payload_offset(layout, total)
        self.seen = 0
        self.head: UpdateHead | None = None
        self._crc = 0
        self._prefix = bytearray()
        self._cut = b""
        self._squares = 0.0

    def add(self, data: memoryview) -> None:
        """Take in the next bytes.

        Raises:
            UpdateFileError, UpdateTensorsError: the header is whole now, and not that of such an update.
        """
        self._crc = zlib.crc32(data, self._crc)
        values = data[max(self.offset - self.seen, 0) :]
        if self.head is None:
            self._prefix += data[: len(data) - len(values)]
            if len(self._prefix) == self.offset:
                self.head, _ = parse_prefix(self._prefix, self._layout, self.total)
        self.seen += len(data)
        if self._cut:  # a value that was cut in two
            missing = 4 - len(self._cut)
            self._cut += values[:missing]
            values = values[missing:]
            if len(self._cut) == 4:
                self._add(memoryview(self._cut))
                self._cut = b""
        whole = len(values) - len(values) % 4
        self._add(values[:whole])
        self._cut += values[whole:]

    def _add(self, data: memoryview) -> None:
        self._squares += sum_of_squares(np.frombuffer(data, "<f4"))

    @property
    def norm(self) -> float:
        """L2 norm of the values so far, to 1e-6 of it; NaN where one of them is NaN or infinite."""
        return math.sqrt(self._squares) if math.isfinite(self._squares) else math.nan

    @property
    def digest(self) -> str:
        """CRC-32 of the bytes so far, in hex."""
        return f"{self._crc:08x}"


def sum_of_squares(values: np.ndarray) -> float:
    """Sum of the squares of float32 values, to 2e-6 of it; NaN or infinite where one of them is.

    Some of them at a time are added up in float32, which is five times as fast as float64 is. Merges that rest on norms
    being right to the last bit measure them anew.
    """
    rows = values[: len(values) - len(values) % _ROW].reshape(-1, _ROW)
    rest = values[rows.size :]
    # Not by BLAS, whose threads would spin.
    with np.errstate(over="ignore", invalid="ignore"):
        found = float(np.einsum("kp,kp->k", rows, rows).sum(dtype=np.float64))
        found += float(np.einsum("p,p->", rest, rest))
        if not math.isfinite(found):  # squares overflow in float32 at 1e19, far from where values do
            found = float(np.einsum("p,p->", values, values, dtype=np.float64))
    return found


class PartialFile:
    """The file of one upload, locked while it is open.

    Attributes:
        path: where it lies.
        size: bytes that are there.
    """

    def __init__(self, path: Path, fd: int) -> None:
        """For `open_part`."""
        self.path, self._fd = path, fd
        self._direct = _open_direct(path)
        self.size = os.fstat(fd).st_size
        self._written = self.size - self.size % BLOCK
        #: What does not fill a block yet.
        self._rest = os.pread(fd, self.size - self._written, self._written)

    def restart(self) -> None:
        """Forget what is there."""
        os.ftruncate(self._fd, 0)
        self.size, self._written, self._rest = 0, 0, b""

    def rescan(self, scan: Scan) -> None:
        """Let ``scan`` see the whole blocks that arrived in earlier requests.

        Raises:
            Busy: the file was cut meanwhile, by another request.
            UpdateFileError: see `Scan.add`.
        """
        while scan.seen < self._written:
            data = os.pread(self._fd, min(BUFFER, self._written - scan.seen), scan.seen)
            if not data:
                raise Busy  # it was cut meanwhile
            scan.add(memoryview(data))

    def write(self, pieces: Sequence[bytes | bytearray], scan: Scan) -> None:
        """Append.

        Raises:
            UpdateFileError, UpdateTensorsError: as ``scan.add``; then less is written.
            StorageFullError, UnwritableError: it cannot be written.
        """
        buffer = _buffer()
        used = len(self._rest)
        buffer[:used] = self._rest
        for piece in pieces:
            view = memoryview(piece)
            while view:
                count = min(len(view), BUFFER - used)
                buffer[used : used + count] = view[:count]
                used, view = used + count, view[count:]
                if used == BUFFER:
                    self._put(buffer, scan)
                    used = 0
        whole = used - used % BLOCK
        self._put(buffer[:whole], scan)
        self._rest = bytes(buffer[whole:used])
        self.size = self._written + len(self._rest)

    def finish(self, scan: Scan) -> None:
        """Write what is left, and give it to ``scan``; errors as ``write``."""
        scan.add(memoryview(self._rest))
        self.flush()

    def flush(self) -> None:
        """Write what does not fill a block, so that it is kept."""
        with disk_errors(self.path):
            _write_all(self._fd, memoryview(self._rest), self._written)

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

    def close(self) -> None:
        """Close the file."""
        if self._direct is not None:
            os.close(self._direct)
        os.close(self._fd)

    def _put(self, blocks: memoryview, scan: Scan) -> None:
        """Scan and append whole blocks."""
        if not blocks:
            return
        scan.add(blocks)
        with disk_errors(self.path):
            if self._direct is not None:
                try:
                    _write_all(self._direct, blocks, self._written)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    # A file system that opens such files but does not write them.
                    os.close(self._direct)
                    self._direct = None
            if self._direct is None:
                _write_all(self._fd, blocks, self._written)
        self._written += len(blocks)


def _open_direct(path: Path) -> int | None:
    """Open for direct writes; None where the file system has none."""
    if _DIRECT is None:
        return None
    try:
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC | _DIRECT)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
        return None


def _buffer() -> memoryview:
    """Memory of this thread, aligned as direct writes need it."""
    if not hasattr(_OWN, "buffer"):
        _OWN.buffer = memoryview(mmap.mmap(-1, BUFFER))
    found: memoryview = _OWN.buffer
    return found


def _write_all(fd: int, data: memoryview, at: int) -> None:
    while data:
        done = os.pwrite(fd, data, at)
        at, data = at + done, data[done:]


@contextlib.contextmanager
def open_part(scratch: Path, task: str, key: str, total: int) -> Iterator[PartialFile]:
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
        private_folder(folder)
        for path in _parts(scratch, task):
            if path != own:
                path.unlink(missing_ok=True)
        fd = os.open(own, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part = PartialFile(own, fd)
    except (BlockingIOError, FileNotFoundError) as error:  # locked, or taken away, by another request
        os.close(fd)
        raise Busy from error
    try:
        yield part
    finally:
        part.close()


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


def task_of(path: Path) -> str:
    """The task that a part is of."""
    return path.name.split(".")[0]


def is_whole(path: Path) -> bool:
    """Whether a part is complete and being stored, which takes a moment."""
    return path.name.endswith(_WHOLE)


def spare_files(scratch: Path) -> list[Path]:
    """What lies in the scratch folder beside parts: copies that a store makes for as long as it needs them."""
    return [path for path in scratch.iterdir() if path.is_file()]


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
