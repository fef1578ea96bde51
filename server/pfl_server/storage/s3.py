"""Blobs in an S3-compatible object store."""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from typing_extensions import override

from pfl_mobile.errors import ConfigError, missing_package
from pfl_mobile.files.atomic import disk_errors, private_folder
from pfl_server.errors import BlobError, BlobMissingError
from pfl_server.storage.blobs import Blobs, checked_key, checked_prefix
from pfl_server.storage.files import PIECE, no_such

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_OPTIONS = ("endpoint_url", "region", "addressing")
_ABSENT = ("NoSuchKey", "NotFound", "404")


class S3Blobs(Blobs):
    """Blobs as objects: key ``sets/ab12`` is the object ``prefix/sets/ab12``.

    An object appears whole or not at all, and is durable once its upload was answered.

    Args:
        place: ``s3://bucket/prefix?endpoint_url=https://...&region=...&addressing=path``.
        scratch: local folder for parts and for what `local` fetches.

    Raises:
        ConfigError: the address cannot be read.
        MissingDependencyError: boto3 is not installed.
    """

    def __init__(self, place: str, scratch: Path) -> None:
        try:
            import boto3
            from botocore.config import Config
        except ModuleNotFoundError as error:
            raise missing_package(error, "S3") or error from error
        self.place, self.scratch = place, scratch
        parts = urlsplit(place)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        unknown = sorted(set(options) - set(_OPTIONS))
        if not parts.netloc or unknown or "@" in parts.netloc:
            raise ConfigError(
                f"the address of the object store is invalid{': ' + ', '.join(unknown) if unknown else ''}",
                mend=f"use s3://bucket/prefix, with {', '.join(_OPTIONS)} as parameters; "
                "credentials come from the AWS environment variables or files",
            )
        self._bucket, prefix = parts.netloc, parts.path.strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        private_folder(scratch)
        self._client = boto3.client(
            "s3",
            endpoint_url=options.get("endpoint_url"),
            region_name=options.get("region"),
            config=Config(
                max_pool_connections=64,
                retries={"mode": "standard", "max_attempts": 4},
                s3={"addressing_style": options.get("addressing", "auto")},
                # many compatible stores know no other checksums than the signature's
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    @override
    def put_file(self, key: str, path: Path) -> None:
        """Large files go in several parts."""
        with self._typed(key):
            self._client.upload_file(str(path), self._bucket, self._name(key))
        with disk_errors(path):
            path.unlink()

    @override
    def put(self, key: str, data: bytes | memoryview) -> None:
        with self._typed(key):
            self._client.put_object(Bucket=self._bucket, Key=self._name(key), Body=bytes(data))

    @override
    def get(self, key: str) -> bytes:
        with self._typed(key):
            found: bytes = self._client.get_object(Bucket=self._bucket, Key=self._name(key))["Body"].read()
        return found

    @contextlib.contextmanager
    @override
    def local(self, key: str) -> Iterator[Path]:
        """A copy in ``scratch``, removed at the end."""
        path = self.scratch / f"local-{secrets.token_hex(8)}"
        try:
            with self._typed(key), disk_errors(path):
                self._client.download_file(self._bucket, self._name(key), str(path))
            yield path
        finally:
            path.unlink(missing_ok=True)

    @override
    def read(self, key: str, first: int, last: int) -> Iterator[bytes]:
        if last <= first:
            return iter(())
        with self._typed(key):
            body = self._client.get_object(
                Bucket=self._bucket, Key=self._name(key), Range=f"bytes={first}-{last - 1}"
            )["Body"]
        return self._pieces(key, body)

    def _pieces(self, key: str, body: Any) -> Iterator[bytes]:
        with contextlib.closing(body), self._typed(key):
            yield from body.iter_chunks(PIECE)

    @override
    def size(self, key: str) -> int | None:
        try:
            with self._typed(key):
                return int(
                    self._client.head_object(Bucket=self._bucket, Key=self._name(key))["ContentLength"]
                )
        except BlobMissingError:
            return None

    @override
    def delete(self, key: str) -> None:
        with self._typed(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._name(key))

    @override
    def keys(self, prefix: str) -> Iterator[str]:
        pages = self._client.get_paginator("list_objects_v2")
        with self._typed(prefix):
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + checked_prefix(prefix)):
                for found in page.get("Contents", ()):
                    yield found["Key"].removeprefix(self._prefix)

    @override
    def check(self) -> None:
        with self._typed("the bucket"):
            self._client.head_bucket(Bucket=self._bucket)

    def _name(self, key: str) -> str:
        return self._prefix + checked_key(key)

    @contextlib.contextmanager
    def _typed(self, key: str) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _ABSENT and key != "the bucket":
                raise no_such(key) from error
            raise self._failed(key, code or "unknown") from error
        except (BotoCoreError, Boto3Error) as error:
            raise self._failed(key, type(error).__name__) from error

    def _failed(self, key: str, why: str) -> BlobError:
        return BlobError(
            f"the object store failed with {why} for {key} in the bucket {self._bucket}",
            mend="check the endpoint, the bucket, the credentials and their rights",
        )
