"""Blobs as files in a local folder, or in one that several machines share."""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING

from typing_extensions import override

from pfl_mobile.files.atomic import disk_errors, open_private, private_folder, sync_folder
from pfl_server.errors import BlobError, BlobMissingError
from pfl_server.storage.blobs import Blobs, checked_key, checked_prefix

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

#: Bytes of a piece that `FileBlobs.read` gives; one waits in memory for each client that reads slowly.
PIECE = 128 << 10
_SCRATCH = ".scratch"


class FileBlobs(Blobs):
    """Blobs below a folder: key ``sets/ab12`` is the file ``sets/ab12``.

    A file is finished and flushed in ``.scratch`` before it gets its name, so a name always stands for the whole
    content, whatever is killed when. Only the owner may read files: states hold the noise that hides devices, and
    updates what it hides.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser().absolute()
        self.scratch = self._folder / _SCRATCH
        self.place = str(self._folder)
        private_folder(self._folder, ours=(_SCRATCH,))
        private_folder(self.scratch)

    @override
    def put_file(self, key: str, path: Path) -> None:
        target = self._path(key)
        with disk_errors(target):
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            self._rename(path, target)

    @override
    def put(self, key: str, data: bytes | memoryview) -> None:
        target = self._path(key)
        temporary = self.scratch / f"put-{secrets.token_hex(8)}"
        with disk_errors(target):
            try:
                with open(temporary, "xb", opener=open_private) as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                self._rename(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)

    @override
    def get(self, key: str) -> bytes:
        with _missing(key):
            return self._path(key).read_bytes()

    @contextlib.contextmanager
    @override
    def local(self, key: str) -> Iterator[Path]:
        """The file itself."""
        path = self._path(key)
        if self.size(key) is None:
            raise no_such(key)
        yield path

    @override
    def read(self, key: str, first: int, last: int) -> Iterator[bytes]:
        with _missing(key):
            file = self._path(key).open("rb")
        return _pieces(file, first, last)

    @override
    def size(self, key: str) -> int | None:
        try:
            return self._path(key).stat().st_size
        except FileNotFoundError:
            return None

    @override
    def delete(self, key: str) -> None:
        path = self._path(key)
        with disk_errors(path):
            path.unlink(missing_ok=True)

    @override
    def keys(self, prefix: str) -> Iterator[str]:
        folder = checked_prefix(prefix).rpartition("/")[0]
        for found in self._below(self._folder / folder, f"{folder}/" if folder else ""):
            if found.startswith(prefix):
                yield found

    @override
    def check(self) -> None:
        if not os.access(self.scratch, os.W_OK | os.X_OK):
            raise BlobError(
                f"the folder {self._folder} is missing or cannot be written",
                mend="see to its disk and its owner",
            )

    def _path(self, key: str) -> Path:
        return self._folder / checked_key(key)

    def _rename(self, path: Path, target: Path) -> None:
        try:
            os.replace(path, target)
        except FileNotFoundError:
            if not path.exists():
                raise
            self._make_folder(target.parent)
            os.replace(path, target)
        sync_folder(target.parent)

    def _make_folder(self, folder: Path) -> None:
        if folder.exists():
            return
        self._make_folder(folder.parent)
        private_folder(folder)
        sync_folder(folder.parent)

    def _below(self, folder: Path, name: str) -> Iterator[str]:
        try:
            entries = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name != _SCRATCH:
                    yield from self._below(folder / entry.name, f"{name}{entry.name}/")
            elif name:
                yield name + entry.name


def _pieces(file: BinaryIO, first: int, last: int) -> Iterator[bytes]:
    with file:
        file.seek(first)
        left = last - first
        while left > 0:
            piece = file.read(min(PIECE, left))
            if not piece:
                raise BlobError("a blob is shorter than its size said", mend="see to the disk")
            left -= len(piece)
            yield piece


@contextlib.contextmanager
def _missing(key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise no_such(key) from error
    except OSError as error:
        raise BlobError(f"{key} cannot be read: {error.strerror}", mend="see to the disk") from error


def no_such(key: str) -> BlobMissingError:
    """What is raised where a blob is missing."""
    return BlobMissingError(
        f"there is nothing under {key}", mend="restore it from a backup of the store of files"
    )
