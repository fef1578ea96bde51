"""Memory that processes share: a file that grows and is mapped by each of them.

Without a path the file has no name, so nothing is left of it when the processes end, however they end.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import tempfile
from pathlib import Path

import numpy as np

from pfl_mobile.files.atomic import disk_errors, open_private

_KEYS = itertools.count()
_PAGE = mmap.ALLOCATIONGRANULARITY


class SharedFile:
    """A growing file, mapped into memory. Not picklable; workers get its descriptor over a socket.

    Args:
        path: file to map, made when missing; None for memory without a name.

    Attributes:
        key: different for every shared file of this process.
        fd: descriptor.
        size: bytes.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Open it; it is as long as it was, at first empty."""
        self.key = next(_KEYS)
        self._path = path
        self.fd = _open(path)
        self.size = os.fstat(self.fd).st_size
        self._bytes = mapped(self.fd, self.size)

    def reserve(self, size: int) -> None:
        """Grow to at least ``size`` bytes, in doublings; views taken before stay valid.

        Raises:
            StorageFullError: the disk of a file with a name is full.
        """
        if size <= self.size:
            return
        grown = max(size, 2 * self.size)
        grown = -(-grown // _PAGE) * _PAGE
        self._grow(grown)
        self.size, self._bytes = grown, mapped(self.fd, grown)

    def _grow(self, size: int) -> None:
        if self._path is None or not hasattr(os, "posix_fallocate"):
            os.ftruncate(self.fd, size)
            return
        with disk_errors(self._path):
            try:
                # Room on the disk now: a mapped page that finds none later ends the process without a word.
                os.posix_fallocate(self.fd, self.size, size - self.size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot
                    os.ftruncate(self.fd, self.size)  # gives back what little there was
                    raise
                os.ftruncate(self.fd, size)

    def bytes(self) -> np.ndarray:
        """All of it, uint8, writable."""
        return self._bytes

    def close(self) -> None:
        """Close the descriptor; the memory goes when the last view of it does."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd, self.size = -1, 0
            self._bytes = np.zeros(0, np.uint8)

    def __del__(self) -> None:
        self.close()


def mapped(fd: int, size: int) -> np.ndarray:
    """The first ``size`` bytes of a file, uint8, shared with whoever maps them too."""
    if size == 0:
        return np.zeros(0, np.uint8)
    return np.frombuffer(mmap.mmap(fd, size), np.uint8)


def _open(path: Path | None) -> int:
    if path is not None:
        return open_private(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0))
    if hasattr(os, "memfd_create"):
        return os.memfd_create("pfl-simulation")
    with tempfile.TemporaryFile() as file:  # unlinked at once, except on Windows
        return os.dup(file.fileno())
