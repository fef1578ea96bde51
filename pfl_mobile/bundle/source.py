"""Where the files of a bundle come from: a folder, or a zip that nobody has reason to trust."""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from typing_extensions import override

from pfl_mobile.bundle.paths import MANIFEST, check_distinct, check_path
from pfl_mobile.bundle.stream import CHUNK, chunks_of
from pfl_mobile.errors import (
    MissingFileError,
    NotABundleError,
    TamperedBundleError,
    TruncatedFileError,
    UnreadableFileError,
    UnsafePathError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_AGAIN = "obtain the bundle again, or export it again"


class BundleSource(Protocol):
    """Files by their path in the bundle."""

    def files(self) -> Iterator[tuple[str, int]]:
        """Path and length in bytes of each file there is; links and the like are refused on the way."""
        ...

    def chunks(self, path: str, limit: int) -> Iterator[bytes]:
        """The content in pieces; stops after the piece that goes beyond ``limit`` bytes."""
        ...

    def small(self, path: str, limit: int) -> bytes | None:
        """The whole content when it has at most ``limit`` bytes; None when there is no such file."""
        ...

    def close(self) -> None:
        """Let go of open files."""
        ...


class FolderSource(BundleSource):
    """A bundle that is a folder."""

    def __init__(self, folder: Path) -> None:
        """Take ``folder`` as it is; it is looked into later."""
        self.folder = folder

    @override
    def files(self) -> Iterator[tuple[str, int]]:
        yield from self._scan(self.folder, "")

    @override
    def chunks(self, path: str, limit: int) -> Iterator[bytes]:
        return chunks_of(path, self.folder / path, limit=limit, links=False)

    @override
    def small(self, path: str, limit: int) -> bytes | None:
        if os.path.islink(self.folder / path):
            raise _link(path)
        try:
            return _at_most(path, self.chunks(path, limit), limit)
        except MissingFileError:
            return None

    @override
    def close(self) -> None:
        pass

    def _scan(self, folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise UnreadableFileError(
                f"cannot read folder {folder}: {error.strerror}", mend="check its permissions"
            ) from error
        for entry in entries:
            path = prefix + entry.name
            if entry.is_symlink():
                raise _link(path)
            if entry.is_dir(follow_symlinks=False):
                yield from self._scan(folder / entry.name, path + "/")
            elif entry.is_file(follow_symlinks=False):
                yield path, entry.stat(follow_symlinks=False).st_size
            else:
                raise UnsafePathError(f"{path} in the bundle is not a regular file", mend=_AGAIN)


class ZipSource(BundleSource):
    """A bundle that is a zip. Names, kinds and lengths of all entries are checked before any is read."""

    def __init__(self, path: Path) -> None:
        """Open the zip at ``path``; errors as `open_source`."""
        self._archive = _open_zip(path)
        try:
            self._entries = dict(self._check(info) for info in self._archive.infolist() if not info.is_dir())
            self._refuse_duplicates()
        except BaseException:
            self._archive.close()
            raise

    @override
    def files(self) -> Iterator[tuple[str, int]]:
        for path, info in self._entries.items():
            yield path, info.file_size

    @override
    def chunks(self, path: str, limit: int) -> Iterator[bytes]:
        # zipfile would seek there, and say that the disk is to blame
        if self._entries[path].header_offset < 0:
            raise TamperedBundleError(f"{path} is damaged in the zip: it begins before it", mend=_AGAIN)
        try:
            with self._archive.open(self._entries[path]) as file:
                while limit >= 0 and (chunk := file.read(CHUNK)):
                    limit -= len(chunk)
                    yield chunk
        except _DAMAGED as error:
            raise TamperedBundleError(f"{path} is damaged in the zip: {error}", mend=_AGAIN) from error
        except OSError as error:
            raise UnreadableFileError(f"cannot read {path} in the zip: {error}", mend=_AGAIN) from error

    @override
    def small(self, path: str, limit: int) -> bytes | None:
        if path not in self._entries:
            return None
        return _at_most(path, self.chunks(path, limit), limit)

    @override
    def close(self) -> None:
        self._archive.close()

    def _check(self, info: zipfile.ZipInfo) -> tuple[str, zipfile.ZipInfo]:
        name = info.orig_filename  # as it stands in the zip; zipfile cuts `filename` at a NUL
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind == stat.S_IFLNK:
            raise _link(name)
        if kind not in (0, stat.S_IFREG):
            raise UnsafePathError(f"{name!r} in the zip is not a regular file", mend=_AGAIN)
        check_path(name)
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise NotABundleError(
                f"{name} in the zip is encrypted or packed in a way that bundles are not",
                mend="pack it again with: pfl-export, or with plain zip (stored or deflate)",
            )
        return name, info

    def _refuse_duplicates(self) -> None:
        names = [info.orig_filename for info in self._archive.infolist()]
        for name, count in Counter(names).items():
            if name.endswith("/"):
                check_path(name.removesuffix("/"))
            if count > 1:
                raise TamperedBundleError(f"the zip has two files named {name!r}", mend=_AGAIN)
        check_distinct(self._entries)


_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


def open_source(path: Path) -> BundleSource:
    """The folder or zip at ``path``.

    Raises:
        MissingFileError: nothing is there.
        NotABundleError: it is neither a folder nor a zip.
        TruncatedFileError: it is the beginning of a zip.
        UnsafePathError, TamperedBundleError: the zip has entries that no bundle has.
        UnreadableFileError: the system refuses to read it.
    """
    if os.path.isdir(path):  # unlike Path.is_dir no error where a parent may not be searched
        return FolderSource(path)
    return ZipSource(path)


def no_manifest(path: Path, source: BundleSource) -> MissingFileError:
    """The error for a source without a manifest; its mend looks one folder deeper."""
    inner = [name for name in _first(source, 1000) if name.endswith("/" + MANIFEST)]
    mend = f"give the folder of a bundle, or its {path.suffix or '.pflb'} zip"
    if inner:
        mend = f"the bundle may be in its folder {inner[0].removesuffix('/' + MANIFEST)!r}"
    return MissingFileError(f"{path} has no {MANIFEST}, so it is not a bundle", mend=mend)


def _first(source: BundleSource, count: int) -> list[str]:
    try:
        return [path for (path, _), _ in zip(source.files(), range(count), strict=False)]
    except (UnsafePathError, UnreadableFileError):
        return []


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        start = b"".join(chunks_of(path.name, path, limit=0))[:4]
    except MissingFileError as error:
        raise MissingFileError(f"there is no bundle at {path}", mend="check the path") from error
    except UnsafePathError as error:
        raise NotABundleError(f"{path} is neither a folder nor a file", mend=_GIVE) from error
    try:
        return zipfile.ZipFile(path)
    except _DAMAGED as error:
        if start == b"PK\x03\x04":
            raise TruncatedFileError(
                f"{path} is an incomplete or damaged zip: {error}", mend=_AGAIN
            ) from error
        what = "is empty" if not start else "is not a zip"
        raise NotABundleError(f"{path} {what}, so it is not a bundle", mend=_GIVE) from error
    except OSError as error:
        raise UnreadableFileError(
            f"cannot read {path}: {error.strerror}", mend="check its permissions"
        ) from error


_GIVE = "give the folder of a bundle, or its .pflb file"


def _at_most(path: str, chunks: Iterator[bytes], limit: int) -> bytes:
    data = b"".join(chunks)
    if len(data) > limit:
        raise NotABundleError(f"{path} has more than {limit} bytes, which no bundle needs", mend=_AGAIN)
    return data


def _link(path: str) -> UnsafePathError:
    return UnsafePathError(
        f"{path!r} in the bundle is a symbolic link, which could lead anywhere",
        mend="put the file itself in its place; if you did not make this bundle, do not use it",
    )
