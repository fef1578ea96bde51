"""Where tensor files lie: sets of values, updates that wait for their merge, states of the strategy.

Keys look like paths: ``sets/<sha256>``, ``updates/<task>-<8 hex>``, ``states/<version>-<16 hex>``. A key is written
once; who writes it again writes the same content, or content that nobody reads yet.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pfl_mobile.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

_KEY = re.compile(r"[a-z]{1,20}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,150}){1,4}")
_PREFIX = re.compile(r"([a-z]{1,20}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,150}){0,4}/?)?")


class Blobs(Protocol):
    """A store of immutable files; safe to share between threads and processes.

    All methods raise `BlobError` when the store fails, and `StorageFullError` when it is full.

    Attributes:
        scratch: local folder in which parts are received; where blobs are local files, on their file system, so
            that a finished file is moved, not copied.
        place: where it is, for people.
    """

    scratch: Path
    place: str

    def put_file(self, key: str, path: Path) -> None:
        """Store the finished file at ``path``, which is gone afterwards; durable when this returns."""
        ...

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Store ``data``; durable when this returns."""
        ...

    def get(self, key: str) -> bytes:
        """The whole content.

        Raises:
            BlobMissingError: there is none.
        """
        ...

    def local(self, key: str) -> AbstractContextManager[Path]:
        """A local file with the content, good until the end of the block; do not change it.

        Raises:
            BlobMissingError: there is none.
        """
        ...

    def read(self, key: str, first: int, last: int) -> Iterator[bytes]:
        """Bytes ``first`` to ``last``, that one not included, in pieces.

        Raises:
            BlobMissingError: there is none; raised by the call itself, before the first piece.
        """
        ...

    def size(self, key: str) -> int | None:
        """Bytes of the content; None where there is none."""
        ...

    def delete(self, key: str) -> None:
        """Remove the content; fine where there is none."""
        ...

    def keys(self, prefix: str) -> Iterator[str]:
        """Keys that begin with ``prefix`` (a folder such as ``updates/``), in no particular order."""
        ...

    def check(self) -> None:
        """Ask the store whether it is there."""
        ...


def open_blobs(place: str, *, scratch: Path | None = None) -> Blobs:
    """The store at ``place``.

    Args:
        place: a folder, or ``s3://bucket/prefix?endpoint_url=https://...&region=...``; credentials come from the
            usual AWS environment variables and files.
        scratch: local folder for parts; of a folder ``place``, always a folder in it. None: a new temporary one.

    Raises:
        ConfigError: the address cannot be read.
        MissingDependencyError: S3 without boto3.
        BlobError: the store cannot be reached or written.
    """
    if place.startswith("s3://"):
        from pfl_server.storage.s3 import S3Blobs

        return S3Blobs(place, scratch or Path(tempfile.mkdtemp(prefix="pfl-scratch-")))
    if "://" in place:
        raise ConfigError(
            f"there is no store of files of the kind {place.split('://')[0]!r}",
            mend="name a folder, or s3://bucket/prefix",
        )
    from pfl_server.storage.files import FileBlobs

    return FileBlobs(Path(place))


def checked_key(key: str) -> str:
    """``key`` as it is, if it is one.

    Raises:
        ValueError: it is not: a mistake in this program, as keys are never made of what a client says.
    """
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not the key of a blob")
    return key


def checked_prefix(prefix: str) -> str:
    """``prefix`` as it is, if it is the beginning of keys.

    Raises:
        ValueError: it is not.
    """
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"{prefix!r} is not the beginning of keys")
    return prefix
