"""Writing files and folders so that a crash leaves the old content or the new, never a mixture.

Everything new is written beside its destination under a hidden temporary name, flushed to the disk, and
renamed in one step. While it writes, a process holds a lock on its temporary; a temporary that nobody locks
belongs to a process that was killed, and the next write of the same destination removes it.

What is personal or secret lies in folders of `private_folder` and in files that are made with `PRIVATE`: nobody else
on the machine may read them, whatever the umask is, from the moment on that they are there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fnmatch
import os
import re
import secrets
import shutil
import stat
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from pfl_mobile.errors import StorageFullError, UnwritableError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

try:
    import fcntl
except ImportError:  # Windows: works the same, only leftovers of killed processes stay
    fcntl = None  # type: ignore[assignment]

#: Permissions of files for their owner alone; of folders, with the right to enter them.
PRIVATE, PRIVATE_FOLDER = 0o600, 0o700

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
        mode: permissions of the new file, less the umask. Use `PRIVATE` for what is personal or secret.

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


def private_folder(path: str | os.PathLike[str], *, ours: Collection[str] = ("*",)) -> None:
    """Have a folder that nobody but its owner may enter; folders above it that are missing are made so too.

    One that is there and too open is closed to others where it is surely ours: it is empty, or holds a name that only
    we write. Any other is left as it is, with a warning: closing it might lock others out of what is theirs. What is
    written into it is private all the same.

    Args:
        path: of the folder.
        ours: names, or patterns of them, one of which shows that the folder is ours; by default anything does, as in a
            folder below one that was looked at.

    Raises:
        UnwritableError: it cannot be made, is no folder, or everybody may replace what is in it.
    """
    path = Path(path)
    with disk_errors(path):
        for folder in [*reversed(path.parents), path]:
            try:
                os.mkdir(folder, PRIVATE_FOLDER)
            except OSError:
                if not folder.is_dir():
                    raise
            else:
                os.chmod(folder, PRIVATE_FOLDER)  # the umask may have taken the owner's own rights
        if os.name == "posix":
            _close_to_others(path, ours)


def _close_to_others(path: Path, ours: Collection[str]) -> None:
    found = path.stat()
    if not found.st_mode & 0o077:
        return
    names = os.listdir(path)
    if not names or any(fnmatch.fnmatch(name, pattern) for name in names for pattern in ours):
        with contextlib.suppress(PermissionError):  # of another owner, as a volume of a container may be
            os.chmod(path, stat.S_IMODE(found.st_mode) & PRIVATE_FOLDER)
            return
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        raise UnwritableError(
            f"everybody on this machine may replace what is in {path}",
            mend=f"close it (chmod 700 {path}), or give another folder",
        )
    warnings.warn(
        f"others on this machine may look into the folder {path}, though not read what is written there now; "
        f"close it (chmod 700 {path}), or give a folder of its own",
        UserWarning,
        stacklevel=2,
    )


def open_private(path: str | os.PathLike[str], flags: int) -> int:
    """For ``open(..., opener=open_private)``: a file that is made is for its owner alone; an older one becomes so."""
    fd = os.open(path, flags | getattr(os, "O_CLOEXEC", 0), PRIVATE)
    try:
        make_private(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def make_private(fd: int) -> None:
    """Close an open file to all but its owner; no effect on what is no file (``/dev/null``) or on Windows."""
    found = os.fstat(fd)
    if os.name == "posix" and stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) != PRIVATE:
        os.fchmod(fd, PRIVATE)


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


@contextlib.contextmanager
def held(folder: str | os.PathLike[str], wait_s: float) -> Iterator[bool]:
    """A lock on a folder, which ends with the process; no file is made for it, and nothing in it is locked.

    Args:
        folder: that is there.
        wait_s: seconds to wait for another who has it.

    Yields:
        False where another had it all the time. Windows and file systems without locks always give it.
    """
    if fcntl is None:
        yield True
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        yield _locked(fd, time.monotonic() + wait_s)
    finally:
        os.close(fd)


def _locked(fd: int, until: float) -> bool:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)
        except OSError:  # a file system without locks
            return True
        else:
            return True


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
                if mode == PRIVATE:
                    make_private(fd)
                yield fd, temporary
                return
        finally:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
