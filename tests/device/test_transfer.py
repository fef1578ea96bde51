from __future__ import annotations

import hashlib
import random
import threading
import time

import httpx2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_mobile.device.backoff import Backoff
from pfl_mobile.device.client import Client, parse
from pfl_mobile.device.transfer import download, upload
from pfl_mobile.errors import (
    ConfigError,
    DeviceFolderError,
    ProtocolError,
    ServerProblem,
    UnreachableError,
)
from pfl_mobile.protocol.bodies import CheckIn, Download, FederationInfo
from tests.device.chaos import breaking
from tests.device.conftest import ID, QUICK, device, linear_model
from tests.device.fake_server import Fake, answer, problem, serving
from tests.local.fake import linear_rows


def client(handler, **rest):
    return Client("http://localhost", transport=httpx2.MockTransport(handler), **{"backoff": QUICK, **rest})


def replies(*given):
    """A handler that gives these answers in turn, and the requests it saw."""
    left, seen = list(given), []

    def handle(request):
        seen.append(request)
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        status, headers, body = found
        return httpx2.Response(status, headers=headers, content=iter([body]))

    return handle, seen


INFO = answer(
    {
        "server": "s",
        "bundle": {"name": "m", "version": "1", "fingerprint": "0" * 64},
        "enrolment": "open",
        "privacy": {},
        "max_update_bytes": 1,
        "state": "running",
    }
)


# -- requests


def test_what_may_pass_is_tried_again():
    handle, seen = replies(httpx2.ConnectError("no route"), problem(503, "unavailable"), INFO)
    with client(handle) as c:
        assert c.federation().bundle.name == "m"
    assert len(seen) == 3


def test_what_will_not_pass_is_not_tried_again():
    handle, seen = replies(problem(403, "device-revoked"))
    with client(handle) as c, pytest.raises(ServerProblem) as error:
        c.federation()
    assert (error.value.code, error.value.status, len(seen)) == ("device-revoked", 403, 1)
    assert error.value.mend == "change it"


def test_it_gives_up_after_the_attempts():
    handle, seen = replies(*[httpx2.ReadTimeout("slow")] * 9)
    with client(handle) as c, pytest.raises(UnreachableError):
        c.federation()
    assert len(seen) == QUICK.attempts


def test_retry_after_is_honoured():
    handle, _ = replies(problem(429, "rate-limited", **{"Retry-After": "1"}), INFO)
    began = time.monotonic()
    with client(handle) as c:
        c.federation()
    assert time.monotonic() - began >= 1.0


def test_an_error_that_is_no_problem_keeps_its_status():
    handle, _ = replies((418, {"PFL-Protocol": "1"}, b"<html>"))
    with client(handle) as c, pytest.raises(ServerProblem) as error:
        c.federation()
    assert error.value.code == "http-418"


@pytest.mark.parametrize("body", [b"[]", b'{"server": 1}', b"null", b'"x"'])
def test_an_answer_that_is_none_of_the_protocol_is_told(body):
    handle, seen = replies((200, {"PFL-Protocol": "1"}, body))
    with client(handle) as c, pytest.raises(ProtocolError, match="GET /v1/federation"):
        c.federation()
    assert len(seen) == 1


@pytest.mark.parametrize("length", [0, 1, 40, len(INFO[2]) - 1])
def test_an_answer_that_was_cut_off_is_asked_for_again(length):
    handle, seen = replies((200, INFO[1], INFO[2][:length]), INFO)
    with client(handle) as c:
        assert c.federation().server == "s"
    assert len(seen) == 2


def test_later_fields_are_ignored():
    body = b'{"protocol": 1, "later": 2, ' + INFO[2][1:]
    assert parse(FederationInfo, body, "x").server == "s"


@pytest.mark.parametrize("path", ["http://elsewhere/v1/sets/a", "//elsewhere/a", "v1/a"])
def test_the_credential_goes_to_no_other_place(path, tmp_path):
    handle, seen = replies()
    with client(handle, credential="secret") as c, pytest.raises(ProtocolError, match="address"):
        download(c, Download(sha256="0" * 64, bytes=1, url=path), tmp_path / "set")
    assert seen == []


@pytest.mark.parametrize(
    "server",
    [
        *("", "ftp://a", "http://", "https://a?b", "http://example.org", "a.example", "//a", "https://:1"),
        *("https://a:99999", "https://a:b", "https://[::1", "https://a b", "https://a\n", "https://\x00"),
        *("https://user:secret@a", "https://user@a", "https://a..b", f"https://{'a' * 64}.b"),
    ],
)
def test_unsafe_addresses_are_refused(server):
    with pytest.raises(ConfigError) as error:
        Client(server)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "proxy", ["socks5://u:secret@a:1", "nonsense://secret", "http://u:secret@a..b", "http://[::1", "::"]
)
def test_a_proxy_that_cannot_be_used_is_told_without_its_password(proxy, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigError, match="proxy") as error, Client("https://pfl.example.org") as c:
        c.federation()
    assert "secret" not in str(error.value)


def test_plain_http_can_be_allowed():
    for server, allow in (("http://example.org", True), ("http://127.0.0.1:1", False)):
        handle, seen = replies(INFO)
        with Client(server, allow_http=allow, transport=httpx2.MockTransport(handle)) as c:
            assert c.federation().server == "s"
        assert [str(r.url) for r in seen] == [f"{server}/v1/federation"]


def test_a_cancelled_client_stops_waiting():
    handle, _ = replies(*[problem(503, "unavailable", **{"Retry-After": "60"})] * 2)
    with client(handle) as c:
        threading.Timer(0.05, c.cancel.set).start()
        with pytest.raises(ServerProblem):
            c.federation()


# -- downloads


def ranged(data, log, *, ranges=True):
    """A handler that sends the data, and breaks off where ``log`` has a number."""
    digest = hashlib.sha256(data).hexdigest()

    def handle(request):
        first = 0
        if ranges and request.headers.get("If-Range") == f'"{digest}"':
            first = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
        most = log.pop(0) if log else len(data)

        def body():
            part = data[first : first + most]
            for i in range(0, len(part), 7):
                yield part[i : i + 7]
            if first + most < len(data):
                raise httpx2.ReadError("broken")

        headers = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"} if first else {}
        headers["PFL-Protocol"] = "1"
        return httpx2.Response(206 if first else 200, headers=headers, content=body())

    return handle, Download(sha256=digest, bytes=len(data), url="/v1/sets/x")


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 200), max_size=8), st.booleans())
def test_a_download_that_breaks_anywhere_ends_with_the_right_bytes(data, breaks, ranges):
    import tempfile
    from pathlib import Path

    handle, what = ranged(data, breaks, ranges=ranges)
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "set"
        with client(handle, backoff=Backoff(attempts=12, first_s=0.0, most_s=0.0)) as c:
            download(c, what, to)
        assert to.read_bytes() == data
        assert [p.name for p in Path(folder).iterdir()] == ["set"]


def test_a_part_of_a_killed_process_is_gone_on_from(tmp_path):
    data = bytes(range(256)) * 4
    handle, what = ranged(data, [])
    (tmp_path / "set.part").write_bytes(data[:1000])
    with client(handle) as c:
        download(c, what, tmp_path / "set")
        assert c.traffic.down == 24
    assert (tmp_path / "set").read_bytes() == data


def test_a_spoilt_part_is_found_and_fetched_again(tmp_path):
    data = bytes(range(256))
    handle, what = ranged(data, [])
    (tmp_path / "set.part").write_bytes(b"\0" * 100)
    with client(handle) as c:
        download(c, what, tmp_path / "set")
    assert (tmp_path / "set").read_bytes() == data


def test_bytes_with_another_digest_are_never_used(tmp_path):
    handle, what = ranged(b"abc", [])
    what = what.model_copy(update={"sha256": "0" * 64})
    with client(handle) as c, pytest.raises(UnreachableError, match="digest"):
        download(c, what, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_more_bytes_than_told_are_refused(tmp_path):
    handle, what = ranged(b"abcdef", [])
    with client(handle) as c, pytest.raises(ProtocolError, match="more than the 3 bytes"):
        download(c, what.model_copy(update={"bytes": 3}), tmp_path / "set")


# -- over connections that break


@pytest.mark.parametrize("seed", range(6))
def test_a_federation_over_connections_that_break_at_random_bytes(tmp_path, seed):
    fake = Fake({"name": ID.name, "version": ID.version, "fingerprint": ID.fingerprint}, rounds=3)
    big = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    fake.values = {"head.weight": big}
    patient = Backoff(attempts=8, first_s=0.0, most_s=0.002)
    with (
        serving(fake) as address,
        breaking(address, seed, most=1200) as broken,
        device(tmp_path, broken, backoff=patient, patience_s=60.0) as found,
    ):
        summary = found.run()
    assert summary.rounds == 3
    assert [t["round"] for t in fake.accepted] == [0, 1, 2]
    assert len(fake.tasks) == 3
    for task in fake.accepted:
        fake.update_of(task)
        assert len({str(e) for e in task["evaluations"]}) == 1


@pytest.mark.parametrize("seed", range(4))
def test_an_upload_over_connections_that_break_sends_each_part_about_once(tmp_path, seed):
    fake = Fake({"name": ID.name, "version": ID.version, "fingerprint": ID.fingerprint})
    data = random.Random(seed).randbytes(40_000)
    (tmp_path / "update").write_bytes(data)
    with serving(fake) as address:
        with Client(address, backoff=QUICK) as c:
            c.credential = "x"
            fake.devices["x"] = "x"
            task = c.check_in(CheckIn(bundle=linear_model().bundle, examples=10)).task
        with (
            breaking(address, seed, share=0.8, most=9000) as broken,
            Client(broken, credential="x", backoff=Backoff(40, 0.0, 0.001), timeout_s=2.0) as c,
        ):
            state = upload(c, task.update_url, tmp_path / "update", "key")
            assert state.status == "accepted"
            assert c.traffic.up < 20 * len(data)
    assert bytes(fake.accepted[0]["body"]) == data


def test_a_lost_answer_does_not_send_the_update_again(tmp_path):
    fake = Fake({"name": ID.name, "version": ID.version, "fingerprint": ID.fingerprint})
    original = fake.update

    def losing(method, task, headers, body):
        found = original(method, task, headers, body)
        if method == "PUT" and not losing.lost:
            losing.lost = True
            raise ConnectionResetError
        return found

    losing.lost = False
    fake.update = losing
    with serving(fake) as address, device(tmp_path, address, examples=linear_rows(60)) as found:
        assert found.run().rounds == 1
    assert next(iter(fake.tasks.values()))["puts"] == 1
    assert next(e for e in found.events if type(e).__name__ == "Uploaded").duplicate


@pytest.mark.parametrize("name", ["missing", "folder"])
def test_a_file_that_cannot_be_read_is_not_taken_for_the_network(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with (
        serving(Fake(ID)) as address,
        Client(address, backoff=QUICK) as c,
        pytest.raises(DeviceFolderError, match="cannot be read"),
    ):
        upload(c, "/v1/tasks/0/update", tmp_path / name, "key")
