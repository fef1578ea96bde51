"""Writing a bundle, as a folder or as a zip: all of it at once, or nothing."""

from __future__ import annotations

import contextlib
import os
import stat
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pydantic

from pfl_mobile.bundle.content import check_values, golden_cases
from pfl_mobile.bundle.manifest import SCHEMA_VERSION, FileEntry, Manifest, describe
from pfl_mobile.bundle.paths import MANIFEST, SIGNATURE, check_distinct, check_path
from pfl_mobile.bundle.sign import PrivateKey, load_private_key, sign
from pfl_mobile.bundle.stream import Progress, chunks_of, copy
from pfl_mobile.errors import (
    BundleTooLargeError,
    InvalidManifestError,
    MissingFileError,
    TamperedBundleError,
    UnwritableError,
)
from pfl_mobile.files.atomic import (
    disk_errors,
    remove_stale,
    replace_folder,
    sync_folder,
    temporary_file,
    temporary_folder,
)
from pfl_mobile.files.reading import read_json
from pfl_mobile.files.tensors import tensors_from_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pfl_mobile.bundle.read import Bundle

    Source = bytes | os.PathLike[str]

#: Suffix of a zipped bundle.
ZIP_SUFFIX = ".pflb"
#: Stored files begin at a multiple of this in the zip, so that a phone with 4 or 16 KB pages can map them.
ALIGNMENT = 16384
_SMALL_TEXT = (".json", ".sig", ".txt", ".md")
_ALIGNMENT_FIELD = 0xD935  # the extra field that zipalign uses for the same purpose
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_bundle(
    out: str | os.PathLike[str],
    parts: Mapping[str, Any],
    files: Mapping[str, Source],
    *,
    sign_key: PrivateKey | None = None,
    as_zip: bool | None = None,
    progress: Progress | None = None,
    take_from: str | os.PathLike[str] | None = None,
) -> Manifest:
    """Write a bundle to ``out``; an older one there is replaced in one step, after the new one is complete.

    Args:
        out: folder or zip to write. Missing parent folders are made.
        parts: the fields of the manifest except ``schema_version``, ``kind``, ``files`` and
            ``measured.total_bytes``, which are computed.
        files: content of each file, or the path of one to copy, by its path in the bundle.
        sign_key: an Ed25519 key (in memory, hex, or PEM file) to sign the manifest with.
        as_zip: write a zip; by default when ``out`` ends in ``.pflb``.
        progress: called with (file, bytes done, bytes in all) while files are written.
        take_from: a folder whose files are nobody else's: they are moved into the bundle and not copied, where it is a
            folder on the same disk.

    Returns:
        The manifest as written.

    Raises:
        InvalidManifestError: the parts break the schema or do not agree.
        TensorMismatchError: the initial values or the golden batch are not those the manifest lists.
        UnsafePathError: a file's path would leave the bundle.
        MissingFileError: a file to copy, or one that the manifest needs, is not there.
        StorageFullError: the disk is full.
        UnwritableError: ``out`` holds something that is not a bundle, or may not be written.

    After any error or a crash, ``out`` is as it was before.
    """
    key = None if sign_key is None else load_private_key(sign_key)
    for path in files:
        check_path(path)
    check_distinct([*files, MANIFEST, SIGNATURE])
    # What is checked is what is written, so the files to look into are read once, here.
    read: dict[str, Source] = {
        path: _whole(path, source) if path.endswith((".safetensors", ".json")) else source
        for path, source in files.items()
    }
    sizes = sum(len(s) if isinstance(s, bytes) else _size(path, s) for path, s in read.items())
    with _sink(Path(out), as_zip) as sink:
        entries, done = {}, 0
        for path in sorted(read):
            source, moved = read[path], None
            if take_from is not None and not isinstance(source, bytes) and _is_below(source, take_from):
                moved = sink.take(path, source)
            chunks = chunks_of(path, moved or source, progress, done, sizes, links=moved is None)
            entries[path] = sink.add(path, chunks) if moved is None else copy(chunks, None)
            done += entries[path].bytes
        manifest = _manifest(parts, entries)
        _check_content(manifest, read)
        data = manifest.to_json()
        sink.add(MANIFEST, [data])
        if key is not None:
            sink.add(SIGNATURE, [sign(data, key)])
    return manifest


def copy_bundle(
    bundle: Bundle,
    out: str | os.PathLike[str],
    *,
    as_zip: bool | None = None,
    progress: Progress | None = None,
) -> None:
    """Write an open bundle again as zip or folder, signature kept; arguments and errors as `write_bundle`.

    Raises:
        TamperedBundleError: a file changed since the bundle was opened.
    """
    total, done = bundle.manifest.measured.total_bytes, 0
    with _sink(Path(out), as_zip) as sink:
        for path, expected in sorted(bundle.manifest.files.items()):
            entry = sink.add(path, chunks_of(path, bundle.path(path), progress, done, total))
            if entry != expected:
                raise TamperedBundleError(f"{path} changed while it was copied", mend="open the bundle again")
            done += entry.bytes
        sink.add(MANIFEST, [bundle.manifest_bytes])
        if bundle.signature_bytes is not None:
            sink.add(SIGNATURE, [bundle.signature_bytes])


@contextlib.contextmanager
def scratch_beside(out: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder for the files of a bundle to come, from which `write_bundle` can move them (``take_from``).

    It is on the disk of ``out`` and gone at the end; what a killed process leaves, the next that writes there removes.

    Args:
        out: of the bundle, a folder or a zip.

    Raises:
        StorageFullError: the disk is full.
        UnwritableError: nothing may be written beside ``out``.
    """
    out = Path(os.path.realpath(out))
    with contextlib.ExitStack() as held:
        with disk_errors(out):
            held.enter_context(_parents(out))
            remove_stale(out)
            folder = held.enter_context(temporary_folder(out))
        yield folder


def _is_below(path: os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


class _Sink(Protocol):
    def add(self, path: str, chunks: Iterator[bytes] | list[bytes]) -> FileEntry: ...

    def take(self, path: str, source: os.PathLike[str]) -> Path | None:
        """Move a file into the bundle and say where it is now; None where it has to be copied."""


class _FolderSink:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, path: str, chunks: Iterator[bytes] | list[bytes]) -> FileEntry:
        with open(self._place(path), "xb") as file:
            entry = copy(chunks, file)
            file.flush()
            os.fsync(file.fileno())
        return entry

    def take(self, path: str, source: os.PathLike[str]) -> Path | None:
        target = self._place(path)
        try:
            found = os.lstat(source)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or target.exists():
                return None
            os.rename(source, target)
        except OSError:  # another disk, for one; why it cannot be read either, copying tells
            return None
        with open(target, "rb+") as file:
            os.fsync(file.fileno())
        return target

    def _place(self, path: str) -> Path:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def finish(self) -> None:
        for folder, _, _ in os.walk(self.folder):
            sync_folder(folder)


class _ZipSink:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive

    def add(self, path: str, chunks: Iterator[bytes] | list[bytes]) -> FileEntry:
        info = zipfile.ZipInfo(path, _EPOCH)
        info.create_system = 3
        info.external_attr = (stat.S_IFREG | 0o644) << 16
        if path.endswith(_SMALL_TEXT):
            info.compress_type = zipfile.ZIP_DEFLATED
        else:
            self._align(info)
        with self.archive.open(info, "w") as file:
            try:
                return copy(chunks, file)
            except RuntimeError as error:  # zipfile: beyond 2 GiB, where only zip64 would do
                raise BundleTooLargeError(
                    f"{path} is too large for a zip that every phone reads",
                    mend="write the bundle as a folder",
                ) from error

    def take(self, path: str, source: os.PathLike[str]) -> Path | None:
        return None

    def _align(self, info: zipfile.ZipInfo) -> None:
        assert self.archive.fp is not None
        start = self.archive.fp.tell() + 30 + len(info.filename) + 6  # header, name, the field below
        padding = -start % ALIGNMENT
        info.extra = b"".join(
            n.to_bytes(2, "little") for n in (_ALIGNMENT_FIELD, 2 + padding, ALIGNMENT)
        ) + bytes(padding)


@contextlib.contextmanager
def _sink(out: Path, as_zip: bool | None) -> Iterator[_Sink]:
    """Where files go; what was added takes its place at ``out`` when the block ends without an error."""
    out = Path(os.path.realpath(out))  # replaces what a link points to, not the link
    zipped = out.suffix == ZIP_SUFFIX if as_zip is None else as_zip
    with disk_errors(out), _parents(out):
        _check_replaceable(out, zipped)
        remove_stale(out)
        if zipped:
            with temporary_file(out, 0o666) as (fd, temporary):
                # Buffered, because a raw write may be a short one; closed before the descriptor is.
                with (
                    open(fd, "wb", closefd=False) as file,
                    zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
                ):
                    yield _ZipSink(archive)
                os.fsync(fd)
                os.replace(temporary, out)
        else:
            with temporary_folder(out) as temporary:
                sink = _FolderSink(temporary)
                yield sink
                sink.finish()
                replace_folder(temporary, out)
        sync_folder(out.parent)


@contextlib.contextmanager
def _parents(out: Path) -> Iterator[None]:
    """Make the missing folders above ``out``; remove them again when the block fails."""
    missing = [folder for folder in out.parents if not os.path.exists(folder)]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _check_replaceable(out: Path, zipped: bool) -> None:
    """Refuse to replace anything that is not a bundle, or holds files that are not of one."""
    problem = None
    if not out.name:
        problem = "is not the name of a folder"
    elif not os.path.exists(out):
        return
    elif zipped:
        problem = (
            None
            if os.path.isfile(out) and _is_old_zip(out)
            else "is there already and is not a zipped bundle"
        )
    elif not os.path.isdir(out):
        problem = "is there already and is not a folder"
    else:
        present = {
            str(p.relative_to(out).as_posix())
            for p in out.rglob("*")
            if p.is_symlink() or not os.path.isdir(p)
        }
        foreign = sorted(present - _listed(out / MANIFEST))
        if foreign:
            problem = f"holds {foreign[0]!r}, which is not of a bundle"
    if problem:
        raise UnwritableError(
            f"{out} {problem}; it is not replaced", mend="choose another place, or remove it yourself"
        )


def _is_old_zip(path: Path) -> bool:
    if path.stat().st_size == 0:
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return MANIFEST in archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return False


def _listed(manifest: Path) -> set[str]:
    """The files of the bundle with this manifest, which may be an old or damaged one; else none."""
    try:
        raw = read_json(manifest)
        if raw["kind"] == "pfl-bundle":
            return {MANIFEST, SIGNATURE, *raw["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return set()


def _manifest(parts: Mapping[str, Any], entries: Mapping[str, FileEntry]) -> Manifest:
    total = sum(entry.bytes for entry in entries.values())
    fields = {
        **parts,
        "schema_version": SCHEMA_VERSION,
        "kind": "pfl-bundle",
        "measured": {**parts.get("measured", {}), "total_bytes": total},
        "files": dict(entries),
    }
    try:
        return Manifest.model_validate(fields)
    except pydantic.ValidationError as error:
        raise InvalidManifestError(
            describe(error, "the manifest to write"), mend="correct the fields named above"
        ) from error


def _check_content(manifest: Manifest, files: Mapping[str, Source]) -> None:
    def tensors(path: str) -> dict[str, Any]:
        return tensors_from_bytes(_whole(path, files[path]), what=path)

    values = tensors(manifest.values)
    check_values(manifest, values)
    golden_cases(manifest, tensors(manifest.golden), values)


def _whole(path: str, source: Source) -> bytes:
    return source if isinstance(source, bytes) else b"".join(chunks_of(path, source))


def _size(path: str, source: os.PathLike[str]) -> int:
    try:
        return os.stat(source).st_size
    except OSError as error:
        raise MissingFileError(
            f"{os.fspath(source)}, to be {path!r} of the bundle: {error.strerror}", mend="write it first"
        ) from error
