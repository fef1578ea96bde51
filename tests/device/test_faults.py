"""What stands between a device and its aggregator is told from it, ends it or is tried again, and loses nothing."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import threading
import time

import pytest

from pfl_mobile.device.client import Client
from pfl_mobile.device.events import Offline
from pfl_mobile.errors import (
    CertificateError,
    DeviceError,
    NotTheAggregatorError,
    OtherProtocolError,
    ProtocolError,
    RedirectedError,
    TlsError,
    TooLargeOnTheWayError,
    UnreachableError,
)
from tests.device.conftest import QUICK, device
from tests.device.fake_server import answer, serving
from tests.device.strangers import Certificates, http_bytes, proxy, raw

PAGE = {"Content_Type": "text/html", "Server": "nginx/1.24.0"}
SIGN_IN = b"<html><title>Welcome to our network</title>"
_, _, INFO = answer(
    {
        "server": "s",
        "bundle": {"name": "m", "version": "1", "fingerprint": "0" * 64},
        "enrolment": "open",
        "privacy": {},
        "max_update_bytes": 1,
        "state": "running",
    }
)
OURS = {"PFL_Protocol": "1", "Content_Type": "application/json"}


def asked(address, **settings):
    """The error of the first request, and how long it took."""
    began = time.monotonic()
    with Client(address, backoff=QUICK, timeout_s=2.0, **settings) as client:
        client.credential = "pfl_device_secret"
        with pytest.raises(DeviceError) as caught:
            client.federation()
    assert caught.value.mend
    assert "pfl_device_secret" not in str(caught.value)
    return caught.value, time.monotonic() - began


# -- answers that end the try at once

ENDS = {
    "a sign-in page": (http_bytes(200, SIGN_IN, **PAGE), NotTheAggregatorError, "sign in first"),
    "an empty answer": (http_bytes(204), NotTheAggregatorError, "address and port"),
    "another service's JSON": (
        http_bytes(200, b'{"status": "ok"}', Content_Type="application/json"),
        NotTheAggregatorError,
        "address and port",
    ),
    "what could be an answer, without the header": (
        http_bytes(200, INFO, Content_Type="application/json"),
        NotTheAggregatorError,
        "older version",
    ),
    "a proxy's 404": (http_bytes(404, b"<html>", **PAGE), NotTheAggregatorError, "'nginx/1.24.0'"),
    "a CDN's problem": (
        http_bytes(404, b'{"code": "round-closed"}', Content_Type="application/problem+json"),
        NotTheAggregatorError,
        "application/problem",
    ),
    "a firewall's 403": (http_bytes(403, b"blocked", **PAGE), NotTheAggregatorError, "status 403"),
    "a proxy's 401": (http_bytes(401, WWW_Authenticate="Basic"), NotTheAggregatorError, "status 401"),
    "a network that wants a sign-in": (http_bytes(511, SIGN_IN, **PAGE), NotTheAggregatorError, "sign in"),
    "a proxy that wants a password": (http_bytes(407, **PAGE), NotTheAggregatorError, "HTTPS_PROXY"),
    "a redirect to HTTPS": (
        http_bytes(301, Location="https://pfl.example.org/v1/federation"),
        RedirectedError,
        "--server https://pfl.example.org",
    ),
    "a redirect to a page": (
        http_bytes(302, Location="http://portal.example/?to=x"),
        RedirectedError,
        "portal.example",
    ),
    "a redirect to nowhere": (http_bytes(307), RedirectedError, "address"),
    "a redirect in the aggregator's name": (
        http_bytes(308, PFL_Protocol="1", Location="/x"),
        RedirectedError,
        "/x",
    ),
    "a later protocol": (http_bytes(200, b"{}", PFL_Protocol="2"), OtherProtocolError, "update pfl-mobile"),
    "an earlier protocol": (http_bytes(404, PFL_Protocol="0"), OtherProtocolError, "update the aggregator"),
    "an aggregator's answer that was compressed": (
        http_bytes(200, gzip.compress(INFO), Content_Encoding="gzip", **OURS),
        ProtocolError,
        "compress",
    ),
    "a compressed page": (
        http_bytes(200, gzip.compress(SIGN_IN), Content_Encoding="gzip", **PAGE),
        NotTheAggregatorError,
        "not an aggregator",
    ),
    "an answer of another shape": (http_bytes(200, b"[1]", **OURS), ProtocolError, "protocol version 1"),
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n", NotTheAggregatorError, "speaks no HTTP"),
    "Redis": (b"-ERR unknown command\r\n", NotTheAggregatorError, "speaks no HTTP"),
    "a mail server": (b"220 mx.example ESMTP\r\n", NotTheAggregatorError, "speaks no HTTP"),
    "binary": (bytes(range(256)), NotTheAggregatorError, "speaks no HTTP"),
}


@pytest.mark.parametrize("name", ENDS)
def test_what_waiting_cannot_mend_ends_at_once(name):
    sent, kind, words = ENDS[name]
    with raw(sent) as (host, seen):
        error, seconds = asked(f"http://{host}")
    assert type(error) is kind
    assert words in str(error)
    assert f"http://{host}" in error.message or kind is ProtocolError
    assert len([s for s in seen if s.startswith(b"GET /")]) == 1  # and no second try
    assert seconds < 4


def test_a_strange_answer_cannot_write_to_the_terminal():
    sent = http_bytes(302, Location="http://a/\x1b[2J" + "x" * 4000, Server="\x1b[31m" * 50)
    with raw(sent) as (host, _):
        error, _ = asked(f"http://{host}")
    assert "\x1b" not in str(error)
    assert len(str(error)) < 800


# -- answers that may pass

PASSES = {
    "502": http_bytes(502, b"<html>", **PAGE),
    "503 as JSON": http_bytes(503, b'{"error": "busy"}', Content_Type="application/json"),
    "504": http_bytes(504, **PAGE),
    "500": http_bytes(500, **PAGE),
    "520 of a CDN": http_bytes(520, **PAGE),
    "429 of a CDN": http_bytes(429, Retry_After="0", **PAGE),
    "408": http_bytes(408, **PAGE),
    "no answer": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nPFL-Pro",
    "half a body": http_bytes(200, INFO[:40], **OURS, Content_Length=str(len(INFO))),
    "a cut body that says it is whole": http_bytes(200, INFO[:40], **OURS),
    "no body": http_bytes(200, b"", **OURS),
    "half a problem": http_bytes(503, b'{"code": "unav', Content_Length="900", PFL_Protocol="1"),
}


@pytest.mark.parametrize("name", PASSES)
def test_what_may_pass_is_tried_again(name):
    with raw(PASSES[name], PASSES[name], http_bytes(200, INFO, **OURS)) as (host, seen):
        with Client(f"http://{host}", backoff=QUICK, timeout_s=2.0) as client:
            assert client.federation().server == "s"
        assert len([s for s in seen if s.startswith(b"GET /")]) == 3


@pytest.mark.parametrize("name", PASSES)
def test_what_does_not_pass_is_told(name):
    with raw(PASSES[name]) as (host, _):
        error, _ = asked(f"http://{host}")
    assert isinstance(error, UnreachableError) or "refuses" in error.message


def test_a_port_where_nothing_listens_may_pass():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    error, _ = asked(f"http://127.0.0.1:{port}")
    assert type(error) is UnreachableError


def test_a_name_without_an_address_may_pass(monkeypatch):
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.delenv("ALL_PROXY", raising=False)
    error, _ = asked("https://no-such-host.invalid")
    assert type(error) is UnreachableError
    assert "spelling" in error.mend


def test_something_between_may_not_make_a_device_wait_for_long():
    with (
        raw(http_bytes(503, Retry_After="86400")) as (host, _),
        Client(f"http://{host}", backoff=QUICK) as client,
    ):
        client.cancel.set()
        with pytest.raises(UnreachableError) as caught:
            client.federation()
    assert caught.value.retry_after_s == 60


# -- TLS

CERTIFICATES = {
    "signed by itself": ({"own": True}, "--ca"),
    "expired": ({"days": (-9, -2)}, "renew"),
    "not yet valid": ({"days": (2, 9)}, "clock"),
    "of another name": ({"host": "other.example"}, "name that is in the certificate"),
    "of another address": ({"host": "127.0.0.2"}, "name that is in the certificate"),
}


@pytest.mark.parametrize("name", CERTIFICATES)
def test_certificates_that_do_not_fit_end_the_try(name, tmp_path):
    settings, words = CERTIFICATES[name]
    made = Certificates(tmp_path)
    with raw(http_bytes(200, INFO, **OURS), tls=made.context(**settings)) as (host, seen):
        error, seconds = asked(f"https://{host}", ca=str(made.ca))
    assert type(error) is CertificateError
    assert words in error.mend
    assert seen == []
    assert seconds < 2


def test_an_authority_that_nobody_knows_ends_the_try(tmp_path):
    with raw(b"", tls=Certificates(tmp_path).context()) as (host, seen):
        error, _ = asked(f"https://{host}")
    assert type(error) is CertificateError
    assert "--ca" in error.mend
    assert seen == []


def test_an_authority_that_is_given_is_trusted(tmp_path):
    made = Certificates(tmp_path)
    with (
        raw(http_bytes(200, INFO, **OURS), tls=made.context()) as (host, _),
        Client(f"https://{host}", ca=str(made.ca), timeout_s=2.0) as client,
    ):
        assert client.federation().server == "s"


@pytest.mark.parametrize("sent", [http_bytes(400, **PAGE), b"SSH-2.0-x\r\n", bytes(300)])
def test_https_to_a_port_without_tls_ends_the_try(sent):
    with raw(sent) as (host, seen):
        error, _ = asked(f"https://{host}")
    assert type(error) is TlsError
    assert "http://" in error.mend
    assert len(seen) == 1


def test_http_to_a_port_with_tls_ends_the_try(tmp_path):
    with raw(b"", tls=Certificates(tmp_path).context()) as (host, _):
        error, _ = asked(f"http://{host}")
    assert type(error) is TlsError
    assert f"https://{host}" in error.mend


def test_http_to_a_port_with_tls_that_says_so_ends_the_try(tmp_path):
    """As nginx and Go do: a page with status 400 to plain HTTP, TLS to those who speak it."""
    context = Certificates(tmp_path).context()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        for _ in range(3):
            connection, _ = listener.accept()
            if connection.recv(1, socket.MSG_PEEK) == b"\x16":
                connection = context.wrap_socket(connection, server_side=True)
            else:
                connection.recv(65536)
                connection.sendall(http_bytes(400, b"The plain HTTP request was sent to HTTPS port", **PAGE))
            connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    error, _ = asked(f"http://127.0.0.1:{listener.getsockname()[1]}")
    thread.join(5)
    listener.close()
    assert type(error) is TlsError


def test_a_server_with_older_tls_alone_ends_the_try(tmp_path):
    made = Certificates(tmp_path)
    context = made.context()
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with raw(b"", tls=context) as (host, _):
        error, _ = asked(f"https://{host}", ca=str(made.ca))
    assert type(error) is TlsError
    assert "TLS 1.2" in error.mend


def test_a_server_that_asks_for_a_certificate_ends_the_try(tmp_path):
    made = Certificates(tmp_path)
    context = made.context()
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(made.ca)
    with raw(b"", tls=context) as (host, _):
        error, _ = asked(f"https://{host}", ca=str(made.ca))
    assert type(error) is TlsError
    assert "certificate of the device" in error.mend


def test_a_handshake_that_breaks_may_pass(tmp_path):
    with raw(b"") as (host, seen):
        error, _ = asked(f"https://{host}")
    assert type(error) is UnreachableError
    assert len(seen) == QUICK.attempts


@pytest.mark.parametrize(
    ("status", "kind"), [(407, NotTheAggregatorError), (403, NotTheAggregatorError), (503, UnreachableError)]
)
def test_a_proxy_that_refuses_the_way_is_told(status, kind, monkeypatch):
    with raw(http_bytes(status, **PAGE)) as (host, seen):
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@{host}")
        monkeypatch.delenv("https_proxy", raising=False)
        error, _ = asked("https://pfl.example.org")
        assert type(error) is kind
        assert "secret" not in str(error)
        assert seen[0].startswith(b"CONNECT pfl.example.org:443")


# -- a whole device behind a proxy

OWN = {
    "404": (404, PAGE, b"<html>"),
    "410 with a problem of the protocol": (
        410,
        {"Content-Type": "application/problem+json"},
        b'{"code": "round-closed"}',
    ),
    "422 with a code of ours": (422, {"Content-Type": "application/json"}, b'{"code": "update-not-finite"}'),
    "200 that accepts": (200, {"Content-Type": "application/json"}, b'{"status": "accepted"}'),
    "200 of a sign-in page": (200, PAGE, SIGN_IN),
    "302": (302, {"Location": "http://portal.example/"}, b""),
    "511": (511, PAGE, SIGN_IN),
}


@pytest.mark.parametrize("name", OWN)
def test_no_answer_of_a_proxy_loses_an_update(name, tmp_path, fake, address):
    broken = [True]

    def strange(method, path, headers, length):
        if path.endswith("/update") and broken[0]:
            return OWN[name]
        return None

    with proxy(address, strange) as through:
        with device(tmp_path, through, patience_s=600.0) as found, pytest.raises(NotTheAggregatorError):
            found.run()  # at once: the aggregator answers elsewhere, so the network has not changed
        assert found.summary.dropped == 0
        assert len(found.folder.pending()[0]) == 1
        assert fake.accepted == []
        broken[0] = False
        with device(tmp_path, through) as found:
            assert found.run().rounds == 1
    assert len(fake.accepted) == 1


def test_a_sign_in_page_on_the_move_passes(tmp_path, fake, address):
    """The aggregator was heard from before, so the network has changed; it is tried again with pauses."""
    fake.rounds, pages = 2, [3]

    def strange(method, path, headers, length):
        if (path == "/v1/check-in" or pages[0] < 3) and fake.round == 1 and pages[0]:
            pages[0] -= path == "/v1/check-in"
            return 200, PAGE, SIGN_IN
        return None

    with proxy(address, strange) as through, device(tmp_path, through) as found:
        assert found.run().rounds == 2
    assert sum(isinstance(event, Offline) for event in found.events) == 3


def test_a_sign_in_page_ends_a_device_that_checks_in_once(tmp_path, fake, address):
    def strange(method, path, headers, length):
        return (200, PAGE, SIGN_IN) if path == "/v1/check-in" else None

    with (
        proxy(address, strange) as through,
        device(tmp_path, through) as found,
        pytest.raises(NotTheAggregatorError),
    ):
        found.run(once=True)
    assert not any(isinstance(event, Offline) for event in found.events)


def test_nothing_is_sent_to_what_is_not_the_aggregator_at_the_start(tmp_path, fake, address):
    with device(tmp_path, address) as found:
        found.run()
    seen = []

    def strange(method, path, headers, length):
        seen.append((method, path, headers))
        return 200, PAGE, SIGN_IN

    with (
        proxy(address, strange) as through,
        device(tmp_path, through) as found,
        pytest.raises(NotTheAggregatorError),
    ):
        found.run()
    assert [(method, path) for method, path, _ in seen] == [("GET", "/v1/federation")]
    assert not any("authorization" in map(str.lower, headers) for *_, headers in seen)


def test_an_update_that_a_proxy_does_not_let_pass_waits_and_is_told_with_its_size(tmp_path, fake, address):
    limit, tried = [100], []

    def strange(method, path, headers, length):
        if length > limit[0] and path.endswith("/update"):
            tried.append(length)
            return 413, PAGE, b"<html>"
        return None

    with proxy(address, strange) as through:
        with device(tmp_path, through) as found, pytest.raises(TooLargeOnTheWayError) as caught:
            found.run()
        (waiting,) = found.folder.pending()[0]
        assert tried == [waiting.bytes]  # sent once, not for ever
        assert f"{waiting.bytes} bytes" in caught.value.message
        assert f"{waiting.bytes} bytes" in caught.value.mend
        assert fake.accepted == []
        limit[0] = 1 << 20
        with device(tmp_path, through) as found:
            assert found.run().rounds == 1
    assert len(fake.accepted) == 1


def test_a_gateway_without_its_server_is_waited_for(tmp_path, fake, address):
    down = [20]

    def strange(method, path, headers, length):
        if down[0]:
            down[0] -= 1
            return 502, PAGE, b"<html>"
        return None

    with proxy(address, strange) as through, device(tmp_path, through) as found:
        assert found.run().rounds == 1
    assert any(isinstance(event, Offline) for event in found.events)


def test_every_answer_of_the_fake_carries_the_header(fake):
    with serving(fake) as address, Client(address) as client:
        client.federation()
        assert client.reached
    assert json.loads(INFO)["server"] == "s"
