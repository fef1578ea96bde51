"""Bytes in pieces, with their length and digest."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from pathlib import Path

import pytest

from pfl_mobile.bundle.stream import CHUNK, chunks_of, copy
from pfl_mobile.errors import MissingFileError, UnreadableFileError, UnsafePathError

DATA = os.urandom(2 * CHUNK + 5)


def test_a_copy_tells_length_and_digest() -> None:
    target = io.BytesIO()
    entry = copy([b"ab", b"", b"c"], target)
    assert target.getvalue() == b"abc"
    assert (entry.bytes, entry.sha256) == (3, hashlib.sha256(b"abc").hexdigest())
    assert copy([b"abc"], None) == entry


@pytest.mark.parametrize("from_file", [True, False])
def test_pieces_make_up_the_whole_and_progress_is_told(tmp_path: Path, from_file: bool) -> None:
    (tmp_path / "f").write_bytes(DATA)
    told: list[tuple[str, int, int]] = []
    source = tmp_path / "f" if from_file else DATA
    pieces = list(chunks_of("f", source, lambda *p: told.append(p), done=10, total=99))
    assert [len(p) for p in pieces] == [CHUNK, CHUNK, 5]
    assert b"".join(pieces) == DATA
    assert told == [("f", 10 + CHUNK, 99), ("f", 10 + 2 * CHUNK, 99), ("f", 15 + 2 * CHUNK, 99)]


def test_nothing_is_read_far_beyond_the_limit() -> None:
    assert sum(len(p) for p in chunks_of("f", DATA, limit=1)) == CHUNK
    assert sum(len(p) for p in chunks_of("f", DATA, limit=len(DATA))) == len(DATA)


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="f is not there"):
        list(chunks_of("f", tmp_path / "none"))
    with pytest.raises((UnsafePathError, UnreadableFileError)):
        list(chunks_of("f", tmp_path))


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and links of POSIX")
def test_pipes_and_links_do_not_hang_or_lead_away(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnsafePathError):
        list(chunks_of("f", tmp_path / "pipe"))
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert list(chunks_of("f", tmp_path / "link")) == [b"x"]
    with pytest.raises(UnreadableFileError):
        list(chunks_of("f", tmp_path / "link", links=False))
