"""Moving bytes in pieces while their length and digest are taken."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

from pfl_mobile.bundle.manifest import FileEntry
from pfl_mobile.errors import MissingFileError, UnreadableFileError, UnsafePathError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Called with (file, bytes done, bytes in all).
Progress = Callable[[str, int, int], None]

CHUNK = 1 << 20


def copy(chunks: Iterable[bytes], target: IO[bytes] | None) -> FileEntry:
    """Write ``chunks`` to ``target`` (or nowhere), and give their length and digest."""
    digest, count = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        count += len(chunk)
        if target is not None:
            target.write(chunk)
    return FileEntry(sha256=digest.hexdigest(), bytes=count)


def chunks_of(
    name: str,
    source: bytes | os.PathLike[str],
    progress: Progress | None = None,
    done: int = 0,
    total: int = 0,
    limit: int | None = None,
    links: bool = True,
) -> Iterator[bytes]:
    """The content of ``source`` in pieces of at most 1 MiB.

    Args:
        name: what errors and progress call it.
        source: bytes, or the path of a regular file.
        progress: told after each piece.
        done: bytes of other files that are already done.
        total: bytes of all files.
        limit: stop after the piece that goes beyond so many bytes.
        links: follow a symbolic link at ``source``.

    Raises:
        MissingFileError: there is no such file.
        UnsafePathError: it is not a regular file (opening a pipe would wait for ever).
        UnreadableFileError: the system refuses to read it.
    """
    for chunk in _pieces(name, source, links):
        done += len(chunk)
        yield chunk
        if progress is not None:
            progress(name, done, total)
        if limit is not None:
            limit -= len(chunk)
            if limit < 0:
                return


def _pieces(name: str, source: bytes | os.PathLike[str], links: bool) -> Iterator[bytes]:
    if isinstance(source, bytes):
        for start in range(0, len(source), CHUNK):
            yield source[start : start + CHUNK]
        return
    try:
        with open(source, "rb", opener=_open_regular if links else _open_no_link) as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{name} is not there ({os.fspath(source)})", mend="obtain or export the bundle again"
        ) from error
    except OSError as error:
        raise UnreadableFileError(
            f"cannot read {name} ({os.fspath(source)}): {error.strerror or error}",
            mend="check the permissions of the file and its folder",
        ) from error


def _open_no_link(path: str, flags: int) -> int:
    return _open_regular(path, flags | getattr(os, "O_NOFOLLOW", 0))


def _open_regular(path: str, flags: int) -> int:
    fd = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UnsafePathError(f"{path} is not a regular file", mend="replace it by a file")
    return fd
