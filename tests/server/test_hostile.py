"""What strangers, broken disks and hasty operators do to a server."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from pfl_mobile.errors import ConfigError, TensorFileError
from pfl_mobile.merge import update_rows as rows
from pfl_server import launch
from pfl_server.app import create_app
from pfl_server.errors import BlobMissingError, DatabaseError
from pfl_server.rounds.coordinator import Coordinator
from pfl_server.services import Services
from pfl_server.settings import ServerSettings
from pfl_server.storage.database import Database
from pfl_server.web import connection
from pfl_server.web.connection import HEAD_BYTES, BoundedHttp
from tests.server.basics import free_port
from tests.server.testbed import federation_config, small, update_of


@pytest.fixture
def port(opened: Services, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A real server whose heads must be there within a second."""
    monkeypatch.setattr(connection, "HEAD_S", 1.0)
    found = free_port()
    config = uvicorn.Config(
        create_app(opened, coordinate=False), port=found, log_config=None, access_log=False, http=BoundedHttp
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield found
    running.should_exit = True
    thread.join(30)


def say(port: int, *pieces: bytes, wait: float = 5.0, pause: float = 0.0) -> bytes:
    """What the server answers until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as sock:
        found = b""
        try:
            for piece in pieces:
                sock.sendall(piece)
                time.sleep(pause)
            while piece := sock.recv(65536):
                found += piece
        except ConnectionError:
            pass
        return found


BEGIN = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
CLOSE = b"Connection: close\r\n"


def test_an_endless_header_is_refused_before_it_fills_the_memory(port: int) -> None:
    # its last byte is one too many: where more comes after the end, the answer may be lost
    answer = say(port, BEGIN + b"X: ", b"a" * (HEAD_BYTES + 1), pause=0.3)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b'"code": "head-too-large"' in answer


def test_a_long_head_that_comes_at_once_is_refused(port: int) -> None:
    answer = say(port, BEGIN + b"X: " + b"a" * (HEAD_BYTES + 1) + b"\r\n\r\n")
    assert not answer.startswith(b"HTTP/1.1 200 ")


GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # the first bytes of TLS
    b"hello\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
    b"GET /healthz HTTP/7.9\r\nHost: x\r\n\r\n",
    b"GET http:// HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /v1/devices HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/devices HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n",
]


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("before", [b"", BEGIN + b"\r\n"])
def test_what_is_no_http_is_answered_with_a_problem(port: int, before: bytes, garbage: bytes) -> None:
    answer = say(port, *([before] if before else []), garbage, pause=0.2)
    if before:
        assert answer.startswith(b"HTTP/1.1 200 ")
        answer = answer[answer.index(b"HTTP/1.1 400 ") :]
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"pfl-protocol: 1" in head
    assert f"content-length: {len(body)}".encode() in head
    assert json.loads(body)["code"] == "bad-request"


def test_garbage_behind_a_request_is_no_answer_to_it(port: int) -> None:
    answer = say(port, BEGIN + b"\r\n" + GARBAGE[0])  # at once, so that no answer has begun
    assert b"HTTP/1.1 400 " not in answer


def test_a_head_below_the_limit_is_answered(port: int) -> None:
    assert say(port, BEGIN + CLOSE + b"X: " + b"a" * (HEAD_BYTES - 1000) + b"\r\n\r\n").startswith(
        b"HTTP/1.1 200 "
    )


def test_endless_trailers_end_the_connection(port: int) -> None:
    begin = b"POST /v1/check-in HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: "
    before = time.monotonic()
    say(port, begin, *[b"a" * 50_000] * 8, pause=0.05)
    assert time.monotonic() - before < 5.0


def test_a_body_in_tiny_chunks_is_read(port: int) -> None:
    begin = b"POST /v1/devices HTTP/1.1\r\nHost: x\r\n" + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n"
    answer = say(port, begin + b"8\r\naaaaaaaa\r\n" * 6000 + b"0\r\n\r\n")
    assert b'"code": "bad-request"' in answer or b'"code": "invalid-request"' in answer


@pytest.mark.parametrize("begin", [b"", b"GET / HT", BEGIN, BEGIN + CLOSE[:-2]])
def test_a_head_that_does_not_come_ends_the_connection(port: int, begin: bytes) -> None:
    assert say(port, begin) == b""  # and no timeout here


def test_empty_lines_between_requests_keep_no_connection(port: int) -> None:
    answer = say(port, BEGIN + b"\r\n", *[b"\r\n"] * 3, pause=0.2)
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    file = tmp_path / "federation.db"
    file.write_bytes(b"no database at all" * 500)
    with pytest.raises(DatabaseError, match="not a database") as found:
        Database(f"sqlite:///{file}").migrate()
    assert "restore" in found.value.mend


def test_a_start_that_cannot_listen_leaves_no_federation(federated_folder: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        program = "import sys; from pfl_mobile.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", program, "serve", str(federated_folder), "--no-privacy"]
        done = subprocess.run(
            [*command, "--data", str(tmp_path / "data"), "--port", str(taken.getsockname()[1])],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 2
    assert ConfigError.__name__ in done.stderr
    assert "Traceback" not in done.stderr
    # the database may be there, but nothing in it says what is trained
    settings = ServerSettings(bundle=federated_folder, data=tmp_path / "data")
    assert launch.stored_config(settings) is None


ROUND = {"rounds": {"cohort": 2, "minimum": 2}}


def test_files_that_cannot_be_opened_for_a_while_lose_no_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_many(*_: Any) -> FileIO:
        raise OSError(errno.EMFILE, "Too many open files")

    with small(tmp_path, federation_config(**ROUND), devices=2) as f:
        tasks = [f.send(device) for device in f.devices]
        with monkeypatch.context() as patch:
            patch.setattr(rows, "FileIO", too_many)
            with pytest.raises(TensorFileError):
                f.step()
        assert {f.assignment(task).state for task in tasks} == {"accepted"}
        f.clock.now += 100
        f.step()
        assert {f.assignment(task).state for task in tasks} == {"merged"}


def test_a_store_that_is_away_for_a_while_loses_no_update(tmp_path: Path) -> None:
    with small(tmp_path, federation_config(**ROUND), devices=2) as f:
        tasks = [f.send(device) for device in f.devices]
        store = tmp_path / "data" / "blobs"
        store.rename(tmp_path / "away")
        with pytest.raises(BlobMissingError):
            f.step()
        assert {f.assignment(task).state for task in tasks} == {"accepted"}
        (tmp_path / "away").rename(store)
        f.clock.now += 100
        f.step()
        assert {f.assignment(task).state for task in tasks} == {"merged"}


def test_an_update_whose_file_is_lost_ends_the_round(tmp_path: Path) -> None:
    with small(tmp_path, federation_config(**ROUND), devices=2) as f:
        tasks = [f.send(device) for device in f.devices]
        next((tmp_path / "data" / "blobs" / "updates").iterdir()).unlink()
        f.step()
        assert f.round(0).state == "failed"
        assert {f.assignment(task).state for task in tasks} == {"discarded"}


def test_a_clock_that_is_set_back_stops_no_round(tmp_path: Path) -> None:
    with small(tmp_path, federation_config(**ROUND), devices=2) as f:
        for device in f.devices:
            f.send(device)
        f.step()
        f.clock.now -= 86_400
        later = Coordinator(f.services)
        later.step()  # a process that was killed cannot give its lease back
        assert f.federation().version == 1
        assert f.round().state == "open"
        tasks = [f.send(device) for device in f.devices]
        Coordinator(f.services).step()
        assert f.federation().version == 1  # the lease is another's, by the same clock
        f.clock.now += 16  # nobody has renewed it since
        later.step()
        assert {f.assignment(task).state for task in tasks} == {"merged"}


def test_a_disk_that_became_read_only_is_a_passing_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with small(tmp_path, federation_config(**ROUND), devices=1) as f:
        task = f.task(f.devices[0])
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", read_only)
            answer = f.put(f.devices[0], task, update_of(task))
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert f.put(f.devices[0], task, update_of(task)).status_code == 200
