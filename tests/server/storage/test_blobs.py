"""Stores of tensor files: one suite for local folders and for S3."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from pfl_mobile.errors import ConfigError, UnwritableError
from pfl_server.errors import BlobError, BlobMissingError
from pfl_server.storage.blobs import Blobs, open_blobs
from tests.server.conftest import free_port

KEY = "sets/" + "ab" * 32


@pytest.fixture(params=["files", pytest.param("s3", marks=pytest.mark.slow)])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "files":
        return open_blobs(str(tmp_path / "blobs"))
    place: str = request.getfixturevalue("s3_place")
    return open_blobs(place, scratch=tmp_path / "scratch")


def _file(blobs: Blobs, content: bytes) -> Path:
    path = blobs.scratch / secrets.token_hex(4)
    path.write_bytes(content)
    return path


def test_what_is_put_is_got(blobs: Blobs) -> None:
    blobs.put(KEY, memoryview(b"content"))
    assert blobs.get(KEY) == b"content"
    assert blobs.size(KEY) == 7
    with blobs.local(KEY) as path:
        assert path.read_bytes() == b"content"


def test_a_file_that_is_put_is_gone_from_its_place(blobs: Blobs) -> None:
    path = _file(blobs, b"update")
    blobs.put_file("updates/ab-cd", path)
    assert not path.exists()
    assert blobs.get("updates/ab-cd") == b"update"


def test_an_empty_blob_is_a_blob(blobs: Blobs) -> None:
    blobs.put(KEY, b"")
    assert blobs.size(KEY) == 0
    assert b"".join(blobs.read(KEY, 0, 0)) == b""


def test_putting_again_replaces(blobs: Blobs) -> None:
    blobs.put(KEY, b"one")
    blobs.put_file(KEY, _file(blobs, b"other"))
    assert blobs.get(KEY) == b"other"


@pytest.mark.parametrize(
    ("first", "last"), [(0, 5_000_000), (0, 1), (1, 3), (999_999, 2_000_001), (4_999_999, 5_000_000)]
)
def test_a_part_is_read_without_the_rest(blobs: Blobs, first: int, last: int) -> None:
    content = os.urandom(5_000_000)
    blobs.put(KEY, content)
    pieces = list(blobs.read(KEY, first, last))
    assert b"".join(pieces) == content[first:last]
    assert max(map(len, pieces)) <= 1 << 20


def test_what_is_missing_is_said_to_be(blobs: Blobs) -> None:
    assert blobs.size(KEY) is None
    for ask in (lambda: blobs.get(KEY), lambda: blobs.read(KEY, 0, 1), lambda: blobs.local(KEY).__enter__()):
        with pytest.raises(BlobMissingError, match="sets/ab"):
            ask()
    blobs.delete(KEY)


def test_what_is_deleted_is_gone(blobs: Blobs) -> None:
    blobs.put(KEY, b"content")
    blobs.delete(KEY)
    assert blobs.size(KEY) is None
    assert list(blobs.keys("sets/")) == []


def test_keys_are_listed_by_prefix(blobs: Blobs) -> None:
    for key in ("sets/aa", "sets/ab", "updates/aa-1", "states/3-ff"):
        blobs.put(key, b"x")
    assert sorted(blobs.keys("sets/")) == ["sets/aa", "sets/ab"]
    assert sorted(blobs.keys("sets/ab")) == ["sets/ab"]
    assert len(list(blobs.keys(""))) == 4
    assert list(blobs.keys("nothing/")) == []


def test_nothing_stays_in_scratch(blobs: Blobs) -> None:
    blobs.put(KEY, b"content")
    blobs.put_file("updates/ab-cd", _file(blobs, b"update"))
    with blobs.local(KEY):
        pass
    assert list(blobs.scratch.iterdir()) == []


@pytest.mark.parametrize(
    "key", ["", "sets", "/sets/a", "sets/../a", "sets/.hidden", "sets//a", "sets/a/", "SETS/a", "sets/a\n"]
)
def test_what_is_no_key_is_refused(blobs: Blobs, key: str) -> None:
    with pytest.raises(ValueError, match="key of a blob"):
        blobs.put(key, b"")


def test_a_store_that_is_there_passes_the_check(blobs: Blobs) -> None:
    blobs.check()


def test_a_bucket_that_is_missing_fails_the_check(s3_endpoint: str, tmp_path: Path) -> None:
    blobs = open_blobs(
        f"s3://no-such-bucket-here?endpoint_url={s3_endpoint}&addressing=path", scratch=tmp_path / "s"
    )
    with pytest.raises(BlobError, match="no-such-bucket-here"):
        blobs.check()
    with pytest.raises(BlobError):
        blobs.put(KEY, b"")


def test_a_store_that_does_not_answer_is_a_typed_error(tmp_path: Path, s3_endpoint: str) -> None:
    blobs = open_blobs(f"s3://bucket?endpoint_url=http://127.0.0.1:{free_port()}", scratch=tmp_path / "s")
    with pytest.raises(BlobError, match="EndpointConnectionError"):
        blobs.get(KEY)


@pytest.mark.parametrize(
    "place", ["s3://", "s3://user:secret@bucket/x", "s3://bucket?unknown=1", "gs://bucket", "http://x"]
)
def test_addresses_that_make_no_sense_are_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        open_blobs(place, scratch=tmp_path)
    assert "secret" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableError):
        open_blobs(str(tmp_path / "file" / "blobs"))


def test_a_folder_that_vanished_fails_the_check(tmp_path: Path) -> None:
    blobs = open_blobs(str(tmp_path / "blobs"))
    blobs.scratch.rmdir()
    with pytest.raises(BlobError, match="missing"):
        blobs.check()


def test_a_process_that_is_killed_while_it_puts_leaves_no_half_of_a_blob(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from pfl_server.storage.blobs import open_blobs\n"
        "blobs = open_blobs(sys.argv[1])\n"
        "real = os.replace\n"
        "os.replace = lambda a, b: os._exit(9)\n"
        "blobs.put('sets/ab', b'x' * 1000)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "blobs")], check=False)
    assert done.returncode == 9
    blobs = open_blobs(str(tmp_path / "blobs"))
    assert blobs.size("sets/ab") is None
    assert list(blobs.keys("")) == []
