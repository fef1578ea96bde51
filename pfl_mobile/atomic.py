"""Writing files and folders so that a crash leaves the old content or the new, never a mixture.

Everything new is written beside its destination under a hidden temporary name, flushed to the disk, and
renamed in one step. While it writes, a process holds a lock on its temporary; a temporary that nobody locks
belongs to a process that was killed, and the next write of the same destination removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pfl_mobile.errors import StorageFullError, UnwritableError

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows: works the same, only leftovers of killed processes stay
    fcntl = None  # type: ignore[assignment]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CHUNK = 1 << 20
_AT_FDCWD = -100
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS are the same number


def atomic_write(
    path: str | os.PathLike[str], data: bytes | bytearray | memoryview, *, mode: int = 0o666
) -> None:
    """Put ``data`` at ``path``; after a crash at any moment the file holds its old bytes or the new ones.

    Args:
        path: destination; its folder must exist. A symbolic link there is replaced, not followed.
        data: the whole new content.
        mode: permissions of the new file, less the umask. Use ``0o600`` for what is private.

    Raises:
        StorageFullError: the disk is full; the old file is kept.
        UnwritableError: the folder is missing or may not be written.
    """
    path = Path(path)
    with disk_errors(path):
        remove_stale(path)
        with temporary_file(path, mode) as (fd, temporary):
            view = memoryview(data).cast("B")
            while view:
                view = view[os.write(fd, view[:_CHUNK]) :]
            os.fsync(fd)
            os.replace(temporary, path)
        sync_folder(path.parent)


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn an ``OSError`` while writing ``path`` into an error that names it and the mend."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFullError(
                f"no space left on the disk while writing {path}; nothing was changed",
                mend="free some space, or choose a folder on another disk",
            ) from error
        raise UnwritableError(
            f"cannot write {path}: {error.strerror or error}",
            mend="check that the folder exists and that you may write in it, or choose another",
        ) from error


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make renames and new names inside ``folder`` durable (no effect where a folder cannot be opened)."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # file systems without it
            raise
    finally:
        os.close(fd)


def temporary_name(path: Path) -> Path:
    """A fresh hidden name beside ``path``."""
    return path.with_name(f".{path.name[:180]}.{secrets.token_hex(6)}.tmp")


def lock(fd: int, path: Path) -> bool:
    """Lock an open temporary; False when another process took or removed it (then use a new name)."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: leftovers are then not told apart, so none is removed
        return True
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def remove_stale(path: Path) -> None:
    """Remove temporaries of ``path`` whose writer was killed; those in use are left alone."""
    if fcntl is None:
        return
    pattern = re.compile(re.escape(f".{path.name[:180]}.") + r"[0-9a-f]{12}\.tmp")
    for entry in os.scandir(path.parent):
        if not pattern.fullmatch(entry.name) or entry.is_symlink():
            continue
        with contextlib.suppress(OSError):
            fd = os.open(entry.path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)
            finally:
                os.close(fd)


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A new, locked folder beside ``path``; removed at the end unless it was renamed."""
    while True:
        temporary = temporary_name(path)
        os.mkdir(temporary)
        fd = os.open(temporary, os.O_RDONLY) if fcntl is not None else None  # Windows cannot open a folder
        try:
            if fd is None or lock(fd, temporary):
                yield temporary
                return
        finally:
            if fd is not None:
                os.close(fd)
            shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(temporary: Path, path: Path) -> None:
    """Give the folder ``temporary`` the name ``path``; an old folder there is then at ``temporary``.

    The two are exchanged in one step where the system can do that (Linux, macOS). Elsewhere the old folder is
    moved aside first, so that a crash in between leaves none at ``path``.
    """
    try:
        os.rename(temporary, path)  # nothing there, or on POSIX an empty folder
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EACCES) or not path.is_dir():
            raise
    if _exchange(temporary, path):
        return
    aside = temporary_name(path)
    os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except OSError:
        os.rename(aside, path)
        raise
    os.rename(aside, temporary)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where that cannot be done."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        first, second = os.fsencode(one), os.fsencode(other)
        if sys.platform == "linux":
            failed = libc.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _EXCHANGE)
        elif sys.platform == "darwin":
            failed = libc.renamex_np(first, second, _EXCHANGE)
        else:
            return False
    except (AttributeError, OSError, TypeError):  # a C library without the call
        return False
    if failed:
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
            raise OSError(number, os.strerror(number), str(other))
    return not failed


@contextlib.contextmanager
def temporary_file(path: Path, mode: int) -> Iterator[tuple[int, Path]]:
    """An open, locked temporary beside ``path``; removed at the end unless it was renamed."""
    while True:
        temporary = temporary_name(path)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        try:
            if lock(fd, temporary):
                yield fd, temporary
                return
        finally:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
