"""Opening a bundle: nothing of it is used before all of it is checked."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from pfl_mobile.bundle.content import GoldenCase, check_values, golden_cases
from pfl_mobile.bundle.manifest import FileEntry, Manifest, parse_manifest
from pfl_mobile.bundle.paths import MANIFEST, SIGNATURE
from pfl_mobile.bundle.sign import MAX_SIGNATURE_BYTES, PublicKey, verify
from pfl_mobile.bundle.source import BundleSource, FolderSource, no_manifest, open_source
from pfl_mobile.bundle.stream import Progress, copy
from pfl_mobile.errors import (
    BundleTooLargeError,
    InvalidManifestError,
    MissingFileError,
    StorageFullError,
    TamperedBundleError,
    TruncatedFileError,
    near,
)
from pfl_mobile.files.atomic import disk_errors
from pfl_mobile.files.tensors import Tensors, tensors_from_bytes

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

#: No manifest is as large as this: it bounds what is read before a signature is checked.
MAX_MANIFEST_BYTES = 32 << 20
#: Files of a bundle together, unless the caller allows more.
MAX_BUNDLE_BYTES = 4 << 30

_AGAIN = "obtain the bundle again, or export it again"


class Bundle:
    """An open, verified bundle. Use it in a ``with`` block, or close it, so that an unpacked zip is removed.

    Attributes:
        folder: where its files lie.
        manifest: what is in it.
        signed_by: hex public key of the signature, or None when it is not signed.
        manifest_bytes: the exact bytes that are signed.
        signature_bytes: the content of its signature file, or None.
        pinned: whether the signature was checked against a key that the opener gave: someone whom the opener
            knows vouches for every byte.
    """

    def __init__(self, folder: Path, manifest: Manifest, manifest_bytes: bytes) -> None:
        """For `Bundle.open`, which checks."""
        self.folder = folder
        self.manifest = manifest
        self.manifest_bytes = manifest_bytes
        self.signature_bytes: bytes | None = None
        self.signed_by: str | None = None
        self.pinned = False
        self._cleanup: weakref.finalize[[str], Bundle] | None = None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        public_key: PublicKey | None = None,
        require_signature: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        max_bytes: int = MAX_BUNDLE_BYTES,
        progress: Progress | None = None,
    ) -> Bundle:
        """Check every file of a bundle and open it.

        Args:
            path: its folder or its ``.pflb`` zip. A zip is unpacked into a folder of its own.
            public_key: the pinned Ed25519 key (in memory, hex, or PEM file). With one, only a bundle signed
                by it is opened.
            require_signature: refuse an unsigned bundle also when no key is pinned.
            cache_dir: where to unpack a zip; the system's temporary folder by default.
            max_bytes: refuse a bundle with more bytes, before any is unpacked.
            progress: called with (file, bytes done, bytes in all) while files are read.

        Raises:
            MissingFileError: the bundle, its manifest, or a file that the manifest lists is not there.
            NotABundleError: the path is neither a folder nor a zip, or the zip is of an unknown kind.
            SignatureError: unsigned, signed by another key, or changed since.
            SchemaVersionError: made by a newer version of pfl-mobile.
            InvalidManifestError: the manifest breaks its schema.
            TruncatedFileError: a file has another length than the manifest says.
            TamperedBundleError: a file has other bytes than the manifest says, or is not listed there.
            UnsafePathError: a path, link or special file would lead out of the bundle.
            BundleTooLargeError: more than ``max_bytes``.
            UnreadableFileError: the system refuses to read a file.
            StorageFullError: no room to unpack the zip.
        """
        where = Path(path).absolute()
        source = open_source(where)
        try:
            data = source.small(MANIFEST, MAX_MANIFEST_BYTES)
            if data is None:
                raise no_manifest(where, source)
            # First the signature, so that as little as possible is done with bytes of unknown origin.
            signature = source.small(SIGNATURE, MAX_SIGNATURE_BYTES)
            signed_by = None
            if signature is not None or public_key is not None or require_signature:
                signed_by = verify(data, signature, public_key)
            bundle = cls(where, parse_manifest(data), data)
            bundle.signature_bytes, bundle.signed_by = signature, signed_by
            bundle.pinned = public_key is not None
            _check_presence(source, bundle.manifest, max_bytes)
            if isinstance(source, FolderSource):
                _check_files(source, bundle.manifest, None, progress)
            else:
                bundle._unpack(source, cache_dir, progress)
        finally:
            source.close()
        return bundle

    def close(self) -> None:
        """Remove what was unpacked; paths given out before are then gone."""
        if self._cleanup is not None:
            self._cleanup()

    def __enter__(self) -> Self:
        """The bundle itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Close it."""
        self.close()

    def path(self, name: str) -> Path:
        """Where file ``name`` of the manifest lies; raises MissingFileError for another name."""
        if name not in self.manifest.files:
            raise MissingFileError(
                f"bundle {self.manifest.name!r} has no file {name!r}", mend=near(name, self.manifest.files)
            )
        return self.folder / name

    def read(self, name: str) -> bytes:
        """The bytes of file ``name``, checked again: these very bytes have the digest of the manifest.

        Raises:
            MissingFileError, TruncatedFileError, TamperedBundleError, UnreadableFileError: as `open`.
        """
        self.path(name)
        expected = self.manifest.files[name]
        pieces = list(FolderSource(self.folder).chunks(name, expected.bytes))
        _compare(name, expected, copy(pieces, None))
        return b"".join(pieces)

    def values(self) -> Tensors:
        """Initial values of all device tensors, by name, in the order of the manifest.

        Raises:
            TensorFileError, TensorMismatchError: the file does not hold what the manifest says; or as `read`.
        """
        name = self.manifest.values
        tensors = tensors_from_bytes(self.read(name), what=name)
        check_values(self.manifest, tensors)
        return {tensor.name: tensors[tensor.name] for tensor in self.manifest.tensors}

    def golden(self) -> dict[str, GoldenCase]:
        """For each program with a golden call: its complete inputs, and the outputs that PyTorch gave.

        Raises:
            TensorFileError, TensorMismatchError: the file does not fit the programs; or as `read`.
        """
        name = self.manifest.golden
        return golden_cases(self.manifest, tensors_from_bytes(self.read(name), what=name), self.values())

    def plan_json(self) -> str:
        """The text of the plan; errors as `read`."""
        try:
            return self.read(self.manifest.plan).decode()
        except UnicodeDecodeError as error:
            raise InvalidManifestError(f"{self.manifest.plan} is not UTF-8 text", mend=_AGAIN) from error

    @property
    def tokenizer_path(self) -> Path | None:
        """Where the tokenizer lies, or None for a model that has none."""
        return None if self.manifest.tokenizer is None else self.path(self.manifest.tokenizer)

    def engine_files(self, engine: str) -> dict[str, Path]:
        """The files of ``engine`` by purpose; raises EngineUnavailableError when there are none."""
        return {use: self.path(name) for use, name in self.manifest.engine(engine).files.items()}

    def _unpack(
        self, source: BundleSource, cache_dir: str | os.PathLike[str] | None, progress: Progress | None
    ) -> None:
        needed = self.manifest.measured.total_bytes + len(self.manifest_bytes) + MAX_SIGNATURE_BYTES
        with disk_errors(cache_dir or tempfile.gettempdir()):
            folder = tempfile.mkdtemp(prefix="pfl-bundle-", dir=cache_dir)
            self._cleanup = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            try:
                if shutil.disk_usage(folder).free < needed:
                    raise StorageFullError(
                        f"no space to unpack {self.folder}: it needs {needed} bytes",
                        mend="free some space, or give another cache_dir",
                    )
                _check_files(source, self.manifest, Path(folder), progress)
                Path(folder, MANIFEST).write_bytes(self.manifest_bytes)
                if self.signature_bytes is not None:
                    Path(folder, SIGNATURE).write_bytes(self.signature_bytes)
            except BaseException:
                self.close()
                raise
        self.folder = Path(folder)


def _check_presence(source: BundleSource, manifest: Manifest, max_bytes: int) -> None:
    """Names and lengths, before any large file is read."""
    total = manifest.measured.total_bytes
    if total > max_bytes:
        raise BundleTooLargeError(
            f"the bundle has {total} bytes, more than the {max_bytes} allowed",
            mend="raise max_bytes if you trust where the bundle came from",
        )
    sizes: dict[str, int] = {}
    for path, size in source.files():
        if path in manifest.files:
            sizes[path] = size
        elif path not in (MANIFEST, SIGNATURE):
            raise TamperedBundleError(
                f"{path!r} is in the bundle, but its manifest does not list it",
                mend=f"remove it, or {_AGAIN}",
            )
    for path, expected in manifest.files.items():
        if path not in sizes:
            raise MissingFileError(f"{path}, which the manifest lists, is not in the bundle", mend=_AGAIN)
        if sizes[path] != expected.bytes:
            raise _other_length(path, expected.bytes, sizes[path])


def _check_files(
    source: BundleSource, manifest: Manifest, target: Path | None, progress: Progress | None
) -> None:
    """Read every file once, and put it into ``target`` on the way."""
    done = 0
    for path, expected in manifest.files.items():
        chunks = _tell(source.chunks(path, expected.bytes), path, done, manifest, progress)
        if target is None:
            found = copy(chunks, None)
        else:
            with _create(target / path) as file:
                found = copy(chunks, file)
        _compare(path, expected, found)
        done += expected.bytes


def _create(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "xb")


def _tell(
    chunks: Iterator[bytes], path: str, done: int, manifest: Manifest, progress: Progress | None
) -> Iterator[bytes]:
    for chunk in chunks:
        done += len(chunk)
        yield chunk
        if progress is not None:
            progress(path, done, manifest.measured.total_bytes)


def _compare(path: str, expected: FileEntry, found: FileEntry) -> None:
    if found.bytes != expected.bytes:
        raise _other_length(path, expected.bytes, found.bytes)
    if found.sha256 != expected.sha256:
        raise TamperedBundleError(
            f"{path} is not the file that the manifest lists (sha256 differs)", mend=_AGAIN
        )


def _other_length(path: str, expected: int, found: int) -> TruncatedFileError:
    return TruncatedFileError(f"{path} has {found} bytes, but the manifest says {expected}", mend=_AGAIN)
